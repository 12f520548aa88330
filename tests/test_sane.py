"""What must hold of any prediction, also of hardware and models that no row speaks of: bounds and directions."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from sizing.catalog import Hardware, ModelShape, hardware, model, quantization
from sizing.engine import Setup, memory_plan, step_time
from sizing.loads import Offered
from sizing.memory import split_weights
from sizing.predict import Prediction, Query, predict
from sizing.speed import StepWork
from sizing.speed_vllm import peak_flops_16

GPUS = ("A100 SXM 40GB", "L40S", "RTX 4090", "MI300X", "H200", "B200", "T4", "V100 32GB", "RTX 5090", "M2 Ultra")
MODELS = ("Llama-3.1-8B-Instruct", "Llama-3.1-70B-Instruct", "Qwen3-30B-A3B", "DeepSeek-V3", "gemma-3-27b-it",
          "gpt-oss-120b", "Qwen3.5-27B", "Qwen2.5-0.5B")  # fmt: skip
WAYS = (("bf16", "vllm", 1), ("fp8", "vllm", 8), ("awq", "vllm", 2), ("q4_k_m", "llama.cpp", 1), ("q8_0", "ollama", 1))
ALONE = Offered(512, 64, 1)


def _ask(device: Hardware, shape: ModelShape, quant: str, setup: Setup, offered: Offered = ALONE) -> Prediction:
    return predict(Query(device, shape, quantization(quant), setup, offered))


def _speed(answer: Prediction, key: str) -> float:
    value = answer.speed[key].value
    assert value is not None, answer.speed[key].reason
    return float(value)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_answer_is_within_physics_or_says_why_there_is_none(gpu: str) -> None:
    device = hardware(gpu)
    for name, (quant, engine, devices) in itertools.product(MODELS, WAYS):
        shape, weights = model(name), quantization(quant)
        answer = _ask(device, shape, quant, Setup(engine=engine, devices=devices))
        for key, x in (answer.memory | answer.speed).items():
            if x.value is None:
                assert x.reason, key
                continue
            assert x.low is not None
            assert x.high is not None
            assert math.isfinite(x.value)
            assert 0 <= float(x.low) * (1 - 1e-9) <= x.value <= float(x.high) * (1 + 1e-9), key
        decode, prefill = answer.speed["decode_tok_s"].value, answer.speed["prefill_tok_s"].value
        dense, experts, _ = split_weights(shape, weights)
        active = dense + (experts * shape.experts_per_token / shape.n_experts if shape.moe else 0.0)
        if decode is not None:  # a token reads the active weights once
            assert decode < device.bandwidth_gbs * 1e9 * devices / active
        if prefill is not None and engine == "vllm":  # and a prompt's token takes two operations a parameter
            peak = max(peak_flops_16(device), (device.fp8_tflops or 0) * 1e12) * devices
            assert prefill < 1.5 * peak / (2 * (shape.active_params - shape.embedding_params))


def test_more_bandwidth_is_faster_and_nothing_else_changes_direction() -> None:
    device, shape = hardware("L40S"), model("Llama-3.1-8B-Instruct")
    for quant, engine in (("bf16", "vllm"), ("q4_k_m", "llama.cpp")):
        speeds = [
            _speed(
                _ask(dataclasses.replace(device, bandwidth_gbs=gbs), shape, quant, Setup(engine=engine)), "decode_tok_s"
            )
            for gbs in (200, 400, 864, 2000, 8000)
        ]
        assert speeds == sorted(speeds)
        assert len(set(speeds)) == 5


def test_more_streams_give_more_tokens_and_each_of_them_later() -> None:
    device, shape = hardware("A100 SXM 80GB"), model("Qwen3-30B-A3B")
    found = [
        _ask(device, shape, "bf16", Setup(), Offered(512, 64, n, measured=4 * n)) for n in (1, 2, 4, 8, 16, 32, 64)
    ]
    tokens = [_speed(a, "output_tok_s") for a in found]
    each = [_speed(a, "tpot_p50_s") for a in found]
    assert all(b > a for a, b in itertools.pairwise(tokens))
    assert all(b >= a * 0.98 for a, b in itertools.pairwise(each))
    assert _speed(found[-1], "ttft_p50_s") > _speed(found[0], "ttft_p50_s")


def test_longer_contexts_and_longer_prompts_cost_time_and_memory() -> None:
    device, shape = hardware("H200"), model("Llama-3.1-8B-Instruct")
    setup = Setup(max_model_len=131072)
    found = [_ask(device, shape, "bf16", setup, Offered(sent, 32, 4)) for sent in (512, 4096, 16384, 65536, 120000)]
    for key in ("ttft_p50_s", "tpot_p50_s"):
        values = [_speed(a, key) for a in found]
        assert values == sorted(values)
    fits = [
        _ask(device, shape, "bf16", Setup(max_model_len=n)).memory["max_concurrency"].value for n in (4096, 8192, 65536)
    ]
    assert fits == sorted(fits, reverse=True)
    # Attention grows with the square: a hundred times the prompt takes far more than a hundred times the work.
    times = step_time(device, shape, quantization("bf16"), setup)
    assert times.attention_s(StepWork(prefill_pairs=100**2)) == pytest.approx(
        100**2 * times.attention_s(StepWork(prefill_pairs=1))
    )


@pytest.mark.parametrize("name", ["Llama-3.1-70B-Instruct", "DeepSeek-V3", "gpt-oss-120b"])
def test_more_gpus_hold_more_and_serve_a_large_model_faster(name: str) -> None:
    device, shape, quant = hardware("H200"), model(name), "mxfp4" if "oss" in name else "fp8"
    plans, alone, full = [], [], []
    for devices in (1, 2, 4, 8):
        setup = Setup(devices=devices)
        plan = memory_plan(device, shape, quantization(quant), setup)
        if not plan.fits:
            continue
        plans.append(plan.kv_capacity_tokens)
        alone.append(_speed(_ask(device, shape, quant, setup), "decode_tok_s"))
        full.append(_speed(_ask(device, shape, quant, setup, Offered(512, 64, 32, measured=64)), "output_tok_s"))
    assert plans == sorted(plans)
    assert full == sorted(full)
    assert all(b > 0.9 * a for a, b in itertools.pairwise(alone))  # a small step may be eaten by its collectives
    if len(alone) > 1:
        assert alone[-1] < alone[0] * 8


def test_an_eight_bit_cache_holds_twice_as_much_and_fewer_bits_never_weigh_more() -> None:
    device, shape = hardware("RTX 4090"), model("Llama-3.1-8B-Instruct")
    tokens = [
        float(_ask(device, shape, "bf16", Setup(kv_cache_type=kind)).memory["kv_capacity_tokens"].value or 0)
        for kind in ("auto", "fp8")
    ]
    assert tokens[1] == pytest.approx(2 * tokens[0], rel=0.01)
    weights = [
        float(_ask(device, shape, q, Setup(engine="llama.cpp")).memory["weights_bytes"].value or 0)
        for q in ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")
    ]
    assert weights == sorted(weights)


@pytest.mark.parametrize("name", ["MI250X", "Gaudi 3", "TPU v5e"])
def test_hardware_that_nobody_knows_is_refused_with_what_is_close(name: str) -> None:
    with pytest.raises(LookupError, match="unknown hardware"):
        hardware(name)
