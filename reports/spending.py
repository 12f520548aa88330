"""How much of the error budget each look at growing data may spend, so that all looks together stay within it.

A gate that stops as soon as its interval clears the limit looks many times, and each look may err. The budget is spent
as `alpha * (repeats so far / most repeats) ** 5`: little at first, where one outlier weighs most (the power family of
Lan and DeMets, 1983). The level of each look follows from how much looks have in common, by integrating over the path
of a normal score (Armitage, McPherson and Rowe, 1969); it is then used with Student's t, the "significance level
approach" of Jennison and Turnbull, 2000, section 3.8. `tests/benchmarks/gate_false_alarms.py` checks the result.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from reports.student import quantile, upper_tail

Floats = np.ndarray[Any, np.dtype[np.float64]]
SHAPE = 5.0
GRID = 400  # points on which the path's density is kept
REACH = 9.0  # standard deviations below zero that the grid covers


def levels(looks: tuple[int, ...], alpha: float) -> list[float]:
    """The one-sided level of each look, in order. `looks`: repeats a side at each; the last spends what is left."""
    return list(_levels(looks, alpha))


@lru_cache(maxsize=256)
def _levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    found = []
    spent, before = 0.0, 0
    grid = weights = np.array([])
    for n in looks:
        target = alpha * (n / looks[-1]) ** SHAPE
        step = math.sqrt(n - before)
        if before == 0:
            bound = math.sqrt(n) * quantile(target, math.inf)
        else:
            bound = _bound(grid, weights, step, target - spent)
        found.append(upper_tail(bound / math.sqrt(n), math.inf))
        grid, weights = _moved(grid, weights, step, (-REACH * math.sqrt(n), bound))
        spent, before = target, n
    return tuple(found)


def _bound(grid: Floats, weights: Floats, step: float, wanted: float) -> float:
    """Where the path must be for it to be there or beyond, for the first time, with the probability `wanted`."""
    low, high = 0.0, REACH * (step + float(grid[-1]))
    for _ in range(50):
        middle = (low + high) / 2
        passed = float(np.dot(weights, _tails((middle - grid) / step)))
        low, high = (middle, high) if passed > wanted else (low, middle)
    return high


def _moved(grid: Floats, weights: Floats, step: float, span: tuple[float, float]) -> tuple[Floats, Floats]:
    """The path's density after one more step, below its new bound: points and their probabilities."""
    edges = np.linspace(*span, GRID + 1)
    points, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    if not len(grid):
        grid, weights = np.zeros(1), np.ones(1)
    density = np.exp(-0.5 * ((points[:, None] - grid[None, :]) / step) ** 2) @ weights
    return points, density * width / (step * math.sqrt(2 * math.pi))


def _tails(values: Floats) -> Floats:
    return np.array([0.5 * math.erfc(value * math.sqrt(0.5)) for value in values.tolist()])
