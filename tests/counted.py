"""A run folder for tests and benchmarks that hold an engine's own counters against known work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.records import PointRun, RunRecord
from harness.store import RunFolder


@dataclass(frozen=True)
class Counted:
    """A run's record and both tables, or those of one engine of it."""

    record: RunRecord
    requests: pd.DataFrame
    samples: pd.DataFrame

    @classmethod
    def open(cls, path: Path, engine: str | None = None) -> Counted:
        folder = RunFolder.open(path)
        requests, samples = folder.requests().to_pandas(), folder.telemetry().to_pandas()
        if engine is not None:
            requests, samples = requests[requests.engine == engine], samples[samples.engine == engine]
        return cls(folder.read_run(), requests, samples)

    def of_point(self, point: PointRun) -> pd.DataFrame:
        rows = self.requests
        return rows[(rows.engine == point.engine) & (rows.point == point.point) & (rows.repeat == point.repeat)]

    def series(self, source: str, metric: str) -> pd.DataFrame:
        rows = self.samples[(self.samples.source == source) & (self.samples.metric == metric)]
        return rows.sort_values("time_s")

    def grown(self, metric: str, point: PointRun, source: str = "vllm") -> float | None:
        """By how much a counter of the engine grew from just before a point to just after it."""
        rows = self.series(source, metric)
        before, after = rows[rows.time_s <= point.start_s], rows[rows.time_s >= point.end_s]
        return None if before.empty or after.empty else float(after.value.iloc[0] - before.value.iloc[-1])

    def mean_s(self, name: str, point: PointRun) -> float:
        """The mean of one of vLLM's histograms over a point; 0 where it counted nothing."""
        total_s, count = self.grown(f"{name}_sum_s", point), self.grown(f"{name}_count", point)
        return total_s / count if total_s is not None and count else 0.0
