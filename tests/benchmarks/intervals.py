"""Intervals from errors of groups left out, and how often they hold.

A row's interval is its prediction times the quantiles of log(measured / predicted) of the *other* groups, each group
counting alike: what would be said of a GPU or a model that nobody measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Pair = tuple[str, float, float]
"""group, predicted, measured"""


def spread(pairs: Sequence[Pair], share: float = 0.8) -> tuple[float, float]:
    """(low, high) factors of the prediction that hold `share` of the rows, every group weighing the same."""
    counts: dict[str, int] = {}
    for group, _, _ in pairs:
        counts[group] = counts.get(group, 0) + 1
    # The square root lets large groups count more, but not by their size.
    weights = sorted((math.log(measured / predicted), counts[group] ** -0.5) for group, predicted, measured in pairs)
    total = sum(weight for _, weight in weights)

    def quantile(at: float) -> float:
        reached = 0.0
        for value, weight in weights:
            reached += weight
            if reached >= at * total:
                return value
        return weights[-1][0]

    # Few groups say little of the next one: the share is raised by half of 1 / groups.
    tail = (1 - min(1.0, share * (1 + 0.5 / len(counts)))) / 2
    return math.exp(quantile(tail)), math.exp(quantile(1 - tail))


def leave_out_spread(pairs: Sequence[Pair], share: float = 0.8) -> dict[str, tuple[float, float]]:
    """For each group the factors that the other groups' errors give."""
    groups = {group for group, _, _ in pairs}
    return {out: spread([p for p in pairs if p[0] != out] or pairs, share) for out in groups}


def coverage(pairs: Sequence[Pair], factors: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """(share of rows inside their interval, median of its width over the prediction)."""
    inside = [factors[g][0] * predicted <= measured <= factors[g][1] * predicted for g, predicted, measured in pairs]
    widths = [factors[g][1] - factors[g][0] for g, _, _ in pairs]
    return sum(inside) / len(inside), statistics.median(widths)
