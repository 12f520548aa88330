"""Sockets whose reads come with the kernel's own stamp of when the bytes arrived.

A stamp taken after a read counts how late the client came to read: with a thousand streams on one core that is
milliseconds, and they would be told as the server's. Linux notes the arrival of every packet where it is asked to
(SO_TIMESTAMPNS, `man 7 socket`), and hands the note out with the read. Of bytes that several packets brought and one
read took, the note is that of the last packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import sys
from time import monotonic, monotonic_ns, time_ns
from typing import Protocol

SUPPORTED = sys.platform.startswith("linux") and struct.calcsize("P") == 8
_SO_TIMESTAMPNS = 35  # of all Linux that Python's `socket` has no name for
_STAMP = struct.Struct("qq")
_NOTE_BYTES = socket.CMSG_SPACE(_STAMP.size) if SUPPORTED else 0
_READ_BYTES = 65536
_BATCH = 1024  # at most so many reads before timers and requests have their turn; all of them are one lag of the loop
_STEP_NS = 500_000  # by more than this the wall clock does not drift from one batch to the next: it was set
_HELD_NS = 100_000  # both clocks are read again from here on: the process may have been held up between the two


class Owner(Protocol):
    """Whom the bytes are for."""

    def received(self, data: bytes, at_s: float) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class StampedSocket:
    """One connected socket; in what `Connection` asks of it the like of an asyncio transport."""

    __slots__ = ("_owner", "_receiver", "_socket", "_unsent", "_waits", "read", "received")

    def __init__(self, sock: socket.socket, owner: Owner, receiver: Receiver) -> None:
        self._socket, self._owner, self._receiver = sock, owner, receiver
        self._unsent, self._waits = memoryview(b""), False
        self.read = sock.recvmsg_into
        self.received = owner.received

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes now; the rest follows as it takes more."""
        self._unsent = memoryview(data)
        self.flush()

    def flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lost(error)
            return
        self._unsent = self._unsent[sent:]
        if self._waits != bool(self._unsent):
            self._waits = not self._waits
            self._receiver.wait(self._socket, self._waits)

    def is_closing(self) -> bool:
        return self._socket.fileno() < 0

    def abort(self) -> None:
        """Close at once; the owner is told after."""
        self.lost(None)

    def lost(self, error: Exception | None) -> None:
        if not self.is_closing():
            self._receiver.forget(self._socket)
            self._socket.close()
            asyncio.get_running_loop().call_soon(self._owner.connection_lost, error)


class Receiver:
    """The stamped sockets of one event loop: one epoll for all, read when the loop sees it ready.

    `reads` counts reads, `stamped` those with the kernel's stamp; others are stamped when read.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._sockets: dict[int, StampedSocket] = {}
        self._offset_ns = time_ns() - monotonic_ns()
        self._buffer = memoryview(bytearray(_READ_BYTES))  # a read of its own size each would leave holes in the memory
        self.reads = self.stamped = 0
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, sock: socket.socket, owner: Owner) -> StampedSocket:
        """Receive for `owner` from a connected, non-blocking socket."""
        with contextlib.suppress(OSError):  # not every kernel knows it (gVisor): then its reads come without a stamp
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sockets[sock.fileno()] = stamped = StampedSocket(sock, owner, self)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return stamped

    def wait(self, sock: socket.socket, until_writable: bool) -> None:
        """Whether to flush the socket when it takes more."""
        self._epoll.modify(sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if until_writable else 0))

    def forget(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        del self._sockets[fd]
        self._epoll.unregister(fd)

    def close(self) -> None:
        """No further read; sockets that are still open are aborted."""
        for stamped in list(self._sockets.values()):
            stamped.abort()
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _ready(self) -> None:
        sockets, unpack, buffer, only_data = self._sockets, _STAMP.unpack, self._buffer, select.EPOLLIN
        buffers, unstamped = [buffer], 0
        offset_ns = time_ns() - monotonic_ns()
        if abs(offset_ns - self._offset_ns) > _HELD_NS:  # set, or held up between the two: that is over now
            offset_ns = time_ns() - monotonic_ns()
        steady = abs(offset_ns - self._offset_ns) < _STEP_NS
        self._offset_ns = offset_ns
        whole_s, rest_ns = divmod(offset_ns, 1_000_000_000)
        rest_s = rest_ns * 1e-9
        ready = self._epoll.poll(0, _BATCH)
        for fd, events in ready:
            if (stamped := sockets.get(fd)) is None:
                continue  # closed by what an earlier one of this batch set off
            if events != only_data and not self._others(stamped, events):
                continue
            try:
                size, notes, _, _ = stamped.read(buffers, _NOTE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                stamped.lost(error)
                continue
            if not size:
                stamped.lost(None)
            elif notes and steady:
                seconds, nanoseconds = unpack(notes[0][2])
                stamped.received(bytes(buffer[:size]), seconds - whole_s + (nanoseconds * 1e-9 - rest_s))
            else:
                unstamped += 1
                stamped.received(bytes(buffer[:size]), monotonic())
        self.reads += len(ready)
        self.stamped += len(ready) - unstamped

    def _others(self, stamped: StampedSocket, events: int) -> bool:
        """What epoll says beside `there is data`; whether a read is to follow."""
        if events & select.EPOLLOUT:
            stamped.flush()
        return events != select.EPOLLOUT and not stamped.is_closing()


async def connected(host: str, port: int) -> socket.socket:
    """A non-blocking socket connected to the first address of the host that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    failed: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failed = (
                OSError(error.errno, os.strerror(error.errno)) if error.errno else error
            )  # asyncio words it otherwise
        except BaseException:  # cancelled, or out of time
            sock.close()
            raise
        else:
            return sock
    raise failed or OSError(f"{host} has no address")
