"""The journal of requests: an append-only Arrow stream that only grows, so that nothing measured is ever lost.

Arrow is loaded when the first rows are written and not before: a load process sends its first requests without it.
"""

from __future__ import annotations

import time
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import RequestRecord, TelemetrySample

if TYPE_CHECKING:
    import pyarrow as pa

FLUSH_S, FLUSH_ROWS = 1.0, 1000


class Journal:
    """Rows of one of `tables.SCHEMAS`. `add` is cheap; rows reach the disk at `flush`, about once a second."""

    def __init__(self, path: Path, table: str, flush_s: float = FLUSH_S, flush_rows: int = FLUSH_ROWS) -> None:
        self._table = table
        self._flush_rows = flush_rows
        self._flush_s = flush_s
        self._rows: list[RequestRecord | TelemetrySample] = []
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the journal
        self._stream: _Stream | None = None
        self._flushed_at = time.monotonic()

    def add(self, row: RequestRecord | TelemetrySample) -> None:
        self._rows.append(row)

    def due(self) -> bool:
        """Whether the last flush is long enough ago, or many rows wait."""
        waiting = len(self._rows)
        return waiting >= self._flush_rows or (waiting > 0 and time.monotonic() - self._flushed_at >= self._flush_s)

    def flush(self) -> None:
        """Hand all rows to the operating system, so that the death of this process cannot lose them."""
        self._flushed_at = time.monotonic()
        if self._rows:
            self._stream = self._stream or _Stream(self._file, self._table)
            self._stream.write(self._rows)
            self._rows.clear()
        self._file.flush()

    def close(self) -> None:
        self.flush()
        if self._stream is not None:
            self._stream.writer.close()
        self._file.close()


class _Stream:
    """The Arrow side of a journal: its schema is the first thing in the file."""

    def __init__(self, file: Any, table: str) -> None:
        import pyarrow as pa

        from harness.columns import batch
        from harness.tables import SCHEMAS

        self._batch, self._schema = batch, SCHEMAS[table][0]
        self._values = attrgetter(*self._schema.names)
        self.writer: pa.RecordBatchStreamWriter = pa.ipc.new_stream(file, self._schema)

    def write(self, rows: list[Any]) -> None:
        self.writer.write_batch(self._batch([self._values(row) for row in rows], self._schema))
