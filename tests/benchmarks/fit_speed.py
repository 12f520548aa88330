"""Fits the constants of `sizing/data/constants.json` to the measured rows, and writes them.

    python -m tests.benchmarks.fit_speed            # prints what it would write
    python -m tests.benchmarks.fit_speed --write    # then fit_front --write, then fit_intervals --write

Each constant has a prior: its physical size from data sheets and common knowledge. The rows move it from there as far
as they agree, so that a constant that few rows speak of stays where physics has it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sizing.catalog import Hardware
from sizing.constants import LlamaConstants, VllmConstants, llama_constants, vllm_constants
from sizing.engine import Setup, memory_plan, policy
from sizing.policy import Policy
from sizing.speed import StepTime, StepWork
from sizing.speed_llama import Split, llama_step_time
from sizing.speed_vllm import vllm_step_time
from sizing.steady import Load, burst_mean_ttft_s, steady_state
from sizing.tables import DATA
from tests.benchmarks.fitting import Vector, fit
from tests.benchmarks.reference import ReferenceRow, reference_rows
from tests.benchmarks.rows import Row, devices, llamabench, read

# name: (prior, spread in logarithms). Bandwidth and MFU: what well-tuned kernels reach. A kernel launch in a captured
# graph: a few microseconds. NVLink collectives: half the link. The others: an order of magnitude.
VLLM_PRIORS = {
    "bandwidth_share": (0.80, 0.06), "kernel_s": (5e-6, 0.15), "allreduce_s": (1e-5, 0.4), "sequence_s": (1.5e-5, 0.5),
    "mfu_16": (0.60, 0.1), "mfu_8": (0.55, 0.1), "moe_mfu_16": (0.25, 0.3), "link_share": (0.75, 0.15),
    "host_s": (2e-3, 0.2), "launch_s": (3e-5, 0.3), "serial_s": (1e-3, 0.4), "serial_sequence_s": (3e-5, 0.4),
    "expert_skew": (0.7, 0.2), "unpack_bytes_per_flop": (2.7e-3, 0.2), "request_s": (0.006, 0.3),
}  # fmt: skip
# What the collections' own clients and tokenizers add to a first token: measured with such clients against a server of
# known times it is 2 ms at few streams and 30 to 45 ms at 64 (design.md, 6). Fitted beside the others, and not shipped.
CLIENT_PRIOR = (8e-3, 0.5)
LLAMA_PRIORS = {
    "bandwidth_share": (0.92, 0.05), "layer_s": (5.5e-5, 0.3), "moe_layer_s": (6e-5, 0.3),
    "unpack_weights_s_per_core_ghz": (1e10, 0.4), "kv_share": (0.5, 0.4), "apple_layer_factor": (1.5, 0.3),
    "low_bit_factor": (1.7, 0.3),
}  # fmt: skip
BELIEVABLE_SHARE = 0.65
MOST_SEQUENCES = 256
UNCLEAR_FROM, UNCLEAR_TO = 0.95, 2.0
# InferenceMAX (now InferenceX) runs lengths of 1024 and 8192 alone, with `--random-range-ratio 0.8`: its client draws
# them evenly between 0.8 and 1 times what is stated (kimbochen/bench_serving). Its servers schedule ahead, by a flag
# where that version does not by itself (`async-scheduling: true` in 70b_fp8_h100_slurm.sh, gptoss_fp4_h100.sh).
INFERENCEMAX_LENGTHS = {"1024", "8192"}
INFERENCEMAX_SHARE, INFERENCEMAX_SPREAD = 0.9, 1 / 9
# The rest of that collection is NVIDIA's own. In the months of vLLM 0.12 its repository (ai-dynamo/aiconfigurator) ran
# AIPerf with ten requests a stream and lengths of no deviation (eval/benchmarks/genai_perf_runner.py), against servers
# whose steps its generator had set to so many tokens more than a prompt and the batch (rule_plugin/vllm.rule).
OWN_COLLECTION, OWN_STEP_TOKENS = "ai-dynamo/aiconfigurator", 1500
WAVES = 10
"""the public rows of a concurrency are bursts of ten times as many requests (InferenceMAX's and AIPerf's custom)"""


@dataclass(frozen=True, slots=True)
class LoadRow:
    """A row of vllm_throughput.csv that states its load."""

    row: Row
    load: Load
    devices: int
    policy: Policy
    ttft_s: float | None
    tpot_s: float | None
    length_spread: float = 0.1
    """lengths are drawn between 1 - this and 1 + this of those of `load`; where the source does not say, a tenth"""

    @property
    def group(self) -> str:
        """The model, for leaving one out."""
        return self.row.raw["model"]

    @property
    def key(self) -> tuple[object, ...]:
        """Rows of one key are one measurement."""
        raw = self.row.raw
        return self.group, raw["dtype"], self.row.hardware.name, self.devices, self.load, raw["engine_version"]

    def times(self, constants: VllmConstants | None = None) -> StepTime:
        """The step-time model that a set of constants gives."""
        row, ahead = self.row, self.policy.scheduled_ahead
        return vllm_step_time(row.hardware, row.model, row.quantization, self.devices, 2.0, constants, ahead)

    def predict(self, constants: VllmConstants | None = None) -> tuple[float, float]:
        """(mean TTFT of the burst, TPOT), in seconds."""
        state = steady_state(self.times(constants), self.load, self.policy)
        requests = WAVES * self.load.concurrency
        return burst_mean_ttft_s(state, self.load, requests, not self.length_spread), state.tpot_s

    @property
    def unclear_queue(self) -> bool:
        """Whether the load overflows a 16-bit KV cache but not an 8-bit one, which 8-bit checkpoints often run with."""
        held = self.load.concurrency * (self.load.input_tokens + self.load.output_tokens / 2)
        full = held / self.policy.kv_capacity_tokens
        return self.row.quantization.quantized and UNCLEAR_FROM < full < UNCLEAR_TO


def load_rows() -> tuple[list[LoadRow], list[tuple[dict[str, str], str]]]:
    """(rows with a load, rows that cannot be predicted with the reason)."""
    good, left = read("vllm_throughput.csv", "gpu", "model", "dtype")
    found: list[LoadRow] = []
    stated: dict[str, set[str]] = {}
    for row in good:
        if row.number("concurrency"):
            stated.setdefault(row.raw["model"], set()).update((row.raw["isl"], row.raw["osl"]))
    for row in good:
        made, sent, together = row.number("osl"), row.number("isl"), row.number("concurrency")
        if not (made and sent and together):
            left.append((row.raw, "states no concurrency, or no lengths"))
            continue
        if together > MOST_SEQUENCES:
            left.append((row.raw, f"more than {MOST_SEQUENCES} at once: what runs hangs on max_num_seqs, not stated"))
            continue
        count, inferencemax = devices(row), stated[row.raw["model"]] <= INFERENCEMAX_LENGTHS
        own = not inferencemax and row.raw["source"].startswith(OWN_COLLECTION)
        setup = Setup(
            devices=count, max_model_len=int(sent + made), version=row.raw["engine_version"], max_num_seqs=1024,
            async_scheduling=True if inferencemax else None,
            max_num_batched_tokens=int(together + sent) + OWN_STEP_TOKENS if own else None,
        )  # fmt: skip
        plan = memory_plan(row.hardware, row.model, row.quantization, setup)
        if plan.kv_capacity_tokens < sent + made:
            left.append((row.raw, f"does not fit: {plan.reason}"))
            continue
        ttft, tpot = row.number("mean_ttft_ms"), row.number("mean_tpot_ms")
        share = INFERENCEMAX_SHARE if inferencemax else 1.0
        found.append(
            LoadRow(
                row,
                Load(round(share * sent), round(share * made), int(together)),
                count,
                policy(row.hardware, plan, setup),
                ttft / 1e3 if ttft else None,
                tpot / 1e3 if tpot else None,
                INFERENCEMAX_SPREAD if inferencemax else 0.0 if own else 0.1,
            )
        )
    return found, left


def fit_vllm(rows: Sequence[LoadRow], ours: Sequence[ReferenceRow] = ()) -> tuple[VllmConstants, float]:
    """Constants from rows that were run as they say (short queues, no more than the peak), and from runs of ours; and
    what the rows' own clients add to a first token."""
    apart = doubtful(rows)
    good = [*rows, *(r for r in ours if r.few)]
    chosen = {r.key: r for r in good if r.ttft_s and r.tpot_s and r.ttft_s < 2.5 and r.group not in apart}
    used = list(chosen.values())
    counts = Counter(r.group for r in used)
    weight = np.array([min((30 / counts[r.group]) ** 0.5, 1.5) for r in used])
    ttft, tpot = np.array([r.ttft_s for r in used]), np.array([r.tpot_s for r in used])
    names = list(VLLM_PRIORS)

    theirs = np.array([isinstance(r, LoadRow) for r in used])

    def residuals(values: Vector) -> Vector:
        constants = dataclasses.replace(vllm_constants(), **dict(zip(names, map(float, values[:-1]), strict=True)))
        predicted = np.array([r.predict(constants) for r in used])
        predicted[:, 0] += theirs * values[-1]
        # A first token's time depends on how the load was started, which rows do not say: half the weight.
        return np.concatenate([weight * np.log(predicted[:, 1] / tpot), 0.5 * weight * np.log(predicted[:, 0] / ttft)])

    priors = [*VLLM_PRIORS.values(), CLIENT_PRIOR]
    values = fit(residuals, [p[0] for p in priors], [p[1] for p in priors])
    constants = dataclasses.replace(vllm_constants(), **dict(zip(names, map(float, values[:-1]), strict=True)))
    return constants, float(values[-1])


def flop_share(r: LoadRow) -> float:
    """The share of the peak that the stated load asks of the prompts' products alone."""
    assert r.ttft_s
    assert r.tpot_s
    per_s = r.load.concurrency / (r.ttft_s + r.load.output_tokens * r.tpot_s)
    flops = 2.0 * r.row.model.active_params * r.load.input_tokens * per_s / r.devices
    hw = r.row.hardware
    peak = hw.fp8_tflops if r.row.quantization.compute == "fp8" else hw.fp16_tflops
    return flops / (peak * 1e12) if peak else 0.0


def doubtful(rows: Sequence[LoadRow]) -> set[str]:
    """Collections with a row beyond 0.65 of the peak: a client or a cache made their load lighter than they say."""
    return {r.group for r in rows if r.ttft_s and r.tpot_s and flop_share(r) > BELIEVABLE_SHARE}


def llama_tok_s(row: Row, context: float, constants: LlamaConstants | None = None) -> float:
    """Generation speed of one stream at a mean context."""
    count = devices(row)
    times = llama_step_time(row.hardware, row.model, row.quantization, 2.0, Split(count), constants)
    return 1.0 / times.seconds(StepWork(0, 0, 1, context, 1))


def fit_llama(rows: Sequence[tuple[Row, float, float]]) -> LlamaConstants:
    """Constants of decode from (row, mean context, tokens/s)."""
    counts = Counter(row.hardware.name for row, _, _ in rows)
    weight = np.array([min((10 / counts[row.hardware.name]) ** 0.5, 1.5) for row, _, _ in rows])
    measured = np.array([speed for _, _, speed in rows])
    names = list(LLAMA_PRIORS)

    def residuals(values: Vector) -> Vector:
        constants = dataclasses.replace(llama_constants(), **dict(zip(names, map(float, values), strict=True)))
        predicted = np.array([llama_tok_s(row, context, constants) for row, context, _ in rows])
        return weight * np.log(predicted / measured)

    priors = LLAMA_PRIORS.values()
    values = fit(residuals, [p[0] for p in priors], [p[1] for p in priors])
    return dataclasses.replace(llama_constants(), **dict(zip(names, map(float, values), strict=True)))


def usable(hardware: Hardware) -> bool:
    """GPUs and Macs: CPUs have constants of their own that no row fits."""
    return hardware.kind != "cpu"


def llama_rows() -> list[tuple[Row, float, float]]:
    """The rows that decode is fitted on: llama-bench's, and one collection of thirteen cards run alike."""
    rows = llamabench(r"^tg\d") + llamabench(r"^decode_tok_s$")
    return [r for r in rows if usable(r[0].hardware) and r[0].model.known_geometry]


def left_out_vllm(rows: Sequence[LoadRow]) -> dict[str, tuple[VllmConstants, float]]:
    """For each model what is fitted without it; runs of ours stay in, but for the same model."""
    found = {}
    for group in sorted({row.group for row in rows}):
        ours = [r for r in reference_rows() if r.query.model.name not in group]
        found[group] = fit_vllm([row for row in rows if row.group != group], ours)
    return found


def left_out_llama(rows: Sequence[tuple[Row, float, float]]) -> list[tuple[Row, float, float]]:
    """(row, predicted, measured) tokens/s, each by constants fitted without its GPU."""
    found: list[tuple[Row, float, float]] = []
    for name in sorted({row.hardware.name for row, _, _ in rows}):
        constants = fit_llama([r for r in rows if r[0].hardware.name != name])
        found += [
            (row, llama_tok_s(row, context, constants), speed)
            for row, context, speed in rows
            if row.hardware.name == name
        ]
    return found


def main() -> None:
    found = {
        "vllm": dataclasses.asdict(fit_vllm(load_rows()[0], reference_rows())[0]),
        "llama": dataclasses.asdict(fit_llama(llama_rows())),
    }
    rounded: dict[str, object] = {
        part: {k: float(f"{v:.4g}") for k, v in values.items()} for part, values in found.items()
    }
    write(rounded)


def write(parts: dict[str, Any]) -> None:
    """Print parts of constants.json, and put them there with `--write`."""
    print(json.dumps(parts, indent=1))
    if "--write" in sys.argv:
        path = DATA / "constants.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | parts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
