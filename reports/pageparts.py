"""Pieces of the page as plain data: cells, facts, environment, client health, definitions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from harness.metrics import METRICS
from harness.records import Fact, RunRecord
from harness.units import show, significant
from reports.rows import Row

UNITS = {"_s": "s", "_bytes": "bytes", "_ratio": "ratio", "_rps": "1/s", "_w": "W"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the summary table: a figure with its unit and interval, or the reason why there is none."""

    number: str = ""
    unit: str = ""
    interval: str = ""
    reason: str = ""
    tone: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class FactCell:
    """What an engine said: the value as text, how it is known (`label`) and where it is from."""

    text: str
    label: str = ""
    source: str = ""


def figure_cell(row: Row) -> Cell:
    """A figure as the page shows it: number, unit, interval; or the reason why there is none."""
    if row.value is None:
        return Cell(reason=row.reason or "not measured")
    number, unit = split_unit(row.value, row.unit)
    interval = (
        _interval(row, row.ci_low, row.ci_high, unit) if row.ci_low is not None and row.ci_high is not None else ""
    )
    return Cell(number, "" if row.metric == "output_tok_s" else unit, interval)


def _interval(row: Row, low: float, high: float, shown: str) -> str:
    """`77.5 – 88.6`, with units only where they differ from the figure's own; empty where there is no width."""
    if low >= high:
        return ""
    # A t-interval of a quantity that cannot be negative may reach below 0: it is cut there.
    least, most = split_unit(max(low, 0.0), row.unit), split_unit(high, row.unit)
    same = least[1] == most[1] or least[0] == "0"
    unit = "" if same and most[1] == shown else f" {most[1]}"
    return f"{least[0]}{'' if same else ' ' + least[1]} – {most[0]}{unit}"


def split_unit(value: float, unit: str) -> tuple[str, str]:
    """`0.0501, "s"` to `("50.1", "ms")`."""
    number, _, shown = show(value, unit).partition(" ")
    return number, shown


def _status(engine: str, run: str) -> str:
    """An engine's state; of a run that was interrupted nothing runs or waits any more."""
    ended = {"running": "interrupted", "pending": "not reached"} if run == "interrupted" else {"pending": "not reached"}
    return ended.get(engine, engine)


def facts(run: RunRecord) -> list[dict[str, Any]]:
    """What each engine is and said of itself, side by side."""
    if not run.engines:
        return []
    rows: list[tuple[str, list[Any]]] = [
        ("kind", [e.kind for e in run.engines]), ("model", [e.model for e in run.engines]),
        ("status", [_status(e.status, run.status) for e in run.engines]),
        ("command", [" ".join(e.command) or None for e in run.engines]),
    ]  # fmt: skip
    for phase in dict.fromkeys(name for e in run.engines for name in e.phases_s):
        title = _words(phase)
        rows.append((f"time: {title}", [_known(e.phases_s.get(phase), "s") for e in run.engines]))
    found = [{"title": title, "cells": [FactCell(v or "–") for v in values]} for title, values in rows]
    by_engine = [{fact.name: fact for fact in engine.facts} for engine in run.engines]
    for name in dict.fromkeys(name for facts in by_engine for name in facts):
        cells = [_fact_cell(facts.get(name)) for facts in by_engine]
        found.append({"title": _words(name), "cells": cells})
    return found


def _fact_cell(fact: Fact | None) -> FactCell:
    if fact is None or fact.value is None:
        return FactCell("–")
    value = fact.value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    unit = {"tokens": "tok"}.get(fact.unit, fact.unit)
    text = _known(float(value), unit) if number else f"{_plainly(value)} {unit}".strip()
    if isinstance(value, float) and fact.label == "configured":
        text = f"{value:g} {unit}".strip()  # as it was written
    if number and isinstance(value, int) and unit != "bytes":
        text = f"{value:,} {unit}".strip()
    return FactCell(text or "–", fact.label, fact.source)


def _plainly(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _known(value: float | None, unit: str) -> str | None:
    return None if value is None else show(value, unit)


def _words(key: str) -> str:
    """`kv_capacity_bytes` to `kv capacity`; the unit stands with the value."""
    for suffix in UNITS:
        key = key.removesuffix(suffix)
    text = key.replace("_", " ")
    return re.sub(r"\b(kv|gpu|cpu|id)\b", lambda match: match.group().upper(), text)


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """A nested record as (path, text) rows."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{path} › {key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [row for index, inner in enumerate(value) for row in flat(inner, f"{path} {index}")]
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    key = path.rsplit(" ", 1)[-1]
    unit = next((unit for suffix, unit in UNITS.items() if key.endswith(suffix)), None)
    if unit and isinstance(value, int | float) and not isinstance(value, bool):
        value = show(float(value), unit)
    return [(_words(path), "–" if value in (None, "") else str(value))]


def health(run: RunRecord) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for point in run.points for key in point.client))
    rows = [
        [p.point, p.engine, str(p.repeat + 1), p.status, *(_health_cell(key, p.client.get(key)) for key in keys)]
        for p in run.points
        if p.start_s is not None or p.client
    ]
    return {"columns": ["Point", "Engine", "Repeat", "Status", *map(_words, keys)], "rows": rows}


def _health_cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key == "chunks_s":  # a rate: chunks a second
        return show(value, "1/s")
    unit = next((unit for suffix, unit in UNITS.items() if key.endswith(suffix)), None)
    return show(value, unit) if unit else significant(value)


def in_code(text: object) -> Markup:
    """Text for a page, escaped; what stands in `backticks` as code."""
    return Markup(re.sub(r"`([^`<>]+)`", r"<code>\1</code>", str(escape(str(text)))))


def family(key: str) -> str:
    """The id of a metric's definition: all statistics of one quantity share it."""
    stat = METRICS[key].stat
    return key.removesuffix(f"_{stat}_s") if stat else key


def definitions() -> list[dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {}
    for key, metric in METRICS.items():
        title = metric.title.removesuffix(f" {metric.stat}") if metric.stat else metric.title
        row = {"key": family(key), "title": title, "unit": metric.unit, "help": metric.help, "better": metric.better}
        found.setdefault(family(key), row)
    return list(found.values())
