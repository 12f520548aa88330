"""What peers' published formulas say of the same rows; used by the accuracy scripts, never by the tool.

Read from their sources on 2026-11-22 and written anew from the figures there: llmfit (llmfit-core/src/fit.rs and
models.rs, MIT), whichllm 0.5.21 (engine/performance.py), gpu_poor (src/App.js). llmfit treats mixtures of experts by an
architecture-aware rule of its own; here they count their active parameters, as its fallback does.
"""

from __future__ import annotations

from collections.abc import Callable

from sizing.memory import weight_bytes
from tests.benchmarks.rows import Row

# llmfit: bytes per parameter by format, and a flat 0.55 of the bandwidth.
_LLMFIT_BYTES = {"F16": 2.0, "BF16": 2.0, "Q8_0": 1.0, "Q6_K": 0.75, "Q5_K_M": 0.625, "Q3_K_M": 0.375, "Q2_K": 0.25}
# whichllm: a share of the bandwidth by format, times one by vendor.
_WHICHLLM = {
    "F16": 0.40, "BF16": 0.40, "Q8_0": 0.45, "Q6_K": 0.50, "Q5_K_M": 0.52, "Q5_0": 0.50, "Q4_K_M": 0.55, "Q4_K_S": 0.55,
    "Q4_0": 0.53, "MXFP4": 0.55, "Q3_K_S": 0.48, "Q2_K": 0.45,
}  # fmt: skip
_WHICHLLM_VENDOR = {"nvidia": 1.0, "amd": 0.78, "apple": 0.82, "intel": 0.65}


def _llmfit(row: Row, context: float) -> float:
    size = row.model.active_params * _LLMFIT_BYTES.get(row.quantization.name.upper(), 0.5)
    return 0.55 * row.hardware.bandwidth_gbs * 1e9 / size


def _whichllm(row: Row, context: float) -> float:
    share = _WHICHLLM.get(row.quantization.name.upper(), 0.45) * _WHICHLLM_VENDOR.get(row.hardware.vendor, 0.7)
    size = float(weight_bytes(row.model, row.quantization))
    if row.model.moe:
        floor = min(0.25, 0.05 * max(1.0, row.hardware.bandwidth_gbs / 256))
        size *= min(1.0, max(row.model.active_params / row.model.params, floor))
    return share * row.hardware.bandwidth_gbs * 1e9 / size


def _gpu_poor(row: Row, context: float) -> float:
    model = row.model
    factor = 2.0 if row.quantization.name.upper() == "Q2_K" else 1.5 if row.quantization.quantized else 2.0
    # Its cache is of all heads at 16 bits: it knows no grouped queries.
    cache = 2 * 2 * model.layers * model.hidden * context
    size = weight_bytes(model, row.quantization) + cache
    return row.hardware.bandwidth_gbs * 1e9 / (factor * size)


def _plain(row: Row, context: float) -> float:
    return 0.7 * row.hardware.bandwidth_gbs * 1e9 / (row.model.active_params * row.quantization.bits_per_weight / 8)


PEERS: dict[str, Callable[[Row, float], float]] = {
    "llmfit": _llmfit,
    "whichllm": _whichllm,
    "gpu_poor": _gpu_poor,
    "0.7 x bandwidth / active weights": _plain,
}
