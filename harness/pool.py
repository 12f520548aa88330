"""Kept connections to one target."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from time import monotonic
from urllib.parse import urlsplit

from harness import stamped
from harness.protocols import Target
from harness.stamped import Receiver
from harness.stream import Connection, Exchange, connect

STALE_S = 1.0  # a kept connection that the server had closed fails within this; what fails later had been accepted


class Pool:
    """Kept connections to one target."""

    def __init__(self, target: Target) -> None:
        url = urlsplit(target.url)
        self.tls = tls_context(target) if url.scheme == "https" else None
        self.host = url.hostname or "127.0.0.1"
        self.port = url.port or (443 if self.tls else 80)
        self.prefix = url.path.rstrip("/")
        lines = {
            "Host": url.netloc.rpartition("@")[2], "Content-Type": "application/json", "Accept": "*/*",
            "Accept-Encoding": "identity", "User-Agent": "enginebench", **target.headers,
        }  # fmt: skip
        self.head = (" HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())).encode()
        self.idle: deque[Connection] = deque()
        self.active: dict[Connection, int | None] = {}
        self.receiver: Receiver | None = None

    async def ahead(self, count: int) -> None:
        """Open connections before the clock matters."""
        opened = await asyncio.gather(*(self._connect() for _ in range(count)))
        self.idle.extend(c for c in opened if isinstance(c, Connection))

    async def exchange(self, path: str, body: bytes, timeout_s: float, slot: int | None) -> Exchange:
        """One request on a kept connection, or on a new one.

        A server may close a kept connection just as it is used: that is no failure of it, and the request goes to a
        new one, once. Its time counts from the first sending.
        """
        request = b"POST %s%s%sContent-Length: %d\r\n\r\n%s" % (
            self.prefix.encode(), path.encode(), self.head, len(body), body,
        )  # fmt: skip
        connection = self._take()
        first_s = None
        if connection is not None:
            x = await self._use(connection, request, timeout_s, slot)
            if x.error is None or x.reads or not x.error.startswith("connection") or x.seconds > STALE_S:
                return x
            first_s = x.sent_s
        fresh = await self._connect()
        if isinstance(fresh, str):
            return Exchange(error=fresh, sent_s=first_s, end_s=monotonic())
        x = await self._use(fresh, request, timeout_s, slot)
        x.sent_s = first_s if first_s is not None else x.sent_s
        return x

    async def _use(self, connection: Connection, request: bytes, timeout_s: float, slot: int | None) -> Exchange:
        self.active[connection] = slot
        try:
            x = await connection.exchange(request, timeout_s)
        finally:
            del self.active[connection]
        if x.error is None and connection.open:
            self.idle.append(connection)
        return x

    def received(self) -> tuple[int, int]:
        """How many reads there were by a receiver (none with TLS), and how many had the kernel's stamp."""
        return (self.receiver.reads, self.receiver.stamped) if self.receiver is not None else (0, 0)

    def under_way(self) -> list[tuple[int | None, Exchange]]:
        return [(slot, connection.current) for connection, slot in self.active.items()]

    def abort_all(self, why: str) -> None:
        for connection in list(self.active):
            connection.abort(why)

    def close(self) -> None:
        for connection in (*self.active, *self.idle):
            connection.close()
        if self.receiver is not None:
            self.receiver.close()

    def _take(self) -> Connection | None:
        while self.idle:
            connection = self.idle.popleft()
            if connection.open:
                return connection
        return None

    async def _connect(self) -> Connection | str:
        if stamped.SUPPORTED and self.receiver is None:
            self.receiver = Receiver()
        try:
            return await connect(self.host, self.port, self.tls, receiver=self.receiver)
        except TimeoutError:
            return f"cannot connect to {self.host}:{self.port}: no answer"
        except OSError as error:
            return f"cannot connect to {self.host}:{self.port}: {error.strerror or error}"


def tls_context(target: Target) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=target.ca_file)
