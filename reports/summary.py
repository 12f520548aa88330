"""The figures of a run: every engine x point x metric, recomputed from its records.

What cannot be said is None with the reason.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from harness.errors import InputError
from harness.metrics import METRICS, Measured, Metric, Stat, between_repeats, evaluate, pooled
from harness.records import EngineRun, Fact, PointRun, RunRecord
from harness.store import RunFolder
from reports import asked, clientserver, instep, throttling
from reports.rows import EngineState, PointState, RepeatRow, Row, Summary, Target, in_order, load_label, sweep_of
from reports.rundata import COUNTED, Key, RunData, read, rows_by

PLACES = 4  # of one warning, named; the others are counted
REASON_LETTERS = 160  # of an error, as the reason of a missing figure; the whole text is among the warnings
NOT_PLANNED = "not a load of this run"  # where several are compared


def summarize(folder: RunFolder) -> Summary:
    """The summary of a run folder, from its records.

    Raises:
        InputError: run.json is damaged or of a newer format.
    """
    return summarize_data(read(folder))


def summarize_data(data: RunData) -> Summary:
    """The summary of a run that was read already."""
    run = data.run
    states = _states(data)
    figures = [_figures(state, data) for state in states]
    rows = {(r.engine, r.point, r.metric): r for found, _ in figures for r in found}
    compared = clientserver.compare(run, data.requests, data.telemetry)
    return Summary(
        name=run.name,
        status=run.status,
        started_at=run.started_at,
        scenario_hash=run.scenario_hash,
        tool_version=run.tool_version,
        engines=[_engine_state(engine, run.scenario) for engine in run.engines],
        points=states,
        rows=rows,
        repeats=[r for _, found in figures for r in found],
        targets=_targets(run, states, rows),
        warnings=_warnings(run)
        + asked.warnings(states, rows)
        + instep.warnings(states, rows)
        + ([] if _pauses(run) else instep.short_windows(states, rows))
        + throttling.warnings(data.measured)
        + clientserver.warnings(compared),
        findings=run.findings,
        compared=compared,
        foretold=data.foretold,
    )


def save_summary(folder: RunFolder, summary: Summary) -> None:
    """Replace summary.json: one row a line, so that two of them can be read side by side in a diff.

    Raises:
        InputError: the folder cannot be written to.
    """
    parts = []
    for key, value in summary.to_dict().items():
        if isinstance(value, list) and value:
            lines = ",\n  ".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value)
            parts.append(f' "{key}": [\n  {lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value, ensure_ascii=False, allow_nan=False)}')
    write_text(folder, "summary.json", "{\n" + ",\n".join(parts) + "\n}\n")


def write_text(folder: RunFolder, name: str, text: str) -> None:
    """Replace one file of the folder as a whole: a reader sees the old one or the new one.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = folder.path / name
    part = path.with_name(f"{name}.part")
    try:
        # A server's error text may hold half a surrogate pair; a report must not fail on it.
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror}",
            "make room there or the folder writable, or use --text or --markdown",
        ) from None


def _pauses(run: RunRecord) -> bool:
    """Whether some stream rests between two requests: its loop has fewer requests under way than streams."""
    workloads = [run.scenario.get("workload"), *(e.get("workload") for e in run.scenario.get("engines", []))]
    return any(isinstance(each, dict) and bool(each.get("think_time")) for each in workloads)


def _states(data: RunData) -> list[PointState]:
    """Every engine at every point of the run, in the run's order, also where nothing was measured."""
    run = data.run
    names = list(dict.fromkeys([*(e.name for e in run.engines), *(p.engine for p in run.points)]))
    loads: dict[str, dict[str, Any]] = {}
    for point in run.points:
        loads.setdefault(point.point, point.load)
    recorded = {key: len(rows) for key, rows in rows_by(data.requests, ["engine", "point"]).items()}
    engines = {engine.name: engine for engine in run.engines}
    planned = {(point.engine, point.point) for point in run.points}
    return [
        _state(data, (name, point), loads[point], (recorded.get((name, point), 0), engines.get(name)))
        for name in names
        for point in in_order(loads)
        if not sweep_of(loads[point]) or (name, point) in planned  # each engine's sweep has rates of its own
    ]


def _state(data: RunData, key: Key, load: dict[str, Any], seen: tuple[int, EngineRun | None]) -> PointState:
    recorded, engine = seen
    repeats = [p for p in data.run.points if (p.engine, p.point) == key]
    parts = data.measured.get(key, [])
    statuses: Counter[str] = Counter()
    for _, part in parts:
        statuses.update(part.statuses)
    reason = None if parts else _why_missing(data.run, engine, repeats, recorded)
    limited = sum(point.status == "client-limited" for point, _ in parts)
    planned = len(repeats) if sweep_of(load) else max(int(data.run.scenario.get("repeats") or 1), len(repeats))
    unfinished = next((p.status for p in repeats if p.status not in COUNTED), "done")
    status = "client-limited" if parts and limited == len(parts) else unfinished if repeats else "pending"
    return PointState(*key, load, status, len(parts), planned, limited, dict(statuses), recorded, reason)


def _why_missing(run: RunRecord, engine: EngineRun | None, repeats: list[PointRun], recorded: int) -> str:
    """Why a point has no figure, in words that say what happened."""
    if not repeats and "runs" in run.scenario:
        return NOT_PLANNED
    seen = f" ({recorded:,} requests were recorded)" if recorded else ""
    error = next((p.error for p in repeats if p.error), None) or (engine.error if engine else None)
    statuses = {point.status for point in repeats}
    if statuses & set(COUNTED):
        return "no measured request was recorded"
    if "failed" in statuses or (engine is not None and engine.status == "failed"):
        text = (error or "no reason was recorded").splitlines()[0]
        return f"failed: {text[:REASON_LETTERS]}{'…' if len(text) > REASON_LETTERS else ''}{seen}"
    if "interrupted" in statuses:
        return f"interrupted before its window closed{seen}"
    if "running" in statuses:
        return f"its window had not closed when the run stopped writing{seen}"
    ended = {"running": "has not got there, or was killed", "interrupted": "was interrupted"}.get(
        run.status, run.status
    )
    return f"not reached: the run {ended}"


def _figures(state: PointState, data: RunData) -> tuple[list[Row], list[RepeatRow]]:
    """Every metric of one point: over its repeats, and of each repeat alone."""
    engine, point = state.engine, state.point
    parts = data.measured.get((engine, point), [])
    if not parts:
        return [Row(engine, point, k, None, m.unit, reason=state.reason) for k, m in METRICS.items()], []
    whole = pooled([part for _, part in parts])
    rows, repeats = [], []
    for key, metric in METRICS.items():
        each = [metric.formula(part) for _, part in parts]
        stat = _over_repeats(metric, whole, each)
        low, high, value = _finite(stat.ci_low), _finite(stat.ci_high), _finite(stat.value)
        reason = stat.reason if stat.value is None or value is not None else "the figure is not finite"
        rows.append(Row(engine, point, key, value, _unit(metric, whole), low, high, int(stat.n), reason))
        repeats += [
            RepeatRow(engine, point, run.repeat, key, _finite(one.value), int(one.n))
            for (run, _), one in zip(parts, each, strict=True)
        ]
    return rows, repeats


def _unit(metric: Metric, of: Measured) -> str:
    """A metric's unit; a price's in the currency of the scenario."""
    return of.rates.currency + metric.unit if metric.unit.startswith("/") else metric.unit


def _over_repeats(metric: Metric, whole: Measured, each: list[Stat]) -> Stat:
    """What `metrics.evaluate` says of all repeats, with their pooling done once a point, not once a metric."""
    values = [stat.value for stat in each if stat.value is not None]
    if len(each) == 1 or len(values) < len(each):
        return evaluate(metric, [whole])
    return between_repeats(metric.formula(whole), values)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _targets(run: RunRecord, states: list[PointState], rows: dict[tuple[str, str, str], Row]) -> list[Target]:
    targets = []
    for state in states:
        for key, limit in (run.scenario.get("slo") or {}).items():
            row = rows.get((state.engine, state.point, f"{key}_s"))
            limit_s, value_s = float(limit), row.value if row else None
            met, reason = _met(state, row, limit_s)
            targets.append(Target(state.engine, state.point, str(key), limit_s, value_s, met, reason))
    return targets


def _met(state: PointState, row: Row | None, limit_s: float) -> tuple[bool | None, str | None]:
    if row is None:
        return None, "there is no such figure"
    if state.client_limited:
        return None, "client-limited: the client, not the server, set this figure"
    if row.value is None:
        return None, row.reason
    spans = row.ci_low is not None and row.ci_high is not None and row.ci_low <= limit_s < row.ci_high
    return row.value <= limit_s, "its 95 % interval reaches over the limit" if spans else None


def _engine_state(engine: EngineRun, scenario: dict[str, Any]) -> EngineState:
    specs = [spec for spec in scenario.get("engines") or [] if spec.get("name") == engine.name]
    workload = (specs[0].get("workload") if specs else None) or scenario.get("workload") or {}
    facts: dict[str, str | float | int | bool | None] = {fact.name: _fact_value(fact) for fact in engine.facts}
    return EngineState(
        engine.name, engine.kind, engine.model, engine.simulated, engine.status, engine.error, facts, dict(workload)
    )


def _fact_value(fact: Fact) -> str | float | int | bool | None:
    return _finite(fact.value) if isinstance(fact.value, float) else fact.value


def _warnings(run: RunRecord) -> list[str]:
    """Every warning of the run once, with where it comes from."""
    found = list(run.warnings)
    for engine in run.engines:
        told = engine.error and any(text.startswith(engine.error) for text in run.warnings)
        errors = [] if told else [engine.error]
        found += [f"{engine.name}: {text}" for text in [*errors, *engine.warnings] if text]
    failed = {engine.name for engine in run.engines if engine.error}
    places: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for point in run.points:
        place = load_label(point.load, point.point)
        place += f" repeat {point.repeat + 1}" if int(run.scenario.get("repeats") or 1) > 1 else ""
        # A failed engine's error stands at each of its points too: once is enough.
        for text in [None if point.engine in failed else point.error, *point.warnings]:
            if text:
                # How late a client was differs in every repeat: one warning says it of all.
                said = text.rpartition(" (")[0] if text.startswith("client-limited: ") else ""
                places.setdefault((point.engine, said or text), []).append((place, text))
    for (name, said), where in places.items():
        text = where[0][1] if len({text for _, text in where}) == 1 else said
        more = f" and {len(where) - PLACES} more" if len(where) > PLACES else ""
        found.append(f"{name}, {', '.join(place for place, _ in where[:PLACES])}{more}: {text}")
    return list(dict.fromkeys(found))
