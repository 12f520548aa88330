"""The OpenAI routes of the simulated engine, in vLLM's shapes.

A text prompt counts one token per whitespace-separated word (there is no tokenizer); a list of ids counts its length.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from aiohttp import web

from harness.simulated.http import (
    ENGINE,
    NATURAL_LENGTH_TOKENS,
    SERVED,
    VERSION,
    ApiError,
    Pending,
    Served,
    bad_request,
    is_chunked,
    json_response,
    message_words,
    open_stream,
    read_object,
    transport_of,
)
from harness.simulated.metrics import metrics_text
from harness.simulated.wire import Collected, SseStream, answer_ids, answer_text, sse

COMPLETIONS_DEFAULT_TOKENS = 16
"""OpenAI's default on /v1/completions, which vLLM keeps"""


def _prompt_tokens(prompt: object) -> Sequence[int | str]:
    """A prompt as tokens: a string's words, a list of ids, or a list that holds one of these."""
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        return _prompt_tokens(prompt[0])
    if isinstance(prompt, str):
        return prompt.split()
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return prompt
    raise bad_request("prompt must be a string, a list of token ids, or a list of one prompt")


def _asked_tokens(body: dict[str, object]) -> int | None:
    """The output length that the request sets, or None."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise bad_request(f"{name} must be at least 1, got {value!r}.")
        return value
    return None


def _output_tokens(served: Served, body: dict[str, object], chat: bool, input_tokens: int) -> tuple[int, str]:
    """(tokens that the answer will have, its finish reason); ApiError 400, in vLLM's words, beyond the context."""
    limit, asked = served.plan.context_tokens, _asked_tokens(body)
    if asked is None and chat:
        tokens, reason = max(1, min(NATURAL_LENGTH_TOKENS, limit - input_tokens)), "stop"
    else:
        tokens, reason = asked or COMPLETIONS_DEFAULT_TOKENS, "length"
    if input_tokens + tokens > limit:
        place = "messages" if chat else "prompt"
        raise bad_request(
            f"This model's maximum context length is {limit} tokens. However, you requested {input_tokens + tokens} "
            f"tokens ({input_tokens} in the {place}, {tokens} in the completion). Please reduce the length of the "
            f"{place} or completion."
        )
    return tokens, reason


class _Answer:
    """The JSON of one answer, whole or in events."""

    def __init__(
        self, served: Served, chat: bool, body: dict[str, object], counts: tuple[int, int], reason: str
    ) -> None:
        self._chat, self._counts, self.reason = chat, counts, reason
        self._ids = bool(body.get("return_token_ids"))
        options = body.get("stream_options")
        self._usage_wanted = bool(options.get("include_usage")) if isinstance(options, dict) else False
        kind = "chat.completion" if chat else "text_completion"
        self._base: dict[str, object] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": served.name,
        }
        self._event_base = {**self._base, "object": "chat.completion.chunk" if chat else kind}

    def usage(self) -> dict[str, object]:
        """The usage block."""
        prompt, completion = self._counts
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def event(self, text: str, ids: list[int], last: bool) -> dict[str, object]:
        """One token's event."""
        choice: dict[str, object] = {"index": 0}
        choice |= {"delta": {"content": text}} if self._chat else {"text": text}
        choice |= {"logprobs": None, "finish_reason": self.reason if last else None}
        if not self._chat or last:
            choice["stop_reason"] = None
        if self._ids:
            choice["token_ids"] = ids
        return {**self._event_base, "choices": [choice]}

    def opening(self) -> bytes:
        """Chat streams begin with an event that carries only the role, sent together with the first token."""
        if not self._chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return sse({**self._event_base, "choices": [choice]})

    def closing(self) -> bytes:
        """What follows the last token."""
        usage = sse({**self._event_base, "choices": [], "usage": self.usage()}) if self._usage_wanted else b""
        return usage + b"data: [DONE]\n\n"

    def whole(self) -> dict[str, object]:
        """The answer in one piece."""
        tokens = self._counts[1]
        choice: dict[str, object] = {"index": 0}
        text = answer_text(tokens)
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice |= {"logprobs": None, "finish_reason": self.reason, "stop_reason": None}
        if self._ids:
            choice["token_ids"] = answer_ids(tokens)
        return {**self._base, "choices": [choice], "usage": self.usage()}


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions and /v1/chat/completions."""
    served, body = request.app[SERVED], await read_object(request)
    chat = request.path.endswith("/chat/completions")
    if body.get("model") is not None and not served.answers_to(body["model"]):
        raise ApiError(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
    if body.get("n") not in (None, 1):
        raise bad_request("the simulated engine answers with n = 1 only")
    tokens = message_words(body.get("messages")) if chat else _prompt_tokens(body.get("prompt"))
    input_tokens = max(1, len(tokens))
    output_tokens, reason = _output_tokens(served, body, chat, input_tokens)
    answer = _Answer(served, chat, body, (input_tokens, output_tokens), reason)
    if not body.get("stream"):
        await Pending(request, Collected(), tokens, output_tokens).finished(reason)
        return json_response(answer.whole())
    stream = SseStream(transport_of(request), is_chunked(request), answer.event, answer.opening(), answer.closing())
    pending = Pending(request, stream, tokens, output_tokens)
    response = await open_stream(request, "text/event-stream; charset=utf-8")
    await pending.finished(reason)
    return response


async def models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    served = request.app[SERVED]
    card = {
        "id": served.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "enginebench (simulated)",
        "root": served.model.name,
        "parent": None,
        "max_model_len": served.plan.context_tokens,
    }
    return json_response({"object": "list", "data": [card]})


async def health(_: web.Request) -> web.Response:
    """GET /health: 200 with an empty body."""
    return web.Response()


async def version(_: web.Request) -> web.Response:
    """GET /version."""
    return json_response({"version": VERSION})


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics."""
    served = request.app[SERVED]
    page = metrics_text(request.app[ENGINE], served.name, served.gpu_memory_utilization)
    return web.Response(body=page.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


ROUTES = (
    web.post("/v1/completions", generate),
    web.post("/v1/chat/completions", generate),
    web.get("/v1/models", models),
    web.get("/health", health),
    web.get("/version", version),
    web.get("/metrics", metrics),
)
