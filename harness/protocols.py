"""What is sent and how answers are read: OpenAI completions and chat (SSE), Ollama generate and chat (NDJSON)."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from harness.scenario import Sampling
from harness.stream import Exchange, timed_lines

Dialect = Literal["openai", "ollama"]
TEXT_LIMIT = 300
Prompt = str | list[int] | list[dict[str, str]]
"""A text, token ids, or the messages of a chat."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what the server there understands. `headers` may hold a key: it is never written.

    `exact_length`: it takes `ignore_eos`, so that output lengths come out as asked. `token_ids`: it can say which
    tokens each chunk holds (vLLM's `return_token_ids`), so that a chunk without text is known to be a token.
    """

    url: str
    dialect: Dialect
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    ca_file: str | None = None
    exact_length: bool = False
    token_ids: bool = False
    extended_sampling: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """One response, read. Times are monotonic; `status` as in the records; what was not said is None."""

    status: str = "ok"
    error: str | None = None
    first_token_s: float | None = None
    first_answer_s: float | None = None
    last_token_s: float | None = None
    chunks: int = 0
    gaps_s: Sequence[float] = field(default_factory=lambda: array("d"))
    input_tokens: int | None = None
    output_tokens: int | None = None
    token_source: str | None = None
    first_chunk_tokens: int | None = None
    finish_reason: str | None = None
    server_timings: dict[str, float] | None = None
    text: str | None = None


def path_and_body(
    target: Target, api: str, prompt: Prompt, output_tokens: int, sampling: Sampling
) -> tuple[str, bytes]:
    """The path below the target's URL and the JSON of one streaming request."""
    make = _ollama_body if target.dialect == "ollama" else _openai_body
    path, body = make(target, api, prompt, output_tokens, sampling)
    return path, orjson.dumps(body)


def _openai_body(
    target: Target, api: str, prompt: Prompt, output_tokens: int, sampling: Sampling
) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": target.model, "max_tokens": output_tokens, "stream": True, "stream_options": {"include_usage": True},
        "temperature": sampling.temperature, "top_p": sampling.top_p,
    }  # fmt: skip
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = sampling.stop
    if target.extended_sampling:
        body |= {"top_k": sampling.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
    if target.exact_length:
        body["ignore_eos"] = True
    if target.token_ids:
        body["return_token_ids"] = True
    body.update(target.options)
    if api == "chat":
        return "/chat/completions", body | {"messages": _messages(prompt)}
    return "/completions", body | {"prompt": prompt}


def _ollama_body(
    target: Target, api: str, prompt: Prompt, output_tokens: int, sampling: Sampling
) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {
        "num_predict": output_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "top_k": sampling.top_k, "stop": sampling.stop, **_NEUTRAL, **target.options,
    }  # fmt: skip
    if sampling.seed is not None:
        options["seed"] = sampling.seed
    body: dict[str, Any] = {"model": target.model, "stream": True, "keep_alive": -1, "options": options}
    if api == "chat":
        return "/api/chat", body | {"messages": _messages(prompt), "truncate": False}
    return "/api/generate", body | {"prompt": prompt, "raw": True, "truncate": False}  # else a long prompt is cut


_NEUTRAL = {"min_p": 0.0, "repeat_penalty": 1.0}
"""What a model file may set otherwise (so may a generation_config.json for vLLM): sampling is to be alike."""


def _messages(prompt: Prompt) -> Any:
    """A text is one user's message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def read_answer(dialect: Dialect, x: Exchange, keep_text: bool = False) -> Answer:
    """Read a finished exchange. Whatever the server sent becomes a record; nothing here raises."""
    answer = Answer()
    read_line = _read_ollama if dialect == "ollama" else _read_openai
    tokens = _Tokens(answer, keep_text)
    finished = False
    try:
        if x.status is not None and x.status != 200:
            answer.error = _http_error(x)
        for at_s, line in timed_lines(x) if x.status == 200 else ():
            finished |= read_line(answer, tokens, at_s, line)
    except Exception as error:  # the last line of defence: a server may send anything
        answer.error = f"unreadable answer: {type(error).__name__}: {error}"[:TEXT_LIMIT]
    tokens.close()
    if x.error is not None:
        answer.status = {"cancelled": "cancelled"}.get(x.error, "timeout" if x.error.startswith("no end") else "error")
        answer.error = answer.error or x.error
    elif answer.error is None and not finished:
        answer.status, answer.error = "error", "the stream ended early: neither a finish reason nor an end mark"
    elif answer.error is None and answer.first_token_s is None:
        answer.status, answer.error = "error", "the answer holds no token"
    if answer.error is not None and answer.status == "ok":
        answer.status = "error"
    return answer


class _Tokens:
    """Collects the chunks that carry tokens."""

    def __init__(self, answer: Answer, keep_text: bool) -> None:
        self.answer = answer
        self.gaps = array("d")
        self.counted: int | None = None
        self.texts: list[str] | None = [] if keep_text else None

    def add(self, at_s: float, text: str, tokens: int | None = None, reasoning: bool = False) -> None:
        """One chunk: its text, how many tokens it holds if that was told, and whether it is reasoning."""
        if not text and not tokens:
            return
        answer = self.answer
        if answer.first_token_s is None:
            answer.first_token_s, answer.first_chunk_tokens = at_s, tokens
        else:
            self.gaps.append(at_s - answer.last_token_s)  # type: ignore[operator]
        if not reasoning and answer.first_answer_s is None:
            answer.first_answer_s = at_s
        answer.last_token_s = at_s
        answer.chunks += 1
        if tokens is not None:
            self.counted = (self.counted or 0) + tokens
        if self.texts is not None:
            self.texts.append(text)

    def close(self) -> None:
        answer = self.answer
        answer.gaps_s = self.gaps
        if answer.output_tokens is not None:
            answer.token_source = "server"
        elif answer.chunks:
            answer.output_tokens = self.counted if self.counted is not None else answer.chunks
            answer.token_source = "stream"
        if self.texts is not None:
            answer.text = "".join(self.texts)


def _read_openai(answer: Answer, tokens: _Tokens, at_s: float, line: bytes) -> bool:
    """One line of server-sent events. Returns whether it says that the stream ends."""
    if line[:5] != b"data:":
        if line[:1] == b"{":  # an error sent as plain JSON
            answer.error = _error_text(orjson.loads(line)) or answer.error
        return False
    data = line[5:].strip()
    if data == b"[DONE]":
        return True
    if not data:
        return False
    event = orjson.loads(data)
    if event.get("error"):
        answer.error = _error_text(event)
        return False
    if usage := event.get("usage"):  # Ollama's has zeros until the last one
        answer.input_tokens = usage.get("prompt_tokens") or answer.input_tokens
        answer.output_tokens = usage.get("completion_tokens") or answer.output_tokens
    finished = False
    for choice in event.get("choices") or ():
        if reason := choice.get("finish_reason"):
            answer.finish_reason, finished = reason, True
        ids = choice.get("token_ids")
        count = len(ids) if ids is not None else None
        delta = choice.get("delta")
        if delta is None:
            tokens.add(at_s, choice.get("text") or "", count)
        elif content := delta.get("content"):
            tokens.add(at_s, content, count)
        else:
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            tokens.add(at_s, thought or "", count, bool(thought))
    return finished


_NANOSECONDS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def _read_ollama(answer: Answer, tokens: _Tokens, at_s: float, line: bytes) -> bool:
    """One JSON object of a stream of lines. Returns whether it says `done`."""
    event = orjson.loads(line)
    if event.get("error"):
        answer.error = _error_text(event)
        return False
    message = event.get("message") or {}
    text = event.get("response") or message.get("content") or ""
    thought = "" if text else event.get("thinking") or message.get("thinking") or ""
    tokens.add(at_s, text or thought, reasoning=bool(thought))
    if not event.get("done"):
        return False
    answer.finish_reason = event.get("done_reason")
    answer.input_tokens = event.get("prompt_eval_count")
    answer.output_tokens = event.get("eval_count")
    answer.server_timings = {name.replace("duration", "s"): event[name] / 1e9 for name in _NANOSECONDS if name in event}
    return True


def _http_error(x: Exchange) -> str:
    body = b"\n".join(line for _, line in timed_lines(x))
    try:
        text = _error_text(orjson.loads(body))
    except (orjson.JSONDecodeError, AttributeError):
        text = body.decode("utf-8", "replace").strip()
    retry = x.headers.get("retry-after")
    return f"HTTP {x.status}: {text or 'no text'}{f' (retry after {retry} s)' if retry else ''}"[:TEXT_LIMIT]


def _error_text(event: Any) -> str | None:
    """The message of an error object in any of its usual forms."""
    error = event.get("error", event) if isinstance(event, dict) else event
    if isinstance(error, str) and error.startswith("{"):  # Ollama passes on the JSON of what runs below it
        with contextlib.suppress(orjson.JSONDecodeError):
            return _error_text(orjson.loads(error))
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:TEXT_LIMIT] if error else None
