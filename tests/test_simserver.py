"""The simulated engine over loopback, as a client sees it: exact counts, real shapes, errors, cancellation."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sizing.catalog import hardware, model, quantization
from sizing.memory_vllm import VllmStart, plan_vllm
from sizing.policy import vllm_policy
from sizing.simulate import Scheduler
from sizing.speed_vllm import vllm_step_time
from sizing.virtual import SimRequest, run_closed_loop

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
ROOT = Path(__file__).parents[1]


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    log: list[str]

    def call(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, data

    def json(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        got, headers, data = self.call(method, path, body)
        assert got == status, data
        assert headers["x-enginebench-simulated"] == "1"
        return json.loads(data)

    def events(self, path: str, body: dict[str, object]) -> list[Any]:
        """The SSE events of a stream, its [DONE] checked and left out."""
        status, headers, data = self.call("POST", path, {**body, "stream": True})
        assert status == 200, data
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-enginebench-simulated"] == "1"
        *events, done, rest = data.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def metric(self, name: str, **labels: str) -> float:
        page = self.call("GET", "/metrics")[2].decode()
        for line in page.splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no {name} in\n{page}")


def _start(*options: str) -> Server:
    command = [sys.executable, "-m", "harness.simserver", "--port", "0", "--model", MODEL, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    log: list[str] = []
    for line in process.stdout:
        log.append(line.rstrip())
        if ready := re.fullmatch(r"\[simulated\] simulated engine ready on http://127\.0\.0\.1:(\d+)", log[-1]):
            return Server(process, int(ready[1]), log)
    raise AssertionError(f"no ready line: {log} {process.communicate()}")


def _stop(server: Server) -> None:
    server.process.terminate()
    _, errors = server.process.communicate(timeout=10)
    assert server.process.returncode == 0
    assert errors == ""


@pytest.fixture(scope="module")
def vllm() -> Iterator[Server]:
    server = _start("--hardware", "H100 SXM 80GB", "--time-scale", "0.5", "--max-model-len", "4096")
    yield server
    _stop(server)


@pytest.fixture(scope="module")
def ollama() -> Iterator[Server]:
    server = _start(
        *("--hardware", "RTX 4090", "--quantization", "q4_k_m", "--policy", "ollama", "--time-scale", "0.3"),
        *("--num-parallel", "2", "--num-ctx", "1024", "--max-queue", "2"),
    )
    yield server
    _stop(server)


def test_the_log_tells_the_memory_in_vllms_words(vllm: Server) -> None:
    assert all(line.startswith("[simulated] ") for line in vllm.log)
    text = "\n".join(vllm.log)
    assert "Model loading took 14.96 GiB" in text
    tokens = re.search(r"GPU KV cache size: ([\d,]+) tokens", text)
    assert tokens
    blocks = int(tokens[1].replace(",", "")) // 16
    assert vllm.metric("vllm:cache_config_info", num_gpu_blocks=str(blocks), block_size="16") == 1
    assert re.search(r"Maximum concurrency for 4,096 tokens per request: \d+\.\d\dx", text)


def test_a_completion_stream_is_exact(vllm: Server) -> None:
    body = {"model": MODEL, "prompt": [5] * 40, "max_tokens": 7, "ignore_eos": True, "return_token_ids": True}
    *chunks, usage = vllm.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [f" tok{i}" for i in range(7)]
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[1000 + i] for i in range(7)]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["length"]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (usage["id"], "text_completion", MODEL)
    }
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 40, "total_tokens": 47, "completion_tokens": 7}
    # Without include_usage there is no usage event, and the ids stay away unless asked for.
    chunks = vllm.events("/v1/completions", {"prompt": "one two three", "max_tokens": 1})
    assert len(chunks) == 1
    assert "token_ids" not in chunks[0]["choices"][0]


def test_a_chat_stream_begins_with_the_role(vllm: Server) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    body = {"messages": messages, "max_completion_tokens": 3, "stream_options": {"include_usage": True}}
    role, *chunks, usage = vllm.events("/v1/chat/completions", body)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == [" tok0", " tok1", " tok2"]
    assert usage["usage"] == {"prompt_tokens": 3, "total_tokens": 6, "completion_tokens": 3}


def test_answers_in_one_piece(vllm: Server) -> None:
    answer = vllm.json("POST", "/v1/completions", {"prompt": ["a b c d"], "max_tokens": 2})
    assert answer["choices"][0]["text"] == " tok0 tok1"
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 6, "completion_tokens": 2}
    answer = vllm.json(
        "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    )
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": " tok0"}
    assert answer["choices"][0]["finish_reason"] == "length"


def test_catalogue_calls(vllm: Server, ollama: Server) -> None:
    assert vllm.call("GET", "/health")[0] == 200
    assert vllm.json("GET", "/version")["version"].startswith("simulated-")
    (card,) = vllm.json("GET", "/v1/models")["data"]
    assert (card["id"], card["max_model_len"]) == (MODEL, 4096)
    assert ollama.json("GET", "/api/version")["version"].startswith("simulated-")
    (tag,) = ollama.json("GET", "/api/tags")["models"]
    assert (tag["name"], tag["details"]["quantization_level"]) == (MODEL, "Q4_K_M")
    (loaded,) = ollama.json("GET", "/api/ps")["models"]
    assert loaded["size"] == loaded["size_vram"] > 4 * 1024**3
    assert loaded["context_length"] == 1024
    shown = ollama.json("POST", "/api/show", {"model": MODEL})
    assert shown["model_info"]["general.parameter_count"] == 8030261248


def test_ollama_streams_are_exact(ollama: Server) -> None:
    for path, body in (
        ("/api/generate", {"prompt": "w " * 30, "raw": True}),
        ("/api/chat", {"messages": [{"role": "user", "content": "w " * 30}]}),
    ):
        request = {"model": MODEL, "options": {"num_predict": 5}, **body}
        _, headers, data = ollama.call("POST", path, request)
        assert headers["content-type"] == "application/x-ndjson"
        *tokens, last = [json.loads(line) for line in data.splitlines()]
        texts = [line["response"] if "response" in line else line["message"]["content"] for line in tokens]
        assert texts == [f" tok{i}" for i in range(5)]
        assert not any(line["done"] for line in tokens)
        assert (last["done"], last["done_reason"]) == (True, "length")
        assert (last["prompt_eval_count"], last["eval_count"]) == (30, 5)
        assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"] > 0
        whole = ollama.json("POST", path, {**request, "stream": False})
        assert (whole["eval_count"], whole["done"]) == (5, True)


def test_errors_are_those_of_the_real_servers(vllm: Server, ollama: Server) -> None:
    error = vllm.json("POST", "/v1/completions", {"prompt": [1] * 4000, "max_tokens": 200}, status=400)["error"]
    assert "maximum context length is 4096 tokens" in error["message"]
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert vllm.json("POST", "/v1/completions", b"{", status=400)["error"]["code"] == 400
    assert vllm.json("POST", "/v1/completions", {"prompt": {}}, status=400)["error"]["code"] == 400
    assert vllm.json("POST", "/v1/completions", {"prompt": "x", "max_tokens": 0}, status=400)["error"]["code"] == 400
    assert vllm.json("POST", "/v1/completions", {"model": "other", "prompt": "x"}, status=404)["error"]["code"] == 404
    assert vllm.json("GET", "/nowhere", status=404) == {"detail": "Not Found"}
    assert "not found" in ollama.json("POST", "/api/generate", {"model": "other", "prompt": "x"}, status=404)["error"]
    assert "not JSON" in ollama.json("POST", "/api/chat", b"nope", status=400)["error"]


def test_a_full_queue_answers_503(ollama: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": 300}}
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: ollama.call("POST", "/api/generate", body)[0], range(7)))
    assert statuses == [200] * 4 + [503] * 3  # two slots and a queue of two


def test_a_client_that_leaves_frees_its_slot(vllm: Server) -> None:
    aborted = vllm.metric("vllm:request_success_total", finished_reason="abort")
    connection = http.client.HTTPConnection("127.0.0.1", vllm.port, timeout=10)
    body = json.dumps({"prompt": [1] * 3000, "max_tokens": 1000, "stream": True})
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    assert vllm.metric("vllm:num_requests_running") == 1
    assert vllm.metric("vllm:kv_cache_usage_perc") > 0
    response.close()
    connection.close()
    # Well before the 1000 tokens would be out (3.7 s).
    _until(lambda: vllm.metric("vllm:num_requests_running") == 0, timeout_s=2.0)
    assert vllm.metric("vllm:kv_cache_usage_perc") == 0
    assert vllm.metric("vllm:request_success_total", finished_reason="abort") == aborted + 1


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    limit_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit_s, "condition not met in time"
        time.sleep(0.02)


def test_metrics_count_known_work_exactly(vllm: Server) -> None:
    names = (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
    )
    before = [vllm.metric(name) for name in names]
    lengths = [(17 * i + 1, i + 1) for i in range(16)]

    def one(length: tuple[int, int]) -> int:
        body = {"prompt": [length[0] + 10000] * length[0], "max_tokens": length[1]}
        return len(vllm.events("/v1/completions", body))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, lengths)) == [tokens for _, tokens in lengths]
    prompt, generated = sum(i for i, _ in lengths), sum(o for _, o in lengths)
    after = [vllm.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [prompt, generated, 16, generated - 16]
    page = vllm.call("GET", "/metrics")[2].decode()
    assert "# TYPE vllm:time_to_first_token_seconds histogram" in page
    assert vllm.metric("vllm:inter_token_latency_seconds_bucket", le="+Inf") == after[3]


def test_wall_time_keeps_to_the_predicted_time(vllm: Server) -> None:
    times = replace(vllm_step_time(hardware("H100 SXM 80GB"), model(MODEL), quantization("bf16")), time_scale=0.5)
    plan = plan_vllm(hardware("H100 SXM 80GB"), model(MODEL), quantization("bf16"), VllmStart(0.9, 4096))
    (predicted,) = run_closed_loop(Scheduler(vllm_policy(plan), times), [SimRequest("a", 600, 100)], 1)
    body = {"prompt": list(range(600)), "max_tokens": 100}
    start_s = time.monotonic()
    vllm.events("/v1/completions", body)
    elapsed_s = time.monotonic() - start_s
    # Never faster than the physics; the margin above is for a busy machine.
    assert predicted.last_token_s <= elapsed_s < predicted.last_token_s * 1.5 + 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hardware", "A100"], "fits several"),
        (["--hardware", "RTX 4091"], "unknown hardware"),
        (["--hardware", "L4", "--model", "nothing-7b"], "unknown model"),
        (["--hardware", "L4", "--quantization", "q9"], "unknown quantization"),
        (["--hardware", "T4"], "does not fit"),
        (["--hardware", "L4", "--time-scale", "0"], "--time-scale"),
        (["--hardware", "L4", "--policy", "other"], "--policy"),
        (["--hardware", "M4 Max"], "state the memory"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_exit_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.simserver import main

    try:
        code: object = main(["--port", "0", "--model", MODEL, *options])
    except SystemExit as error:  # argparse's own way out
        code = error.code
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1
