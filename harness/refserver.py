"""The reference server: a time to the first token and a gap that are exactly known, to measure the client with.

    python -m harness.refserver --port 0 --ttft 50ms --gap 10ms --tokens 128

It speaks OpenAI's completions and chat and Ollama's generate and chat, by the path. Each stream has absolute deadlines,
so that nothing drifts, and its fragments are built before they are due. `GET /stats` tells how late the server itself
was (seconds, since its start or the last `POST /stats`), so that a trial can be declared void.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush, heapreplace
from time import monotonic
from typing import Any

from harness.units import parse_duration_s

MODEL = "reference"
WORD = " the"
WORD_ID = 262
BIN_S = 1e-5
BINS = 100_000  # of lateness: to 1 s; what is later falls into the last
_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: enginebench-reference\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NDJSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """When tokens are due. A stall stops all streams `stall_at_s` after the first request, for `stall_for_s`."""

    ttft_s: float
    gap_s: float
    tokens: int = 128
    tokens_per_chunk: int = 1
    stall_at_s: float | None = None
    stall_for_s: float = 0.0

    def start_s(self, arrived_s: float, first_request_s: float) -> float:
        """When a request begins to be served: at once, or at the end of the stall."""
        if self.stall_at_s is None:
            return arrived_s
        begins = first_request_s + self.stall_at_s
        return begins + self.stall_for_s if begins <= arrived_s < begins + self.stall_for_s else arrived_s

    def due_s(self, start_s: float, number: int, first_request_s: float) -> float:
        """When chunk `number` of a stream that began at `start_s` is due."""
        due = start_s + self.ttft_s + number * self.gap_s * self.tokens_per_chunk
        if self.stall_at_s is not None and start_s < first_request_s + self.stall_at_s <= due:
            due += self.stall_for_s
        return due


class Lateness:
    """Write times minus due times, and the times to the first token and per token that were really served."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.streams = self.finished = self.aborted = self.chunks = self.paced = 0
        self.sum_s = self.max_s = self.ttft_sum_s = self.tpot_sum_s = 0.0
        self.bins = array("Q", bytes(8 * BINS))
        self.since_s, self.cpu_s = monotonic(), time.process_time()

    def add(self, late_s: float) -> None:
        self.chunks += 1
        self.sum_s += late_s
        self.max_s = max(self.max_s, late_s)
        self.bins[min(int(late_s / BIN_S), BINS - 1)] += 1

    def finish(self, ttft_s: float, tpot_s: float | None) -> None:
        self.finished += 1
        self.ttft_sum_s += ttft_s
        if tpot_s is not None:
            self.paced += 1
            self.tpot_sum_s += tpot_s

    def figures(self) -> dict[str, float | int | None]:
        """What `/stats` answers; None where nothing was served."""
        seconds = monotonic() - self.since_s
        return {
            "streams": self.streams, "finished": self.finished, "aborted": self.aborted, "chunks": self.chunks,
            "lateness_mean_s": self.sum_s / self.chunks if self.chunks else None,
            "lateness_p99_s": self._quantile(0.99), "lateness_max_s": self.max_s if self.chunks else None,
            "ttft_mean_s": self.ttft_sum_s / self.finished if self.finished else None,
            "tpot_mean_s": self.tpot_sum_s / self.paced if self.paced else None,
            "cpu_ratio": (time.process_time() - self.cpu_s) / seconds if seconds > 0 else None, "seconds": seconds,
        }  # fmt: skip

    def _quantile(self, q: float) -> float | None:
        left = q * self.chunks
        for number, count in enumerate(self.bins):
            left -= count
            if left <= 0 < self.chunks:
                return min((number + 1) * BIN_S, self.max_s)
        return None


class Alarm:
    """One alarm on the monotonic clock. Linux's timerfd keeps it to 0.1 ms; the loops' own timers know milliseconds."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._fd: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        if sys.platform.startswith("linux"):
            self._libc = ctypes.CDLL(None, use_errno=True)
            fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if fd >= 0:
                self._fd = fd
                self._loop.add_reader(fd, self._ring)

    def set(self, at_s: float) -> None:
        """Ring at `at_s`, or at once if it has passed; a former setting is forgotten."""
        if self._fd is not None:
            whole = int(at_s)
            setting = (ctypes.c_long * 4)(0, 0, whole, max(1, int((at_s - whole) * 1e9)))
            self._libc.timerfd_settime(self._fd, 1, setting, None)  # 1: an absolute time
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, at_s - monotonic()), self._callback)

    def _ring(self) -> None:
        assert self._fd is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._callback()


class Stream:
    """One answer under way: its fragments, and when the next is due."""

    __slots__ = ("arrived_s", "first_s", "fragments", "next", "server", "sink", "start_s")

    def __init__(self, server: Server, sink: Client, fragments: tuple[bytes, ...], last: bytes) -> None:
        self.server, self.sink = server, sink
        self.fragments = (*fragments[:-1], fragments[-1] + last)
        self.next = 0
        self.arrived_s, self.first_s = sink.arrived_s, 0.0
        self.start_s = server.pace.start_s(self.arrived_s, server.first_request_s)

    def due_s(self) -> float:
        return self.server.pace.due_s(self.start_s, self.next, self.server.first_request_s)

    def write(self, due_s: float) -> bool:
        """Write the fragment that is due; whether there are more."""
        if self.sink.stream is not self:
            return False  # the client left
        now = monotonic()
        self.server.lateness.add(now - due_s)
        self.sink.send(self.fragments[self.next])
        if self.next == 0:
            self.first_s = now
        self.next += 1
        if self.next < len(self.fragments):
            return True
        chunks = len(self.fragments) - 1
        tpot_s = (now - self.first_s) / (chunks * self.server.pace.tokens_per_chunk) if chunks else None
        self.server.lateness.finish(self.first_s - self.arrived_s, tpot_s)
        self.sink.stream = None
        return False


class Server:
    """All streams and the one clock that paces them."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.lateness = Lateness()
        self.first_request_s = 0.0
        self.alarm = Alarm(self._tick)
        self._heap: list[tuple[float, int, Stream]] = []
        self._number = 0

    def begin(self, stream: Stream) -> None:
        self.lateness.streams += 1
        self._number += 1
        heappush(self._heap, (stream.due_s(), self._number, stream))
        if self._heap[0][2] is stream:
            self.alarm.set(self._heap[0][0])

    def _tick(self) -> None:
        """Write all that is due now; what falls due meanwhile waits for the next tick, after reads."""
        heap, now = self._heap, monotonic()
        while heap and heap[0][0] <= now:
            due, number, stream = heap[0]
            if stream.write(due):
                heapreplace(heap, (stream.due_s(), number, stream))
            else:
                heappop(heap)
        if heap:
            self.alarm.set(heap[0][0])


class Client(asyncio.Protocol):
    """One connection: reads requests, one after the other, and hands their answers to the server's clock."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stream: Stream | None = None
        self.arrived_s = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._fd: int = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream is not None:
            self.stream = None
            self.server.lateness.aborted += 1

    def data_received(self, data: bytes) -> None:
        self.arrived_s = monotonic()
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) >= length:
            self._buffer = rest[length:]
            method, path, _ = first.split(" ", 2)
            self._answer(method, path, rest[:length])

    def send(self, data: bytes) -> None:
        """Write now, not at the end of the loop's round: a stamp must tell when the bytes left."""
        sent = 0
        if self._transport.get_write_buffer_size() == 0:
            with contextlib.suppress(OSError):  # full, or gone: the transport finds out
                sent = os.write(self._fd, data)
        if sent < len(data):
            self._transport.write(data[sent:])

    def _answer(self, method: str, path: str, body: bytes) -> None:
        if method == "GET" or path == "/stats":
            figures = self.server.lateness.figures()
            if method == "POST":
                self.server.lateness.reset()
            pages: dict[str, Any] = {
                "/health": {}, "/stats": figures, "/v1/models": {"object": "list", "data": [{"id": MODEL}]},
                "/api/version": {"version": "reference"},
            }  # fmt: skip
            self._plain(200 if path in pages else 404, pages.get(path, {"error": "not found"}))
        elif path not in _PATHS:
            self._plain(404, {"error": "not found"})
        else:
            try:
                self._stream(path, json.loads(body))
            except (ValueError, AttributeError, TypeError) as error:
                self._plain(400, {"error": f"bad request: {error}"})

    def _plain(self, status: int, page: object) -> None:
        body = json.dumps(page).encode()
        head = b"HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.send(head % (status, len(body)) + body)

    def _stream(self, path: str, asked: dict[str, Any]) -> None:
        server = self.server
        ollama = path.startswith("/api/")
        limit = (asked.get("options") or {}).get("num_predict") if ollama else asked.get("max_tokens")
        tokens = int(limit or server.pace.tokens)
        if tokens < 1 or asked.get("stream") is False:
            raise ValueError("only streams, of one token or more")
        server.first_request_s = server.first_request_s or self.arrived_s
        wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        fragments = _fragments(path, tokens, server.pace.tokens_per_chunk, bool(asked.get("return_token_ids")))
        last = _last(path, _prompt_tokens(asked), tokens, wants_usage)
        if not ollama:  # as uvicorn does; Ollama's head comes with its first line
            self.send(_SSE_HEAD)
        self.stream = Stream(server, self, fragments, last)
        server.begin(self.stream)


def _frame(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(value: object) -> bytes:
    return _frame(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


def _line(value: object) -> bytes:
    return _frame(json.dumps(value, separators=(",", ":")).encode() + b"\n")


_BASE: dict[str, Any] = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 0, "model": MODEL}
