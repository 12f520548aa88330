"""One figure over many runs: what a results folder says of it, through DuckDB on the summaries' own rows.

A run without a current summary.json gets its figures from its records, once, into `.history/` of the results folder: a
Parquet file a run, which DuckDB reads as one table; into a folder of the user's own where that may not be written to.
Nothing is a server, and all of it can be deleted.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError
from harness.store import RunFolder, run_folders
from reports import export
from reports.summary import summarize

INSTALL = "pip install 'enginebench[history]'"
CACHE = ".history"
QUERY = """
select folder, scenario, started_at, engine, kind, model, simulated, point, load, unit, value, ci_low, ci_high, repeats,
       client_limited, reason
from read_parquet($files, filename = true) as figures join runs on figures.filename = runs.file
where metric = $metric
  and ($engine is null or engine = $engine) and ($load is null or load = $load or point = $load)
  and ($scenario is null or scenario = $scenario)
order by scenario, engine, try_cast(regexp_extract(load, '^[0-9.]+') as double), load, started_at, folder
"""


@dataclass(frozen=True, slots=True)
class Past:
    """One figure of one run. `reason` says why there is no value."""

    folder: str
    scenario: str
    started_at: str
    engine: str
    kind: str | None
    model: str | None
    simulated: bool
    point: str
    load: str
    unit: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    repeats: int
    client_limited: bool
    reason: str | None


def figures(results: Path, spare: Path) -> tuple[dict[Path, Path], list[str]]:
    """Each run with the Parquet file of its figures, made where it is missing or older than the run; and why runs
    were passed over. Files are kept in `spare` where the results folder may not be written to.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    found: dict[Path, Path] = {}
    folders, passed = run_folders(results)
    for folder in folders:
        files = [cache / f"{_key(folder)}.parquet" for cache in (results / CACHE, spare)]
        cached = next((path for path in files if path.exists()), None)
        try:
            found[folder] = cached or _kept(folder, *files)
        except InputError as error:
            passed.append(f"{folder}: {error}")
    return found, passed


def _kept(folder: Path, here: Path, spare: Path) -> Path:
    """The figures of a run, written to the first of the two files, or where that may not be to the other."""
    summary, file = summarize(RunFolder.open(folder)), here
    try:
        export.write(summary, "parquet", file)
    except InputError:
        file = spare
        export.write(summary, "parquet", file)
    for old in file.parent.glob(f"{_name(folder)}-*.parquet"):
        if old != file:
            old.unlink()
    return file


def _name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]


def _key(folder: Path) -> str:
    """The run and the state of its files: another content is another key."""
    parts = [folder / name for name in ("run.json", "requests.parquet", "telemetry.parquet")]
    parts += sorted((folder / "journal").glob("*"))
    state = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in parts if path.exists()]
    return f"{_name(folder)}-{hashlib.sha256(repr((state, export.COLUMNS)).encode()).hexdigest()[:12]}"


def past(files: dict[Path, Path], metric: str, only: dict[str, str | None] | None = None) -> list[Past]:
    """One metric of every run, ordered by scenario, engine, load and time. `only`: engine, load, scenario.

    Raises:
        InputError: DuckDB is not installed.
    """
    if not files:
        return []
    try:
        import duckdb
    except ImportError:
        raise InputError("history needs DuckDB, which is not installed", INSTALL) from None
    import pyarrow as pa

    chosen = {"engine": None, "load": None, "scenario": None} | (only or {})
    with duckdb.connect() as connection:
        runs = pa.table({"folder": [str(f) for f in files], "file": [str(path) for path in files.values()]})
        connection.register("runs", runs)
        given = {"files": [str(path) for path in files.values()], "metric": metric, **chosen}
        rows = connection.execute(QUERY, given).fetchall()
    return [Past(*row) for row in rows]
