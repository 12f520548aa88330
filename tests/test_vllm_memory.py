"""vLLM's memory against logs that no constant was fitted to: hybrid pools, windows, the sorting sampler of 0.11."""

from __future__ import annotations

import dataclasses

import pytest

from sizing.catalog import hardware, model, quantization
from sizing.engine import Setup, memory_plan
from sizing.memory import GIB, MemoryPlan
from sizing.memory_vllm import VllmStart, logged_tokens, vllm_defaults
from tests.benchmarks.coverage import H100_0_11

H100 = hardware("H100 SXM 80GB")


def plan(name: str, quant: str, devices: int = 1, **settings: object) -> MemoryPlan:
    setup = dataclasses.replace(Setup(devices=devices, max_model_len=16000), **settings)  # type: ignore[arg-type]
    return memory_plan(H100, model(name), quantization(quant), setup)


@pytest.mark.parametrize(
    ("name", "quant", "devices", "weights_gib", "kv_gib"),
    H100_0_11,
)
def test_an_h100_under_0_11(name: str, quant: str, devices: int, weights_gib: float, kv_gib: float) -> None:
    """llm-d's "vLLM Empirical Memory Profiling Results": utilisation 0.9, nothing else set."""
    found = plan(name, quant, devices, version="0.11.0", gpu_memory_utilization=0.9)
    assert found.weight_bytes / GIB == pytest.approx(weights_gib, rel=0.01)
    assert found.kv_capacity_bytes / GIB == pytest.approx(kv_gib, rel=0.01)


def test_a_hybrid_pool_to_the_token() -> None:
    """Qwen3.8-27B-FP8 on two cards, FP8 KV: 4.99 GiB are 208 blocks, of which a request of 131072 takes 90."""
    start = VllmStart(max_model_len=131072, kv_bytes_per_element=1.0, tensor_parallel=2, version="0.27.0")
    shape = model("Qwen/Qwen3.5-27B")
    assert logged_tokens(hardware("RTX 3090"), shape, start, 4.99 * GIB) == pytest.approx(302_921, rel=1e-5)


def test_what_0_19_logged_of_a_hybrid_pool() -> None:
    """vllm-project/vllm#40691: 1484 to 1487 blocks of 784 tokens over four groups were logged as 290,864 tokens."""
    start = VllmStart(max_model_len=32768, version="0.19.0")
    shape = model("Qwen/Qwen3.5-27B")
    bytes_of_1485_blocks = 1485.5 * 784 * 4096 * 16
    assert logged_tokens(H100, shape, start, bytes_of_1485_blocks) == 290_864


def test_a_window_keeps_what_is_under_way() -> None:
    """Half of gpt-oss's layers see 128 tokens; a request of 16k holds those and a step's 8192 in each, and no more."""
    new = plan("openai/gpt-oss-20b", "mxfp4", version="0.22.0")
    old = plan("openai/gpt-oss-20b", "mxfp4", version="0.8.5")
    page = 2 * 8 * 64 * 2 * 16
    full, windowed = 1000, -(-(127 + 8192) // 16) + 1
    assert new.kv_bytes_per_token == pytest.approx((full + windowed) * 12 * page / 16000)
    assert old.kv_bytes_per_token == pytest.approx(24 * page / 16), "before the hybrid allocator all layers grow"


def test_defaults_go_by_the_device() -> None:
    """vLLM's arg_utils: 70 GiB and more but no A100 take 8192 tokens a step and 1024 requests."""
    found = {name: vllm_defaults(hardware(name), VllmStart()) for name in ("H100", "A100 80GB", "L40S", "RTX 4090")}
    assert found == {"H100": (8192, 1024), "A100 80GB": (2048, 256), "L40S": (2048, 256), "RTX 4090": (2048, 256)}
    assert vllm_defaults(H100, VllmStart(max_num_seqs=64, max_num_batched_tokens=4096)) == (4096, 64)


def test_more_gpus_hold_more_and_nothing_exceeds_the_device() -> None:
    for name, quant in (
        ("Qwen3-14B", "awq"),
        ("gpt-oss-20b", "mxfp4"),
        ("gemma3:12b", "bf16"),
        ("Qwen3.5-27B", "int4"),
    ):
        last = 0
        for devices in (1, 2, 4, 8):
            found = plan(name, quant, devices)
            assert found.kv_capacity_tokens >= last, (name, devices)
            assert found.weight_bytes + found.overhead_bytes + found.kv_capacity_bytes <= found.total_bytes
            last = found.kv_capacity_tokens
