"""How answers are read: OpenAI's server-sent events, Ollama's lines of JSON. Nothing of a stream is looked at before
its last byte has arrived."""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import sub
from typing import Any

import orjson

from harness.frames import arrivals
from harness.protocols import Dialect
from harness.stream import Exchange, timed_lines

TEXT_LIMIT = 300


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


def read_answer(dialect: Dialect, x: Exchange, keep_text: bool = False) -> Answer:
    """Read a finished exchange. Whatever the server sent becomes a record; nothing here raises."""
    answer = Answer()
    read_line = _read_ollama if dialect == "ollama" else _read_openai
    tokens = _Tokens(answer, keep_text)
    finished = False
    try:
        if x.status is not None and x.status != 200:
            answer.error = _http_error(x)
        elif dialect == "ollama" or keep_text or (read := _read_alike(answer, tokens, x)) is None:
            for at_s, line in timed_lines(x) if x.status == 200 else ():
                finished |= read_line(answer, tokens, at_s, line)
        else:
            finished = read
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
        self.uncounted = False
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

    def add_alike(self, times: list[float]) -> None:
        """Chunks after the first, each with a text, whose tokens nobody counted one by one."""
        answer = self.answer
        assert answer.last_token_s is not None
        self.gaps.extend(map(sub, times, [answer.last_token_s, *times[:-1]]))
        answer.last_token_s = times[-1]
        answer.chunks += len(times)
        self.uncounted = True

    def close(self) -> None:
        answer = self.answer
        answer.gaps_s = self.gaps
        if answer.output_tokens is not None:
            answer.token_source = "server"
        elif answer.chunks:
            answer.output_tokens = answer.chunks if self.counted is None or self.uncounted else self.counted
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


# --- the usual stream, in little time ---

_TEXT = re.compile(rb'"(?:text|content)":"(?!")')
_TEXT_END = re.compile(rb'(?:[^"\\]|\\.)*')
_GOES_ON = b'"finish_reason":null'
_FIRST, _LAST = 8, 3  # events at the start and at the end that may differ (at the end: finish, usage, end mark)


def _read_alike(answer: Answer, tokens: _Tokens, x: Exchange) -> bool | None:
    """Read a stream whose events are alike but for their text: one in each frame, the same bytes up to the text, and
    the same from there to the finish reason, null. Only the first events and the last are read as JSON: that one in
    between holds text can be seen from its bytes, and how many tokens they all hold is said by the usage at the end.

    Returns whether the stream says that it ends; None, with nothing read, of any other stream.
    """
    if x.status != 200 or x.error is not None or x.frames is None or len(x.frames.data) < 2 * _FIRST:
        return None
    data = x.frames.data
    first = next((n for n in range(_FIRST) if _TEXT.search(data[n])), None)
    if first is None or b'"completion_tokens":' not in data[-2] or not _one_event_each(data):
        return None
    middle = data[first + 1 : -_LAST]
    if not _alike(middle):
        return None
    times = arrivals(x.frames, x.reads, x.times)
    for at_s, event in zip(times[: first + 1], data, strict=False):
        _read_openai(answer, tokens, at_s, event.rstrip())
    tokens.add_alike(times[first + 1 : -_LAST])
    ends = [
        _read_openai(answer, tokens, at_s, e.rstrip()) for at_s, e in zip(times[-_LAST:], data[-_LAST:], strict=True)
    ]
    return any(ends)


def _one_event_each(data: list[bytes]) -> bool:
    return b"".join(data).count(b"\n") == 2 * len(data) and [event[-2:] for event in data].count(b"\n\n") == len(data)


def _alike(events: list[bytes]) -> bool:
    """Whether all events are like the first of them but for their texts, none of which is empty."""
    like = events[0]
    text = _TEXT.search(like)
    text_end = _TEXT_END.match(like, text.end()) if text else None
    ending = like.find(_GOES_ON, text_end.end()) if text_end else -1
    if text is None or text_end is None or ending < 0:
        return False
    before, after = like[: text.end()], like[text_end.end() : ending + len(_GOES_ON)]
    empty = before + b'"'
    likes = [e.startswith(before) and after in e and not e.startswith(empty) for e in events]  # faster than in all()
    return all(likes)
