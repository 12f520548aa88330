"""The Ollama routes of the simulated engine: NDJSON streams and the catalogue calls, durations in nanoseconds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from aiohttp import web

from harness.simulated.http import (
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
from harness.simulated.wire import Collected, NdjsonStream, answer_text, timestamp


def _check_model(served: Served, body: dict[str, object]) -> str:
    name = body.get("model") or body.get("name")
    if not name:
        raise bad_request("model is required")
    if not served.answers_to(name):
        raise ApiError(404, "NotFoundError", f"model '{name}' not found")
    return str(name)


def _output_tokens(served: Served, body: dict[str, object], input_tokens: int) -> tuple[int, str]:
    """(tokens that the answer will have, done_reason). Ollama only caps a length: the context caps it too."""
    options = body.get("options")
    value = options.get("num_predict") if isinstance(options, dict) else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise bad_request(f"option 'num_predict' must be a whole number, got {value!r}")
    room = served.plan.context_tokens - input_tokens
    asked = value if value is not None and value > 0 else None
    wanted = asked or NATURAL_LENGTH_TOKENS
    return min(wanted, room), "length" if asked or room < wanted else "stop"


def _words(body: dict[str, object], chat: bool) -> list[str]:
    if chat:
        return message_words(body.get("messages") or [])
    return [word for key in ("system", "prompt", "suffix") for word in str(body.get(key) or "").split()]


def _text_field(chat: bool, text: str) -> dict[str, object]:
    return {"message": {"role": "assistant", "content": text}} if chat else {"response": text}


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /api/generate and /api/chat."""
    served, body = request.app[SERVED], await read_object(request)
    name, chat = _check_model(served, body), request.path == "/api/chat"
    words = _words(body, chat)
    if not words:
        # A request without a prompt loads the model, which here is loaded from the start.
        empty = {"model": name, "created_at": timestamp(), **_text_field(chat, ""), "done": True}
        return json_response({**empty, "done_reason": "load"})
    # Ollama cuts what exceeds the context instead of refusing it, and keeps room for one token.
    words = words[-(served.plan.context_tokens - 1) :]
    output_tokens, reason = _output_tokens(served, body, len(words))
    pending: Pending | None = None

    def closing(text: str = "") -> dict[str, object]:
        assert pending is not None
        base = {"model": name, "created_at": timestamp(), **_text_field(chat, text), "done": True}
        return {**base, "done_reason": reason, **_durations(pending, len(words), output_tokens)}

    if body.get("stream") is False:
        pending = Pending(request, Collected(), words, output_tokens)
        await pending.finished(reason)
        return json_response(closing(answer_text(output_tokens)))
    closing_line: Callable[[], dict[str, object]] = closing
    stream = NdjsonStream(transport_of(request), is_chunked(request), name, chat, closing_line)
    pending = Pending(request, stream, words, output_tokens)
    response = await open_stream(request, "application/x-ndjson")
    await pending.finished(reason)
    return response


def _durations(pending: Pending, input_tokens: int, output_tokens: int) -> dict[str, object]:
    """Ollama's counts and durations. Waiting for a slot is in the total only; the model was loaded before."""
    live = pending.live
    return {
        "total_duration": int((live.last_s - live.submitted_s) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": input_tokens,
        "prompt_eval_duration": int((live.first_s - live.admitted_s) * 1e9),
        "eval_count": output_tokens,
        "eval_duration": int((live.last_s - live.first_s) * 1e9),
    }


def _card(served: Served) -> dict[str, object]:
    """What /api/tags and /api/ps share."""
    return {
        "name": served.name,
        "model": served.name,
        "size": served.plan.weight_bytes,
        "digest": hashlib.sha256(f"simulated {served.name} {served.quantization.name}".encode()).hexdigest(),
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, object]:
    return {
        "parent_model": "",
        "format": "gguf" if served.quantization.kind == "gguf" else "safetensors",
        "family": "simulated",
        "families": ["simulated"],
        "parameter_size": f"{served.model.params / 1e9:.1f}B",
        "quantization_level": served.quantization.name,
    }


async def version(_: web.Request) -> web.Response:
    """GET /api/version."""
    return json_response({"version": VERSION})


async def tags(request: web.Request) -> web.Response:
    """GET /api/tags."""
    return json_response({"models": [{**_card(request.app[SERVED]), "modified_at": timestamp()}]})


async def ps(request: web.Request) -> web.Response:
    """GET /api/ps: sizes include KV and buffers, all of it on the GPU."""
    served = request.app[SERVED]
    size = served.plan.weight_bytes + served.plan.overhead_bytes + served.plan.kv_capacity_bytes
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
    place = {"size": size, "size_vram": size, "context_length": served.plan.context_tokens, "expires_at": expires}
    return json_response({"models": [{**_card(served), **place}]})


async def show(request: web.Request) -> web.Response:
    """POST /api/show."""
    served, body = request.app[SERVED], await read_object(request)
    _check_model(served, body)
    info = {
        "general.architecture": "simulated",
        "general.parameter_count": served.model.params,
        "simulated.context_length": served.model.max_context_tokens,
        "simulated.block_count": served.model.full_layers + served.model.sliding_layers + served.model.linear_layers,
        "simulated.embedding_length": served.model.hidden,
        "simulated.attention.head_count": served.model.heads,
        "simulated.attention.head_count_kv": served.model.kv_heads,
    }
    return json_response(
        {
            "modelfile": "",
            "parameters": f"num_ctx {served.plan.context_tokens}",
            "template": "{{ .Prompt }}",
            "details": _details(served),
            "model_info": info,
            "capabilities": ["completion"],
        }
    )


ROUTES = (
    web.post("/api/generate", generate),
    web.post("/api/chat", generate),
    web.get("/api/version", version),
    web.get("/api/tags", tags),
    web.get("/api/ps", ps),
    web.post("/api/show", show),
)
