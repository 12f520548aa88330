"""The client's figures of each load point beside those that the engine and the GPU counted themselves, as Markdown.

    python -m tests.benchmarks.gpu.client_vs_server RUN_FOLDER...

vLLM's counters and histograms are read just before a point begins and just after it ends, so their differences hold all
of its requests: ramp, window, and what was cancelled at the end. The client's side is made of the same requests. In a
closed or open loop some requests are cut off at the end, of which the server may have made a few tokens that nobody
received; a point whose load ends by itself (`burst`) must agree to the token.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from harness.measured import measured
from harness.records import PointRun, RunRecord
from harness.store import RunFolder
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA

KV_FACTS = ("version", "weights_bytes", "kv_capacity_bytes", "kv_capacity_tokens", "kv_bytes_per_token", "graph_bytes")
ENERGY_SPAN_S = 30.0  # over shorter times the two differ by where their samples lie


@dataclass(frozen=True)
class Run:
    """One run folder: its record and both tables."""

    record: RunRecord
    requests: pd.DataFrame
    samples: pd.DataFrame

    @classmethod
    def open(cls, path: Path) -> Run:
        folder = RunFolder.open(path)
        return cls(folder.read_run(), folder.requests().to_pandas(), folder.telemetry().to_pandas())

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
        if before.empty or after.empty:
            return None
        return float(after.value.iloc[0] - before.value.iloc[-1])

    def mean_ms(self, name: str, point: PointRun) -> float | None:
        """The mean of one of vLLM's histograms over a point, in milliseconds."""
        total_s, count = self.grown(f"{name}_sum_s", point), self.grown(f"{name}_count", point)
        return 1e3 * total_s / count if total_s is not None and count else None


@dataclass(frozen=True)
class Client:
    """What the client saw of a point. `began`: requests whose first token arrived."""

    finished: int
    prompt_tokens: int
    output_tokens: int
    cut_off: int
    ttft_ms: float | None
    gap_ms: float | None
    e2e_ms: float | None


def client_of(rows: pd.DataFrame) -> Client:
    ok, began = rows[rows.status == "ok"], rows[rows.first_token_s.notna()]
    later = began.output_tokens.fillna(0) - began.first_chunk_tokens.fillna(1)
    spent_s = (began.last_token_s - began.first_token_s)[later > 0].sum()
    return Client(
        finished=len(ok),
        prompt_tokens=int(began.asked_input_tokens.fillna(0).sum()),
        output_tokens=int(began.output_tokens.fillna(0).sum()),
        cut_off=int((rows.status == "cancelled").sum()),
        ttft_ms=1e3 * float((began.first_token_s - began.sent_s).mean()) if len(began) else None,
        gap_ms=1e3 * float(spent_s / later[later > 0].sum()) if (later > 0).any() else None,
        e2e_ms=1e3 * float((ok.last_token_s - ok.sent_s).mean()) if len(ok) else None,
    )


def tables(name: str, run: Run) -> list[str]:
    """All tables of a run."""
    points = [p for p in run.record.points if None not in (p.start_s, p.open_s, p.close_s, p.end_s)]
    lines = [f"### {name}", ""]
    for point in points:
        asked = run.of_point(point)
        ok = asked[asked.status == "ok"]
        inexact = int((ok.output_tokens != ok.asked_output_tokens).sum())
        inexact += int((ok.input_tokens != ok.asked_input_tokens).sum())
        if inexact:
            lines += [f"**{point.point}: {inexact} lengths are not as asked.**", ""]
    lines += table(
        ["point", "requests: client", "vLLM", "prompt tokens: client", "vLLM", "output tokens: client", "vLLM",
         "cut off at the end", "preempted", "prefix hits"],
        [counts(run, point) for point in points],
    )  # fmt: skip
    lines += table(
        ["point", "TTFT ms: client", "vLLM", "difference", "ms a token: client", "vLLM", "difference",
         "E2E ms: client", "vLLM", "difference"],
        [latencies(run, point) for point in points],
    )  # fmt: skip
    lines += table(
        ["point", "queue ms", "prefill ms", "decode ms", "rest of vLLM's E2E ms", "client beyond that ms"],
        [where(run, point) for point in points],
    )
    return lines + memory(run, points) + energy(run, points)


def counts(run: Run, point: PointRun) -> list[str]:
    mine = client_of(run.of_point(point))
    theirs = [run.grown(f"{what}_total", point) for what in ("finished", "prompt_tokens", "generation_tokens")]
    pairs = zip((mine.finished, mine.prompt_tokens, mine.output_tokens), theirs, strict=True)
    cells = [cell for own, other in pairs for cell in (f"{own:,}", _number(other, "{:,.0f}"))]
    rest = [run.grown(metric, point) for metric in ("preemptions_total", "prefix_cache_hits_total")]
    return [point.point, *cells, str(mine.cut_off), *(_number(value, "{:,.0f}") for value in rest)]


def latencies(run: Run, point: PointRun) -> list[str]:
    mine = client_of(run.of_point(point))
    cells = [point.point]
    for own, name in ((mine.ttft_ms, "ttft"), (mine.gap_ms, "itl"), (mine.e2e_ms, "e2e")):
        other = run.mean_ms(name, point)
        apart = f"{(own / other - 1) * 100:+.1f} %" if own is not None and other else ""
        cells += [_number(own, "{:,.2f}"), _number(other, "{:,.2f}"), apart]
    return cells


def where(run: Run, point: PointRun) -> list[str]:
    """Where a finished request's time went. What is left of vLLM's own E2E is its HTTP process: reading, streaming."""
    parts = [run.mean_ms(name, point) for name in ("queue", "prefill", "decode")]
    e2e, own = run.mean_ms("e2e", point), client_of(run.of_point(point)).e2e_ms
    rest = e2e - sum(parts) if e2e is not None and None not in parts else None  # type: ignore[arg-type]
    beyond = own - e2e if own is not None and e2e is not None else None
    return [point.point, *(_number(value, "{:,.1f}") for value in (*parts, rest, beyond))]


def memory(run: Run, points: list[PointRun]) -> list[str]:
    """The KV cache: what the engine reserved by its log and its page, and how much of it held tokens at the peak by
    vLLM's usage (once a second, in whole blocks) and by the records (every chunk)."""
    facts = {fact.name: fact for engine in run.record.engines for fact in engine.facts}
    told = [f"{name} {facts[name].value} ({facts[name].source})" for name in KV_FACTS if name in facts]
    capacity = facts["kv_capacity_tokens"].value if "kv_capacity_tokens" in facts else None
    rows = []
    for point in points:
        used = run.series("vllm", "kv_used_ratio")
        inside = used[(used.time_s >= point.open_s) & (used.time_s < point.close_s)].value
        peak = inside.max() * capacity if len(inside) and isinstance(capacity, int | float) else None
        of_point = pa.Table.from_pandas(run.of_point(point), REQUEST_SCHEMA, preserve_index=False)
        live = measured(of_point, point, TELEMETRY_SCHEMA.empty_table(), [], {}).live_tokens_peak
        rows.append([point.point, _number(peak, "{:,.0f}"), f"{live:,.0f}"])
    return [*(f"- {line}" for line in told), "", *table(["point", "peak KV tokens: vLLM", "by the records"], rows)]


def energy(run: Run, points: list[PointRun]) -> list[str]:
    """Sampled power against the GPU's energy counter, over all points together and over each long one."""
    if not points:
        return []
    spans = [("all points", float(points[0].start_s or 0), float(points[-1].end_s or 0))]
    spans += [(p.point, float(p.start_s or 0), float(p.end_s or 0)) for p in points]
    rows = []
    for source in sorted(name for name in run.samples.source.unique() if name.startswith("nvidia")):
        counter, power = run.series(source, "energy_j"), run.series(source, "power_w")
        for name, start_s, end_s in spans:
            inside = counter[(counter.time_s >= start_s) & (counter.time_s <= end_s)]
            watts = power[(power.time_s >= start_s) & (power.time_s <= end_s)]
            if end_s - start_s < ENERGY_SPAN_S or len(inside) < 2 or len(watts) < 2:
                continue
            times = np.array([inside.time_s.iloc[0], inside.time_s.iloc[-1]])
            counted_j = float(inside.value.iloc[-1] - inside.value.iloc[0])
            grid = np.union1d(times, watts.time_s[(watts.time_s > times[0]) & (watts.time_s < times[1])])
            sampled_j = float(np.trapezoid(np.interp(grid, power.time_s, power.value), grid))
            apart = f"{(sampled_j / counted_j - 1) * 100:+.2f} %" if counted_j else ""
            rows.append([source, name, f"{times[1] - times[0]:.1f}", f"{sampled_j:,.0f}", f"{counted_j:,.0f}", apart])
    return table(["GPU", "window", "s", "J sampled", "J by its counter", "difference"], rows) if rows else []


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def main() -> None:
    for folder in sys.argv[1:]:
        print("\n".join(tables(Path(folder).name, Run.open(Path(folder)))))


if __name__ == "__main__":
    main()
