"""A figure with its interval, how it was come by, and from where; or why there is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from sizing.tables import DATA


@dataclass(frozen=True, slots=True)
class Estimate:
    """`low` and `high` hold 80 % of what is met. A missing value is None, with the reason."""

    value: float | bool | None
    low: float | bool | None
    high: float | bool | None
    label: str
    """measured: read from a file or a log; calibrated: from a start or a run on this machine; derived: computed"""
    sources: tuple[str, ...]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the reason only where there is no value."""
        found: dict[str, Any] = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "label": self.label,
            "sources": list(self.sources),
        }
        return found if not self.reason else found | {"reason": self.reason}


def missing(reason: str) -> Estimate:
    """No figure, and why."""
    return Estimate(None, None, None, "derived", (), reason)


def around(
    value: float | None, factors: tuple[float, float], label: str, sources: tuple[str, ...], reason: str = ""
) -> Estimate:
    """A value between low and high factors of it."""
    if value is None:
        return missing(reason or "not defined for this load")
    return Estimate(value, value * factors[0], value * factors[1], label, sources)


@cache
def factors(kind: str) -> tuple[float, float]:
    """What a predicted time is multiplied by at the ends of its interval, from errors of groups left out of the fit."""
    low, high = json.loads((DATA / "constants.json").read_text("utf-8"))["intervals"][kind]
    return float(low), float(high)


def widened(ends: tuple[float, float], times: float) -> tuple[float, float]:
    """The interval `times` as wide on the logarithmic scale."""
    return float(ends[0] ** times), float(ends[1] ** times)
