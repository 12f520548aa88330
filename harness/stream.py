"""The hot path: one HTTP/1.1 exchange on a kept connection, each read with the time at which its bytes arrived.

While a stream runs, only two things happen to a read: it is stamped and it is kept. The bytes are looked at when the
last of them has arrived. The stamps are the kernel's where it gives them (`stamped`: plain TCP on Linux), and taken at
the read elsewhere (TLS). That is why they can be believed when a thousand streams share one core.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from time import monotonic

from harness.frames import Frames, dechunk, whole_frames
from harness.stamped import Receiver, StampedSocket, connected

_CHUNKED, _LENGTH, _UNTIL_CLOSE = 1, 2, 3
_END = b"\r\n\r\n"  # of a chunked body: of the last chunk, or of the trailer after it
_NO_BODY = (204, 304)
HEAD_BYTES_MAX = 65536


@dataclass(slots=True)
class Exchange:
    """What one request left behind, raw. Times are `time.monotonic()`; `error` is set if it did not end well."""

    sent_s: float | None = None
    end_s: float | None = None
    times: list[float] = field(default_factory=list)
    reads: list[bytes] = field(default_factory=list)
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    head_bytes: int = 0
    error: str | None = None
    frames: Frames | None = None
    """Of a whole chunked body of the usual kind: found when its end was looked for."""

    @property
    def seconds(self) -> float:
        """From its sending to its end; 0 of one that was not sent or has not ended."""
        return self.end_s - self.sent_s if self.end_s is not None and self.sent_s is not None else 0.0

    @property
    def good(self) -> bool:
        """Whether it seems to have ended well, by what can be seen without reading it."""
        return self.error is None and self.status == 200 and b'"error"' not in self.reads[-1]

    @property
    def retry_after_s(self) -> float:
        """How long the server asked to wait; 0 if it did not."""
        return float(retry) if (retry := self.headers.get("retry-after", "")).isdecimal() else 0.0

    @property
    def began_answering(self) -> bool:
        """Whether a byte of the body has arrived."""
        return len(self.reads) > 1 or (len(self.reads) == 1 and 0 < self.head_bytes < len(self.reads[0]))


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time. `exchange` is awaited; everything else is callbacks."""

    __slots__ = ("_body_left", "_done", "_framing", "_reads", "_times", "_transport", "_x")

    def __init__(self) -> None:
        self._transport: asyncio.Transport | StampedSocket | None = None
        self._done: asyncio.Future[None] | None = None
        self._x = Exchange()
        self._times, self._reads = self._x.times, self._x.reads
        self._framing = 0
        self._body_left = 0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def current(self) -> Exchange:
        return self._x

    async def exchange(self, request: bytes, timeout_s: float) -> Exchange:
        """Send a request and wait for the whole response; never raises for what the server does.

        Another task may end it early with `abort`; what has arrived by then is kept.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._x = x = Exchange()
        self._times, self._reads = x.times, x.reads
        if not self.open:  # closed before it was used: nothing would ever call back
            x.error, x.sent_s = "connection closed before the request", monotonic()
            x.end_s = x.sent_s
            return x
        self._framing = 0
        self._done = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, f"no end after {timeout_s:g} s")
        x.sent_s = monotonic()
        self._transport.write(request)
        try:
            await self._done
        finally:
            timer.cancel()
        return x

    def abort(self, why: str) -> None:
        """End the exchange under way with this error; the server sees the connection close."""
        self._fail(why)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- callbacks of the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport | StampedSocket) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        self.received(data, monotonic())

    def received(self, data: bytes, at_s: float) -> None:
        self._times.append(at_s)
        self._reads.append(data)
        if self._framing == _CHUNKED:
            if data.endswith(_END) or (len(data) < 4 and self._tail().endswith(_END)):
                self._maybe_end()
        else:
            self._other_read(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._framing == _UNTIL_CLOSE and exc is None:
            self._end()
        else:
            self._fail(f"connection reset: {exc}" if exc else "connection closed before the end of the response")

    # --- off the hot path ---

    def _other_read(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.close()  # bytes that nobody asked for
        elif self._framing == 0:
            self._read_head()
        elif self._framing == _LENGTH:
            self._body_left -= len(data)
            if self._body_left <= 0:
                self._end()

    def _read_head(self) -> None:
        raw = b"".join(self._reads)
        head, found, body = raw.partition(b"\r\n\r\n")
        if raw[:5] != b"HTTP/"[: len(raw)]:
            self._fail(f"no HTTP response: {raw[:80]!r}")
            return
        if len(head) > HEAD_BYTES_MAX:
            self._fail("no HTTP response: the head does not end")
            return
        if not found:
            return
        x = self._x
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
            self._fail(f"no HTTP response: {lines[0][:80]!r}")
            return
        status = int(parts[1])
        if 100 <= status < 200:  # an interim answer; the real one follows
            self._reads[:] = [body] if body else []
            del self._times[: len(self._times) - len(self._reads)]
            if body:
                self._read_head()
            return
        x.status = status
        x.headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        x.head_bytes = len(head) + 4
        if status in _NO_BODY:
            self._end()
        elif "chunked" in x.headers.get("transfer-encoding", "").lower():
            self._framing = _CHUNKED
            if raw.endswith(_END):
                self._maybe_end()
        elif x.headers.get("content-length", "").isdecimal():
            self._framing = _LENGTH
            self._body_left = int(x.headers["content-length"]) - len(body)
            if self._body_left <= 0:
                self._end()
        else:
            self._framing = _UNTIL_CLOSE

    def _tail(self) -> bytes:
        return b"".join(self._reads[-4:])

    def _maybe_end(self) -> None:
        """The read ends like a body; the same bytes may stand inside a chunk, so the frames are walked."""
        raw = b"".join(self._reads)
        self._x.frames = whole_frames(raw, self._x.head_bytes)
        if self._x.frames is not None or dechunk(raw, self._x.head_bytes)[1]:
            self._end()

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._x.end_s = self._times[-1] if self._times else monotonic()
            self._framing = 0
            self._done.set_result(None)
            if self._x.headers.get("connection", "").lower() == "close":
                self.close()

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._x.error = why
            self._x.end_s = monotonic()
            self._framing = 0
            self._done.set_result(None)
            self.close()


async def connect(
    host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float = 30.0, receiver: Receiver | None = None
) -> Connection:
    """Open a connection; one without TLS through the receiver, if there is one. Raises OSError or TimeoutError if it
    cannot be had."""
    async with asyncio.timeout(timeout_s):
        if receiver is not None and tls is None:
            connection = Connection()
            connection.connection_made(receiver.add(await connected(host, port), connection))
            return connection
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, host, port, ssl=tls, server_hostname=host if tls else None
        )
    return connection


def timed_lines(x: Exchange) -> list[tuple[float, bytes]]:
    """The non-empty lines of the body, each with the time of the read that completed it.

    A last line without its end counts only if the exchange ended well: else it may be half of one.
    """
    ends = list(accumulate(map(len, x.reads)))
    raw = b"".join(x.reads)
    if "chunked" in x.headers.get("transfer-encoding", "").lower():
        parts = dechunk(raw, x.head_bytes)[0]
    else:  # read by read, so that what is compressed keeps its times too
        parts = [(max(start, x.head_bytes), end) for start, end in pairwise([0, *ends]) if end > x.head_bytes]
    pieces = [raw[start:end] for start, end in parts]
    if x.headers.get("content-encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
        inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        pieces = [inflate.decompress(piece) for piece in pieces]
        arrivals = [(end, end) for _, end in parts]
    else:
        arrivals = parts
    lines, rest = _cut(pieces, arrivals, ends, x.times)
    if rest.strip() and x.error is None:
        lines.append((x.times[bisect_left(ends, parts[-1][1])], rest.rstrip(b"\r")))
    return lines


def _cut(
    pieces: list[bytes], arrivals: list[tuple[int, int]], ends: list[int], times: list[float]
) -> tuple[list[tuple[float, bytes]], bytes]:
    """Cut pieces into lines, and what is left after the last; a line may run over pieces, a piece over reads."""
    lines: list[tuple[float, bytes]] = []
    rest = b""
    read = 0  # the read that holds the offset at hand: offsets only grow
    for piece, (start, end) in zip(pieces, arrivals, strict=True):
        if not rest and piece[-2:] == b"\n\n" and piece.find(b"\n") == len(piece) - 2:  # what streams are made of
            while ends[read] < end - 1:
                read += 1
            lines.append((times[read], piece[:-2]))
            continue
        offset = 0
        exact = end - start == len(piece)
        while (newline := piece.find(b"\n", offset)) >= 0:
            line = rest + piece[offset:newline]
            rest = b""
            at = start + newline + 1 if exact else end
            if line := line.rstrip(b"\r"):
                while ends[read] < at:
                    read += 1
                lines.append((times[read], line))
            offset = newline + 1
        rest += piece[offset:]
    return lines, rest
