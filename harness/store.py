"""The run folder: an append-only journal while a run goes on, columnar files after.

Each writer owns one Arrow IPC stream and appends a batch about once a second, so that whatever kills the process
at most the last second is lost. A torn tail (a batch half written) is dropped at reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.columns import batch
from harness.errors import InputError
from harness.records import SCHEMA_VERSION, EngineRun, Fact, PointRun, RequestRecord, RunRecord, TelemetrySample

REQUEST_SCHEMA = pa.schema(
    [
        ("engine", pa.string()), ("point", pa.string()), ("repeat", pa.int32()), ("request_id", pa.int64()),
        ("phase", pa.string()), ("scheduled_s", pa.float64()), ("sent_s", pa.float64()),
        ("first_token_s", pa.float64()), ("last_token_s", pa.float64()), ("end_s", pa.float64()),
        ("input_tokens", pa.int64()), ("output_tokens", pa.int64()), ("token_source", pa.string()),
        ("chunks", pa.int32()), ("gaps_s", pa.list_(pa.float32())), ("ttft_s", pa.float64()),
        ("tpot_s", pa.float64()), ("e2e_s", pa.float64()), ("status", pa.string()), ("http_status", pa.int32()),
        ("error", pa.string()), ("finish_reason", pa.string()), ("asked_input_tokens", pa.int64()),
        ("asked_output_tokens", pa.int64()), ("first_chunk_tokens", pa.int32()), ("first_answer_s", pa.float64()),
        ("worker", pa.int32()), ("session", pa.int64()), ("turn", pa.int32()),
        ("server_timings", pa.map_(pa.string(), pa.float64())), ("text", pa.string()),
    ],
    metadata={"enginebench_schema": str(SCHEMA_VERSION)},
)  # fmt: skip
TELEMETRY_SCHEMA = pa.schema(
    [
        ("time_s", pa.float64()), ("engine", pa.string()), ("source", pa.string()), ("metric", pa.string()),
        ("value", pa.float64()),
    ],
    metadata={"enginebench_schema": str(SCHEMA_VERSION)},
)  # fmt: skip
FLUSH_S, FLUSH_ROWS = 1.0, 1000
GROUP_ROWS, GROUP_BYTES = 20_000, 8 << 20  # of a Parquet file's row groups


class Journal:
    """An append-only Arrow stream of rows. `add` is cheap; rows reach the disk at `flush`, about once a second."""

    def __init__(self, path: Path, schema: pa.Schema, flush_s: float = FLUSH_S, flush_rows: int = FLUSH_ROWS) -> None:
        self._schema = schema
        self._flush_rows = flush_rows
        self._flush_s = flush_s
        self._rows: list[tuple[Any, ...]] = []
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the journal
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._flushed_at = time.monotonic()

    def add(self, row: RequestRecord | TelemetrySample) -> None:
        self._rows.append(tuple(getattr(row, name) for name in self._schema.names))

    def due(self) -> bool:
        """Whether the last flush is long enough ago, or many rows wait."""
        waiting = len(self._rows)
        return waiting >= self._flush_rows or (waiting > 0 and time.monotonic() - self._flushed_at >= self._flush_s)

    def flush(self) -> None:
        """Hand all rows to the operating system, so that the death of this process cannot lose them."""
        self._flushed_at = time.monotonic()
        if self._rows:
            self._writer.write_batch(batch(self._rows, self._schema))
            self._rows.clear()
        self._file.flush()

    def close(self) -> None:
        self.flush()
        self._writer.close()
        self._file.close()


def read_journal(path: Path) -> Iterator[pa.RecordBatch]:
    """All whole batches of a stream; what comes after the last whole one is dropped."""
    try:
        with pa.ipc.open_stream(pa.OSFile(str(path))) as reader:
            while True:
                yield reader.read_next_batch()
    except (StopIteration, pa.ArrowInvalid, OSError, EOFError):
        return


class RunFolder:
    """One run on disk. Opening reads only run.json; tables are read when asked for.

    Raises:
        InputError: at `open`: the folder holds no readable run, or one of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = path / "journal"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make the folder. One that holds a run already is refused: nothing measured is ever overwritten."""
        if (path / "run.json").exists():
            raise InputError(
                f"{path} holds a run already", "give another --out, or continue that run with: bench run --resume"
            )
        try:
            (path / "journal").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made: {error.strerror}", "give another --out") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        if not (path / "run.json").is_file():
            raise InputError(f"{path} holds no run (no run.json)", "`bench list` shows the runs there are")
        return cls(path)

    def lock(self) -> None:
        """Keep other tools out until this process ends.

        Raises:
            InputError: another process measures into this folder.
        """
        with contextlib.suppress(ImportError):  # Windows has no fcntl: there it is left to the user
            import fcntl

            try:
                lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the process ends
            except OSError as error:
                raise InputError(f"{self.path}: cannot be written: {error.strerror}", "check its permissions") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise InputError(f"another bench run measures into {self.path}", "wait for it to end") from None
            self._lock = lock

    def write_run(self, run: RunRecord) -> None:
        """Replace run.json as a whole: a reader sees the old one or the new one. NaN (no JSON) becomes null."""
        part = self.path / "run.json.part"
        data = _finite(dataclasses.asdict(run))
        part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, self.path / "run.json")

    def read_run(self) -> RunRecord:
        """The run's record; keys that this version does not know are passed over."""
        path = self.path / "run.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = int(data.get("schema_version", 0))
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"{path} has format {version}; this enginebench reads up to {SCHEMA_VERSION}",
                    "upgrade it: pip install -U enginebench",
                )
            data["engines"] = [_record(EngineRun, e) for e in data.get("engines", [])]
            for engine in data["engines"]:
                engine.facts = [_record(Fact, f) for f in engine.facts]
            data["points"] = [_record(PointRun, p) for p in data.get("points", [])]
            run: RunRecord = _record(RunRecord, data)
            return run
        except (json.JSONDecodeError, TypeError, AttributeError, ValueError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}", "restore it from a copy") from None

    def journal(self, name: str, schema: pa.Schema) -> Journal:
        """A new stream of this run; no name is used twice, so that nothing is appended to a torn one."""
        return Journal(self.new_journal(name), schema)

    def new_journal(self, name: str) -> Path:
        """A path for one more stream of `name`, for a writer in another process."""
        self.journal_path.mkdir(exist_ok=True)
        taken = [int(path.stem.rpartition("-")[2]) for path in self.journal_path.glob(f"{name}-*.arrows")]
        path = self.journal_path / f"{name}-{max(taken, default=-1) + 1:04d}.arrows"
        path.touch(exist_ok=False)
        return path

    def requests(self) -> pa.Table:
        """All requests, ordered by the time they were wanted: the Parquet file and what is in the journal."""
        return self._read("requests", REQUEST_SCHEMA, "scheduled_s")

    def telemetry(self) -> pa.Table:
        """All samples, ordered by time."""
        return self._read("telemetry", TELEMETRY_SCHEMA, "time_s")

    def compact(self) -> None:
        """Turn the journal into Parquet files. Safe to be killed anywhere and to be run again."""
        for name, schema, order in (
            ("requests", REQUEST_SCHEMA, "scheduled_s"), ("telemetry", TELEMETRY_SCHEMA, "time_s"),
        ):  # fmt: skip
            streams = self._streams(name)
            if not streams and (self.path / f"{name}.parquet").exists():
                continue
            part = self.path / f"{name}.parquet.part"
            if (self.path / f"{name}.parquet").exists():  # rows may be in both: see below
                pq.write_table(self._read(name, schema, order), part, compression="zstd")
            else:
                _write_streams(streams, part, schema)
            # Killed between these two lines, rows are in both: reading takes each row once.
            os.replace(part, self.path / f"{name}.parquet")
            for stream in streams:
                stream.unlink()
        if self.journal_path.is_dir() and not any(self.journal_path.iterdir()):
            self.journal_path.rmdir()

    def set_aside(self, engine: str, point: str, repeat: int) -> int:
        """Move the requests of an interrupted point to `interrupted.parquet`, outside of all figures; their number.

        A point that is measured again must not be mixed with what an interrupted try left.
        """
        self.compact()
        table = self.requests()
        mask = [
            (e, p, r) == (engine, point, repeat)
            for e, p, r in zip(*(table[c].to_pylist() for c in ("engine", "point", "repeat")), strict=True)
        ]
        aside = table.filter(pa.array(mask, pa.bool_()))
        if aside.num_rows:
            kept = self.path / "interrupted.parquet"
            whole = pa.concat_tables([_read_parquet(kept, REQUEST_SCHEMA), aside]) if kept.exists() else aside
            _replace_table(whole, kept)
            _replace_table(table.filter(pa.array([not m for m in mask], pa.bool_())), self.path / "requests.parquet")
        return int(aside.num_rows)

    def _streams(self, name: str) -> list[Path]:
        return sorted(self.journal_path.glob(f"{name}-*.arrows")) if self.journal_path.is_dir() else []

    def _read(self, name: str, schema: pa.Schema, order: str) -> pa.Table:
        batches = [list(read_journal(path)) for path in self._streams(name)]
        tables = [_fit(pa.Table.from_batches(stream), schema) for stream in batches if stream]
        parquet = self.path / f"{name}.parquet"
        if parquet.exists():
            tables.append(_read_parquet(parquet, schema))
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        return _unique(table, name).sort_by(order)


def _write_streams(streams: list[Path], path: Path, schema: pa.Schema) -> None:
    """All rows of the streams, as they come, as one Parquet file; in little memory, however many there are."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        held: list[pa.Table] = []
        for batches in map(read_journal, streams):
            for part in batches:
                held.append(_fit(pa.Table.from_batches([part]), schema))
                if sum(t.num_rows for t in held) >= GROUP_ROWS or sum(t.nbytes for t in held) >= GROUP_BYTES:
                    writer.write_table(pa.concat_tables(held))
                    held.clear()
        writer.write_table(pa.concat_tables(held) if held else schema.empty_table())


def _read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return _fit(pq.read_table(path), schema)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged: {error}", "restore it from a copy") from None


def _unique(table: pa.Table, name: str) -> pa.Table:
    """Rows once each: a kill between writing the Parquet file and removing its journal leaves both."""
    keys = {"requests": ["engine", "point", "repeat", "request_id", "sent_s"]}.get(
        name, ["time_s", "engine", "source", "metric"]
    )
    if table.num_rows == 0:
        return table
    index = pa.array(range(table.num_rows), pa.int64())
    first = table.select(keys).append_column("row", index).group_by(keys).aggregate([("row", "min")])
    return table if first.num_rows == table.num_rows else table.take(first["row_min"])


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """An older file in today's columns: what it lacks is null."""
    if table.schema.equals(schema):
        return table
    columns: Iterable[Any] = (
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type) for f in schema
    )
    return pa.table(list(columns), schema=schema)


def _replace_table(table: pa.Table, path: Path) -> None:
    part = path.with_suffix(".part")
    pq.write_table(table, part, compression="zstd")
    os.replace(part, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(kind: type[Any], data: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in data.items() if key in names})
