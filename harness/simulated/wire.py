"""The simulated engine's answers as bytes: SSE as vLLM writes it, NDJSON as Ollama does.

All that repeats is built once per request; a token costs one concatenation and one write, straight to the transport.
Tokens are ASCII words with a leading space (" tok0", " tok1", ...), with ids from 1000 on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

TOKEN_COUNT = 1000
FIRST_TOKEN_ID = 1000
TEXTS = tuple(f" tok{index}" for index in range(TOKEN_COUNT))
_TEXT_BYTES = tuple(text.encode() for text in TEXTS)
_ID_BYTES = tuple(str(FIRST_TOKEN_ID + index).encode() for index in range(TOKEN_COUNT))
_TEXT_MARK, _ID_MARK = "@text@", 987654321


def dumps(value: object) -> bytes:
    """Compact JSON, as the engines send it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def answer_text(tokens: int) -> str:
    """The text of a whole answer of that many tokens."""
    return "".join(TEXTS[index % TOKEN_COUNT] for index in range(tokens))


def answer_ids(tokens: int) -> list[int]:
    """The token ids of a whole answer."""
    return [FIRST_TOKEN_ID + index % TOKEN_COUNT for index in range(tokens)]


def timestamp() -> str:
    """Now, in RFC 3339 with nanoseconds, as Ollama writes it."""
    seconds, ns = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ns:09d}Z"


class Collected:
    """Counts the tokens of a request that is answered in one piece."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def emit(self, last: bool) -> None:
        """Take one token."""
        if last and not self.done.done():
            self.done.set_result(None)


class _Stream(Collected):
    """Writes each token as one HTTP chunk (or bare, to an HTTP/1.0 client)."""

    def __init__(self, transport: asyncio.Transport, chunked: bool) -> None:
        super().__init__()
        self._transport = transport
        self._chunked = chunked
        self._index = 0

    def _write(self, data: bytes, last: bool) -> None:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._transport.is_closing():
            self._transport.write(data)
        super().emit(last)


class SseStream(_Stream):
    """An OpenAI stream. Built from example events, in which marks stand for the token's text and id."""

    def __init__(
        self,
        transport: asyncio.Transport,
        chunked: bool,
        event: Callable[[str, list[int], bool], dict[str, object]],
        opening: bytes = b"",
        closing: bytes = b"data: [DONE]\n\n",
    ) -> None:
        super().__init__(transport, chunked)
        self._middle = _split(event(_TEXT_MARK, [_ID_MARK], False))
        self._final = _split(event(_TEXT_MARK, [_ID_MARK], True))
        self._opening = opening
        self._closing = closing

    def emit(self, last: bool) -> None:
        """Take one token."""
        index = self._index % TOKEN_COUNT
        head, between, tail = self._final if last else self._middle
        if between is None:
            data = head + _TEXT_BYTES[index] + tail
        else:
            data = head + _TEXT_BYTES[index] + between + _ID_BYTES[index] + tail
        if not self._index:
            data = self._opening + data
        if last:
            data += self._closing
        self._index += 1
        self._write(data, last)


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


def _split(event: dict[str, object]) -> tuple[bytes, bytes | None, bytes]:
    """An example event cut at its marks: (before the text, between text and id or None without an id, the rest)."""
    head, rest = sse(event).split(_TEXT_MARK.encode())
    between, found, tail = rest.partition(str(_ID_MARK).encode())
    return (head, between, tail) if found else (head, None, rest)


class NdjsonStream(_Stream):
    """An Ollama stream: a line per token, then a line with the counts and durations."""

    def __init__(
        self,
        transport: asyncio.Transport,
        chunked: bool,
        model: str,
        message: bool,
        closing: Callable[[], dict[str, object]],
    ) -> None:
        super().__init__(transport, chunked)
        self._head = b'{"model":' + dumps(model) + b',"created_at":"'
        if message:
            self._between, self._tail = b'","message":{"role":"assistant","content":"', b'"},"done":false}\n'
        else:
            self._between, self._tail = b'","response":"', b'","done":false}\n'
        self._closing = closing

    def emit(self, last: bool) -> None:
        """Take one token."""
        text = _TEXT_BYTES[self._index % TOKEN_COUNT]
        self._index += 1
        data = self._head + timestamp().encode() + self._between + text + self._tail
        if last:
            data += dumps(self._closing()) + b"\n"
        self._write(data, last)
