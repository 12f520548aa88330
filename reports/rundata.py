"""A run folder in memory: its record, its tables, and what each repeat that counts comes to.

Reads whatever a run left: a finished folder, a cancelled one, or only the journal of one that was killed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.metrics import Measured, measured, rates_of
from harness.records import PointRun, RunRecord
from harness.store import RunFolder
from reports import foretold
from reports.foretold import Foretold
from reports.hidden import hide

COUNTED = ("done", "client-limited")  # only a repeat whose window closed has figures
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RunData:
    """A run folder in memory, read once: `measured` holds the counted repeats of each (engine, point)."""

    run: RunRecord
    requests: pa.Table
    telemetry: pa.Table
    measured: dict[Key, list[tuple[PointRun, Measured]]]
    foretold: list[Foretold] = field(default_factory=list)


def read(folder: RunFolder, live: bool = True) -> RunData:
    """Everything that reports need of a folder; without `live`, all but the KV memory that requests held.

    Raises:
        InputError: run.json is damaged or of a newer format.
    """
    run, requests, telemetry = hide(folder.read_run()), folder.requests(), folder.telemetry()
    facts = {engine.name: engine.facts for engine in run.engines}
    slo = {str(key): float(limit) for key, limit in (run.scenario.get("slo") or {}).items()}
    rows_of = rows_by(requests, ["engine", "point", "repeat"])
    rates = rates_of(run.environment, run.scenario)
    parts: dict[Key, list[tuple[PointRun, Measured]]] = {}
    for point in sorted(run.points, key=lambda p: p.repeat):
        rows = rows_of.get((point.engine, point.point, point.repeat))
        if point.status not in COUNTED or rows is None:
            continue
        table = _part(requests, rows)
        if not pc.any(pc.equal(table["phase"], "measure")).as_py():
            continue  # a window without a request has no figures; 0 tokens/s would be one
        samples = telemetry.filter((pc.field("engine") == point.engine) | pc.field("engine").is_null())
        figures = measured(table, point, samples, facts.get(point.engine, []), slo, live, rates)
        parts.setdefault((point.engine, point.point), []).append((point, figures))
    return RunData(run, requests, telemetry, parts, foretold.load(folder))


def rows_by(table: pa.Table, columns: list[str]) -> dict[tuple[Any, ...], Any]:
    """Row numbers of each combination of the columns, in one pass over the table."""
    if table.num_rows == 0:
        return {}
    codes = np.zeros(table.num_rows, np.int64)
    keys: list[tuple[Any, ...]] = [()]
    for name in columns:
        column = pc.dictionary_encode(table[name]).combine_chunks()
        values = column.dictionary.to_pylist()
        codes = codes * len(values) + np.asarray(column.indices)
        keys = [(*key, value) for key in keys for value in values]
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(keys) + 1))
    parts = [(key, order[starts[i] : starts[i + 1]]) for i, key in enumerate(keys)]
    return {key: rows for key, rows in parts if len(rows)}


def _part(table: pa.Table, rows: Any) -> pa.Table:
    """These rows, in order; a part without holes, as a point mostly is, is not copied."""
    if int(rows[-1]) - int(rows[0]) + 1 == len(rows):
        return table.slice(int(rows[0]), len(rows))
    return table.take(rows)
