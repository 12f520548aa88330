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
import gc
import json
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from time import monotonic
from typing import Any

from harness.alarm import Alarm
from harness.refwire import MODEL, PATHS, SSE_HEAD, answer
from harness.units import parse_duration_s

BIN_S = 1e-5
BINS = 100_000  # of lateness: to 1 s; what is later falls into the last


@dataclass(frozen=True, slots=True)
class Pace:
    """When chunks are due. A stall stops all streams `stall_at_s` after the first request, for `stall_for_s`."""

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
        due = start_s + self.ttft_s + number * self.gap_s
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


class Stream:
    """One answer under way: its fragments, and when the next is due."""

    __slots__ = ("arrived_s", "first_s", "fragments", "later_tokens", "next", "server", "sink", "start_s")

    def __init__(self, server: Server, sink: Client, fragments: tuple[bytes, ...], later_tokens: int) -> None:
        self.server, self.sink, self.fragments, self.later_tokens = server, sink, fragments, later_tokens
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
        tpot_s = (now - self.first_s) / self.later_tokens if self.later_tokens else None
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

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport  # uvloop's is one in all but its class
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
        elif path not in PATHS:
            self._plain(404, {"error": "not found"})
        else:
            try:
                self._stream(path, json.loads(body))
            except (ValueError, LookupError, AttributeError, TypeError) as error:
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
        each = server.pace.tokens_per_chunk
        fragments = answer(path, asked, tokens, each)
        if not ollama:  # as uvicorn does; Ollama's head comes with its first line
            self.send(SSE_HEAD)
        self.stream = Stream(server, self, fragments, max(0, tokens - each))
        server.begin(self.stream)


async def serve(host: str, port: int, pace: Pace) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port cannot be had."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(pace)
    listener = await loop.create_server(lambda: Client(server), host, port, backlog=4096)
    print(f"ready on http://{host}:{listener.sockets[0].getsockname()[1]}", flush=True)
    gc.freeze()
    gc.disable()  # nothing here is in a cycle for long; a collection would be lateness
    await stop.wait()
    listener.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the server; exit code 0 after a signal, 1 when the port cannot be had, 2 for wrong input."""
    options = argparse.ArgumentParser(prog="python -m harness.refserver", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0, help="0 takes a free one; the ready line names it")
    options.add_argument("--ttft", type=parse_duration_s, default=0.05, help="default 50ms")
    options.add_argument("--gap", type=parse_duration_s, default=0.01, help="between chunks, default 10ms")
    options.add_argument("--tokens", type=int, default=128, help="of an answer whose request sets no length")
    options.add_argument("--tokens-per-chunk", type=int, default=1)
    options.add_argument("--stall-at", type=parse_duration_s, help="after the first request; nothing is sent then")
    options.add_argument("--stall-for", type=parse_duration_s, default=0.0)
    given = options.parse_args(arguments)
    if min(given.tokens, given.tokens_per_chunk) < 1:
        options.error("--tokens and --tokens-per-chunk are 1 at least")
    pace = Pace(given.ttft, given.gap, given.tokens, given.tokens_per_chunk, given.stall_at, given.stall_for)
    run: Callable[[Any], None] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    try:
        run(serve(given.host, given.port, pace))
    except OSError as error:
        print(f"refserver: cannot serve on {given.host}:{given.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
