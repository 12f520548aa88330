"""Files of prompts and conversations: the forms in which they come, and faults named with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.datafiles import Conversation, Line, Turn, digest, read_conversations, read_prompts, read_values
from scenarios import shipped

NAMES = ("prompt", "messages", "input_tokens", "output_tokens")


def written(folder: Path, text: str) -> Path:
    path = folder / "data.json"
    path.write_text(text, encoding="utf-8")
    return path


def said(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


HI: Any = {"id": 1, "conversations": said(("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"))}
READ = Conversation(None, (Turn("Hi", "Hello"), Turn("Bye", None)))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([HI]),
        "\ufeff" + json.dumps([HI], indent=1),
        json.dumps(HI) + "\n",
        "\n" + json.dumps(HI) + "\n\n",
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                                 {"role": "user", "content": "Bye"}]}),
    ],
    ids=["array", "array with a BOM", "lines", "lines with empty ones", "roles"],
)  # fmt: skip
def test_conversations_in_every_form(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    assert read_conversations(path, digest(path)) == [READ]


def test_what_has_no_use_is_left_out(tmp_path: Path) -> None:
    """As real files have it: answers before any question, empty messages, conversations in which nobody asks."""
    odd = said(("system", "Be brief."), ("gpt", "Ready?"), ("human", " "), ("human", "Hi"), ("bard", "A"), ("gpt", "B"))
    path = written(tmp_path, json.dumps([{"conversations": odd}, {"conversations": []}]))
    assert read_conversations(path, digest(path)) == [Conversation("Be brief.", (Turn("Hi", "A"),))]


def test_prompts_and_their_lengths(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = written(
        tmp_path,
        '{"prompt": "a b", "output_tokens": 9, "more": [1]}\n{"prompt": "c", "input_tokens": 4}\n'
        + json.dumps({"messages": messages}),
    )
    assert read_prompts(path, digest(path), NAMES) == [
        Line("a b", None, None, 9), Line("c", None, 4, None),
        Line([{"role": "user", "content": "Hi"}], "Hello", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "data.json: holds no conversation with a question"),
        ("[]", "data.json: holds no conversation with a question"),
        ("[1]", "data.json, entry 1: not an object: 1"),
        ('{"conversations": []}\n{"conversations": []}', "data.json: holds no conversation with a question"),
        ('{"a": 1, "b": 2}', "data.json:1: no list of `conversations` (or `messages`); it has a, b"),
        ('\n{"conversations": 5}', "data.json:2: no list of"),
        ('{"conversations": [5]}', "data.json:1, message 1: not an object: 5"),
        ('{"conversations": [{"from": "human", "value": 5}]}', "message 1: its `value` or `content` is no text: 5"),
        (
            '[{"conversations": [{"from": "alien", "value": "x"}]}]',
            "entry 1, message 1: unknown `from` or `role`: 'alien'",
        ),
        ('{"conversations": []}\n{oops', "data.json:2: not valid JSON"),
        ('[\n{"conversations": []},\n{oops}\n]', "data.json:3: not valid JSON"),
    ],
)
def test_faults_of_conversations_name_their_place(text: str, fault: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_conversations(path, digest(path))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            '{"prompt": "a"}\n{"text": "b"}',
            "data.json:2: give either `prompt` or `messages`: there is neither; it has text",
        ),
        ('{"prompt": "a", "messages": []}', "data.json:1: give either `prompt` or `messages`: there is both"),
        ('{"prompt": 5}', "`prompt` is no text: 5"),
        ('{"prompt": "a", "output_tokens": 0}', "`output_tokens` is no number of tokens: 0"),
        ('{"prompt": "a", "output_tokens": true}', "`output_tokens` is no number of tokens: True"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "nobody asks anything in its `messages`"),
        ('["a"]', "data.json, entry 1: not an object: 'a'"),
    ],
)
def test_faults_of_prompts_name_their_place(text: str, fault: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_prompts(path, digest(path), NAMES)
    assert fault in str(caught.value)


@pytest.mark.parametrize("text", ["5\nx\n", "5\n0\n", "5\n-1\n", "5\n1.5\n"])
def test_faults_of_values_name_their_line(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"data\.json:2: not a length"):
        read_values(path, digest(path))


def test_a_changed_file_is_another_one(tmp_path: Path) -> None:
    path = written(tmp_path, "1\n")
    before = digest(path)
    written(tmp_path, "12\n")
    assert digest(path) != before


def test_the_conversations_that_ship() -> None:
    path = shipped()["chat-sessions"].parent / "data" / "conversations.json"
    found = read_conversations(path, digest(path))
    assert len(found) == 24
    assert all(turn.answer for conversation in found for turn in conversation.turns)
    assert max(len(conversation.turns) for conversation in found) >= 4
    assert "conversations.json" in (path.parent / "README.md").read_text()
