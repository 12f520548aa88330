"""The figures of a run for other tools: one row an engine, load and metric, as CSV, JSON or Parquet.

requests.parquet and telemetry.parquet in the run folder hold everything below these figures.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.metrics import METRICS
from reports.rows import Summary
from reports.verdict import judge

TABLES = ("csv", "json", "parquet")
COLUMNS = ("scenario", "started_at", "engine", "kind", "model", "simulated", "point", "load", "metric", "title", "unit",
           "value", "ci_low", "ci_high", "n", "repeats", "client_limited", "reason")  # fmt: skip


def rows(summary: Summary) -> list[dict[str, Any]]:
    """Every figure, those that are missing with their reason; values in base units."""
    engines = {engine.name: engine for engine in summary.engines}
    found = []
    for state in summary.points:
        engine = engines.get(state.engine)
        for key, metric in METRICS.items():
            row = summary.row(state.engine, state.point, key)
            found.append({
                "scenario": summary.name, "started_at": summary.started_at, "engine": state.engine,
                "kind": engine.kind if engine else None, "model": engine.model if engine else None,
                "simulated": bool(engine and engine.simulated), "point": state.point, "load": state.label,
                "metric": key, "title": metric.title, "unit": row.unit, "value": row.value, "ci_low": row.ci_low,
                "ci_high": row.ci_high, "n": row.n, "repeats": state.repeats, "client_limited": state.client_limited,
                "reason": row.reason,
            })  # fmt: skip
    return found


def write(summary: Summary, kind: str, path: Path) -> Path:
    """One file of all figures.

    Raises:
        InputError: the file cannot be written.
    """
    found = rows(summary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            said = {"enginebench_verdict": json.dumps(judge(summary).headline), "enginebench_status": summary.status}
            pq.write_table(pa.Table.from_pylist(found, schema=_schema()).replace_schema_metadata(said), path)
        else:
            text = json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1) if kind == "json" else _csv(found)
            path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "give another --out") from None
    return path


def _csv(found: list[dict[str, Any]]) -> str:
    """Empty where there is no value. A text that a spreadsheet would take for a formula gets a quote before it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in found:
        writer.writerow({
            key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
            for key, value in row.items()
        })  # fmt: skip
    return text.getvalue()


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"value": pa.float64(), "ci_low": pa.float64(), "ci_high": pa.float64(), "n": pa.int64(),
             "repeats": pa.int64(), "simulated": pa.bool_(), "client_limited": pa.bool_()}  # fmt: skip
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
