"""Files of prompts, conversations and lengths, read. Every fault is a ValueError that names the file and the place.

What was read is kept by the file's content, so that checking a scenario and running it read a file once a process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import orjson

ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
LETTERS_SHOWN = 60
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a person said, and what was answered; None where the file ends before that."""

    user: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of a file, with what its system message says (None: it has none)."""

    system: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a JSONL file: a prompt, or the messages of a chat. Lengths in tokens, None where it says none."""

    prompt: str | list[dict[str, str]]
    answer: str | None
    input_tokens: int | None
    output_tokens: int | None


def digest(path: Path) -> str:
    """The SHA-256 of a file's content. Raises OSError."""
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _digest(path: Path, changed_ns: int, size_bytes: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=8)
def read_values(path: Path, sha256: str) -> list[int]:
    """The lengths in a file of one whole number a line; empty lines and lines that begin with # are skipped."""
    numbers = []
    for place, text in _lines(path):
        if text.startswith(b"#"):
            continue
        if not text.isdigit() or int(text) < 1:
            raise ValueError(f"{place}: not a length: {_shown(text)} (one whole number of 1 or more a line)")
        numbers.append(int(text))
    return _some(path, numbers, "length")


@lru_cache(maxsize=4)
def read_conversations(path: Path, sha256: str) -> list[Conversation]:
    """The conversations of a ShareGPT file: a JSON array, or JSON lines, of objects with `conversations` or `messages`,
    a list of `from`/`value` or `role`/`content`. Those in which nobody asks anything are left out."""
    read = [_conversation(place, entry) for place, entry in _entries(path)]
    return _some(path, [conversation for conversation in read if conversation.turns], "conversation with a question")


@lru_cache(maxsize=4)
def read_prompts(path: Path, sha256: str, names: tuple[str, str, str, str]) -> list[Line]:
    """The requests of a JSONL file. `names`: its fields for prompt, messages, input tokens and output tokens."""
    return _some(path, [_line(place, entry, names) for place, entry in _entries(path)], "prompt")


def _some(path: Path, found: list[T], what: str) -> list[T]:
    if not found:
        raise ValueError(f"{path}: holds no {what}")
    return found


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not empty, each with its place."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if text := line.removeprefix(b"\xef\xbb\xbf").strip():
                    yield f"{path}:{number}", text
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array or of JSON lines, each with its place."""
    for index, (place, value) in enumerate(_values(path)):
        if not isinstance(value, dict):
            raise ValueError(f"{place}: not an object: {_shown(value)}")
        yield place if ":" in place.removeprefix(str(path)) else f"{path}, entry {index + 1}", value


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    lines = _lines(path)
    at, first = next(lines, (str(path), b""))
    if first[:1] != b"[":
        for place, text in ((at, first), *lines) if first else ():
            yield place, _parsed(place, text)
        return
    lines.close()  # type: ignore[attr-defined]
    whole = _parsed(str(path), path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    for number, value in enumerate(whole, 1):
        yield f"{path}, entry {number}", value


def _parsed(place: str, text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        where = place if "\n" not in error.doc else f"{place}:{error.lineno}"
        raise ValueError(f"{where}: not valid JSON: {error.msg}") from None


def _conversation(place: str, entry: dict[str, Any]) -> Conversation:
    messages = entry.get("conversations", entry.get("messages", entry.get("conversation")))
    if not isinstance(messages, list):
        raise ValueError(f"{place}: no list of `conversations` (or `messages`); it has {', '.join(entry) or 'nothing'}")
    said = _messages(place, messages)
    system = "\n\n".join(text for role, text in said if role == "system") or None
    turns: list[Turn] = []
    for role, text in said:
        if role == "user":
            turns.append(Turn(text, None))
        elif role == "assistant" and turns and turns[-1].answer is None:
            turns[-1] = Turn(turns[-1].user, text)  # an answer before any question has no use, nor has a second one
    return Conversation(system, tuple(turns))


def _messages(place: str, messages: list[Any]) -> list[tuple[str, str]]:
    """(role, text) of each message that says something."""
    said = []
    for number, message in enumerate(messages, 1):
        here = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise ValueError(f"{here}: not an object: {_shown(message)}")
        name, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if name not in ROLES:
            raise ValueError(f"{here}: unknown `from` or `role`: {_shown(name)}; known: {', '.join(ROLES)}")
        if not isinstance(text, str):
            raise ValueError(f"{here}: its `value` or `content` is no text: {_shown(text)}")
        if text.strip():
            said.append((ROLES[name], text))
    return said


def _line(place: str, entry: dict[str, Any], names: tuple[str, str, str, str]) -> Line:
    prompt_name, messages_name, input_name, output_name = names
    tokens = [_length(place, entry, name) for name in (input_name, output_name)]
    prompt, messages = entry.get(prompt_name), entry.get(messages_name)
    if (prompt is None) == (messages is None):
        has = "both" if prompt is not None else f"neither; it has {', '.join(entry) or 'nothing'}"
        raise ValueError(f"{place}: give either `{prompt_name}` or `{messages_name}`: there is {has}")
    if prompt is not None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{place}: `{prompt_name}` is no text: {_shown(prompt)}")
        return Line(prompt, None, *tokens)
    if not isinstance(messages, list):
        raise ValueError(f"{place}: `{messages_name}` is no list: {_shown(messages)}")
    said = _messages(place, messages)
    answer = said.pop()[1] if said and said[-1][0] == "assistant" else None
    if not said:
        raise ValueError(f"{place}: nobody asks anything in its `{messages_name}`")
    return Line([{"role": role, "content": text} for role, text in said], answer, *tokens)


def _length(place: str, entry: dict[str, Any], name: str) -> int | None:
    value = entry.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{place}: `{name}` is no number of tokens: {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    return text if len(text) <= LETTERS_SHOWN else text[: LETTERS_SHOWN - 1] + "…"
