"""The bytes of the reference server's answers, in the forms of vLLM and Ollama, built before they are due."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MODEL = "reference"
WORD = " the"
WORD_ID = 262
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: enginebench-reference\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NDJSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_NAMES = {"model": MODEL, "created_at": "2026-01-01T00:00:00.000000000Z"}
_IDS = {"id": "cmpl-0123456789abcdef", "created": 0, "model": MODEL}
PATHS: dict[str, tuple[dict[str, Any], Callable[[str], dict[str, Any]]]] = {  # what is in each event, and its text
    "/v1/completions": (_IDS | {"object": "text_completion"}, lambda text: {"text": text}),
    "/v1/chat/completions": (_IDS | {"object": "chat.completion.chunk"}, lambda text: {"delta": {"content": text}}),
    "/api/generate": (_NAMES, lambda text: {"response": text}),
    "/api/chat": (_NAMES, lambda text: {"message": {"role": "assistant", "content": text}}),
}


def _frame(path: str, event: dict[str, Any]) -> bytes:
    """One event as a chunk of the HTTP body."""
    data = json.dumps(PATHS[path][0] | event, separators=(",", ":")).encode()
    data = data + b"\n" if path.startswith("/api/") else b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(path: str, asked: dict[str, Any], tokens: int, each: int) -> tuple[bytes, ...]:
    """The answer to a request, chunk by chunk: `tokens` tokens, `each` a chunk. ValueError, KeyError: a bad request."""
    chunks = _token_chunks(path, tokens, each, bool(asked.get("return_token_ids")))
    return (*chunks[:-1], chunks[-1] + _last(path, asked, tokens))


@lru_cache(maxsize=256)
def _token_chunks(path: str, tokens: int, each: int, ids: bool) -> list[bytes]:
    """All chunks with tokens, in the forms of vLLM and Ollama; before the first what comes with it."""
    counts = [min(each, tokens - start) for start in range(0, tokens, each)]
    say = PATHS[path][1]
    if path.startswith("/api/"):
        first, *rest = (_frame(path, say(WORD * count) | {"done": False}) for count in counts)
        return [_NDJSON_HEAD + first, *rest]
    chunks = []
    for number, count in enumerate(counts):
        end = "length" if number == len(counts) - 1 else None
        choice = {"index": 0} | say(WORD * count) | {"logprobs": None, "finish_reason": end}
        chunks.append(_frame(path, {"choices": [choice | ({"token_ids": [WORD_ID] * count} if ids else {})]}))
    if "chat" in path:
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        chunks[0] = _frame(path, {"choices": [role]}) + chunks[0]
    return chunks


def _last(path: str, asked: dict[str, Any], tokens: int) -> bytes:
    """What follows the last token: the counts, the end mark, the end of the body. A word of a prompt is a token."""
    prompt = asked["messages"][-1]["content"] if path.endswith(("/chat", "/chat/completions")) else asked["prompt"]
    words = len(prompt.split() if isinstance(prompt, str) else prompt)
    if path.startswith("/api/"):
        counts = {"done": True, "done_reason": "length", "prompt_eval_count": words, "eval_count": tokens}
        return _frame(path, PATHS[path][1]("") | counts) + _END
    usage = {"prompt_tokens": words, "total_tokens": words + tokens, "completion_tokens": tokens}
    wanted = (asked.get("stream_options") or {}).get("include_usage")
    return (_frame(path, {"choices": [], "usage": usage}) if wanted else b"") + b"e\r\ndata: [DONE]\n\n\r\n" + _END
