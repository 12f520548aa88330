"""The step-time coefficients of vLLM: what each layer launches, reads and multiplies."""

from __future__ import annotations

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.constants import VllmConstants, vllm_constants
from sizing.memory import split_weights
from sizing.speed import StepTime

# Kernels that a layer launches, counted from the architecture: two norms, the projections in and out, rotary embedding,
# the KV write, attention in two parts, three of the feed-forward, a residual.
LAYER_KERNELS = 11
# Routing: gate, choice, sorting, two grouped products, their activation, less the dense ones.
MOE_KERNELS = 6
# Latent attention: two more projections in, two norms, the absorbed products, and the shared expert of its models.
MLA_KERNELS = 9
# Activations are brought to 8 bits in blocks, in mixtures of experts apart from the norms.
FP8_MOE_KERNELS = 3
# What weight-only formats reach of the 16-bit products, where compute binds: saturated Qwen3-8B in AWQ ran at 0.93 of
# bf16 on an A100 and at 0.73 on an H100, whose wide products its kernels do not use (facts' README; two rows, no fit).
WEIGHT_ONLY_SHARE = {"hopper": 0.55, "blackwell-hbm": 0.55}
WEIGHT_ONLY_SHARE_ELSEWHERE = 0.92
# Parts whose tensor cores take 8-bit numbers at twice the 16-bit rate, for rows that publish no 8-bit peak.
FP8_FAMILIES = {"ada", "hopper", "blackwell", "blackwell-hbm"}
INT8_FAMILIES = FP8_FAMILIES | {"turing", "ampere", "ampere-hbm"}
# NVLink per GPU and direction by generation, bytes/s; other parts talk over PCIe (16 lanes of 4.0).
NVLINK_BYTES_S = {"volta": 150e9, "ampere-hbm": 300e9, "hopper": 450e9, "blackwell-hbm": 900e9, "cdna": 450e9}
PCIE_BYTES_S = 25e9
# 16-bit peak TFLOP/s per GB/s of bandwidth, by class, where no peak is published: the middle of the table's rows.
TFLOPS_PER_GBS = {"hbm": 0.25, "gddr": 0.14, "unified": 0.12, "apple": 0.021, "cpu": 0.011}


def vllm_step_time(
    hardware: Hardware,
    model: ModelShape,
    quantization: Quantization,
    tensor_parallel: int = 1,
    kv_bytes_per_element: float = 2.0,
    constants: VllmConstants | None = None,
    ahead: bool = True,
) -> StepTime:
    """The step-time model of vLLM on `tensor_parallel` devices. `constants` replaces the fitted ones. Not `ahead`: a
    step is scheduled when the one before it has ended, and the device waits meanwhile."""
    fitted = constants or vllm_constants()
    dense, experts, _ = split_weights(model, quantization)
    bandwidth = hardware.bandwidth_gbs * 1e9 * _bandwidth_share(hardware, fitted)
    peak_16 = peak_flops_16(hardware)
    expert_bandwidth = bandwidth
    if quantization.weight_only and quantization.kind == "tensor":
        expert_bandwidth = min(bandwidth, fitted.unpack_bytes_per_flop * peak_16)
    launches = fitted.kernel_s * _kernels(model, quantization)
    if tensor_parallel > 1:
        launches += fitted.allreduce_s
    fixed = launches * model.layers
    launched = fitted.launch_s * _kernels(model, quantization) * model.layers
    return StepTime(
        model=model,
        dense_bytes=dense / tensor_parallel,
        expert_bytes=experts / tensor_parallel,
        bandwidth_bytes_s=bandwidth,
        expert_bandwidth_bytes_s=expert_bandwidth,
        kv_bandwidth_bytes_s=bandwidth,
        linear_flops_s=_linear_flops(hardware, model, quantization, fitted) * tensor_parallel,
        attention_flops_s=peak_16 * fitted.mfu_16 * tensor_parallel,
        constant_s=fixed,
        sequence_s=fitted.sequence_s,
        token_s=_communication_s(hardware, model, tensor_parallel, fitted),
        host_s=fitted.host_s,
        host_prefill_s=fitted.host_s + launched,
        serial_s=0.0 if ahead else fitted.serial_s,
        serial_sequence_s=0.0 if ahead else fitted.serial_sequence_s,
        expert_skew=fitted.expert_skew,
        request_s=fitted.request_s,
        front_request_s=fitted.front_request_s,
        front_token_s=fitted.front_token_s,
        tensor_parallel=tensor_parallel,
        kv_bytes_per_element=kv_bytes_per_element,
    )


def peak_flops_16(hardware: Hardware) -> float:
    """Dense 16-bit peak in FLOP/s: published, or what the class usually has for its bandwidth."""
    return (hardware.fp16_tflops or hardware.bandwidth_gbs * TFLOPS_PER_GBS[hardware.kind]) * 1e12


def _bandwidth_share(hardware: Hardware, fitted: VllmConstants) -> float:
    return fitted.bandwidth_share if hardware.kind == "hbm" else fitted.gddr_bandwidth_share


def _kernels(model: ModelShape, quantization: Quantization) -> int:
    count = LAYER_KERNELS
    if model.moe:
        count += MOE_KERNELS + (FP8_MOE_KERNELS if quantization.compute == "fp8" else 0)
    return count + (MLA_KERNELS if model.mla_dim else 0)


def _linear_flops(hardware: Hardware, model: ModelShape, quantization: Quantization, fitted: VllmConstants) -> float:
    """FLOP/s that the layers' products reach on one device; a format that the hardware lacks runs in 16 bits."""
    peak_16 = peak_flops_16(hardware)
    if model.moe:
        return peak_16 * fitted.moe_mfu_16
    if quantization.compute == "fp8" and (hardware.fp8_tflops or hardware.family in FP8_FAMILIES):
        return _peak(hardware.fp8_tflops, 2 * peak_16) * fitted.mfu_8
    if quantization.compute == "int8" and (hardware.int8_tops or hardware.family in INT8_FAMILIES):
        return _peak(hardware.int8_tops, 2 * peak_16) * fitted.mfu_8
    if quantization.compute == "fp4" and hardware.fp4_tflops:
        return hardware.fp4_tflops * 1e12 * fitted.mfu_4
    share = WEIGHT_ONLY_SHARE.get(hardware.family, WEIGHT_ONLY_SHARE_ELSEWHERE) if quantization.quantized else 1.0
    return peak_16 * fitted.mfu_16 * share


def _peak(published: float | None, otherwise: float) -> float:
    return published * 1e12 if published else otherwise


def _communication_s(hardware: Hardware, model: ModelShape, devices: int, fitted: VllmConstants) -> float:
    """Seconds per token in two all-reduces a layer of one hidden vector in 16 bits."""
    if devices == 1:
        return 0.0
    moved = model.layers * 2 * model.hidden * 2 * 2 * (devices - 1) / devices
    return moved / (NVLINK_BYTES_S.get(hardware.family, PCIE_BYTES_S) * fitted.link_share)
