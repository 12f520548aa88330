"""llama-server below Ollama: parts of its real pages (0.32.14), and where its port is found."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.http import HttpError
from harness.telemetry.llamaserver import LlamaServerSource, find_port, live_tokens, read_metrics

PAGE = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 900
llamacpp:prompt_tokens_cached_total 3
llamacpp:prompt_seconds_total 0.085111
llamacpp:tokens_predicted_total 1200
llamacpp:tokens_predicted_seconds_total 7.6313
llamacpp:n_decode_total 401
llamacpp:n_tokens_max 699
llamacpp:predicted_tokens_seconds nan
llamacpp:requests_processing 3
llamacpp:requests_deferred 0
"""
IDLE = {"id": 0, "n_ctx": 2048, "speculative": False, "is_processing": False}
KEPT = IDLE | {"id": 3, "id_task": 9, "n_prompt_tokens": 700, "n_prompt_tokens_processed": 300}  # of its last request


def _busy(processed: int, cached: int, made: int) -> dict[str, Any]:
    return {
        "id": 1, "n_ctx": 2048, "is_processing": True, "id_task": 3, "n_prompt_tokens": processed + cached + made,
        "n_prompt_tokens_processed": processed, "n_prompt_tokens_cache": cached, "params": {"n_predict": 400},
        "next_token": [{"has_next_token": True, "n_remain": 400 - made, "n_decoded": made}],
    }  # fmt: skip


def test_its_counters() -> None:
    assert read_metrics(PAGE) == {
        "running": 3, "deferred": 0, "prompt_tokens_total": 900, "prompt_tokens_cached_total": 3, "steps_total": 401,
        "generation_tokens_total": 1200, "decode_sum_s": 7.6313,
    }  # fmt: skip
    assert read_metrics("") == {}


@pytest.mark.parametrize(
    ("slots", "live"),
    [
        ([], 0),
        ([IDLE, KEPT], 0),
        ([IDLE, _busy(300, 0, 55), _busy(297, 3, 0), KEPT], 655),
        ([_busy(300, 0, 55) | {"next_token": {"n_decoded": 7}}], 307),  # older: no list
        ([_busy(300, 0, 55) | {"n_prompt_tokens_processed": None}], None),
        ({"error": "not supported"}, None),
        ([{"id": 0}], None),
    ],
)
def test_live_tokens_are_those_of_slots_at_work(slots: Any, live: int | None) -> None:
    assert live_tokens(slots) == live


def _answering(monkeypatch: pytest.MonkeyPatch, slots: list[Any]) -> list[int]:
    """A llama-server at port 7 whose `/slots` are these, one a read; None: it is gone. Returns a list that grows with
    each look for its port."""
    looks: list[int] = []

    def port(pids: Any) -> int:
        looks.append(1)
        return 7

    def page(url: str, timeout_s: float) -> str:
        assert url == "http://127.0.0.1:7/metrics"
        if slots[0] is None:
            raise HttpError(url, None, f"connection refused: {slots.pop(0)}")
        return PAGE

    monkeypatch.setattr("harness.telemetry.llamaserver.find_port", port)
    monkeypatch.setattr("harness.telemetry.llamaserver.get_text", page)
    monkeypatch.setattr("harness.telemetry.llamaserver.get_json", lambda url, timeout_s: slots.pop(0))
    return looks


def test_what_a_read_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = _answering(monkeypatch, [[_busy(90, 0, 10)], {}, None, [IDLE]])
    source = LlamaServerSource(lambda: [1], capacity_tokens=400)
    values = source.read()
    assert (values["kv_live_tokens"], values["kv_used_ratio"], values["running"]) == (100, 0.25, 3)
    assert not {"kv_live_tokens", "kv_used_ratio"} & source.read().keys()
    assert len(looks) == 1, "its port is looked for once"
    with pytest.raises(HttpError):
        source.read()
    assert source.read()["kv_live_tokens"] == 0
    assert len(looks) == 2, "and again where it is gone: a model loaded anew has another"


def test_no_capacity_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, [[_busy(90, 0, 10)]])
    values = LlamaServerSource(lambda: [1], capacity_tokens=None).read()
    assert values["kv_live_tokens"] == 100
    assert "kv_used_ratio" not in values


def test_the_port_of_a_process_of_that_name(tmp_path: Path) -> None:
    """A process that listens is found if it is called llama-server, and only among the given ones."""
    with pytest.raises(HttpError, match="no such process"):
        LlamaServerSource(lambda: [os.getpid()], 1).read()
    listening = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    named = tmp_path / "llama-server"
    named.symlink_to(Path(sys.executable).resolve())
    command = [str(named), "-I", "-S", "-c", f"{listening}; time.sleep(60)"]
    with (
        socket.create_server(("127.0.0.1", 0)),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            assert find_port([os.getpid(), 2**22 + 1, process.pid]) == port
            assert find_port([os.getpid()]) is None
        finally:
            process.kill()
