"""The baseline engine: batches, padding and protocol of its server with a model that is made up, its command line, and
what it says when torch is missing. With real torch: `test_engines.py`."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.engines.transformers import TransformersEngine
from harness.enginespec import TransformersArgs, TransformersSpec
from harness.errors import EngineError, InputError
from harness.http import get_json, get_text, post_json
from harness.locate import transformers_python
from harness.telemetry.transformers import read_metrics
from harness.transformersserver.batches import Batcher, Job, Step
from harness.transformersserver.wire import Connection, Served

END = 7
VOCABULARY = 100


class Counting:
    """A model whose n-th token of any answer is n, and which writes down what it was given."""

    def __init__(self) -> None:
        self.eos, self.context_tokens, self.vocabulary = {END}, 64, VOCABULARY
        self.batches: list[list[int]] = []  # the prompt lengths of each
        self.held: list[tuple[int, int]] = []
        self.free = threading.Event()  # a batch begins when it is set
        self.free.set()
        self.batcher: Any = None

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {token}" for token in ids)

    def generate(self, jobs: list[Job], step: Step) -> None:
        self.free.wait(10)
        self.batches.append([len(job.prompt) for job in jobs])
        if jobs[0].prompt[0] == 99:
            raise MemoryError("no room")
        for token in range(1, max(job.max_tokens for job in jobs) + 1):
            done = step([token] * len(jobs))
            self.held.append((self.batcher.counters.kv_held_tokens, self.batcher.counters.kv_live_tokens))
            if all(done):
                return

    def facts(self) -> list[tuple[str, Any, str, str]]:
        return [("version", "5", "", "made up")]

    def memory(self) -> dict[str, float]:
        return {"memory_peak_bytes": 5.0}


class Server:
    """The server in a thread of this process."""

    def __init__(self, batch: int, wait_s: float) -> None:
        self.model = Counting()
        self.loop = asyncio.new_event_loop()
        self.batcher = self.model.batcher = Batcher(self.model, self.loop, batch, wait_s)
        served = Served("made-up", self.model, self.batcher)
        self.connections: list[Connection] = []

        def connect() -> Connection:
            self.connections.append(Connection(served))
            return self.connections[-1]

        self.server = self.loop.run_until_complete(self.loop.create_server(connect, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.batcher.start()

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            for connection in self.connections:
                connection.transport.abort()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def ask(self, **asked: Any) -> Any:
        return post_json(f"{self.url}/v1/completions", {"prompt": [1, 2], "max_tokens": 3, **asked}, 10.0)

    def at_once(self, *asked: dict[str, Any]) -> list[Any]:
        """Several requests, all of them waiting before the first batch begins."""
        answers: list[Any] = [None] * len(asked)
        self.model.free.clear()
        blocker = threading.Thread(target=self.ask)
        blocker.start()
        _until(lambda: self.batcher.counters.running == 1)

        def send(number: int) -> None:
            answers[number] = self.ask(**asked[number])

        threads = [threading.Thread(target=send, args=(number,)) for number in range(len(asked))]
        for number, thread in enumerate(threads):
            thread.start()
            _until(lambda wanted=number + 1: self.batcher.jobs.qsize() == wanted)
        self.model.free.set()
        for thread in [blocker, *threads]:
            thread.join(10)
        return answers


def _until(condition: Any) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


@pytest.fixture
def one() -> Iterator[Server]:
    server = Server(1, 0.0)
    yield server
    server.close()


@pytest.fixture
def three() -> Iterator[Server]:
    server = Server(3, 0.02)
    yield server
    server.close()


def test_one_at_a_time_serves_in_order(one: Server) -> None:
    answers = one.at_once({"prompt": [5] * 3}, {"prompt": [5] * 4})
    assert one.model.batches == [[2], [3], [4]]
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [3, 4]


def test_a_batch_is_a_rectangle_that_ends_with_its_longest(three: Server) -> None:
    """Prompts of 2, 5 and 3 tokens, answers of 1, 2 and 4: after each step 3 rows x (5 + steps) are held, while the
    tokens of answers that still run get fewer. The fourth request waits for the next batch."""
    sizes = ((2, 1), (5, 2), (3, 4), (6, 1))
    answers = three.at_once(*({"prompt": [5] * n, "max_tokens": most} for n, most in sizes))
    assert three.model.batches == [[2], [2, 5, 3], [6]]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [1, 2, 4, 1]
    of_batch = three.model.held[3:7]
    assert [held for held, _ in of_batch] == [18, 21, 24, 27]
    assert [live for _, live in of_batch] == [6 + 4, 5, 6, 0]
    _until(lambda: three.batcher.counters.kv_held_tokens == 0)  # the last answer is out a moment before
    page = read_metrics(get_text(f"{three.url}/metrics", 5.0))
    assert page["batches_total"] == 3
    assert page["finished_total"] == 5
    assert page["prompt_tokens_total"] == 2 + 2 + 5 + 3 + 6
    assert page["generation_tokens_total"] == 3 + 1 + 2 + 4 + 1
    assert page["memory_peak_bytes"] == 5
    assert page["running"] == page["kv_held_tokens"] == 0


def test_another_sampling_is_another_batch(three: Server) -> None:
    three.at_once({"prompt": [5] * 3}, {"prompt": [5] * 4, "temperature": 0.5}, {"prompt": [5] * 5, "seed": 1})
    assert three.model.batches == [[2], [3, 5], [4]], "a seed says nothing where nothing is drawn"


@pytest.mark.parametrize(
    ("asked", "made", "reason"),
    [({"max_tokens": 20}, END, "stop"), ({"max_tokens": 20, "ignore_eos": True}, 20, "length"),
     ({"max_tokens": END}, END, "stop"), ({"max_tokens": END - 1}, END - 1, "length")],
)  # fmt: skip
def test_where_an_answer_ends(one: Server, asked: dict[str, Any], made: int, reason: str) -> None:
    answer = one.ask(**asked)
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": made, "total_tokens": 2 + made}
    assert answer["choices"][0]["finish_reason"] == reason
    assert answer["choices"][0]["text"] == "".join(f" {n}" for n in range(1, made + 1))


def test_a_stream_is_an_event_a_token_then_usage_and_end(one: Server) -> None:
    body = json.dumps({"prompt": "ab c", "max_tokens": 40, "stream": True, "ignore_eos": True,
                       "return_token_ids": True, "stream_options": {"include_usage": True}})  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=10)
    for _ in range(2):  # the connection goes on
        connection.request("POST", "/v1/completions", body)
        events = connection.getresponse().read().decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        told = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert [event["choices"][0]["token_ids"] for event in told[:-1]] == [[n] for n in range(1, 41)]
        assert "".join(event["choices"][0]["text"] for event in told[:-1]) == "".join(f" {n}" for n in range(1, 41))
        assert [event["choices"][0]["finish_reason"] for event in told[:-1]] == [None] * 39 + ["length"]
        assert told[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 40, "total_tokens": 42}
    connection.close()


def test_a_client_that_left_is_not_served(one: Server) -> None:
    """Neither one that waits, nor, beyond its next token, the one that is being served."""
    one.model.free.clear()
    clients = []
    for waiting, length in enumerate((3, 4)):
        client = http.client.HTTPConnection("127.0.0.1", one.port, timeout=10)
        client.request("POST", "/v1/completions", json.dumps({"prompt": [5] * length, "max_tokens": 30}))
        clients.append(client)
        _until(lambda waiting=waiting: (one.batcher.counters.running, one.batcher.jobs.qsize()) == (1, waiting))
    for client in clients:
        client.close()
    _until(lambda: [c.job is not None and c.job.gone for c in one.connections] == [True, True])
    one.model.free.set()
    assert one.ask(prompt=[5] * 6)["usage"]["completion_tokens"] == 3
    assert one.model.batches == [[3], [6]]
    assert one.batcher.counters.generation_tokens_total == 3


def test_a_batch_that_fails_fails_its_requests_alone(one: Server) -> None:
    with pytest.raises(OSError, match="MemoryError: no room"):
        one.ask(prompt=[99])
    assert one.ask()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/completions", {"prompt": [VOCABULARY]}, "token ids below 100"),
        ("/v1/completions", {"prompt": []}, "must be a text or a list"),
        ("/v1/completions", {"prompt": [1] * 60, "max_tokens": 5}, "exceed the context of 64"),
        ("/v1/completions", {"prompt": [1], "max_tokens": "many"}, "not a request"),
        ("/v1/chat/completions", {}, "not served here"),
    ],
)
def test_what_is_refused(one: Server, path: str, body: dict[str, Any], said: str) -> None:
    with pytest.raises(OSError, match=said):
        post_json(one.url + path, body, 10.0)
    assert get_json(f"{one.url}/health", 5.0) == {}


def test_a_text_is_told_as_tokens(one: Server) -> None:
    assert post_json(f"{one.url}/tokenize", {"prompt": "a bb"}, 5.0)["tokens"] == [1, 2]


# --- the engine ---


def _engine(python: str | None, **spec: Any) -> TransformersEngine:
    return TransformersEngine(TransformersSpec(name="hf", kind="transformers", python=python, **spec))


def test_its_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(
        "/bin/true",
        model=str(tmp_path),
        args=TransformersArgs.model_validate({"batch": 8, "batch_wait": "100ms", "load": "dummy"}),
    )
    engine.start(tmp_path / "log")
    engine.stop()
    words = " ".join(engine.command)
    assert words.startswith("/bin/true -P ")
    assert "transformersserver/__main__.py --port" in words
    assert "--batch 8 --batch-wait 0.1 --dtype bfloat16 --device auto --attn sdpa --load dummy" in words
    assert engine.environment["HF_HUB_OFFLINE"] == "1"


def test_an_interpreter_without_torch_says_what_to_install(tmp_path: Path) -> None:
    """The interpreter of these tests, told to see nothing that is installed."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    engine = _engine(str(bare), model=str(tmp_path), ready_timeout="20s")
    engine.start(tmp_path / "log")
    try:
        with pytest.raises(EngineError) as caught:
            engine.ready(lambda *_: None)
    finally:
        engine.stop()
    assert "torch or transformers is missing" in caught.value.message
    assert "enginebench[transformers]" in caught.value.remedy
    assert "No module named" in caught.value.log_tail


def test_no_interpreter_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        _engine("/bin/true", model="/no/such").start(tmp_path / "log")
    monkeypatch.setenv("ENGINEBENCH_TRANSFORMERS_PYTHON", "/no/such/python")
    assert transformers_python() is None
    assert transformers_python("/bin/true") == Path("/bin/true")
    with pytest.raises(EngineError, match="no Python with torch") as caught:
        _engine(None, model=str(tmp_path)).start(tmp_path / "log")
    assert "enginebench[transformers]" in caught.value.remedy
