"""What was predicted of a run before anything was learnt from it, beside what was measured.

`bench run` writes `prediction.json` into the run folder when the load has ended and before its receipts are kept, so
that a page made again later shows the same prediction. Nothing is predicted of simulated engines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.metrics import METRICS
from harness.store import RunFolder
from harness.units import show, significant

if TYPE_CHECKING:
    from reports.rows import Summary

FILE = "prediction.json"
COLUMNS = ("load", "engine", "figure", "predicted", "80 % interval", "measured", "prediction off by", "within")
NOTE = (
    "Predicted by bench predict from the model, the hardware and the settings alone, before this run taught anything; "
    "an interval is meant to hold four measurements of five."
)
TITLES = {
    "kv_capacity_tokens": "KV tokens", "output_tok_s": "Output tok/s", "ttft_p50_s": "TTFT p50",
    "ttft_p95_s": "TTFT p95", "tpot_p50_s": "TPOT p50", "tpot_p95_s": "TPOT p95",
}  # fmt: skip
UNITS = {"kv_capacity_tokens": "tokens"}


@dataclass(frozen=True, slots=True)
class Foretold:
    """One figure of one point, in the base unit of its metric; `point` is empty for what an engine's start gives."""

    engine: str
    point: str
    figure: str
    value: float
    low: float
    high: float
    label: str


def save(folder: RunFolder, foretold: Sequence[Foretold]) -> None:
    """Keep the predictions with the run, unless some are there: those were made with less knowledge.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = folder.path / FILE
    if not path.exists():
        text = json.dumps([asdict(item) for item in foretold], ensure_ascii=False, allow_nan=False, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def load(folder: RunFolder) -> list[Foretold]:
    """What was kept; nothing where there is no file, or a damaged one: a report never fails for it."""
    try:
        found = json.loads((folder.path / FILE).read_text(encoding="utf-8"))
        return [Foretold(**item) for item in found]
    except (OSError, ValueError, TypeError):
        return []


def rows(summary: Summary) -> list[list[str]]:
    """One row a figure that was both predicted and measured."""
    labels = {(state.engine, state.point): state.label for state in summary.points}
    found = []
    for item in summary.foretold:
        measured = _measured(summary, item)
        if measured is None:
            continue
        unit = UNITS.get(item.figure) or METRICS[item.figure].unit
        within = "yes" if item.low <= measured <= item.high else "no"
        found.append([
            labels.get((item.engine, item.point), "start"), item.engine, TITLES[item.figure], show(item.value, unit),
            f"{show(item.low, unit)} to {show(item.high, unit)}", show(measured, unit),
            f"{item.value / measured - 1:+.0%}" if measured else "-", within,
        ])  # fmt: skip
    return found


def in_short(summary: Summary) -> str | None:
    """A line for a terminal; None where nothing was predicted and measured."""
    offs: dict[str, list[float]] = {}
    inside = count = 0
    for item in summary.foretold:
        measured = _measured(summary, item)
        if measured:
            offs.setdefault(item.figure, []).append(abs(item.value / measured - 1))
            count, inside = count + 1, inside + (item.low <= measured <= item.high)
    if not count:
        return None
    parts = [f"{TITLES[key]} {significant(100 * sorted(v)[len(v) // 2], 2)} %" for key, v in offs.items()]
    return f"Prediction off by (median): {', '.join(parts)}; {inside} of {count} within their 80 % interval."


def _measured(summary: Summary, item: Foretold) -> float | None:
    if item.point:
        return summary.row(item.engine, item.point, item.figure).value
    facts: list[Any] = [engine.facts.get(item.figure) for engine in summary.engines if engine.name == item.engine]
    return float(facts[0]) if facts and isinstance(facts[0], int | float) else None
