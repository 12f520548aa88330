"""The reference server as a client sees it: known lengths, deadlines without drift, honest figures of itself."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness.refserver import Lateness, Pace, main
from tests.rawserver import reference_server, server_stats

MESSAGES = [{"role": "user", "content": "one two three"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "one two three", "max_tokens": 5, "stream_options": {"include_usage": True}},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 5, "stream_options": {"include_usage": True}},
    "/api/generate": {"prompt": "one two three", "options": {"num_predict": 5}},
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 5}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with reference_server("--ttft", "30ms", "--gap", "5ms", "--tokens", "3") as url:
        yield url


def call(url: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def events(path: str, data: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in data.split(b"\n") if line]
    if path.startswith("/v1/"):
        assert lines.pop() == b"[DONE]"
    return [json.loads(line) for line in lines]


def texts(path: str, said: list[Any]) -> list[str]:
    if path.startswith("/v1/"):
        choices = [choice for event in said for choice in event["choices"]]
        return [choice["delta"]["content"] if "delta" in choice else choice["text"] for choice in choices]
    return [event["message"]["content"] if "message" in event else event["response"] for event in said]


@pytest.mark.parametrize("path", BODIES)
def test_each_api_answers_what_was_asked(server: str, path: str) -> None:
    status, data = call(server, path, BODIES[path])
    said = events(path, data)
    assert status == 200
    assert sum(text == " the" for text in texts(path, said)) == 5
    last = said[-1]
    if path.startswith("/api/"):
        assert (last["done"], last["done_reason"]) == (True, "length")
        assert (last["prompt_eval_count"], last["eval_count"]) == (3, 5)
    else:
        assert last["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}
        assert said[-2]["choices"][0]["finish_reason"] == "length"
    assert ("delta" in str(said[0]) and texts(path, said)[0] == "") == path.endswith("/chat/completions")


def test_lengths_ids_and_usage_are_as_asked(server: str) -> None:
    said = events("/v1/completions", call(server, "/v1/completions", {"prompt": [1, 2], "return_token_ids": True})[1])
    assert [choice["token_ids"] for event in said for choice in event["choices"]] == [[262]] * 3
    assert not any("usage" in event for event in said)


@pytest.mark.parametrize(
    "body", [{}, {"prompt": "x", "max_tokens": -1}, {"prompt": "x", "stream": False}, [1], {"prompt": 3}]
)
def test_wrong_requests_are_refused(server: str, body: object) -> None:
    status, data = call(server, "/v1/completions", body)
    assert status == 400
    assert "bad request" in json.loads(data)["error"]


def test_the_other_pages(server: str) -> None:
    assert call(server, "/health")[0] == 200
    assert json.loads(call(server, "/v1/models")[1])["data"][0]["id"] == "reference"
    assert call(server, "/nothing")[0] == 404
    assert call(server, "/v1/nothing", {})[0] == 404


def test_a_connection_serves_many_requests_and_may_be_cut_anywhere(server: str) -> None:
    body = json.dumps(BODIES["/api/generate"]).encode()
    request = b"POST /api/generate HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection(("127.0.0.1", urlsplit(server).port or 0), timeout=30) as client:
        for at in (1, 20, len(request) - len(body) - 2, len(request) - 1):
            client.sendall(request[:at])
            time.sleep(0.01)
            client.sendall(request[at:])
            data = b""
            while not data.endswith(b"\r\n0\r\n\r\n"):
                data += client.recv(65536)
            assert data.count(b" the") == 5


def test_its_figures_agree_with_its_pace() -> None:
    with reference_server("--ttft", "50ms", "--gap", "10ms", "--tokens-per-chunk", "2") as url:
        fresh = server_stats(url, reset=True)
        assert (fresh["streams"], fresh["chunks"], fresh["lateness_mean_s"], fresh["ttft_mean_s"]) == (0, 0, None, None)
        with ThreadPoolExecutor(4) as pool:
            data = list(pool.map(lambda _: call(url, "/v1/completions", {"prompt": "x", "max_tokens": 9})[1], range(8)))
        stats = server_stats(url)
        assert all(d.count(b" the") == 9 for d in data)
        assert (stats["streams"], stats["finished"], stats["aborted"], stats["chunks"]) == (8, 8, 0, 8 * 5)
        late = stats["lateness_max_s"]
        assert 0 <= stats["lateness_mean_s"] <= stats["lateness_p99_s"] <= late
        assert 0.05 <= stats["ttft_mean_s"] <= 0.05 + late
        assert (0.04 - late) / 7 <= stats["tpot_mean_s"] <= (0.04 + late) / 7, "8 further tokens, but 2 come first"
        assert 0 <= stats["cpu_ratio"] < 2


def test_a_client_that_leaves_is_counted() -> None:
    with reference_server("--ttft", "10s") as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "x"}))
        connection.getresponse().close()
        connection.close()
        for _ in range(1000):
            if server_stats(url)["aborted"]:
                break
            time.sleep(0.01)
        assert server_stats(url)["aborted"] == 1


def test_deadlines_are_absolute_and_a_stall_moves_them() -> None:
    pace = Pace(0.05, 0.01, stall_at_s=1.0, stall_for_s=2.0)
    begin = pace.start_s
    assert [begin(at, 10.0) for at in (10.0, 10.99, 11.0, 12.5, 13.0)] == [10.0, 10.99, 13.0, 13.0, 13.0]
    due = [pace.due_s(10.9, number, 10.0) for number in (0, 4, 5, 6)]
    assert due == pytest.approx([10.95, 10.99, 13.0, 13.01])
    assert pace.due_s(13.0, 2, 10.0) == pytest.approx(13.07)
    steady = Pace(0.05, 0.01)
    assert steady.due_s(steady.start_s(3.0, 0.0), 1000, 0.0) == pytest.approx(13.05)


def test_lateness_quantiles() -> None:
    lateness = Lateness()
    for number in range(1000):
        lateness.add(number * 1e-5)
    lateness.add(5.0)
    figures = lateness.figures()
    assert figures["lateness_p99_s"] == pytest.approx(0.0099, abs=2e-5)
    assert figures["lateness_max_s"] == 5.0


@pytest.mark.parametrize("options", [["--ttft", "50"], ["--tokens", "0"], ["--gap", "fast"], ["--nothing"]])
def test_wrong_input(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(options)
    assert error.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_taken_port(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", str(urlsplit(server).port)]) == 1
    assert "cannot serve on" in capsys.readouterr().err
