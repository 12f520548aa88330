"""Trace files: when real requests came, and how long they and their answers were.

Read as they were published: Azure's LLM inference traces (CSV of TIMESTAMP, ContextTokens, GeneratedTokens; the time of
day with seven digits of a second, in some years with a time zone; https://github.com/Azure/AzurePublicDataset) and
Mooncake's (JSON lines of timestamp in milliseconds, input_length, output_length, hash_ids: one id for each block of 512
prompt tokens, equal where two prompts share that block and all before it; https://github.com/kvcache-ai/Mooncake).
Anything else as CSV or JSON lines of timestamp_s, input_tokens, output_tokens.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a trace: seconds on the file's own clock, lengths in tokens, ids of the prompt's blocks."""

    time_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace: times in seconds from its first request, in the order of the file; `sha256` of its bytes."""

    sha256: str
    rows: list[Row]

    def piece(self, start_s: float, speed: float) -> list[Row]:
        """The requests from `start_s` on, on a clock that begins there and runs `speed` times as fast."""
        return [
            Row((row.time_s - start_s) / speed, row.input_tokens, row.output_tokens, row.blocks)
            for row in self.rows
            if row.time_s >= start_s
        ]

    def mean_rate_rps(self, start_s: float) -> float | None:
        """Requests a second from `start_s` on; None where they all come at one moment."""
        times = [row.time_s for row in self.rows if row.time_s >= start_s]
        return (len(times) - 1) / (times[-1] - times[0]) if times and times[-1] > times[0] else None


def read_trace(file: str, format: str, sha256: str | None = None) -> Trace:
    """A trace file, read once in each process. `format`: a key of FORMATS. `sha256`: what it must be, where known.

    Raises:
        InputError: it cannot be read, is not of that format (with its line), or is not the file that `sha256` names.
    """
    path = Path(file).expanduser()
    try:
        stat = path.stat()
        trace = _read(path, format, (stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", "check `file`") from None
    if sha256 is not None and trace.sha256 != sha256:
        raise InputError(f"{path}: not the trace that was asked for: its SHA-256 is {trace.sha256}", "check `sha256`")
    return trace


def detect(file: str) -> str:
    """Which format a file has, by its first line.

    Raises:
        InputError: it cannot be read, or has none of the known ones.
    """
    path = Path(file).expanduser()
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "check `file`") from None
    names = _keys(first)
    for name, form in FORMATS.items():
        if form.json == first.lstrip().startswith("{") and set(form.columns) <= names:
            return name
    forms = "; ".join(f"{name} ({', '.join(form.columns)})" for name, form in FORMATS.items())
    raise InputError(f"{path}:1: none of the known forms of a trace: {forms}", "name its columns so")


def _keys(line: str) -> set[str]:
    """The names in a file's first line: of a JSON object, or of a CSV header."""
    if not line.lstrip().startswith("{"):
        return {name.strip() for name in next(csv.reader([line]), [])}
    try:
        return set(json.loads(line))
    except json.JSONDecodeError:
        return set()


@lru_cache(maxsize=4)
def _read(path: Path, format: str, _version: tuple[int, int]) -> Trace:
    data, form = path.read_bytes(), FORMATS[format]
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not a text in UTF-8", "check `file`") from None
    rows: list[Row] = []
    for number, values in (_json_lines if form.json else _csv_lines)(path, lines, form.columns):
        try:
            time, prompt, answer = (values.get(name) for name in form.columns)
            blocks = tuple(_count(block) for block in values.get(form.blocks) or ())
            row = Row(form.seconds(time), _tokens(prompt, form.columns[1]), _tokens(answer, form.columns[2]), blocks)
            if rows and row.time_s < rows[-1].time_s:
                raise ValueError(f"its {form.columns[0]} lies before that of the request above it")
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}:{number}: {error}", f"is it a trace in the form '{format}'?") from None
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no request in it", "check `file`")
    first_s = rows[0].time_s
    rows = [Row(row.time_s - first_s, row.input_tokens, row.output_tokens, row.blocks) for row in rows]
    return Trace(hashlib.sha256(data).hexdigest(), rows)


def _csv_lines(path: Path, lines: list[str], columns: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row by its header's names, with its line."""
    reader = csv.DictReader(lines, skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or []]
    if lacking := [name for name in columns if name not in names]:
        raise InputError(f"{path}:1: no column '{lacking[0]}'; it has: {', '.join(names) or 'none'}", "check `format`")
    reader.fieldnames = names
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}", "check `file`") from None


def _json_lines(path: Path, lines: list[str], columns: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object, with its line; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error.msg}", "check `format`") from None
        if not isinstance(values, dict) or (lacking := [name for name in columns if name not in values]):
            what = f"no '{lacking[0]}'" if isinstance(values, dict) else "not an object"
            raise InputError(f"{path}:{number}: {what}", "check `format`")
        yield number, values


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"not a whole number: {value!r}")
    return value


def _tokens(value: object, name: str) -> int:
    """A number of tokens, at least 1: an answer of none is asked for as one of one, which is the prefill alone."""
    text = str(value).strip()
    if isinstance(value, bool | float) or not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{name} is not a whole number of tokens: {value!r}")
    return max(1, int(text))


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"not a time in seconds: {value!r}")
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"not a time in seconds: {value!r}")
    return seconds


_AZURE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?\s*(Z|[+-]\d\d:?\d\d)?")
_AZURE_EPOCH = datetime(
    2023, 1, 1, tzinfo=UTC
)  # a near one: a float keeps microseconds of the seconds since 1970 badly


def _azure_seconds(value: object) -> float:
    match = _AZURE_TIME.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"TIMESTAMP is no time such as 2023-11-16 18:15:46.6805900: {value!r}")
    whole, fraction, zone = match.groups()
    moment = datetime.fromisoformat(whole + (zone or "+00:00").replace("Z", "+00:00"))
    return (moment - _AZURE_EPOCH).total_seconds() + float(fraction or 0)


@dataclass(frozen=True, slots=True)
class Form:
    """One form of trace files: its names of time, prompt length and answer length, and what its times mean."""

    columns: tuple[str, str, str]
    seconds: Callable[[object], float]
    json: bool = False
    blocks: str = "hash_ids"


_OWN = ("timestamp_s", "input_tokens", "output_tokens")
FORMATS: dict[str, Form] = {
    "azure": Form(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure_seconds),
    "mooncake": Form(("timestamp", "input_length", "output_length"), lambda ms: _seconds(ms) / 1e3, json=True),
    "csv": Form(_OWN, _seconds),
    "jsonl": Form(_OWN, _seconds, json=True),
}
