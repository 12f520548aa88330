"""Test helpers below HTTP: a TCP server that sends scripted bytes, and a connection that is fed scripted reads."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from harness.stream import Connection, Exchange

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "recorded"
CLOSE, RESET, HANG = "close", "reset", "hang"
Step = bytes | float | str
"""Bytes are sent; a number is a wait in seconds; CLOSE, RESET and HANG do what they say."""


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server of pages in a thread, and its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


def chunked(*payloads: bytes) -> bytes:
    """Payloads as chunks of an HTTP body, without the last one."""
    return b"".join(b"%x\r\n%s\r\n" % (len(payload), payload) for payload in payloads)


END = b"0\r\n\r\n"


def plain(body: bytes = b"ok", head: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A whole response with a content-length."""
    return b"%s\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


class RawServer:
    """Answers the n-th request (of all connections together) by the n-th script, and further ones by the last."""

    def __init__(self, *scripts: list[Step], tls: ssl.SSLContext | None = None) -> None:
        self.scripts = scripts
        self.tls = tls
        self.requests: list[bytes] = []
        self.arrived_s: list[float] = []
        self.sent_s: list[float] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                self.requests.append(await self._request(reader))
                self.arrived_s.append(monotonic())
                script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
                if not await self._play(script, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    @staticmethod
    async def _request(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        return head + await reader.readexactly(int(length[1]) if length else 0)

    async def _play(self, script: list[Step], writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        for step in script:
            if isinstance(step, bytes):
                self.sent_s.append(monotonic())
                writer.write(step)
                await writer.drain()
            elif isinstance(step, str):
                if step == HANG:
                    await asyncio.Event().wait()
                if step == RESET:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                else:
                    writer.close()
                return False
            else:
                await asyncio.sleep(step)
        return True


class _Transport:
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def write(self, data: bytes) -> None:
        pass


def feed(reads: list[bytes], end: str | None = None) -> Exchange:
    """What a connection makes of these reads; the n-th comes at n seconds (the request is sent at 0).

    `end`: CLOSE closes the connection after them, RESET resets it, any other text aborts the exchange with it.
    Without one, the exchange must have ended by itself.
    """
    return feed_all([reads], end)[0]


def feed_all(cases: list[list[bytes]], end: str | None = None) -> list[Exchange]:
    """`feed` of many cases in one event loop."""
    now = 0.0

    async def one(reads: list[bytes]) -> Exchange:
        nonlocal now
        now = 0.0
        connection = Connection()
        connection.connection_made(_Transport())  # type: ignore[arg-type]
        task = asyncio.ensure_future(connection.exchange(b"", 3600.0))
        await asyncio.sleep(0)
        for read in reads:
            assert connection._done is not None
            assert not connection._done.done(), "it ended before its last read"
            now += 1.0
            connection.data_received(read)
        now += 1.0
        if end in (CLOSE, RESET):
            connection.connection_lost(ConnectionResetError(104, "by peer") if end == RESET else None)
        elif end is not None:
            connection.abort(end)
        async with asyncio.timeout(10):
            return await task

    async def all_of_them() -> list[Exchange]:
        return [await one(reads) for reads in cases]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.stream.monotonic", lambda: now)
        return asyncio.run(all_of_them())


@contextmanager
def reference_server(*options: str) -> Iterator[str]:
    """The address of a reference server in a process of its own."""
    command = [sys.executable, "-m", "harness.refserver", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            ready = re.fullmatch(r"ready on (http://127\.0\.0\.1:\d+)\n", line)
            assert ready, f"no ready line but {line!r}"
            yield ready[1]
        finally:
            process.terminate()


def server_stats(url: str, reset: bool = False) -> dict[str, Any]:
    """The reference server's figures of itself."""
    with urllib.request.urlopen(f"{url}/stats", data=b"" if reset else None, timeout=10) as response:
        figures: dict[str, Any] = json.loads(response.read())
        return figures
