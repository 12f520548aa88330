"""Rows to Arrow columns, from plain buffers: `pa.array` imports pandas at its first call, which takes a second and
60 MB of whatever process measures."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

_NUMBERS = {pa.float64(): np.float64, pa.float32(): np.float32, pa.int64(): np.int64, pa.int32(): np.int32}


def batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows in the order of the schema's fields; None is null."""
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [column(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """One column of numbers, texts, lists of numbers, or mappings of text to number."""
    if pa.types.is_string(kind):
        return _texts(values)
    if pa.types.is_list(kind):
        return _lists(values, kind)
    if pa.types.is_map(kind):
        return _maps(values, kind)
    present, nulls = _validity(values)
    numbers = np.array([0 if value is None else value for value in values] if nulls else values, _NUMBERS[kind])
    return pa.Array.from_buffers(kind, len(values), [present, pa.py_buffer(numbers)], nulls)


def _validity(values: Sequence[Any]) -> tuple[pa.Buffer | None, int]:
    """The bits that say which values are there, and how many are not."""
    if None not in values:
        return None, 0
    there = np.array([value is not None for value in values])
    return pa.py_buffer(np.packbits(there, bitorder="little")), int(len(values) - there.sum())


def _offsets(lengths: Sequence[int]) -> pa.Buffer:
    return pa.py_buffer(np.fromiter(accumulate(lengths, initial=0), np.int32, len(lengths) + 1))


def _texts(values: Sequence[str | None]) -> pa.Array:
    present, nulls = _validity(values)
    data = [b"" if value is None else value.encode("utf-8", "replace") for value in values]
    buffers = [present, _offsets([*map(len, data)]), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers, nulls)


def _lists(values: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    """Lists of floats, most of what a run holds: those in `array("d")` go as whole buffers."""
    if all(isinstance(value, array) and value.typecode == "d" for value in values):
        flat = np.frombuffer(b"".join(values), np.float64)  # type: ignore[arg-type]
    else:
        flat = np.array([number for value in values for number in value], np.float64)
    items = column(flat.astype(_NUMBERS[kind.value_type]), kind.value_type)  # type: ignore[arg-type]
    return pa.Array.from_buffers(kind, len(values), [None, _offsets([*map(len, values)])], 0, children=[items])


def _maps(values: Sequence[dict[str, float] | None], kind: pa.DataType) -> pa.Array:
    present, nulls = _validity(values)
    pairs = [pair for value in values for pair in (value or {}).items()]
    entries = pa.StructArray.from_arrays(
        [column([key for key, _ in pairs], kind.key_type), column([item for _, item in pairs], kind.item_type)],
        fields=[kind.key_field, kind.item_field],
    )
    offsets = _offsets([len(value or {}) for value in values])
    return pa.Array.from_buffers(kind, len(values), [present, offsets], nulls, children=[entries])
