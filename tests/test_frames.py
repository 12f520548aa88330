"""Frames of chunked bodies, and streams read from their bytes: the fast ways say what the thorough ones say."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from harness.answers import read_answer
from harness.frames import arrivals, dechunk, whole_frames
from harness.stream import Exchange
from tests.rawserver import END, chunked

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n1\r\nx\r\n0\r\n\r\n",
        b"0000A\r\n0123456789\r\n0\r\n\r\n",
        b"1f;ext=1\r\n" + b"x" * 31 + b"\r\n0\r\n\r\n",
        b"4\r\n\r\n\r\n\r\n0\r\n\r\n",
        b"7\r\n0\r\n\r\nab\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"5\r\nhello\r\n",
        b"5\r\nhel",
        b"6\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"",
    ],
)
def test_whole_frames_are_those_that_dechunk_finds(body: bytes) -> None:
    raw = HEAD + body
    found, (frames, ended) = whole_frames(raw, len(HEAD)), dechunk(raw, len(HEAD))
    if found is None:
        return  # the thorough way is taken
    assert ended
    assert [(end - 2 - len(data), end - 2) for data, end in zip(found.data, found.ends, strict=True)] == frames
    assert [raw[start:end] for start, end in frames] == found.data


def test_usual_bodies_take_the_fast_way() -> None:
    for body in (b"5\r\nhello\r\n0\r\n\r\n", b"0000A\r\n0123456789\r\n0\r\n\r\n"):
        assert whole_frames(HEAD + body, len(HEAD)) is not None


def exchange(raw: bytes, cuts: list[int]) -> Exchange:
    """A finished exchange whose bytes arrived in pieces, one a hundredth of a second."""
    reads = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    reads = [read for read in reads if read]
    times = [0.01 * (n + 1) for n in range(len(reads))]
    headers = {"transfer-encoding": "chunked"}
    return Exchange(0.0, times[-1], times, reads, 200, headers, len(HEAD), frames=whole_frames(raw, len(HEAD)))


def stream(events: list[object], done: bool = True) -> bytes:
    lines = [
        b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n" for event in events
    ]
    return HEAD + chunked(*lines, *([b"data: [DONE]\n\n"] if done else [])) + END


def token(text: str, chat: bool, finish: str | None = None, **more: object) -> dict[str, object]:
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish, **more}
    return {"id": "x-1", "created": 1, "model": "m", "choices": [choice]}


USAGE = {"id": "x-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 30}}
PLAIN = [" a", " word", ' a "quoted" one', " back\\slash", " ünï", "\n", ' "}],"finish_reason":null', " \u2028"]


def streams(chat: bool) -> dict[str, list[object]]:
    """Streams that are alike throughout, and such as are not."""
    rng = random.Random(1)
    texts = [token(rng.choice(PLAIN), chat) for _ in range(28)]
    role: list[object] = [{"id": "x-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    last: list[object] = [token("!", chat, "length"), USAGE]
    thought = {"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]}
    ids = [token(" i", chat, token_ids=[n, n + 1]) for n in range(28)]
    return {
        "alike": [*texts, *last],
        "role first": [*role, *texts, *last],
        "ids": [*ids, *last],
        "an empty text": [*texts[:12], token("", chat), *texts[12:], *last],
        "a text without tokens": [*ids[:12], token("", chat, token_ids=[5]), *ids[12:], *last],
        "an error in between": [*texts[:12], {"error": {"message": "broken"}}, *texts[12:], *last],
        "finished in between": [*texts[:12], token(" x", chat, "stop"), *texts[12:], *last],
        "reasoning in between": [*texts[:12], thought, *texts[12:], *last],
        "no usage": [*texts, token("!", chat, "length")],
        "usage in each": [{**t, "usage": {"prompt_tokens": 7, "completion_tokens": 1}} for t in texts] + last,
        "short": [*texts[:3], *last],
    }  # fmt: skip


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
@pytest.mark.parametrize("name", streams(False))
@pytest.mark.parametrize("cutting", ["frames", "anywhere", "once"])
def test_a_stream_read_from_its_bytes_says_what_its_json_says(name: str, chat: bool, cutting: str) -> None:
    raw = stream(streams(chat)[name])
    frames = whole_frames(raw, len(HEAD))
    assert frames is not None
    rng = random.Random(name)
    cuts = {
        "frames": [len(HEAD), *frames.ends],
        "anywhere": sorted({len(HEAD), *(rng.randrange(len(HEAD), len(raw)) for _ in range(60))}),
        "once": [len(HEAD)],
    }[cutting]
    fast = exchange(raw, cuts)
    thorough = replace(fast, frames=None)
    a, b = read_answer("openai", fast), read_answer("openai", thorough)
    assert list(a.gaps_s) == pytest.approx(list(b.gaps_s))
    assert replace(a, gaps_s=[]) == replace(b, gaps_s=[])
    if name == "alike":
        assert (a.status, a.chunks, a.output_tokens, a.input_tokens) == ("ok", 29, 30, 7)


def test_arrival_is_of_the_read_that_completed_the_line() -> None:
    raw = HEAD + chunked(b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n", b"data: 4\n\n") + END
    frames = whole_frames(raw, len(HEAD))
    assert frames is not None
    first, second, third, fourth = frames.ends
    cuts = [len(HEAD), first, second - 3, third - 4, fourth]
    x = exchange(raw, cuts)
    assert arrivals(frames, x.reads, x.times) == pytest.approx([0.02, 0.03, 0.05, 0.05])
