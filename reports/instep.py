"""A warning where a closed loop measured its own rhythm: requests that were sent in step."""

from __future__ import annotations

from harness.units import significant
from reports.rows import PointState, Row

LIMIT = 0.2


def warnings(points: list[PointState], rows: dict[tuple[str, str, str], Row]) -> list[str]:
    """One line for each engine of which some point fell into step. A burst is in step because it was asked to be."""
    found: dict[str, list[tuple[float, PointState]]] = {}
    for state in points:
        row = rows.get((state.engine, state.point, "in_step_ratio"))
        if row is not None and row.value is not None and row.value >= LIMIT and state.load.get("start") != "burst":
            found.setdefault(state.engine, []).append((row.value, state))
    return [_told(engine, each) for engine, each in found.items()]


def _told(engine: str, found: list[tuple[float, PointState]]) -> str:
    value, worst = max(found, key=lambda each: each[0])
    where = worst.label + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
    return (
        f"{engine}, {where}: requests of like length fell into step ({significant(value)} of 1): TTFT is that of a "
        "burst. Let lengths vary (output_tokens: {kind: uniform, min: ..., max: ...}) or use an open loop"
    )
