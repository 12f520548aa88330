"""Several runs as one: engines renamed by their run, so that every table and plot of a page can show them together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.records import RunRecord
from reports.rundata import RunData


def run_labels(paths: list[Path]) -> list[str]:
    """Each run by its folder's name; with its parent's where two are alike, with a number where even that is no use."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in paths]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def engine_labels(runs: list[tuple[str, RunData]]) -> dict[tuple[str, str], str]:
    """(run, engine) to the name that it has in a comparison: as short as tells it from the others."""
    if len(runs) == 1:
        return {(label, engine.name): engine.name for label, data in runs for engine in data.run.engines}
    return {
        (label, engine.name): label if len(data.run.engines) == 1 else f"{label}: {engine.name}"
        for label, data in runs
        for engine in data.run.engines
    }


def renamed(label: str, data: RunData, names: dict[tuple[str, str], str]) -> RunData:
    """One run with its telemetry, its engines under their names in a comparison."""
    mine = {engine: name for (run, engine), name in names.items() if run == label}
    points = [replace(point, engine=mine[point.engine]) for point in data.run.points if point.engine in mine]
    telemetry = data.telemetry if data.telemetry.num_rows == 0 else _renamed(data.telemetry, mine)
    return replace(data, run=replace(data.run, points=points), telemetry=telemetry)


def merged(runs: list[tuple[str, RunData]]) -> RunData:
    """One RunData of all runs. Each keeps its own clock, so that nothing over time is in it: no telemetry, no live
    KV; figures are computed from the same records as in each run's own report."""
    names = engine_labels(runs)
    if len(runs) == 1:
        return runs[0][1]
    tables, measured, engines, points, warnings = [], {}, [], [], []
    for label, data in runs:
        for engine in data.run.engines:
            engines.append(replace(engine, name=names[label, engine.name]))
        points += [replace(point, engine=names.get((label, point.engine), point.engine)) for point in data.run.points]
        warnings += [f"{label}: {text}" for text in data.run.warnings]
        for (engine_name, point_name), parts in data.measured.items():
            name = names[label, engine_name]
            measured[name, point_name] = [(replace(p, engine=name), replace(m, live=None)) for p, m in parts]
        tables.append(_renamed(data.requests, {e.name: names[label, e.name] for e in data.run.engines}))
    first = runs[0][1]
    return RunData(_record(runs, names, engines, points, warnings), pa.concat_tables(tables),
                   first.telemetry.slice(0, 0), measured)  # fmt: skip


def _record(
    runs: list[tuple[str, RunData]], names: dict[tuple[str, str], str], engines: Any, points: Any, warnings: list[str]
) -> RunRecord:
    records = [data.run for _, data in runs]
    slos = [record.scenario.get("slo") or {} for record in records]
    specs = []
    for label, data in runs:
        for spec in data.run.scenario.get("engines") or []:
            workload = spec.get("workload") or data.run.scenario.get("workload")
            specs.append(spec | {"name": names.get((label, spec.get("name")), spec.get("name")), "workload": workload})
    scenario = {
        "runs": [label for label, _ in runs], "engines": specs,
        "slo": slos[0] if all(slo == slos[0] for slo in slos) else {},
        "repeats": max(int(record.scenario.get("repeats") or 1) for record in records),
    }  # fmt: skip
    newest = max(records, key=lambda record: record.started_at)
    return replace(
        newest, name=" against ".join(label for label, _ in runs), scenario=scenario, engines=engines, points=points,
        status=next((r.status for r in records if r.status != "done"), "done"), findings=[], warnings=warnings,
        environment={label: data.run.environment for label, data in runs},
        scenario_hash=", ".join(dict.fromkeys(record.scenario_hash for record in records)),
    )  # fmt: skip


def _renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    """The table with its engines under other names."""
    column = table["engine"].combine_chunks().dictionary_encode()
    values = [names.get(value, value) for value in column.dictionary.to_pylist()]
    renamed = pa.DictionaryArray.from_arrays(column.indices, pa.array(values, pa.string())).cast(pa.string())
    return table.set_column(table.column_names.index("engine"), table.schema.field("engine"), renamed)
