"""OpenAI's completions over HTTP, as far as the tool asks for them, on the standard library alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from harness.transformersserver.batches import Batcher, Job, Model

HEAD_END = b"\r\n\r\n"
MAX_BODY_BYTES = 64 * 2**20
WINDOW_TOKENS = 8  # decoded together: enough for a character of several tokens, little to decode each time


class Refused(Exception):
    """A request that is answered with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Served:
    """What all connections share."""

    name: str
    model: Model
    batcher: Batcher


class Connection(asyncio.Protocol):
    """One client: requests one after the other, each answered whole or as a stream of events."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.buffer = bytearray()
        self.job: Job | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.job is not None:
            self.job.gone = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.job is None and (end := self.buffer.find(HEAD_END)) >= 0:
            head = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
            length = int(headers.get("content-length") or 0)
            if length > MAX_BODY_BYTES:
                self.answer(413, {"error": {"message": "the body is too large"}})
                self.transport.close()
                return
            if len(self.buffer) < end + 4 + length:
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            try:
                method, path, _ = head[0].split(" ")
                self.route(method, path.partition("?")[0], body)
            except Refused as error:
                detail = {"message": str(error), "type": "BadRequestError", "code": error.status}
                self.answer(error.status, {"error": detail})
            except ValueError as error:
                self.answer(400, {"error": {"message": f"not a request: {error}", "code": 400}})

    def route(self, method: str, path: str, body: bytes) -> None:
        served = self.served
        if method == "POST" and path == "/v1/completions":
            self.complete(json.loads(body))
        elif method == "POST" and path == "/tokenize":
            tokens = served.model.encode(str(json.loads(body).get("prompt", "")))
            self.answer(200, {"tokens": tokens, "count": len(tokens), "max_model_len": served.model.context_tokens})
        elif path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": served.name, "object": "model"}]})
        elif path == "/health":
            self.answer(200, {})
        elif path == "/facts":
            self.answer(200, served.model.facts())
        elif path == "/metrics":
            counters = served.batcher.counters
            counters.waiting = served.batcher.jobs.qsize() + len(served.batcher.held)
            counters.own = served.model.memory()
            self.write_whole(200, counters.page().encode(), "text/plain; version=0.0.4")
        else:
            raise Refused(404, f"{method} {path} is not served here: POST /v1/completions is")

    def complete(self, asked: dict[str, Any]) -> None:
        model, prompt = self.served.model, asked.get("prompt")
        ids = model.encode(prompt) if isinstance(prompt, str) else prompt
        if (
            not isinstance(ids, list)
            or not ids
            or not all(isinstance(i, int) and 0 <= i < model.vocabulary for i in ids)
        ):
            raise Refused(400, f"`prompt` must be a text or a list of token ids below {model.vocabulary}")
        most = int(asked.get("max_tokens") or 16)
        if most < 1 or len(ids) + most > model.context_tokens:
            raise Refused(400, f"{len(ids)} + {most} tokens exceed the context of {model.context_tokens}")
        temperature, top_p = float(asked.get("temperature") or 0.0), float(asked.get("top_p") or 1.0)
        greedy = (0.0, 1.0, 0, None)
        sampling = (temperature, top_p, max(int(asked.get("top_k") or 0), 0), asked.get("seed"))
        writer = Writer(self, asked, len(ids))
        self.job = Job(ids, most, bool(asked.get("ignore_eos")), sampling if temperature > 0 else greedy, writer.add)
        self.served.batcher.jobs.put(self.job)

    def answer(self, status: int, value: Any) -> None:
        self.write_whole(status, json.dumps(value, separators=(",", ":")).encode(), "application/json")

    def write_whole(self, status: int, body: bytes, kind: str) -> None:
        head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def ended(self) -> None:
        """The answer is out: the next request of this connection may already be here."""
        self.job = None
        self.data_received(b"")


class Writer:
    """Writes one answer: an event a token, then the usage and the end mark; or all of it at once."""

    def __init__(self, connection: Connection, asked: dict[str, Any], prompt_tokens: int) -> None:
        self.connection = connection
        self.stream, self.with_ids = bool(asked.get("stream")), bool(asked.get("return_token_ids"))
        self.prompt_tokens = prompt_tokens
        self.usage_wanted = bool((asked.get("stream_options") or {}).get("include_usage"))
        self.ids: list[int] = []
        self.said = self.begin = 0  # characters told of ids[begin:]
        self.text = ""
        self.opened = False

    def add(self, token: int | None, reason: str | None) -> None:
        """A token, and why it is the last one; no token with the reason of a failure."""
        if token is None:
            return self.fail(reason or "no reason given")
        self.ids.append(token)
        piece = self.piece(reason is not None)
        if not self.stream:
            self.text += piece
            if reason is not None:
                self.connection.answer(200, self.body(self.text, reason) | {"usage": self.usage()})
                self.connection.ended()
            return None
        events = [self.body(piece, reason, [token])]
        if reason is not None and self.usage_wanted:
            events.append({**self.body("", None), "choices": [], "usage": self.usage()})
        data = [f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode() for event in events]
        data += [b"data: [DONE]\n\n"] if reason is not None else []
        self.write(data, reason is not None)
        return None

    def piece(self, last: bool) -> str:
        """The text that the newest token adds: nothing while half a character is there. Decoded from a few tokens back,
        since what a token is depends on those before it."""
        text = self.connection.served.model.decode(self.ids[self.begin :])
        if text.endswith("�") and not last:
            return ""
        new = text[self.said :]
        self.said = len(text)
        if len(self.ids) - self.begin > WINDOW_TOKENS:
            self.begin = len(self.ids) - WINDOW_TOKENS // 2
            self.said = len(self.connection.served.model.decode(self.ids[self.begin :]))
        return new

    def write(self, events: list[bytes], last: bool) -> None:
        """Each event is a chunk of its own."""
        head = b""
        if not self.opened:
            self.opened = True
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
        self.connection.transport.write(head + chunks + (b"0\r\n\r\n" if last else b""))
        if last:
            self.connection.ended()

    def fail(self, text: str) -> None:
        detail = {"error": {"message": text[:300], "type": "ServerError", "code": 500}}
        if self.opened:
            self.write([f"data: {json.dumps(detail)}\n\n".encode()], True)
        else:
            self.connection.answer(500, detail)
            self.connection.ended()

    def body(self, text: str, reason: str | None, ids: list[int] | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        if self.with_ids:
            choice["token_ids"] = self.ids if ids is None else ids
        return {"id": "cmpl", "object": "text_completion", "model": self.connection.served.name, "choices": [choice]}

    def usage(self) -> dict[str, int]:
        made = len(self.ids)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }
