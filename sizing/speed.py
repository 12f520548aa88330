"""How long one engine step takes: a roofline of memory and compute, plus what the engine itself costs.

    step = max((weights read + live KV) / (bandwidth x efficiency), FLOPs / (peak x MFU)) + constant

One formula serves decode, prefill and the mix of both that chunked prefill runs in one step.
"""

from __future__ import annotations

from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.memory import kv_bytes, weight_bytes


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What share of its peaks a class of hardware reaches."""

    llama_fp16: float
    """share of peak bandwidth, llama.cpp decode at 16 bits"""
    llama_quantized: float
    """share of peak bandwidth, llama.cpp decode below 16 bits: the kernels unpack as they read"""
    vllm: float
    """share of peak bandwidth, vLLM decode"""
    mfu: float
    """share of peak FLOPs in prefill and large batches"""
    tflops_per_gbs: float
    """16-bit peak TFLOP/s per GB/s of bandwidth, for hardware whose peak is not published"""


# Rows: /data of the sizing facts, measured/llamabench.csv (8B unless said) and vllm_throughput.csv. First physics: each
# figure is the middle of a range of few rows, none is a fit.
EFFICIENCY = {
    # hbm: the README's .42-.53 for F16; Q4_K_M .32-.35 with the constant inside, and .38-.45 as the slope from 0.7 to
    # 18.3 GB files on H100 and A100 without it. vLLM: .77 with the constant inside at 8B on an A100 40GB (one row).
    # MFU: Qwen3-32B FP8 on an H100, 4000 tokens in 295 ms with some queueing = .45.
    "hbm": Efficiency(0.48, 0.38, 0.85, 0.50, 0.25),
    # gddr: F16 .78-.93 and Q4_K_M .58-.80. vLLM: no row, taken as llama.cpp's F16: UNVERIFIED. MFU: pp512 gives .86 on
    # a 4090, .89 on a 4080 (peak DERIVED as 2 x fp32), .27 on an L40S (tensor peak). Peak per GB/s: 3070 pp512 / .6.
    "gddr": Efficiency(0.86, 0.70, 0.85, 0.60, 0.14),
    # unified (Strix Halo, DGX Spark): no 8B row with a published peak; taken as gddr for bandwidth: UNVERIFIED.
    "unified": Efficiency(0.80, 0.65, 0.75, 0.50, 0.12),
    # apple: F16 .74-.89 and Q4_K_M .44-.74 on M1, M1 Max, M2 Ultra, M3 Max. Peaks are not published: pp512 reached
    # .016-.028 TFLOP/s per GB/s there, so that ratio is the reached one and the MFU is 1.
    "apple": Efficiency(0.77, 0.55, 0.60, 1.00, 0.021),
    # cpu: 3B Q4_K_M at 4.6 tokens/s on a Pi 5 is .55 of its bus; the rest UNVERIFIED (about 1 TFLOP/s per 90 GB/s).
    "cpu": Efficiency(0.65, 0.55, 0.55, 0.50, 0.011),
}

# Seconds that a step costs besides the device's work (scheduling, launches, sampling). llama.cpp: the intercept of the
# line through 0.7 and 18.3 GB files on H100 (.8 ms) and A100 (1.1 ms), llamabench.csv. vLLM: UNVERIFIED, of the size
# that Llama-3.2-1B on one H100 leaves besides its roofline (engine-logs: mean gap 6.15 ms at up to 256 sequences).
STEP_CONSTANT_S = {"vllm": 0.0015, "ollama": 0.0009}
SEQUENCE_CONSTANT_S = {"vllm": 5e-6, "ollama": 2e-5}

# Weight-only formats multiply in 16 bits after unpacking: saturated Qwen3-8B on vLLM ran at .93 (A100) and .73 (H100)
# of bf16 with AWQ (data README), where compute binds.
WEIGHT_ONLY_MFU_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step does."""

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    """sum over prefill tokens of the tokens each attends to: the quadratic part of attention"""
    decode_sequences: int = 0
    context_tokens: int = 0
    """sum of the live tokens of all sequences in the step"""
    sequences: int = 0
    """sequences in the step, decoding or in prefill"""


@dataclass(frozen=True, slots=True)
class StepTime:
    """The step-time model of one model, quantization and engine on one device."""

    model: ModelShape
    dense_bytes: float
    """weight bytes that every step reads"""
    expert_bytes: float
    """weight bytes of all routed experts; a step reads those that its tokens chose"""
    bandwidth_bytes_s: float
    """reached, not peak"""
    flops_per_s: float
    """reached, not peak"""
    constant_s: float
    sequence_s: float
    kv_bytes_per_element: float = 2.0
    time_scale: float = 1.0
    """wall seconds per modelled second; 0.1 runs ten times as fast"""

    def memory_s(self, work: StepWork) -> float:
        """Seconds to read the weights and the live KV once."""
        tokens = work.prefill_tokens + work.decode_sequences
        read = self.dense_bytes + self.expert_bytes * self._experts_touched(tokens)
        if work.sequences:
            mean_context = work.context_tokens / work.sequences
            read += work.sequences * kv_bytes(self.model, mean_context, self.kv_bytes_per_element)
        return read / self.bandwidth_bytes_s

    def compute_s(self, work: StepWork) -> float:
        """Seconds for the matrix products of all tokens and the attention of the prefill tokens."""
        model = self.model
        flops = 2.0 * model.active_params * (work.prefill_tokens + work.decode_sequences)
        # Two products (scores, values) of 2 FLOPs over heads x head_dim, in the layers whose attention grows.
        flops += 4.0 * model.full_layers * model.heads * model.head_dim * work.prefill_pairs
        return flops / self.flops_per_s

    def seconds(self, work: StepWork) -> float:
        """Duration of a step, in wall seconds (time_scale applied)."""
        roofline = max(self.memory_s(work), self.compute_s(work))
        return (roofline + self.constant_s + self.sequence_s * work.sequences) * self.time_scale

    def _experts_touched(self, tokens: int) -> float:
        """Share of the routed experts that `tokens` independent uniform choices touch."""
        if not self.model.n_experts:
            return 0.0
        return 1.0 - (1.0 - self.model.experts_per_token / self.model.n_experts) ** tokens


def step_time(
    hardware: Hardware,
    model: ModelShape,
    quantization: Quantization,
    engine: str = "vllm",
    kv_bytes_per_element: float = 2.0,
    time_scale: float = 1.0,
) -> StepTime:
    """The step-time model of `engine` ("vllm" or "ollama") for one device."""
    efficiency = EFFICIENCY[hardware.kind]
    weights = weight_bytes(model, quantization)
    share = model.experts_per_token / model.n_experts if model.n_experts else 1.0
    # active = dense + experts x share, all = dense + experts: two equations for the routed part.
    expert_params = (model.params - model.active_params) / (1.0 - share) if share < 1.0 else 0.0
    expert_bytes = weights * expert_params / model.params
    if engine == "vllm":
        reached = efficiency.vllm
    else:
        reached = efficiency.llama_quantized if quantization.quantized else efficiency.llama_fp16
    return StepTime(
        model=model,
        dense_bytes=weights - expert_bytes,
        expert_bytes=expert_bytes,
        bandwidth_bytes_s=hardware.bandwidth_gbs * 1e9 * reached,
        flops_per_s=_peak_tflops(hardware, quantization, efficiency) * 1e12 * efficiency.mfu,
        constant_s=STEP_CONSTANT_S[engine],
        sequence_s=SEQUENCE_CONSTANT_S[engine],
        kv_bytes_per_element=kv_bytes_per_element,
        time_scale=time_scale,
    )


def _peak_tflops(hardware: Hardware, quantization: Quantization, efficiency: Efficiency) -> float:
    """Peak of the format that the products run in; hardware without that format runs them in 16 bits."""
    peak_16 = hardware.fp16_tflops or hardware.bandwidth_gbs * efficiency.tflops_per_gbs
    if quantization.compute == "fp8":
        return hardware.fp8_tflops or peak_16
    if quantization.compute == "int8":
        return hardware.int8_tops or peak_16
    weight_only = quantization.kind == "tensor" and quantization.quantized
    return peak_16 * (WEIGHT_ONLY_MFU_SHARE if weight_only else 1.0)
