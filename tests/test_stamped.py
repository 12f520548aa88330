"""Reads come with the time at which their bytes arrived, however late the client was to read them."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from socket import SOL_SOCKET, create_connection, create_server, socket
from typing import Any

import pytest
import uvloop

from harness import stamped
from harness.pool import Pool
from harness.protocols import Target
from harness.stream import Exchange
from tests.rawserver import END, RawServer, chunked, plain

pytestmark = pytest.mark.skipif(not stamped.SUPPORTED, reason="the kernel's stamps are Linux's")
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GAP_S, STALL_S = 0.05, 0.25


class ThreadServer:
    """Answers one request, from a thread: it goes on while the client's loop stands still."""

    def __init__(self, slow_read: bool = False) -> None:
        self.slow_read = slow_read
        self.wrote_s: list[float] = []
        self.got = 0
        self.began = lambda: None  # called once its first part is out
        self.ended = threading.Event()
        self._listener = create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as peer:
            self._read(peer)
            for part in (HEAD + chunked(b"data: 1\n\n"), chunked(b"data: 2\n\n"), chunked(b"data: 3\n\n") + END):
                self.wrote_s.append(time.monotonic())
                peer.sendall(part)
                if len(self.wrote_s) == 1:
                    self.began()
                time.sleep(GAP_S)
            self.ended.set()

    def _read(self, peer: socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += peer.recv(4096)
        head, _, body = data.partition(b"\r\n\r\n")
        length, self.got = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]), len(body)
        if self.slow_read:
            time.sleep(0.2)
        while self.got < length:
            self.got += len(peer.recv(65536))


@pytest.fixture(autouse=True, scope="module")
def _stamps() -> Iterator[None]:
    """Linux begins to stamp a moment after the first socket on the machine asks for it, and ends with the last."""
    with create_server(("127.0.0.1", 0)) as listener, create_connection(listener.getsockname()) as asking:
        asking.setsockopt(SOL_SOCKET, stamped._SO_TIMESTAMPNS, 1)
        with listener.accept()[0] as peer:
            deadline_s = time.monotonic() + 10
            while time.monotonic() < deadline_s:
                peer.sendall(b"x")
                if asking.recvmsg(1, stamped._NOTE_BYTES)[1]:
                    break
            yield


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return uvloop.run if request.param == "uvloop" else asyncio.run


@pytest.fixture
def server() -> ThreadServer:
    return ThreadServer()


def pool_of(port: int) -> Pool:
    return Pool(Target(f"http://127.0.0.1:{port}", "openai", "m", {}, None, False, False, False))


async def one(pool: Pool, body: bytes = b"{}", timeout_s: float = 20.0) -> Exchange:
    try:
        return await pool.exchange("/x", body, timeout_s, None)
    finally:
        pool.close()


async def while_it_stands_still(server: ThreadServer) -> tuple[Exchange, tuple[int, int]]:
    """One request; the loop stands still from soon after its first part until well after the last."""

    def stand_still() -> None:
        server.ended.wait(20)
        time.sleep(STALL_S)

    pool, loop = pool_of(server.port), asyncio.get_running_loop()
    server.began = lambda: loop.call_soon_threadsafe(loop.call_later, GAP_S / 2, stand_still)  # once it is read
    return await one(pool), pool.received()


def test_a_loop_that_stands_still_does_not_delay_the_stamps(server: ThreadServer, run: Callable[[Any], Any]) -> None:
    x, (reads, with_stamp) = run(while_it_stands_still(server))
    assert x.error is None
    assert reads == with_stamp == len(x.reads)
    assert x.times[0] - server.wrote_s[0] < STALL_S / 2  # it was in the kernel before the loop stood still, or in it
    assert server.wrote_s[-1] <= x.times[-1] + 1e-4  # of what one read took together the stamp is the last packet's
    assert x.times[-1] - server.wrote_s[-1] < STALL_S / 2  # but it was read when the loop went on
    assert x.end_s == x.times[-1]


@pytest.mark.parametrize(("name", "value"), [("_SO_TIMESTAMPNS", 9999), ("_NOTE_BYTES", 0)])
def test_without_the_kernels_stamp_a_read_is_stamped_when_it_is_read(
    server: ThreadServer, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(stamped, name, value)  # a kernel that does not know it; no room for the stamp
    x, (reads, with_stamp) = run(while_it_stands_still(server))
    assert (reads, with_stamp) == (len(x.reads), 0)
    assert x.times[-1] - server.wrote_s[-1] > STALL_S


def test_when_the_wall_clock_is_set_the_reads_of_that_moment_are_stamped_when_read(
    server: ThreadServer, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = itertools.count()

    def set_by_an_hour() -> int:
        return time.time_ns() + (3600 * 10**9 if next(asked) >= 2 else 0)  # at the start, for the first read, and then

    monkeypatch.setattr(stamped, "time_ns", set_by_an_hour)
    x = run(one(pool_of(server.port)))
    late = [at - wrote for at, wrote in zip(x.times, server.wrote_s, strict=False)]
    # Before, and in the batch that saw it; later ones do not count here: the packets' notes know nothing of this clock.
    assert all(abs(value) < 60 for value in late[:2])


def test_who_is_held_up_between_two_clocks_reads_them_again(
    server: ThreadServer, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a busy machine does it: without a second look that is a clock that was set."""
    asked = itertools.count()

    def held_up() -> int:
        return time.monotonic_ns() - (5_000_000 if next(asked) == 1 else 0)  # at the first read

    monkeypatch.setattr(stamped, "monotonic_ns", held_up)
    x, (reads, with_stamp) = run(while_it_stands_still(server))
    assert reads == with_stamp == len(x.reads)


def test_a_request_larger_than_the_kernel_takes_at_once_is_sent_as_it_takes_more(run: Callable[[Any], Any]) -> None:
    server = ThreadServer(slow_read=True)
    body = b"x" * 30_000_000
    x = run(one(pool_of(server.port), body))
    assert x.error is None
    assert server.got == len(body)
    assert len(x.times) == 3


def test_nobody_there(run: Callable[[Any], Any]) -> None:
    listener = create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    assert "refused" in (run(one(pool_of(port))).error or "")


def test_connections_end_with_their_receiver(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with RawServer([plain()], [HEAD, "hang"]) as server:
            pool = pool_of(server.port)
            await pool.exchange("/x", b"{}", 5.0, None)
            waiting = asyncio.ensure_future(pool.exchange("/x", b"{}", 5.0, None))
            await asyncio.sleep(0.05)
            assert pool.receiver is not None
            pool.receiver.close()
            x = await waiting
            assert x.error == "connection closed before the end of the response"
            assert x.status == 200
            pool.receiver.close()  # a second time does no harm
            pool.close()

    run(main())
