"""The tables of a run: their columns, how the journal that they grow in is read, and the Parquet files they end in.

Each writer of the journal (see `journal`) owns one stream and appends a batch about once a second, so that whatever
kills the process at most the last second is lost. A torn tail (a batch or a line half written) is dropped at reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.columns import batch
from harness.errors import InputError
from harness.lines import read_lines
from harness.records import SCHEMA_VERSION

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
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": [
        "engine",
        "point",
        "phase",
        "token_source",
        "status",
        "error",
        "finish_reason",
        "source",
        "metric",
    ],
    "use_byte_stream_split": ["gaps_s.list.element"],  # most of a run: by bytes of one place, they take a third less
}
GROUP_ROWS, GROUP_BYTES = 20_000, 8 << 20  # of a Parquet file's row groups
ROW_BYTES = 250  # of a request without its gaps


SCHEMAS = {"requests": (REQUEST_SCHEMA, "scheduled_s"), "telemetry": (TELEMETRY_SCHEMA, "time_s")}
"""The tables of a run folder, and what each is ordered by."""


def read_journal(path: Path) -> Iterator[pa.RecordBatch]:
    """All whole batches of a stream; what comes after the last whole one is dropped."""
    if path.suffix == ".jsonl":
        rows = read_lines(path)
        yield from [batch(rows, TELEMETRY_SCHEMA)] if rows else []
        return
    try:
        with pa.ipc.open_stream(pa.OSFile(str(path))) as reader:
            while True:
                yield reader.read_next_batch()
    except (StopIteration, pa.ArrowInvalid, OSError, EOFError):
        return


def streams(journal: Path, name: str) -> list[Path]:
    """The streams of one table, in the order in which they were begun."""
    found = [*journal.glob(f"{name}-*.arrows"), *journal.glob(f"{name}-*.jsonl")] if journal.is_dir() else []
    return sorted(found)


def read(folder: Path, name: str) -> pa.Table:
    """One table of a run folder, ordered: its Parquet file and what is in the journal.

    Raises:
        InputError: the Parquet file is damaged.
    """
    schema, order = SCHEMAS[name]
    batches = [list(read_journal(path)) for path in streams(folder / "journal", name)]
    tables = [_fit(pa.Table.from_batches(stream), schema) for stream in batches if stream]
    parquet = folder / f"{name}.parquet"
    if parquet.exists():
        tables.append(_read_parquet(parquet, schema))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    # Only what is in the journal can be in the Parquet file too.
    table = _unique(table, name) if len(tables) > 1 else table
    return table.sort_by(order)


def keep_parquet(data: bytes, stream: Path, name: str) -> None:
    """Write the rows of a Parquet file, come from another host, as a stream of the journal: whole, or not at all."""
    part = stream.with_suffix(".part")
    with open(part, "wb") as file, pa.ipc.new_stream(file, SCHEMAS[name][0]) as writer:
        writer.write_table(_fit(pq.read_table(pa.BufferReader(data)), SCHEMAS[name][0]))
    os.replace(part, stream)


def as_table(stream: Path) -> pa.Table:
    """The rows of one stream of requests."""
    batches = list(read_journal(stream))
    return _fit(pa.Table.from_batches(batches), REQUEST_SCHEMA) if batches else REQUEST_SCHEMA.empty_table()


def compact(folder: Path) -> None:
    """Turn the journal into Parquet files. Safe to be killed anywhere and to be run again."""
    for name, (schema, _) in SCHEMAS.items():
        written, whole = streams(folder / "journal", name), folder / f"{name}.parquet"
        if not written and whole.exists():
            continue
        part = folder / f"{name}.parquet.part"
        if whole.exists():  # rows may be in both: see below
            pq.write_table(read(folder, name), part, **PARQUET)
        else:
            _write_streams(written, part, schema)
        # Killed between these two lines, rows are in both: reading takes each row once.
        os.replace(part, whole)
        for stream in written:
            stream.unlink()
    if (folder / "journal").is_dir() and not any((folder / "journal").iterdir()):
        (folder / "journal").rmdir()


def set_aside(folder: Path, engine: str, point: str, repeat: int) -> int:
    """Move the requests of an interrupted point to `interrupted.parquet`, outside of all figures; their number.

    A point that is measured again must not be mixed with what an interrupted try left.
    """
    compact(folder)
    table = read(folder, "requests")
    mask = [
        (e, p, r) == (engine, point, repeat)
        for e, p, r in zip(*(table[c].to_pylist() for c in ("engine", "point", "repeat")), strict=True)
    ]
    aside = table.filter(pa.array(mask, pa.bool_()))
    if aside.num_rows:
        kept = folder / "interrupted.parquet"
        whole = pa.concat_tables([_read_parquet(kept, REQUEST_SCHEMA), aside]) if kept.exists() else aside
        _replace_table(whole, kept)
        _replace_table(table.filter(pa.array([not m for m in mask], pa.bool_())), folder / "requests.parquet")
    return int(aside.num_rows)


def _write_streams(streams: list[Path], path: Path, schema: pa.Schema) -> None:
    """All rows of the streams, as they come, as one Parquet file; in little memory, however many there are."""
    with pq.ParquetWriter(path, schema, **PARQUET) as writer:
        held: list[pa.RecordBatch] = []
        rows = size = 0
        for part in chain.from_iterable(map(read_journal, streams)):
            full = rows >= GROUP_ROWS or size >= GROUP_BYTES
            if held and (full or not part.schema.equals(held[0].schema)):
                writer.write_table(_together(held, schema))
                held.clear()
                rows = size = 0
            held.append(part)
            rows, size = rows + part.num_rows, size + _bytes_about(part)
        if held:
            writer.write_table(_together(held, schema))


def _bytes_about(part: pa.RecordBatch) -> int:
    """What a batch takes, as far as it matters: to ask Arrow takes longer than all else that is done with one."""
    at = part.schema.get_field_index("gaps_s")
    gaps: int = len(part.column(at).values) if at >= 0 else 0
    return ROW_BYTES * int(part.num_rows) + 4 * gaps


def _together(parts: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Batches of the same columns as one piece: a file is written column by column, and each piece has its price."""
    return _fit(pa.Table.from_batches(parts).combine_chunks(), schema)


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
    pq.write_table(table, part, **PARQUET)
    os.replace(part, path)
