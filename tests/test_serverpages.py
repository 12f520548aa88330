"""What servers say of themselves: recorded pages, real ones, and one that hangs."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from harness.http import HttpError
from harness.records import TelemetrySample
from harness.telemetry.ollama import OllamaSource, read_ps
from harness.telemetry.prometheus import PrometheusSample, parse
from harness.telemetry.sampler import Sampler
from harness.telemetry.vllm import read_metrics, vllm_source
from tests.cli import until
from tests.rawserver import served
from tests.sources import Counting

PAGE_0_32 = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/m/tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="/m/tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="/m/tiny",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="/m/tiny"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="/m/tiny"} 9220.0
vllm:prefix_cache_queries_created{engine="0",model_name="/m/tiny"} 1.795305976995198e+09
vllm:prefix_cache_hits_total{engine="0",model_name="/m/tiny"} 0.0
vllm:num_preemptions_total{engine="0",model_name="/m/tiny"} 0.0
vllm:prompt_tokens_total{engine="0",model_name="/m/tiny"} 9220.0
vllm:generation_tokens_total{engine="0",model_name="/m/tiny"} 13214.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="/m/tiny"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="/m/tiny"} 3.287459135055542
vllm:inter_token_latency_seconds_count{engine="0",model_name="/m/tiny"} 13145.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="/m/tiny"} 101.97813759899736
vllm:request_success_total{engine="0",finished_reason="stop",model_name="/m/tiny"} 2.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="/m/tiny"} 67.0
vllm:request_success_created{engine="0",finished_reason="stop",model_name="/m/tiny"} 1.795305976995286e+09
vllm:iteration_tokens_total_count{engine="0",model_name="/m/tiny"} 4211.0
vllm:iteration_tokens_total_sum{engine="0",model_name="/m/tiny"} 22434.0
vllm:request_time_per_output_token_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_time_per_output_token_seconds_sum{engine="0",model_name="/m/tiny"} 0.535
vllm:e2e_request_latency_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="/m/tiny"} 105.25
vllm:request_queue_time_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="/m/tiny"} 0.125
vllm:request_prefill_time_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="/m/tiny"} 3.0
vllm:request_decode_time_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_decode_time_seconds_sum{engine="0",model_name="/m/tiny"} 101.97
"""


def test_vllm_page() -> None:
    assert read_metrics(PAGE_0_32) == {
        "running": 3, "waiting": 0, "kv_used_ratio": 0.25, "preemptions_total": 0, "prompt_tokens_total": 9220,
        "generation_tokens_total": 13214, "prefix_cache_queries_total": 9220, "prefix_cache_hits_total": 0,
        "ttft_sum_s": 3.287459135055542, "ttft_count": 69, "itl_sum_s": 101.97813759899736, "itl_count": 13145,
        "tpot_sum_s": 0.535, "tpot_count": 69, "e2e_sum_s": 105.25, "e2e_count": 69, "queue_sum_s": 0.125,
        "queue_count": 69, "prefill_sum_s": 3, "prefill_count": 69, "decode_sum_s": 101.97, "decode_count": 69,
        "finished_total": 69, "steps_total": 4211, "steps_tokens_total": 22434,
    }  # fmt: skip


def test_vllm_older_names_several_engines_and_missing_values() -> None:
    page = """\
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:gpu_cache_usage_perc{engine="0"} 0.2
vllm:gpu_cache_usage_perc{engine="1"} 0.4
vllm:num_requests_waiting{engine="0"} NaN
vllm:time_per_output_token_seconds_sum 1.5
vllm:time_per_output_token_seconds_count 10
"""
    assert read_metrics(page) == {"running": 7, "kv_used_ratio": pytest.approx(0.3), "itl_sum_s": 1.5, "itl_count": 10}
    assert read_metrics("") == read_metrics("<html>no metrics here</html>") == {}


def test_prometheus_lines() -> None:
    page = r"""
# TYPE a counter
a{x="1",y="with \"quotes\", a , and }\\ \n"} 1.5 1395066363000
b 2e3
 torn
c{x="1"
d{} +Inf
e abc
"""
    found = list(parse(page))
    assert found == [
        PrometheusSample("a", {"x": "1", "y": 'with "quotes", a , and }\\ \n'}, 1.5),
        PrometheusSample("b", {}, 2000.0),
        PrometheusSample("d", {}, math.inf),
    ]
    assert [sample.name for sample in parse(page, {"b", "d"})] == ["b", "d"]


def test_ollama_page() -> None:
    row = {
        "name": "tiny:latest",
        "model": "tiny:latest",
        "size": 21705522,
        "size_vram": 1572864,
        "context_length": 2048,
    }
    whole = {"loaded": 1, "size_bytes": 21705522, "size_vram_bytes": 1572864, "context_tokens": 2048}
    for model in ("tiny", "tiny:latest"):
        assert read_ps({"models": [row]}, model) == whole
    assert read_ps({"models": [row]}, "tiny:8b") == read_ps({"models": None}, "tiny") == {"loaded": 0}
    assert read_ps({"models": [{"name": "host:5000/tiny:latest"}]}, "host:5000/tiny") == {"loaded": 1}


class _Handler(BaseHTTPRequestHandler):
    release = threading.Event()

    def do_GET(self) -> None:
        if self.path.startswith("/hang"):
            self.release.wait(20)
            return
        body = {"/metrics": PAGE_0_32, "/api/ps": json.dumps({"models": []})}.get(self.path, "broken")
        self.send_response(500 if body == "broken" else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.release = threading.Event()
    with served(_Handler) as address:
        yield address
        _Handler.release.set()


def test_sources_of_a_real_server(server: str) -> None:
    assert vllm_source(f"{server}/metrics", 20.0).read()["running"] == 3
    assert OllamaSource(f"{server}/", "tiny", 20.0).read() == {"loaded": 0}
    for source in (vllm_source(f"{server}/500", 20.0), OllamaSource(f"{server}/500", "tiny", 20.0)):
        with pytest.raises(HttpError) as refused:
            source.read()
        assert refused.value.status == 500


def test_sources_of_a_hanging_server_give_up(server: str) -> None:
    for source in (vllm_source(f"{server}/hang", 0.05), OllamaSource(f"{server}/hang", "tiny", 0.05)):
        with pytest.raises(HttpError, match="no answer within"):
            source.read()


def test_a_hanging_server_in_the_sampler(server: str) -> None:
    samples: list[TelemetrySample] = []
    warnings: list[str] = []
    local = Counting("local", 30)
    hanging = vllm_source(f"{server}/hang", 0.05)
    sampler = Sampler([hanging, local], samples.append, on_warning=warnings.append)
    sampler.start()
    assert local.done.wait(10)
    assert until(lambda: bool(warnings))
    sampler.stop()
    assert {sample.source for sample in samples} == {"local"}
    assert len([text for text in warnings if "telemetry vllm: http" in text]) == 1
