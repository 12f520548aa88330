"""What is read in an answer, for each of the four APIs alike, from recorded bytes and from variations on their forms.

`recorded/*.bin` are whole responses as vLLM 0.32.0 and Ollama 0.32 sent them on loopback to a tiny model.
"""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import dataclass
from typing import Any

import pytest

from harness.answers import Answer, read_answer
from harness.protocols import Dialect, Target, path_and_body
from harness.scenario import Sampling
from harness.stream import Exchange
from tests.rawserver import CLOSE, END, RECORDED, RESET, chunked, feed, plain

SSE = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
NDJSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"


@dataclass(frozen=True)
class Form:
    """One API's way of saying things: the payloads of a stream, as its server writes them."""

    name: str
    dialect: Dialect

    @property
    def chat(self) -> bool:
        return self.name.endswith("chat")

    @property
    def head(self) -> bytes:
        return NDJSON if self.dialect == "ollama" else SSE

    def payload(self, event: dict[str, Any]) -> bytes:
        data = json.dumps(event, separators=(",", ":")).encode()
        return data + b"\n" if self.dialect == "ollama" else b"data: " + data + b"\n\n"

    def token(self, text: str, thought: str = "", ids: list[int] | None = None, finish: str | None = None) -> bytes:
        """A chunk of text or thought (or of neither), with token ids where the API has them."""
        if self.dialect == "ollama":
            said = {("content" if self.chat else "response"): text} | ({"thinking": thought} if thought else {})
            said = {"message": {"role": "assistant"} | said} if self.chat else said
            return self.payload({"model": "m", "created_at": "2026-11-22T02:39:28.6Z"} | said | {"done": False})
        said = {"delta": {"reasoning": thought} if thought else {"content": text}} if self.chat else {"text": text}
        choice = {"index": 0} | said | {"logprobs": None, "finish_reason": finish, "token_ids": ids}
        return self.payload({"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]})

    def role(self) -> bytes:
        """What comes before the first token: chat's role, else a chunk without text."""
        if self.name != "openai chat":
            return self.token("")
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self.payload({"id": "chatcmpl-1", "choices": [choice], "prompt_token_ids": None, "prompt_text": None})

    def closing(self, tokens: int | None) -> list[bytes]:
        """All that comes after the last token; `tokens`: the server's count, None for no usage."""
        if self.dialect == "ollama":
            event: dict[str, Any] = {"model": "m", **({"message": {"content": ""}} if self.chat else {"response": ""})}
            event |= {"done": True, "done_reason": "length", "total_duration": 24_000_000, "eval_duration": 5_000_000}
            return [self.payload(event | ({"prompt_eval_count": 9, "eval_count": tokens} if tokens else {}))]
        usage = {"prompt_tokens": 9, "total_tokens": 9 + (tokens or 0), "completion_tokens": tokens}
        counts = [self.payload({"id": "cmpl-1", "choices": [], "usage": usage})] if tokens else []
        return [self.token("", finish="length"), *counts, b"data: [DONE]\n\n"]

    def error(self, text: str) -> bytes:
        if self.dialect == "ollama":
            return self.payload({"error": text})
        return self.payload({"error": {"message": text, "type": "InternalServerError", "param": None, "code": 500}})


FORMS = [
    Form("openai completions", "openai"), Form("openai chat", "openai"),
    Form("ollama generate", "ollama"), Form("ollama chat", "ollama"),
]  # fmt: skip
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


def stream(form: Form, *payloads: bytes, end: bytes = END) -> Exchange:
    """A chunked answer of which each payload comes in a read of its own, the first at 2 s."""
    first, *others = payloads
    reads = [form.head + b"transfer-encoding: chunked\r\n\r\n", chunked(first), *(chunked(p) for p in others)]
    reads[-1] += end
    return feed(reads)


def read(form: Form, *payloads: bytes) -> Answer:
    return read_answer(form.dialect, stream(form, *payloads), keep_text=True)


def times(answer: Answer) -> tuple[float | None, float | None, float | None, list[float]]:
    return answer.first_token_s, answer.first_answer_s, answer.last_token_s, list(answer.gaps_s)


# --- recorded ---


@pytest.mark.parametrize(
    ("name", "input_tokens", "source", "first_chunk_tokens"),
    [
        ("vllm-0.32-completions", 11, "server", None),
        ("vllm-0.32-completions-ids", 11, "server", 1),
        ("vllm-0.32-chat", 22, "server", None),
        ("vllm-0.32-chat-ids", 22, "server", 1),
        ("vllm-0.32-nousage", None, "stream", None),
        ("ollama-0.32-v1", 23, "server", None),
        ("ollama-0.32-generate", 11, "server", None),
        ("ollama-0.32-chat", 22, "server", None),
    ],
)
def test_recorded(name: str, input_tokens: int | None, source: str, first_chunk_tokens: int | None) -> None:
    raw = (RECORDED / f"{name}.bin").read_bytes()
    dialect: Dialect = "openai" if "vllm" in name or "v1" in name else "ollama"
    chunk_ends = [at + 3 for at in range(len(raw)) if raw[at : at + 3] == b"\n\r\n" and raw[at - 1] in b"\n}"]
    edges = [0, *chunk_ends, len(raw)]
    reads = [raw[start:end] for start, end in itertools.pairwise(edges)]
    answer = read_answer(dialect, feed(reads), keep_text=True)
    assert (answer.status, answer.error, answer.finish_reason) == ("ok", None, "length")
    assert (answer.output_tokens, answer.token_source, answer.chunks) == (4, source, 4)
    assert (answer.input_tokens, answer.first_chunk_tokens) == (input_tokens, first_chunk_tokens)
    first = 2.0 if "vllm-0.32-chat" in name else 1.0  # the role comes in a chunk of its own
    assert times(answer) == (first, first, first + 3, [1.0] * 3)
    assert len((answer.text or "").split()) == 4
    if dialect == "ollama":
        assert answer.server_timings is not None
        assert set(answer.server_timings) == {"total_s", "load_s", "prompt_eval_s", "eval_s"}
        assert 0 < answer.server_timings["eval_s"] < answer.server_timings["total_s"] < 1


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vllm-0.32-toolong", "HTTP 400: max_tokens=100000 cannot be greater than max_model_len=512. Please"),
        ("ollama-0.32-nomodel", "HTTP 404: model 'nope' not found"),
        ("ollama-0.32-toolong", "HTTP 400: request (36000 tokens) exceeds the available context size (4096 tokens)"),
    ],
)
def test_recorded_errors(name: str, error: str) -> None:
    x = feed([(RECORDED / f"{name}.bin").read_bytes()])
    answer = read_answer("ollama" if "ollama" in name else "openai", x)
    assert answer.status == "error"
    assert (answer.error or "").startswith(error)
    assert (answer.first_token_s, answer.output_tokens, answer.token_source) == (None, None, None)


# --- each form alike ---


@forms
def test_role_empty_and_finish_chunks_are_no_tokens(form: Form) -> None:
    answer = read(form, form.role(), form.token("a"), form.token(""), form.token("b"), *form.closing(2))
    assert (answer.status, answer.chunks, answer.output_tokens) == ("ok", 2, 2)
    assert times(answer) == (3.0, 3.0, 5.0, [2.0])
    assert (answer.finish_reason, answer.input_tokens, answer.text) == ("length", 9, "ab")


@forms
def test_several_tokens_in_a_chunk(form: Form) -> None:
    answer = read(form, form.token("abc", ids=[1, 2, 3]), form.token("de", ids=[4, 5]), *form.closing(5))
    assert (answer.chunks, answer.output_tokens, answer.token_source) == (2, 5, "server")
    assert answer.first_chunk_tokens == (3 if form.dialect == "openai" else None)


@forms
def test_a_token_without_text_counts_where_the_server_says_so(form: Form) -> None:
    answer = read(form, form.token("", ids=[7]), form.token("a", ids=[8]), form.token("", ids=[]), *form.closing(2))
    says = form.dialect == "openai"
    assert answer.first_token_s == (2.0 if says else 3.0)
    assert answer.chunks == (2 if says else 1)


@forms
def test_several_chunks_in_a_read(form: Form) -> None:
    both = chunked(form.token("a")) + chunked(form.token("b"))
    head = form.head + b"transfer-encoding: chunked\r\n\r\n"
    x = feed([head, both, chunked(form.token("c"), *form.closing(3)) + END])
    answer = read_answer(form.dialect, x)
    assert (answer.chunks, times(answer)) == (3, (2.0, 2.0, 3.0, [0.0, 1.0]))


@forms
def test_a_chunk_over_reads_counts_when_it_is_whole(form: Form) -> None:
    head, token = form.head + b"transfer-encoding: chunked\r\n\r\n", chunked(form.token("a"))
    rest = chunked(*form.closing(1)) + END
    newline = token.index(b"\n", token.index(b"\r\n") + 2)
    for at in range(1, len(token)):
        answer = read_answer(form.dialect, feed([head, token[:at], token[at:] + rest]))
        assert answer.first_token_s == (2.0 if at > newline else 3.0), at
        assert answer.status == "ok"


@forms
def test_reasoning_is_a_token_but_no_answer(form: Form) -> None:
    if form.name == "openai completions":
        pytest.skip("completions have no reasoning")
    thoughts = [form.token("", thought="let me"), form.token("", thought=" see")]
    answer = read(form, form.role(), *thoughts, form.token("42"), *form.closing(3))
    assert times(answer) == (3.0, 5.0, 5.0, [1.0, 1.0])
    assert (answer.chunks, answer.text) == (3, "let me see42")
    only = read(form, *thoughts, *form.closing(2))
    assert (only.status, only.first_token_s, only.first_answer_s) == ("ok", 2.0, None)


def test_reasoning_content_is_the_older_name_of_reasoning() -> None:
    form = FORMS[1]
    event = {"choices": [{"index": 0, "delta": {"content": None, "reasoning_content": "hm"}}]}
    answer = read(form, form.payload(event), form.token("a"), *form.closing(2))
    assert times(answer)[:2] == (2.0, 3.0)


@forms
def test_no_usage_counts_the_stream(form: Form) -> None:
    answer = read(form, form.token("abc", ids=[1, 2, 3]), form.token("d", ids=[4]), *form.closing(None))
    assert (answer.status, answer.token_source, answer.input_tokens) == ("ok", "stream", None)
    assert answer.output_tokens == (4 if form.dialect == "openai" else 2)


@forms
def test_an_error_in_mid_stream(form: Form) -> None:
    answer = read(form, form.token("a"), form.token("b"), form.error("CUDA is gone"), b"data: [DONE]\n\n")
    if form.dialect == "ollama":  # the end mark is none of its words
        answer = read(form, form.token("a"), form.token("b"), form.error("CUDA is gone"))
    assert (answer.status, answer.error) == ("error", "CUDA is gone")
    assert (answer.chunks, answer.output_tokens, answer.token_source) == (2, 2, "stream")
    assert times(answer) == (2.0, 2.0, 3.0, [1.0])


@forms
def test_an_error_first_and_alone(form: Form) -> None:
    answer = read(form, form.error("busy"))
    assert (answer.status, answer.error, answer.chunks) == ("error", "busy", 0)


@forms
def test_the_end_mark_is_not_needed_but_some_end_is(form: Form) -> None:
    unfinished = read(form, form.token("a"), form.token("b"))
    assert (unfinished.status, unfinished.chunks) == ("error", 2)
    assert "ended early" in (unfinished.error or "")
    if form.dialect == "openai":
        without_done = read(form, form.token("a"), *form.closing(1)[:-1])
        without_finish = read(form, form.token("a"), *form.closing(1)[1:])
        assert (without_done.status, without_finish.status) == ("ok", "ok")
        assert (without_done.finish_reason, without_finish.finish_reason) == ("length", None)


@forms
def test_an_answer_without_tokens_is_an_error(form: Form) -> None:
    answer = read(form, form.role(), *form.closing(None))
    assert (answer.status, answer.error) == ("error", "the answer holds no token")


@forms
def test_gzip(form: Form) -> None:
    packed = gzip.compress(b"".join([form.token("a"), form.token("b"), *form.closing(2)]))
    head = form.head + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = read_answer(form.dialect, feed([head, chunked(packed[:40]), chunked(packed[40:]) + END]))
    assert (answer.status, answer.chunks, answer.output_tokens) == ("ok", 2, 2)
    broken = read_answer(form.dialect, feed([head, chunked(b"no gzip at all") + END]))
    assert broken.status == "error"
    assert "unreadable answer" in (broken.error or "")


@forms
def test_http_errors(form: Form) -> None:
    body = form.error("slow down").removeprefix(b"data: ").strip()
    head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7"
    answer = read_answer(form.dialect, feed([plain(body, head)]))
    assert (answer.status, answer.error) == ("error", "HTTP 429: slow down (retry after 7 s)")
    odd = {
        b"": "no text",
        b"[]": "no text",
        b"oh \xff no": "oh \ufffd no",
        b'{"detail":"Not Found"}': "Not Found",
        b'"busy"': "busy",
    }
    for page, text in odd.items():
        answer = read_answer(form.dialect, feed([plain(page, b"HTTP/1.1 500 -")]))
        assert (answer.status, answer.error) == ("error", f"HTTP 500: {text}")
    not_gzip = plain(b"plain", b"HTTP/1.1 502 -\r\nContent-Encoding: gzip")
    assert read_answer(form.dialect, feed([not_gzip])).status == "error"


@forms
@pytest.mark.parametrize("end", [RESET, CLOSE, "cancelled", "no end after 3 s"])
def test_a_stream_that_breaks_keeps_what_arrived(form: Form, end: str) -> None:
    """Wherever it breaks: at the end of a chunk, in a chunk's frame, in the middle of a line."""
    head = form.head + b"transfer-encoding: chunked\r\n\r\n"
    third = chunked(form.token("c"))
    newline = third.index(b"\n", third.index(b"\r\n") + 2)
    for at in range(len(third)):
        x = feed([head, chunked(form.token("a")), chunked(form.token("b")) + third[:at]], end=end)
        answer = read_answer(form.dialect, x, keep_text=True)
        count = 3 if at > newline else 2
        assert (answer.chunks, answer.output_tokens, answer.token_source) == (count, count, "stream"), at
        assert times(answer) == (2.0, 2.0, 3.0, [1.0] + [0.0] * (count - 2))
        assert answer.error == x.error
        assert answer.status == {"cancelled": "cancelled", "no end after 3 s": "timeout"}.get(end, "error")


@forms
def test_framing_is_all_one(form: Form) -> None:
    body = b"".join([form.token("a"), form.token("b"), *form.closing(2)])
    cut = len(form.token("a"))
    length = form.head + b"Content-Length: %d\r\n\r\n" % len(body)
    close = form.head + b"Connection: close\r\n\r\n"
    crlf = body.replace(b"\n", b"\r\n")
    answers = [
        read_answer(form.dialect, feed([length, body[:cut], body[cut:]])),
        read_answer(form.dialect, feed([close, body[:cut], body[cut:]], end=CLOSE)),
        read(form, body[:cut], body[cut:]),
        read(form, *(line + b"\r\n" for line in crlf.split(b"\r\n") if line)),
        read_answer(form.dialect, feed([b"HTTP/1.1 100 Continue\r\n\r\n", length, body[:cut], body[cut:]])),
    ]
    for answer in answers:
        assert (answer.status, answer.chunks, answer.output_tokens, answer.finish_reason) == ("ok", 2, 2, "length")
        assert times(answer)[0] in (2.0, 3.0)
        assert answer.first_token_s != answer.last_token_s


@forms
@pytest.mark.parametrize("garbage", [b"data: {\n\n", b"{]\n", b"data: [1]\n\n{\n", b'data: {"choices":[3]}\n\n[3]\n'])
def test_garbage_is_a_record(form: Form, garbage: bytes) -> None:
    answer = read(form, form.token("a"), garbage)
    assert (answer.status, answer.chunks, answer.output_tokens) == ("error", 1, 1)
    assert (answer.error or "").startswith("unreadable answer")


@forms
def test_what_is_no_stream_at_all(form: Form) -> None:
    refused = read_answer(form.dialect, Exchange(error="cannot connect to h:1: refused", end_s=1.0))
    assert (refused.status, refused.error) == ("error", "cannot connect to h:1: refused")
    other = read_answer(form.dialect, feed([b"SSH-2.0-OpenSSH\r\n"]))
    assert other.status == "error"
    assert "no HTTP response" in (other.error or "")
    page = read_answer(form.dialect, feed([plain(b"<html>\n<body>hello</body>\n</html>\n")]))
    assert page.status == "error"


def test_comments_and_fields_of_sse_are_passed_over() -> None:
    form = FORMS[0]
    extra = b": ping\n\nevent: message\nid: 3\nretry: 10\ndata:\n\n"
    answer = read(form, extra, extra + form.token("a"), form.token("b").replace(b"data: ", b"data:"), *form.closing(2))
    assert (answer.status, answer.chunks, answer.first_token_s) == ("ok", 2, 3.0)


def test_counts_of_zero_on_the_way_are_no_counts() -> None:
    """Ollama's /v1/completions sends a usage block of zeros with each chunk, the true one last."""
    raw = (RECORDED / "ollama-0.32-v1.bin").read_bytes()
    broken = raw[: raw.index(b'"text":"",')]
    answer = read_answer("openai", feed([broken], end=RESET))
    assert (answer.output_tokens, answer.token_source, answer.input_tokens) == (4, "stream", None)


# --- requests ---


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3]])
def test_openai_requests(prompt: str | list[int]) -> None:
    target = Target("http://h/v1", "openai", "m", exact_length=True, token_ids=True, extended_sampling=True)
    path, raw = path_and_body(target, "completions", prompt, 5, Sampling(seed=3, stop=["x"]))
    assert path == "/completions"
    assert json.loads(raw) == {
        "model": "m", "prompt": prompt, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 3, "stop": ["x"],
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    path, raw = path_and_body(Target("http://h/v1", "openai", "m"), "chat", "hi", 5, Sampling())
    assert path == "/chat/completions"
    body = json.loads(raw)
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert not {"ignore_eos", "return_token_ids", "top_k", "seed", "stop"} & set(body), "not all servers know them"


def test_ollama_requests() -> None:
    target = Target("http://h", "ollama", "m", options={"num_ctx": 4096})
    path, raw = path_and_body(target, "completions", "text", 5, Sampling(seed=3))
    assert path == "/api/generate"
    assert json.loads(raw) == {
        "model": "m", "prompt": "text", "raw": True, "truncate": False, "stream": True, "keep_alive": -1,
        "options": {
            "num_predict": 5, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "stop": [], "num_ctx": 4096, "seed": 3,
            "min_p": 0.0, "repeat_penalty": 1.0,
        },
    }  # fmt: skip
    path, raw = path_and_body(target, "chat", "hi", 5, Sampling())
    assert path == "/api/chat"
    assert json.loads(raw)["messages"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_sampling_is_set_on_every_api(dialect: Dialect, api: str) -> None:
    """Each parameter under the name that the engine knows; an output length that is held (vLLM) or capped (Ollama)."""
    target = Target("http://h", dialect, "m", exact_length=True, extended_sampling=True)
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=40, seed=3, stop=["x", "y"])
    body = json.loads(path_and_body(target, api, "hi", 77, sampling)[1])
    options = body["options"] if dialect == "ollama" else body
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3, "stop": ["x", "y"], "min_p": 0.0}
    assert {name: options[name] for name in wanted} == wanted
    if dialect == "ollama":
        assert (options["num_predict"], options["repeat_penalty"]) == (77, 1.0)
    else:
        assert (body["max_tokens"], body["ignore_eos"], body["repetition_penalty"]) == (77, True, 1.0)


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_the_messages_of_a_chat_are_sent_as_they_are(dialect: Dialect) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert (
        json.loads(path_and_body(Target("http://h", dialect, "m"), "chat", said, 5, Sampling())[1])["messages"] == said
    )
