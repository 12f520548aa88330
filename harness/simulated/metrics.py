"""The simulated engine's /metrics page, in vLLM's names and Prometheus' text form."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.simulated.engine import SimulatedEngine

# vLLM 0.24's own bounds (its /metrics page).
TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
GAP_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip


class Histogram:
    """Counts per bucket, and the sum, as Prometheus has them."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float) -> None:
        """Count one value; a bound belongs to its bucket."""
        self.counts[bisect_left(self.bounds_s, value_s)] += 1
        self.sum_s += value_s

    def lines(self, name: str, labels: str) -> list[str]:
        """The cumulative buckets, count and sum."""
        lines, total = [], 0
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        return [*lines, f"{name}_count{{{labels}}} {float(total)}", f"{name}_sum{{{labels}}} {self.sum_s}"]


def metrics_text(engine: SimulatedEngine, model_name: str, gpu_memory_utilization: float) -> str:
    """The whole page."""
    model_name = model_name.replace("\\", "\\\\").replace('"', '\\"')
    labels = f'engine="0",model_name="{model_name}"'
    gauges, counters, step = engine.scheduler.gauges(), engine.counters, engine.step
    # While a step is under way its own figures hold: what it finishes still runs.
    running = step.running if step else gauges.running
    used = step.kv_used_tokens if step else gauges.kv_used_tokens
    capacity = gauges.kv_capacity_tokens
    policy = engine.scheduler.policy
    lines: list[str] = []

    def add(name: str, kind: str, text: str, value: float) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{{{labels}}} {float(value)}"))

    add("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", running)
    add("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", gauges.waiting)
    add("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", used / capacity)
    add("vllm:num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", gauges.preemptions)
    add("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", counters.prompt_tokens)
    add("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.", counters.generation_tokens)
    queried, hits = gauges.prefix_queried_tokens, gauges.prefix_hit_tokens
    add("vllm:prefix_cache_queries_total", "counter", "Prefix cache queries, in number of queried tokens.", queried)
    add("vllm:prefix_cache_hits_total", "counter", "Prefix cache hits, in number of cached tokens.", hits)
    name = "vllm:request_success_total"
    lines += [f"# HELP {name} Count of successfully processed requests.", f"# TYPE {name} counter"]
    lines += [
        f'{name}{{engine="0",finished_reason="{reason}",model_name="{model_name}"}} {float(count)}'
        for reason, count in counters.finished.items()
    ]
    name = "vllm:cache_config_info"
    lines += [
        f"# HELP {name} Information of the LLMEngine CacheConfig",
        f"# TYPE {name} gauge",
        f'{name}{{block_size="16",cache_dtype="auto",enable_prefix_caching="{policy.prefix_caching}",engine="0",'
        f'gpu_memory_utilization="{gpu_memory_utilization}",kv_cache_size_tokens="{capacity}",'
        f'num_gpu_blocks="{capacity // 16}"}} 1.0',
    ]
    for name, text, histogram in (
        ("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", counters.ttft_s),
        ("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", counters.gap_s),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram", *histogram.lines(name, labels)]
    own = "enginebench_simulated"
    add(f"{own}_steps_total", "counter", "Engine steps simulated.", counters.steps)
    add(f"{own}_step_lateness_seconds_total", "counter", "Sum of wake-up times past a step's end.", counters.late_sum_s)
    add(f"{own}_step_lateness_seconds_max", "gauge", "Largest wake-up time past a step's end.", counters.late_max_s)
    add(
        f"{own}_step_delivered_seconds_max",
        "gauge",
        "Largest time from a step's end to its last write.",
        counters.delivered_max_s,
    )
    add(f"{own}_stalls_total", "counter", "Times that this process fell behind its timeline.", counters.stalls)
    return "\n".join(lines) + "\n"
