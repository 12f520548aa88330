"""The frames of a chunked body, and when each of them had arrived."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

_END = [b"0", b"", b""]
_sizes: dict[bytes, int] = {}
"""Sizes that were read before, by how they are written: a stream has few, and a table is faster than a conversion."""


def dechunk(raw: bytes, position: int = 0) -> tuple[list[tuple[int, int]], bool]:
    """The data of a chunked body that begins at `position`, as (start, end) offsets, and whether its end is there."""
    frames: list[tuple[int, int]] = []
    size = len(raw)
    find = raw.find
    while position < size:
        line_end = find(b"\r\n", position)
        if line_end < 0:
            return frames, False
        try:
            length = int(raw[position:line_end].split(b";", 1)[0], 16)
        except ValueError:
            return frames, False
        start = line_end + 2
        if length < 0:
            return frames, False
        if length == 0:
            return frames, raw.endswith(b"\r\n\r\n") or raw[start : start + 2] == b"\r\n"
        position = start + length + 2
        frames.append((start, position - 2 if position - 2 < size else size))
    return frames, False


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of a whole body: the data of each, and where in the joined reads each frame ends."""

    data: list[bytes]
    ends: list[int]


def whole_frames(raw: bytes, position: int = 0) -> Frames | None:
    """The frames of a body that is whole, has no trailer, and no line end (CR LF) in its data: what streams are made
    of, read several times as fast as by `dechunk`. None of any other body."""
    parts = raw[position:].split(b"\r\n")
    if len(parts) % 2 == 0 or parts[-3:] != _END:
        return None
    sizes, data = parts[0:-3:2], parts[1:-3:2]
    lengths = list(map(len, data))
    if not _sizes.keys() >= set(sizes) and not _learn(sizes):
        return None
    if list(map(_sizes.__getitem__, sizes)) != lengths:
        return None
    ends = accumulate([m + n + 4 for m, n in zip(map(len, sizes), lengths, strict=True)], initial=position)
    return Frames(data, list(ends)[1:])


def _learn(sizes: Iterable[bytes]) -> bool:
    for size in sizes:
        if not 0 < len(size) <= 5 or not size.isalnum():
            return False
        try:
            _sizes[size] = int(size, 16)
        except ValueError:
            return False
    return True


def arrivals(frames: Frames, reads: list[bytes], times: list[float]) -> list[float]:
    """When the last line of each frame's data had arrived, all but its very last byte (which ends an empty line)."""
    ends = list(accumulate(map(len, reads)))
    # Mostly a read is a frame, apart from the first and the last.
    first = bisect_left(ends, frames.ends[0]) if frames.ends else 0
    alike = max(0, min(len(ends) - first - 1, len(frames.ends)))
    if alike > 1 and ends[first : first + alike] == frames.ends[:alike]:
        found = times[first + 1 : first + alike]
        head, tail = frames.ends[:1], frames.ends[alike:]
    else:
        found, head, tail = [], frames.ends, []
    late = [times[bisect_left(ends, end - 3)] for end in head]
    return late + found + [times[bisect_left(ends, end - 3)] for end in tail]
