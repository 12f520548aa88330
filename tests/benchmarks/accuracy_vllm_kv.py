"""vLLM's KV tokens from model, GPU and utilisation, end to end; after one calibrating start; from logged bytes.

    python -m tests.benchmarks.accuracy_vllm_kv

Rows whose GPU, utilisation or context the source does not state are listed as left out. Pairs of starts of one model,
GPU and version, and those under `results/reference/`, show what one start's log is worth.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass

from sizing.catalog import hardware, model, quantization
from sizing.engine import KV_BYTES, Setup, memory_plan
from sizing.memory import GIB, kv_tokens
from sizing.memory_vllm import default_utilization
from tests.benchmarks.rows import Row, read


@dataclass(frozen=True, slots=True)
class Start:
    """One logged start."""

    row: Row
    setup: Setup
    logged_tokens: float

    @property
    def utilization(self) -> float:
        """As stated, or the version's default."""
        return self.setup.gpu_memory_utilization or default_utilization(self.setup.version or "")

    def predicted(self, extra_bytes: int = 0) -> int:
        """Tokens, with the overhead as computed, or with what another start needed beyond that."""
        setup = dataclasses.replace(self.setup, overhead_extra_bytes=extra_bytes)
        plan = memory_plan(self.row.hardware, self.row.model, self.row.quantization, setup)
        return plan.kv_capacity_tokens

    def learned_extra_bytes(self) -> int:
        """What this start's log says of everything besides weights and KV, beyond the formula."""
        plan = memory_plan(self.row.hardware, self.row.model, self.row.quantization, self.setup)
        overhead = (
            self.utilization * plan.total_bytes - plan.weight_bytes - self.logged_tokens * plan.kv_bytes_per_token
        )
        return int(overhead - plan.overhead_bytes)


def starts() -> tuple[list[Start], list[tuple[str, str]]]:
    """(starts that state all that is needed, others with what they lack)."""
    good, left = read("vllm_kv.csv", "gpu", "model", "quant_dtype")
    found: list[Start] = []
    lacks = [(raw["model"], reason) for raw, reason in left]
    for row in good:
        raw = row.raw
        tokens, context = row.number("kv_tokens"), row.number("max_model_len")
        share = re.search(r"0\.\d+", raw["gpu_mem_util"])
        stated = "default" in raw["gpu_mem_util"] or share
        if not tokens or not stated or not row.model.known_geometry:
            why = "no KV tokens" if not tokens else "no utilisation" if not stated else "its geometry is not known"
            lacks.append((raw["model"], why))
            continue
        notes = raw["notes"]
        sequences = re.search(r"max_num_seqs[ =](\d+)", notes)
        batch = re.search(r"mnbt[ =](\d+)", notes)
        setup = Setup(
            version=raw["engine_version"] or None,
            devices=int(row.number("tp") or 1),
            gpu_memory_utilization=float(share[0]) if share else None,
            max_model_len=int(context or 8192),
            max_num_seqs=int(sequences[1]) if sequences else None,
            max_num_batched_tokens=int(batch[1]) if batch else None,
            kv_cache_type=raw["kv_dtype"] if raw["kv_dtype"] in KV_BYTES else "auto",
        )
        found.append(Start(row, setup, tokens))
    return found, lacks


def logged_h100() -> Start:
    """The start of engine-logs: vLLM 0.24.0 on one H100 80GB, utilisation 0.9, 2,225,424 tokens."""
    raw = {"quant_dtype": "bf16", "kv_gib_per_gpu": "67.91"}
    row = Row(raw, hardware("H100 SXM 80GB"), model("meta-llama/Llama-3.2-1B-Instruct"), quantization("bf16"))
    return Start(row, Setup(version="0.24.0", gpu_memory_utilization=0.9), 2_225_424)


def main() -> None:
    found, lacks = starts()
    found.append(logged_h100())
    print(
        "| model | format | GPU | kind | logged tokens | predicted | error |\n"
        "| :-- | :-- | :-- | :-- | --: | --: | --: |"
    )
    errors: dict[str, list[float]] = defaultdict(list)
    for start in found:
        shape, raw = start.row.model, start.row.raw
        hybrid = shape.linear_layers or shape.sliding_layers
        kind = "hybrid" if hybrid else "MoE" if shape.moe else "dense"
        predicted = start.predicted()
        error = predicted / start.logged_tokens - 1
        errors[kind].append(abs(error))
        count = f"{start.setup.devices} x " if start.setup.devices > 1 else ""
        print(
            f"| {shape.name} | {raw['quant_dtype']} | {count}{start.row.hardware.name} | {kind} "
            f"| {start.logged_tokens:,.0f} | {predicted:,} | {error:+.1%} |"
        )
    for kind, values in sorted(errors.items()):
        print(f"{kind}: {len(values)} starts, median error {statistics.median(values):.1%}")
    print("\nAfter one calibrating start of the same model, format and GPU:")
    groups: dict[tuple[str, str, str], list[Start]] = defaultdict(list)
    for start in found:
        groups[start.row.model.name, start.row.quantization.name, start.row.hardware.name].append(start)
    after = []
    for (name, _, gpu), members in groups.items():
        for start in members:
            for other in members:
                if other is start or other.setup.kv_cache_type != start.setup.kv_cache_type:
                    continue
                error = start.predicted(other.learned_extra_bytes()) / start.logged_tokens - 1
                after.append(abs(error))
                print(
                    f"{name} on {gpu}: start at {other.utilization:.2f}/{other.setup.max_model_len} foretells "
                    f"{start.utilization:.2f}/{start.setup.max_model_len} within {error:+.1%}"
                )
    if after:
        print(f"median {statistics.median(after):.1%}")
    print("\nFrom logged KV GiB to tokens (full attention):")
    exact = []
    for start in found:
        size = start.row.number("kv_gib_per_gpu")
        plan = memory_plan(start.row.hardware, start.row.model, start.row.quantization, start.setup)
        if size and not start.row.model.linear_layers and not start.row.model.sliding_layers:
            exact.append(abs(kv_tokens(size * GIB, plan.kv_bytes_per_token) / start.logged_tokens - 1))
    print(f"{len(exact)} starts, median error {statistics.median(exact):.2%}, largest {max(exact):.2%}")
    print(f"\nLeft out: {len(lacks)}")
    for name, reason in lacks:
        print(f"  {name}: {reason[:100]}")


if __name__ == "__main__":
    main()
