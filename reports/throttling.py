"""Points at which a GPU's clocks were held down: a warning, and a mark beside their figures. Pure."""

from __future__ import annotations

import numpy as np

from harness.metrics import METRICS, THROTTLED, Measured
from harness.records import PointRun
from reports.rows import load_label

SHARE_MIN = 0.05  # of a window: below that no mean shows it
Parts = dict[tuple[str, str], list[tuple[PointRun, Measured]]]


def is_throttled(share: float | None) -> bool:
    """Whether a `gpu_throttled_ratio` is worth a mark."""
    return share is not None and share >= SHARE_MIN


def warnings(parts: Parts) -> list[str]:
    """One line for each engine: at which loads and how often, why, and how far the clock went down."""
    found: dict[str, list[tuple[PointRun, Measured, float]]] = {}
    for (engine, _), repeats in parts.items():
        for point, part in repeats:
            share = METRICS["gpu_throttled_ratio"].formula(part).value
            if share is not None and is_throttled(share):
                found.setdefault(engine, []).append((point, part, share))
    return [_told(engine, each) for engine, each in found.items()]


def _told(engine: str, found: list[tuple[PointRun, Measured, float]]) -> str:
    shares: dict[str, float] = {}
    for point, _, share in found:
        label = load_label(point.load, point.point)
        shares[label] = max(shares.get(label, 0.0), share)
    places = ", ".join(f"{label} ({share * 100:.0f} %)" for label, share in shares.items())
    reasons = sorted({reason for _, part, _ in found for reason in _reasons(part)})
    clocks = [float(value) for _, part, _ in found for value in _values(part, "sm_clock_mhz")]
    range_ = f"; its clock was {min(clocks):,.0f} to {max(clocks):,.0f} MHz" if clocks else ""
    return (
        f"{engine}: a GPU's clocks were held down ({', '.join(reasons)}) at {places} of the window{range_}: the same "
        "engine is faster where power and cooling allow more; compare only runs under the same limits"
    )


def _reasons(part: Measured) -> set[str]:
    masks = [int(value) for value in _values(part, "throttle_reasons")]
    return {words for bit, words in THROTTLED.items() if any(mask & bit for mask in masks)}


def _values(part: Measured, metric: str) -> list[float]:
    series = [s for (where, what), s in part.telemetry.items() if what == metric and where.startswith("nvidia")]
    return [float(value) for each in series for _, values in each for value in np.asarray(values)]
