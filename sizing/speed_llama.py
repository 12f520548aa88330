"""The step-time coefficients of llama.cpp and Ollama, with layers left on the CPU and layers spread over devices."""

from __future__ import annotations

from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.constants import LlamaConstants, llama_constants
from sizing.memory import split_weights
from sizing.speed import StepTime

# cores x clock per GB/s of bandwidth where no core count is known: the middle of gpu_cores.csv by class.
CORE_GHZ_PER_GBS = {"hbm": 0.08, "gddr": 0.25, "unified": 0.3, "apple": 0.12, "cpu": 0.1}
# Prefill against an NVIDIA card with tensor cores, by family: P40, Apple and RX 7900 XTX rows.
PREFILL_FACTOR = {"pascal": 0.55, "gcn": 0.4, "rdna": 0.55, "cdna": 0.5, "apple": 0.29, "arc": 0.4}
# Intel's GPUs reach this share of what the same card would by its figures: eight rows of integrated ones, 0.27 to 0.55.
INTEL_SHARE = 0.4
# A CPU reaches about this share of its bandwidth in decode (3B Q4_K_M at 4.6 tokens/s on a Pi 5 is 0.55), and
# about 1 TFLOP/s per 90 GB/s in prefill (UNVERIFIED).
CPU_BANDWIDTH_SHARE = 0.6
CPU_FLOPS_PER_GBS = 5.5e9
# A further device costs a copy of the hidden vector and a wait each token: 113.6 -> 105.7 tokens/s on four L40S.
DEVICE_HOP_S = 2.0e-4
SEQUENCE_S = 2.0e-5
LOW_BITS = ("IQ1", "IQ2", "IQ3", "Q2", "Q3", "TQ")


@dataclass(frozen=True, slots=True)
class Split:
    """Where the layers are."""

    devices: int = 1
    gpu_layers: int | None = None
    """None: all"""
    host_bandwidth_gbs: float = 60.0
    """of the memory that the other layers are read from: two channels of DDR5 less what is lost, UNVERIFIED"""


def llama_step_time(
    hardware: Hardware,
    model: ModelShape,
    quantization: Quantization,
    kv_bytes_per_element: float = 2.0,
    split: Split | None = None,
    constants: LlamaConstants | None = None,
) -> StepTime:
    """The step-time model of llama.cpp. `constants` replaces the fitted ones."""
    fitted, split = constants or llama_constants(), split or Split()
    dense, experts, _ = split_weights(model, quantization)
    share = 1.0 if split.gpu_layers is None else split.gpu_layers / max(model.layers, 1)
    if hardware.kind == "cpu":
        share, split = 0.0, Split(host_bandwidth_gbs=hardware.bandwidth_gbs)
    gpu_bandwidth = hardware.bandwidth_gbs * 1e9 * fitted.bandwidth_share
    if hardware.vendor == "intel":
        gpu_bandwidth *= INTEL_SHARE
    host_bandwidth = split.host_bandwidth_gbs * 1e9 * CPU_BANDWIDTH_SHARE
    bandwidth = _in_series(gpu_bandwidth, host_bandwidth, share)
    clock = 2.0 / (hardware.clock_ghz or 2.0)
    layer = fitted.layer_s + (fitted.moe_layer_s if model.moe else 0.0)
    if hardware.kind == "apple":
        layer *= fitted.apple_layer_factor
    core_ghz = hardware.core_ghz or hardware.bandwidth_gbs * CORE_GHZ_PER_GBS[hardware.kind]
    gpu_flops = fitted.prefill_flops * (core_ghz * hardware.bandwidth_gbs) ** 0.5
    gpu_flops *= PREFILL_FACTOR.get(hardware.family, 1.0)
    flops = _in_series(gpu_flops, split.host_bandwidth_gbs * CPU_FLOPS_PER_GBS, share)
    return StepTime(
        model=model,
        dense_bytes=dense,
        expert_bytes=experts,
        bandwidth_bytes_s=bandwidth,
        expert_bandwidth_bytes_s=bandwidth,
        kv_bandwidth_bytes_s=_in_series(hardware.bandwidth_gbs * 1e9 * fitted.kv_share, host_bandwidth, share),
        linear_flops_s=flops,
        attention_flops_s=flops * 0.5,
        constant_s=layer * model.layers * clock + (split.devices - 1) * DEVICE_HOP_S,
        sequence_s=SEQUENCE_S,
        unpack_s=_unpack_s(model, quantization, core_ghz, fitted) * share,
        request_s=fitted.request_s,
        kv_bytes_per_element=kv_bytes_per_element,
    )


def _in_series(gpu: float, host: float, share: float) -> float:
    """A rate when `share` of the work runs at one rate and the rest at another, one after the other."""
    return 1.0 / (share / gpu + (1.0 - share) / host)


def _unpack_s(model: ModelShape, quantization: Quantization, core_ghz: float, fitted: LlamaConstants) -> float:
    """Seconds to unpack every weight once; 16-bit weights need none."""
    if not quantization.quantized:
        return 0.0
    factor = fitted.low_bit_factor if quantization.name.upper().startswith(LOW_BITS) else 1.0
    return factor * (model.params - model.lookup_params) / (core_ghz * fitted.unpack_weights_s_per_core_ghz)
