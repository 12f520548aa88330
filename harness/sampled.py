"""Figures of telemetry inside the measured window. A hole in the samples is a hole: nothing is drawn across it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.measured import Measured
from harness.series import Floats, Series
from harness.statistics import Stat

HOLE = 3.0  # times the usual distance of two samples: further apart, what was between them is not known
COVERED_MIN = 0.5  # of the window: a mean of less is a mean of something else


def sampled(source: str, metric: str, reduce: str) -> Callable[[Measured], Stat]:
    """Telemetry inside the window: `peak`, or `mean` weighted by the time each sample stands for.
    Several devices (`nvidia:0`, `nvidia:1`) are added up."""

    def formula(m: Measured) -> Stat:
        total, count = 0.0, 0
        for series in devices(m, source, metric).values():
            count += sum(len(values) for _, values in series)
            covered = coverage(series, m.window_s)
            if reduce == "peak":
                total += max(float(values.max()) for _, values in series)
            elif covered is not None and covered < COVERED_MIN:
                reason = f"{source} {metric} was sampled in {covered * 100:.0f} % of the window only"
                return Stat(None, n=count, reason=reason)
            else:
                total += time_weighted_mean(series)
        return Stat(total, n=count) if count else Stat(None, reason=f"no {source} {metric} was sampled")

    return formula


def gpus(m: Measured) -> Stat:
    """How many GPUs were sampled (where it is known which ones the engine is on, only those are here)."""
    count = len(devices(m, "nvidia", "memory_used_bytes"))
    return Stat(float(count), n=count) if count else Stat(None, reason="no GPU was sampled")


# NVML's bits that say a clock is held down: https://docs.nvidia.com/deploy/nvml-api (nvmlClocksEventReasons)
THROTTLED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


def throttled(m: Measured) -> Stat:
    """Samples in which a GPU's clocks were held down, over all; of the GPU that was it most often."""
    shares = {}
    for name, series in devices(m, "nvidia", "throttle_reasons").items():
        masks = np.concatenate([values for _, values in series]).astype(np.int64)
        shares[name] = float((masks & sum(THROTTLED) != 0).mean())
    if not shares:
        return Stat(None, reason="no nvidia throttle_reasons was sampled")
    return Stat(max(shares.values()), n=len(shares))


def devices(m: Measured, source: str, metric: str) -> dict[str, list[Series]]:
    """The series of one metric of each device of a source."""
    return {
        where: series
        for (where, what), series in sorted(m.telemetry.items())
        if what == metric and where.split(":")[0] == source
    }


def time_weighted_mean(series: list[Series]) -> float:
    """Trapezoidal mean over the time that the samples cover: neither the time between two repeats nor a hole is any of
    it. The plain mean where all samples are of one moment."""
    span_s = area = 0.0
    for times, values in series:
        joined = _joined(times)
        steps_s = np.diff(times)[joined]
        span_s += float(steps_s.sum())
        area += float((steps_s * ((values[1:] + values[:-1]) / 2)[joined]).sum())
    if span_s <= 0:
        return float(np.concatenate([values for _, values in series]).mean())
    return area / span_s


def coverage(series: list[Series], window_s: float) -> float | None:
    """The share of the window (of all repeats together) that the samples speak of, at most 1; None where one sample a
    repeat tells no distance. Each sample stands for half a distance on both of its sides."""
    covered_s = 0.0
    for times, _ in series:
        if len(times) < 2:
            return None
        steps_s, joined = np.diff(times), _joined(times)
        usual_s = float(np.median(steps_s))
        covered_s += float(steps_s[joined].sum()) + usual_s * (1 + int((~joined).sum()))
    return min(covered_s / window_s, 1.0) if window_s > 0 else None


def _joined(times: Floats) -> Any:
    """Which neighbours belong together: those not further apart than `HOLE` times the usual distance."""
    steps_s = np.diff(times)
    return steps_s <= HOLE * np.median(steps_s) if len(steps_s) else np.zeros(0, dtype=bool)
