"""An append-only journal of rows as lines of JSON: for the telemetry, whose writer does without pyarrow."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import orjson

FLUSH_S = 1.0


class LineJournal:
    """Rows of one dataclass, a list of its fields a line. They reach the disk at `flush`, about once a second."""

    def __init__(self, path: Path, kind: type[Any]) -> None:
        self._names = [field.name for field in dataclasses.fields(kind)]
        self._lines: list[bytes] = []
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the journal
        self._flushed_at = time.monotonic()

    def add(self, row: Any) -> None:
        self._lines.append(orjson.dumps([getattr(row, name) for name in self._names]))

    def due(self) -> bool:
        """Whether the last flush is long enough ago."""
        return bool(self._lines) and time.monotonic() - self._flushed_at >= FLUSH_S

    def flush(self) -> None:
        """Hand all rows to the operating system, so that the death of this process cannot lose them."""
        self._flushed_at = time.monotonic()
        if self._lines:
            self._file.write(b"\n".join([*self._lines, b""]))
            self._lines.clear()
        self._file.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()


def read_lines(path: Path) -> list[list[Any]]:
    """All whole rows of a journal; a last line without its end is dropped."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    rows = []
    for line in whole.splitlines():
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:  # nothing after a damaged line can be trusted
            break
    return rows
