"""The fitted constants of `data/constants.json`: few, each with a physical meaning.

`tests/benchmarks/fit_speed.py` writes that file from the measured rows; what it says of its errors is in
docs/accuracy.md. Nothing here is tuned by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from sizing.tables import DATA


@dataclass(frozen=True, slots=True)
class VllmConstants:
    """vLLM on NVIDIA (and, unfitted, on others)."""

    bandwidth_share: float
    """share of peak memory bandwidth that decode reaches, stacked memory"""
    gddr_bandwidth_share: float
    """the same on GDDR: no row to fit, taken from llama.cpp's 16-bit rows"""
    kernel_s: float
    """a kernel's fixed time; the layers' kernels are counted from the architecture"""
    allreduce_s: float
    """fixed time of a layer's collectives under tensor parallelism"""
    sequence_s: float
    """per sequence and step: sampling, bookkeeping"""
    mfu_16: float
    """share of the 16-bit peak, dense prefill"""
    mfu_8: float
    """share of the 8-bit peak, dense prefill"""
    mfu_4: float
    """share of the 4-bit float peak, dense prefill"""
    moe_mfu_16: float
    """share of the 16-bit peak that routed experts reach, whatever their format"""
    link_share: float
    """share of the link's rate that a collective of a whole prompt reaches"""
    host_s: float
    """a step's time on the host: scheduling, inputs, replaying a captured graph"""
    launch_s: float
    """a kernel's launch by the host where no graph is replayed: in steps with prefill"""
    serial_s: float
    """more of a step that is scheduled only when the one before it has ended: the device waits for the host"""
    serial_sequence_s: float
    """and for each sequence in it"""
    expert_skew: float
    """routers repeat themselves: experts touched by n tokens are those of n x this uniform choices"""
    unpack_bytes_per_flop: float
    """weight-only experts are unpacked at this many bytes per 16-bit peak FLOP"""
    request_s: float
    """a request's fixed time outside the steps: HTTP, tokenizer, scheduler, the client's own"""
    front_request_s: float
    """work of the API server's process for a request"""
    front_token_s: float
    """and for a token that it streams"""


@dataclass(frozen=True, slots=True)
class LlamaConstants:
    """llama.cpp and Ollama."""

    bandwidth_share: float
    layer_s: float
    """a layer's fixed time at a clock of 2 GHz"""
    moe_layer_s: float
    """more for a layer with routed experts"""
    unpack_weights_s_per_core_ghz: float
    """weights unpacked per second by one core (SM, CU) at 1 GHz"""
    kv_share: float
    """share of peak bandwidth at which attention reads the KV cache"""
    apple_layer_factor: float
    low_bit_factor: float
    """two- and three-bit formats take this much longer to unpack"""
    prefill_flops: float
    """FLOP/s of prefill per sqrt(core GHz x GB/s)"""
    request_s: float


@cache
def _read() -> dict[str, dict[str, float]]:
    loaded: dict[str, dict[str, float]] = json.loads((DATA / "constants.json").read_text("utf-8"))
    return loaded


@cache
def vllm_constants() -> VllmConstants:
    """As fitted on all rows."""
    return VllmConstants(**_read()["vllm"])


@cache
def llama_constants() -> LlamaConstants:
    """As fitted on all rows."""
    return LlamaConstants(**_read()["llama"])
