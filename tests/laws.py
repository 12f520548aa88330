"""Whether times follow the law that they were drawn from: its gaps made uniform, and Kolmogorov's test of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.loads import Point

Floats = np.ndarray[Any, np.dtype[np.float64]]

SHAPES = {
    "poisson": Point("poisson", "poisson", 1500, rate_rps=20.0),
    "gamma, burstiness 0.3": Point("gamma", "gamma", 1500, rate_rps=20.0, shape={"burstiness": 0.3}),
    "gamma, burstiness 4": Point("smooth", "gamma", 1500, rate_rps=20.0, shape={"burstiness": 4.0}),
    "ramp": Point(
        "ramp", "ramp", None, 100.0, rate_rps=16.0, shape={"from_rps": 2.0, "to_rps": 30.0, "arrivals": "poisson"}
    ),
    "steps": Point(
        "steps", "steps", None, 90.0, rate_rps=18.0,
        shape={"rates_rps": [4.0, 40.0, 10.0], "each_s": 30.0, "arrivals": "poisson"},
    ),
}  # fmt: skip


def ks(uniform: Sequence[float] | Floats) -> tuple[float, float]:
    """Kolmogorov's distance of a sample from the uniform law on [0, 1], and the probability of a larger one by chance
    (asymptotic, with Stephens' correction, Journal of the Royal Statistical Society B 32, 1970)."""
    values = np.sort(np.asarray(uniform, dtype=np.float64))
    n = len(values)
    ranks = np.arange(n)
    distance = float(max((values - ranks / n).max(), ((ranks + 1) / n - values).max()))
    x = distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    p = 1.0 if x < 0.2 else 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, p))


def made_uniform(point: Point, times_s: Sequence[float] | Floats, start_s: float) -> Floats:
    """Uniform, independent values of times that follow the law of `point` from `start_s` on (the window opens at 0)."""
    counts = np.array([expected(point, at, start_s) for at in [start_s, *times_s]])
    gaps = np.diff(counts)
    if point.kind == "gamma":
        shape = float(point.shape["burstiness"])
        return np.array([gamma_cdf(shape, shape * gap) for gap in gaps])
    return np.asarray(1 - np.exp(-gaps), dtype=np.float64)


def expected(point: Point, at_s: float, start_s: float) -> float:
    """How many requests the rate of `point` gives between `start_s` (at most 0) and `at_s`, on average."""
    shape, inside = point.shape, max(0.0, at_s)
    if point.kind == "ramp":
        first, last, length_s = shape["from_rps"], shape["to_rps"], point.duration_s or 1.0
        within = min(inside, length_s)
        ramp = first * within + (last - first) * within**2 / (2 * length_s)
        return float(first * (min(at_s, 0.0) - start_s) + ramp + last * (inside - within))
    if point.kind == "steps":
        rates, each_s = shape["rates_rps"], shape["each_s"]
        steps = sum(rate * min(max(inside - k * each_s, 0.0), each_s) for k, rate in enumerate(rates))
        after = max(0.0, inside - each_s * len(rates)) * rates[-1]
        return float(rates[0] * (min(at_s, 0.0) - start_s) + steps + after)
    return (point.rate_rps or 0.0) * (at_s - start_s)


def gamma_cdf(shape: float, x: float) -> float:
    """The regularized lower incomplete gamma function, by its power series (Abramowitz and Stegun 6.5.29); for x above
    about 700 it would lose itself, and is 1 there for the shapes used here."""
    if x <= 0:
        return 0.0
    if x > 500:
        return 1.0
    term = total = 1.0 / shape
    k = shape
    while term > 1e-16 * total:
        k += 1
        term *= x / k
        total += term
    return min(1.0, total * math.exp(shape * math.log(x) - x - math.lgamma(shape)))
