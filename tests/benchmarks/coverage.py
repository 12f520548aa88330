"""How often the 80 % intervals hold what neither script for speed checks: prompt speed, and memory.

    python -m tests.benchmarks.coverage

Prompt speed: the spread of the other GPUs' errors is the interval of each GPU left out. Memory: the intervals as they
ship, on public starts and on those of llm-d's "vLLM Empirical Memory Profiling Results" (H100, 0.11.0), of ours and of
two others; no constant was fitted to these but the bytes of a logit.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict

from sizing.catalog import hardware, model, quantization
from sizing.engine import Setup
from sizing.loads import Offered
from sizing.memory import GIB
from sizing.predict import Query, predict
from tests.benchmarks.accuracy_vllm_kv import logged_h100, starts
from tests.benchmarks.rows import devices, read

# Of llm-d, utilisation 0.9, 16,000 tokens: model, format, GPUs, weights and logged KV of a GPU in GiB
H100_0_11 = (
    ("openai/gpt-oss-20b", "mxfp4", 1, 13.47, 50.28),
    ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "fp8", 2, 33.88, 32.00),
    ("meta-llama/Llama-3.1-8B-Instruct", "bf16", 1, 14.99, 51.38),
    ("Qwen/Qwen3-0.6B", "bf16", 1, 1.12, 64.45),
    ("Qwen/Qwen3-32B", "bf16", 2, 30.59, 34.49),
)
# model, format, GPUs, hardware, version, utilisation, max_model_len, logged KV GiB of a GPU
STARTS = (
    *((name, quant, gpus, "H100", "0.11.0", 0.9, 16000, kv_gib) for name, quant, gpus, _, kv_gib in H100_0_11),
    ("Qwen3-32B", "bf16", 1, "H100", "0.11.0", 0.9, 16000, 4.45),
    ("Mistral-Small-3.2-24B", "bf16", 1, "H100", "0.11.0", 0.95, 16000, 28.20),
    ("Qwen3-8B", "bf16", 1, "RTX 5090", "0.24.0", 0.92, 32768, 12.23),
    ("Llama-3.1-8B", "bf16", 1, "H100", "0.24.0", 0.9, 8192, 54.93),
    ("Llama-3.1-8B", "bf16", 1, "H100", "0.24.0", 0.9, 8192, 55.16),
    ("Llama-3.1-8B", "fp8", 1, "H100", "0.24.0", 0.9, 8192, 61.36),
    ("gpt-oss-20b", "mxfp4", 1, "A100 80GB", "0.19.0", 0.65, 131072, 36.56),
)
ONE = Offered(512, 128, 1)


def prompts() -> None:
    """Prompt speed, each GPU left out of the spread."""
    logs: dict[str, list[float]] = defaultdict(list)
    for row in read("llamabench.csv", "gpu", "model", "quant")[0]:
        test, speed = re.match(r"pp(\d+)", row.raw["test"]), row.number("tps")
        if test and speed:
            setup = Setup(engine="llama.cpp", devices=devices(row))
            query = Query(row.hardware, row.model, row.quantization, setup, Offered(int(test[1]), 2, 1))
            value = predict(query).speed["prefill_tok_s"].value
            logs[row.hardware.name].append(math.log(speed / float(value or math.nan)))
    held = 0
    for left in logs:
        others = sorted(log for gpu, found in logs.items() if gpu != left for log in found)
        low, high = others[len(others) // 10], others[9 * len(others) // 10]
        held += sum(low <= log <= high for log in logs[left])
    errors = sorted(log for found in logs.values() for log in found)
    ends = math.exp(-errors[9 * len(errors) // 10]), math.exp(-errors[len(errors) // 10])
    print(
        f"prompt speed: {len(errors)} rows, {len(logs)} GPUs left out: intervals hold {held / len(errors):.0%}; a time "
        f"is {ends[0]:.2f} to {ends[1]:.2f} of the predicted one; median error "
        f"{statistics.median(abs(math.exp(-log) - 1) for log in errors):.0%}"
    )


def memory() -> None:
    """vLLM's KV, intervals as they ship."""
    found = []
    for start in [*starts()[0], logged_h100()]:
        query = Query(start.row.hardware, start.row.model, start.row.quantization, start.setup, ONE)
        found.append((start.row.model.name, start.logged_tokens, predict(query).memory["kv_capacity_tokens"]))
    for name, quant, gpus, gpu, version, share, context, logged_gib in STARTS:
        setup = Setup(version=version, devices=gpus, gpu_memory_utilization=share, max_model_len=context)
        query = Query(hardware(gpu), model(name), quantization(quant), setup, ONE)
        found.append((name, logged_gib * GIB, predict(query).memory["kv_capacity_bytes"]))
    for name, logged, kv in found:
        low, value, high = (float(end or 0) for end in (kv.low, kv.value, kv.high))
        print(f"  {name}: {value / logged - 1:+.1%}, {'held' if low <= logged <= high else 'MISSED'}")
    held = sum(float(kv.low or 0) <= logged <= float(kv.high or 0) for _, logged, kv in found)
    width = statistics.median((float(kv.high or 0) - float(kv.low or 0)) / float(kv.value or 1) for *_, kv in found)
    print(f"vLLM KV: {held} of {len(found)} within the interval ({held / len(found):.0%}), median width {width:.0%}")


if __name__ == "__main__":
    prompts()
    memory()
