"""How far a candidate is from its baseline in one figure, and how well that is known: the run (repeat) is the unit.

Requests of one run share its luck (one cache, one placement, one neighbour on the host), so that a test over requests
takes thousands of them for evidence where there is one. Each repeat therefore gives one figure, and the interval is
Student's t over the repeats. A bootstrap was tried and dropped: of five repeats, 95 % intervals over repeats cover
88 %; over repeats and then requests they cover 99 % on a quiet machine and, of three real repeats, 87 % (docs/gate.md,
by `tests/benchmarks/gate_coverage.py`). The requests still set a floor below which no scatter of few repeats is
believed.

Two designs, told apart by when the repeats began:

- `interleaved` (A B B A ...): log figure = level + side + slope * place in the sequence, by least squares. A steady
  drift of the machine is taken out; a slow irregular one widens the interval, as neighbours are on different sides.
- `apart` (first all of one, then all of the other): Welch's t. Drift between the two cannot be told from a change, so
  the scatter between sessions, where a baseline's history shows it, is added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from reports.student import quantile, upper_tail

RESOLUTION = 1e-4  # no figure is known better than to this part of itself: clocks, and the host's
Scale = Literal["ratio", "difference"]


@dataclass(frozen=True, slots=True)
class Repeats:
    """One figure, a value for each repeat, in the order of measuring. `at_s`: when each began, UTC seconds; `errors`:
    the standard error that each has from its own requests (0: not known), in the unit of the figure."""

    values: list[float]
    at_s: list[float]
    errors: list[float]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Band:
    """Scatter of the difference of two sessions of the same baseline, as its history shows it: a standard deviation
    on the scale of the effect, from `steps` steps between successive sessions."""

    sd: float
    steps: int


@dataclass(frozen=True, slots=True)
class Effect:
    """Candidate against baseline. `estimate` is ln(candidate / baseline) on the scale `ratio`, else their difference;
    `se` its standard error with `df` degrees of freedom; `scatter` the standard deviation of one repeat."""

    estimate: float
    se: float
    df: float
    scatter: float
    scale: Scale
    design: str
    repeats: tuple[int, int]
    band: float = 0.0  # the part of `se` that is scatter between sessions: more repeats do not lessen it

    def low(self, level: float) -> float:
        """The lower end of a one-sided interval that fails to hold the truth with the probability `level`."""
        return self.estimate - quantile(level, self.df) * self.se

    def high(self, level: float) -> float:
        return self.estimate + quantile(level, self.df) * self.se

    def chance_above(self, limit: float) -> float:
        """p-value of "the true effect is at most `limit`"."""
        return upper_tail((self.estimate - limit) / self.se, self.df)

    def chance_below(self, limit: float) -> float:
        """p-value of "the true effect is at least `limit`"."""
        return upper_tail((limit - self.estimate) / self.se, self.df)


def compare(base: Repeats, cand: Repeats, scale: Scale, band: Band | None = None) -> Effect | None:
    """The effect; None where fewer than two repeats a side leave its certainty unknown.

    On the scale `ratio` all values must be above 0.
    """
    if len(base) < 2 or len(cand) < 2:
        return None
    y = [np.log(side.values) if scale == "ratio" else np.array(side.values, dtype=float) for side in (base, cand)]
    together = are_interleaved(base, cand)
    estimate, se, df, scatter = _sequence(y, (base, cand)) if together else _welch(y)
    resolution = RESOLUTION if scale == "ratio" else 0.0
    floor = math.hypot(resolution, *(_floor(side, scale) for side in (base, cand)))
    if floor > se:  # the repeats scatter less than their requests alone would have them: no side is the noisier one
        se, df = floor, max(df, float(len(base) + len(cand) - 3))
    se = se or RESOLUTION  # shares without any scatter and without counted requests
    known = band.sd if band is not None and not together else 0.0
    if band is not None and not together:
        se, df = _widened(se, df, band)
    design = "interleaved" if together else "apart"
    return Effect(estimate, se, df, scatter, scale, design, (len(base), len(cand)), known)


def are_interleaved(base: Repeats, cand: Repeats) -> bool:
    """Whether the repeats were measured in turn: sides change often, and never four of one stand in a row (a repeat
    that was left out makes a gap). Equal times are no order."""
    order = sorted([(at, 0) for at in base.at_s] + [(at, 1) for at in cand.at_s])
    if len({at for at, _ in order}) < len(order):
        return False
    sides = "".join(str(side) for _, side in order)
    changes = sum(before != after for before, after in pairwise(sides))
    return changes >= min(len(base), len(cand)) and "0000" not in sides and "1111" not in sides


def _sequence(y: list[np.ndarray], sides: tuple[Repeats, Repeats]) -> tuple[float, float, float, float]:
    """Least squares on side and place in the sequence."""
    at_s = np.concatenate([side.at_s for side in sides])
    order = np.argsort(at_s, kind="stable")
    values = np.concatenate(y)[order]
    side = np.concatenate([np.full(len(y[0]), -0.5), np.full(len(y[1]), 0.5)])[order]
    place = np.arange(len(values)) - (len(values) - 1) / 2
    columns = np.stack([np.ones(len(values)), side, place], axis=1)
    inverse = np.linalg.inv(columns.T @ columns)
    found = inverse @ columns.T @ values
    rest = values - columns @ found
    df = len(values) - columns.shape[1]
    variance = float(rest @ rest) / df
    return float(found[1]), math.sqrt(variance * float(inverse[1, 1])), float(df), math.sqrt(variance)


def _welch(y: list[np.ndarray]) -> tuple[float, float, float, float]:
    parts = [float(np.var(values, ddof=1)) / len(values) for values in y]
    se = math.sqrt(sum(parts))
    under = sum(part**2 / (len(values) - 1) for part, values in zip(parts, y, strict=True))
    df = sum(parts) ** 2 / under if under > 0 else float(sum(len(values) - 1 for values in y))
    scatter = math.sqrt(sum(float(np.var(values, ddof=1)) for values in y) / len(y))
    return float(np.mean(y[1]) - np.mean(y[0])), se, df, scatter


def _floor(side: Repeats, scale: Scale) -> float:
    """The standard error of a side's mean that its requests alone give."""
    scaled = [e / v if scale == "ratio" else e for e, v in zip(side.errors, side.values, strict=True)]
    return math.sqrt(sum(error**2 for error in scaled)) / len(side)


def _widened(se: float, df: float, band: Band) -> tuple[float, float]:
    """With the scatter between sessions added; degrees of freedom after Satterthwaite. Successive steps overlap, so
    that each counts as two thirds."""
    steps_df = max(1.0, band.steps * 2 / 3)
    variance = se**2 + band.sd**2
    return math.sqrt(variance), variance**2 / (se**4 / df + band.sd**4 / steps_df)


def session_band(means: list[float]) -> Band | None:
    """What the means of successive sessions, on the scale of the effect, say of the scatter between two of them."""
    if len(means) < 2:
        return None
    steps = np.diff(means)
    return Band(float(np.sqrt(np.mean(steps**2))), len(steps))
