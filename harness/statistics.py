"""Means, percentiles and their 95 % intervals: from repeats where there are several, else from requests.

What cannot be said is None with the reason, never 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from harness.series import Floats

BEYOND = 5  # samples that must lie beyond a percentile: p95 needs 100 of them, p99 500
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Stat:
    """A figure with its 95 % interval, the number of samples behind it, and why it is missing if it is."""

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    reason: str | None = None


def between_repeats(whole: Stat, values: list[float]) -> Stat:
    """`whole` with the interval that its value had over repeats; no metric can be negative, so no bound is."""
    if whole.value is None:
        return whole
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Stat(whole.value, max(0.0, whole.value - half), whole.value + half, whole.n)


def statistic(values: Floats, stat: str, what: str = "requests", n: int | None = None) -> Stat:
    """A mean or quantile of samples, these in order; None with the reason where there are too few. `n`: independent
    samples."""
    count = len(values)
    independent = count if n is None else min(n, count)
    if count == 0:
        return Stat(None, reason=f"no {what} to take it of")
    if stat == "mean":
        return Stat(mean_of(values), n=count)
    quantile = QUANTILES[stat]
    needed = 2 * BEYOND if quantile == 0.5 else math.ceil(BEYOND / (1 - quantile) - 1e-9)
    if count < needed:
        return Stat(None, n=count, reason=f"{stat} needs {needed} {what}, there are {count}")
    return Stat(quantile_of(values, quantile), n=independent)


def mean_of(values: Floats) -> float:
    """In double precision, whatever the values are in."""
    return float(values.mean(dtype=np.float64))


def quantile_of(values: Floats, share: float) -> float:
    """The quantile of values in order, on a straight line between the two nearest (as numpy and pandas have it)."""
    place = share * (len(values) - 1)
    below = int(place)
    low, high = float(values[below]), float(values[min(below + 1, len(values) - 1)])
    return low + (high - low) * (place - below)


def interval(in_time: Floats, ordered: Floats, stat: str, n: int) -> tuple[float | None, float | None]:
    """95 % interval of one statistic of samples, given as they came and in order: batch means (they are not
    independent in time), or order statistics."""
    if stat == "mean":
        batches = min(20, len(in_time) // 3)
        if batches < 5:
            return None, None
        means = [mean_of(part) for part in np.array_split(in_time, batches)]
        half = t_quantile(batches - 1) * float(np.std(means, ddof=1)) / math.sqrt(batches)
        centre = mean_of(in_time)
        return max(0.0, centre - half), centre + half
    quantile = QUANTILES[stat]
    half = 1.96 * math.sqrt(quantile * (1 - quantile) / max(n, 1))
    if quantile + half > 1 or quantile - half < 0:
        return None, None
    return quantile_of(ordered, quantile - half), quantile_of(ordered, quantile + half)


_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t: exact to three decimals up to 20 degrees, then within 0.3 %."""
    return _T975[degrees - 1] if degrees <= len(_T975) else 1.96 + 2.4 / degrees
