"""What a vLLM server says of itself on its `/metrics` page.

Names changed over versions (`gpu_cache_usage_perc` became `kv_cache_usage_perc`, `time_per_output_token_seconds`
became `inter_token_latency_seconds`): the first that a page has counts. Of a histogram its sum and its count are kept:
the difference of both over a time is the mean of what ended in it. TTFT and e2e are counted by the process that serves
HTTP, from a request's arrival there; queue, prefill and decode are the engine's. `finished_total` counts requests that
ended by themselves, for whatever reason; one that the client gave up is in no histogram but TTFT and the gaps.
Source: vllm/v1/metrics/loggers.py; parts of real pages (0.24.0, 0.32.0) are in the tests.
"""

from __future__ import annotations

import math
from typing import Final

from harness.telemetry.prometheus import TIMEOUT_S, PageSource, parse

# Metric here: names there, newest first. Values of several engine cores (the label `engine`), and of several reasons
# of an end, are added up.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_used_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions_total": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prompt_tokens_total": ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
    "generation_tokens_total": ("vllm:generation_tokens_total", "vllm:generation_tokens"),
    "prefix_cache_queries_total": (
        "vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries_total",
    ),
    "prefix_cache_hits_total": (
        "vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits_total",
    ),
    "ttft_sum_s": ("vllm:time_to_first_token_seconds_sum",),
    "ttft_count": ("vllm:time_to_first_token_seconds_count",),
    "itl_sum_s": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
    "itl_count": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
    "tpot_sum_s": ("vllm:request_time_per_output_token_seconds_sum",),
    "tpot_count": ("vllm:request_time_per_output_token_seconds_count",),
    "e2e_sum_s": ("vllm:e2e_request_latency_seconds_sum",),
    "e2e_count": ("vllm:e2e_request_latency_seconds_count",),
    "queue_sum_s": ("vllm:request_queue_time_seconds_sum",),
    "queue_count": ("vllm:request_queue_time_seconds_count",),
    "prefill_sum_s": ("vllm:request_prefill_time_seconds_sum",),
    "prefill_count": ("vllm:request_prefill_time_seconds_count",),
    "decode_sum_s": ("vllm:request_decode_time_seconds_sum",),
    "decode_count": ("vllm:request_decode_time_seconds_count",),
    "finished_total": ("vllm:request_success_total", "vllm:request_success"),
    "steps_total": ("vllm:iteration_tokens_total_count",),
    "steps_tokens_total": ("vllm:iteration_tokens_total_sum",),
}  # fmt: skip
_MEANS: Final = {"kv_used_ratio"}  # a share: the mean over engine cores, each of which has a cache of the same size
_WANTED: Final = frozenset(name for names in NAMES.values() for name in names)


def read_metrics(text: str) -> dict[str, float]:
    """The metrics of a page. One that the page lacks, or gives as NaN, is left out: never 0."""
    found: dict[str, list[float]] = {}
    for sample in parse(text, _WANTED):
        if math.isfinite(sample.value):
            found.setdefault(sample.name, []).append(sample.value)
    values: dict[str, float] = {}
    for metric, names in NAMES.items():
        present = next((found[name] for name in names if name in found), None)
        if present is not None:
            values[metric] = sum(present) / len(present) if metric in _MEANS else sum(present)
    return values


def vllm_source(url: str, timeout_s: float = TIMEOUT_S) -> PageSource:
    """A vLLM server's queue, KV use and counters. A page of 0.24 (53 kB) costs 1.9 ms of CPU here, and the server some
    ms to write, on the loop that also streams answers: hence once a second and not more."""
    return PageSource("vllm", url, read_metrics, timeout_s)
