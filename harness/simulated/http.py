"""What both protocols of the simulated engine share: reading a request, its errors, and seeing it to its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from harness.simulated.engine import Live, SimulatedEngine
from harness.simulated.wire import Collected, dumps
from sizing.catalog import ModelShape, Quantization
from sizing.memory import BLOCK_TOKENS, MemoryPlan
from sizing.simulate import QueueFullError

VERSION = "simulated-0.1.0"
NATURAL_LENGTH_TOKENS = 128
"""where an answer ends by itself ("stop") when the request sets no length"""


@dataclass(frozen=True, slots=True)
class Served:
    """What this server serves."""

    name: str
    model: ModelShape
    quantization: Quantization
    plan: MemoryPlan
    gpu_memory_utilization: float

    def answers_to(self, name: object) -> bool:
        """Whether a request's `model` means this model: its name, its catalogue name, or the last part of either."""
        known = {self.name, self.model.name}
        return name in known | {n.rpartition("/")[2] for n in known} | {f"{self.name}:latest"}


ENGINE: web.AppKey[SimulatedEngine] = web.AppKey("engine", SimulatedEngine)
SERVED: web.AppKey[Served] = web.AppKey("served", Served)


class ApiError(Exception):
    """A request that is answered with an error: HTTP status, type name and message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


def bad_request(message: str) -> ApiError:
    """A 400."""
    return ApiError(400, "BadRequestError", message)


def json_response(value: object, status: int = 200) -> web.Response:
    """Compact JSON."""
    return web.Response(body=dumps(value), status=status, content_type="application/json")


async def read_object(request: web.Request) -> dict[str, object]:
    """The body as a JSON object; ApiError 400 for anything else."""
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad_request("the body is not a JSON object")
    return body


def message_words(messages: object) -> list[str]:
    """The words of all chat messages; the simulated template adds no tokens."""
    if not isinstance(messages, list):
        raise bad_request("messages must be a list")
    words: list[str] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            words += str(part.get("text") or "").split() if isinstance(part, dict) else []
    return words


def _prefix_keys(tokens: Sequence[int | str]) -> tuple[int, ...]:
    """A running hash per full block of 16 tokens, as prefix caching keys its blocks."""
    keys: list[int] = []
    key = 0
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        key = hash((key, *tokens[start : start + BLOCK_TOKENS]))
        keys.append(key)
    return tuple(keys)


class Pending:
    """A submitted request: its times while it runs, and its end."""

    def __init__(self, request: web.Request, sink: Collected, tokens: Sequence[int | str], output_tokens: int) -> None:
        """Queue it. ApiError 503 when the queue is full, 400 when it could never run."""
        self._engine, self._sink = request.app[ENGINE], sink
        try:
            self._id = self._engine.submit(sink, max(1, len(tokens)), output_tokens, _prefix_keys(tokens))
        except QueueFullError:
            message = "server busy, please try again.  maximum pending requests exceeded"
            raise ApiError(503, "ServiceUnavailableError", message) from None
        except ValueError as error:
            raise bad_request(str(error)) from None
        self.live: Live = self._engine.live(self._id)

    async def finished(self, reason: str) -> None:
        """Wait for the last token and count the request under `reason`.

        When the client leaves first (aiohttp cancels the handler), its slot and KV are given back.
        """
        try:
            await self._sink.done
        finally:
            self._engine.cancel(self._id)
        self._engine.counters.finished[reason] += 1


def transport_of(request: web.Request) -> asyncio.Transport:
    """Where a stream's tokens are written, below aiohttp's own writer, whose cost per write is ten times a token's."""
    if request.transport is None:
        raise ConnectionResetError("the client left")
    return request.transport


async def open_stream(request: web.Request, content_type: str) -> web.StreamResponse:
    """Send a stream's head. Nothing in here waits, so that no step can end between the submit and the head."""
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    await response.prepare(request)
    return response


def is_chunked(request: web.Request) -> bool:
    """Whether this client's streams are framed (HTTP/1.1) or end with the connection (HTTP/1.0)."""
    return request.version >= (1, 1)
