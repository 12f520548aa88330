"""Where the memory goes: weights, KV bytes per token, and what an engine has left for KV after its start."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization

GIB = 1024**3
BLOCK_TOKENS = 16
"""vLLM's default KV block; Ollama reserves whole slots"""

# What the driver lets a process see of the memory as sold: 23.5-24.0 of 24 GiB, 79.1-79.2 of 80, 44.99 of 45
# (measured/vllm_kv.csv, column gpu_total_gib). The mean of those rows.
VISIBLE_SHARE = 0.985
# Memory outside torch at start: 0.11, 0.25 and 0.35 GiB logged on three cards (vllm_kv.csv, non_torch_gib).
NON_TORCH_BYTES = 0.25 * GIB
# CUDA graphs: 0.45 GiB logged on an H100 (engine-logs), 0.65-0.73 on other cards (vllm_kv.csv, cudagraph_gib).
CUDA_GRAPH_BYTES = 0.5 * GIB
# Peak activation per profiled token and hidden unit: 1.72 GiB at 20000 tokens and 2.64 GiB at 29000 of Llama-3.1-8B
# (hidden 4096) on an RTX 3090 (vllm-project/vllm#10517) are 22.5 and 23.9 bytes. DERIVED from those two rows.
ACTIVATION_BYTES_PER_TOKEN_HIDDEN = 23.0
# llama.cpp's compute buffer and context besides weights and KV: 0.51-0.53 GiB at batch 512 (measured/ollama_mem.csv).
OLLAMA_OVERHEAD_BYTES = 0.55 * GIB


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What one engine start does with one device's memory. All sizes are per device."""

    total_bytes: int
    """visible to the engine"""
    weight_bytes: int
    overhead_bytes: int
    """non-torch, activation and graphs, or llama.cpp's buffers: the least certain figure, 0.4-3.1 GiB in real logs"""
    kv_bytes_per_token: float
    kv_capacity_bytes: int
    kv_capacity_tokens: int
    context_tokens: int
    """the longest request: vLLM's max_model_len, Ollama's num_ctx"""
    fits: bool
    reason: str
    """why it does not fit, or what it leaves"""

    @property
    def max_concurrency(self) -> float:
        """How many requests of the full context fit at once."""
        return self.kv_capacity_tokens / self.context_tokens


def weight_bytes(model: ModelShape, quantization: Quantization, tensor_parallel: int = 1) -> int:
    """Bytes of the weights on each device.

    A GGUF figure is of the whole file. Tensor formats below 16 bits keep embeddings and output head at 16.
    """
    if quantization.kind == "gguf" or not quantization.quantized:
        bits = model.params * quantization.bits_per_weight
    else:
        body = model.params - model.embedding_params
        bits = body * quantization.bits_per_weight + model.embedding_params * 16
    return math.ceil(bits / 8 / tensor_parallel)


def kv_bytes(
    model: ModelShape, context_tokens: float, bytes_per_element: float = 2.0, tensor_parallel: int = 1
) -> float:
    """KV bytes that one sequence of `context_tokens` holds on each device.

    Latent attention stores its compressed vector once (not split by tensor parallelism); a sliding-window layer stops
    growing at its window; a linear-attention layer stores none.
    """
    if model.mla_dim:
        return model.full_layers * model.mla_dim * bytes_per_element * context_tokens
    per_layer = 2 * math.ceil(model.kv_heads / tensor_parallel) * model.head_dim * bytes_per_element
    windowed = min(context_tokens, model.sliding_window_tokens)
    return per_layer * (model.full_layers * context_tokens + model.sliding_layers * windowed)


def kv_bytes_per_token(
    model: ModelShape, context_tokens: int = 1, bytes_per_element: float = 2.0, tensor_parallel: int = 1
) -> float:
    """Mean KV bytes of a token in a sequence of `context_tokens`; for full attention it is the same at every length."""
    return kv_bytes(model, context_tokens, bytes_per_element, tensor_parallel) / context_tokens


def visible_bytes(hardware: Hardware, memory_gib: float | None = None) -> int:
    """Memory that a process sees: `memory_gib` as measured, else the table's size less what the driver keeps.

    Raises ValueError for hardware whose memory is the host's (Apple, CPU) when none is stated.
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if hardware.memory_gib is None:
        raise ValueError(f"{hardware.name} has no memory size of its own: state the memory in GiB")
    return int(hardware.memory_gib * VISIBLE_SHARE * GIB)


@dataclass(frozen=True, slots=True)
class VllmStart:
    """The options of a vLLM start that its memory follows from (vLLM's own names and defaults)."""

    gpu_memory_utilization: float = 0.92
    max_model_len: int = 8192
    max_num_batched_tokens: int = 8192
    kv_bytes_per_element: float = 2.0
    tensor_parallel: int = 1
    memory_gib: float | None = None
    """measured total of the device, in place of the table's"""


def plan_vllm(hardware: Hardware, model: ModelShape, quantization: Quantization, start: VllmStart) -> MemoryPlan:
    """vLLM's budget: KV = utilisation x total - weights - non-torch - peak activation - CUDA graphs."""
    total = visible_bytes(hardware, start.memory_gib)
    weights = weight_bytes(model, quantization, start.tensor_parallel)
    activation = ACTIVATION_BYTES_PER_TOKEN_HIDDEN * start.max_num_batched_tokens * model.hidden
    overhead = int(NON_TORCH_BYTES + CUDA_GRAPH_BYTES + activation)
    per_token = kv_bytes_per_token(model, start.max_model_len, start.kv_bytes_per_element, start.tensor_parallel)
    left = max(0, int(start.gpu_memory_utilization * total) - weights - overhead)
    tokens = kv_tokens(left, per_token)
    reason = f"{left / GIB:.2f} GiB left for KV"
    if tokens < start.max_model_len:
        reason = (
            f"{model.name} in {quantization.name} on {hardware.name}: weights {weights / GIB:.2f} GiB leave KV for "
            f"{tokens} tokens, fewer than max_model_len {start.max_model_len}"
        )
    return MemoryPlan(
        total_bytes=total,
        weight_bytes=weights,
        overhead_bytes=overhead,
        kv_bytes_per_token=per_token,
        kv_capacity_bytes=left,
        kv_capacity_tokens=tokens,
        context_tokens=start.max_model_len,
        fits=tokens >= start.max_model_len,
        reason=reason,
    )


def kv_tokens(kv_capacity_bytes: float, bytes_per_token: float) -> int:
    """Tokens that fit, in whole blocks of 16."""
    return int(kv_capacity_bytes / (bytes_per_token * BLOCK_TOKENS)) * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class OllamaStart:
    """The settings of an Ollama daemon that its memory follows from."""

    num_ctx: int = 4096
    num_parallel: int = 1
    kv_bytes_per_element: float = 2.0
    memory_gib: float | None = None
    """measured total of the device, in place of the table's"""


def plan_ollama(hardware: Hardware, model: ModelShape, quantization: Quantization, start: OllamaStart) -> MemoryPlan:
    """Ollama reserves context x slots of KV before the first request; layers that do not fit would run on the CPU."""
    total = visible_bytes(hardware, start.memory_gib)
    weights = weight_bytes(model, quantization)
    slot_bytes = kv_bytes(model, start.num_ctx, start.kv_bytes_per_element)
    reserved = math.ceil(slot_bytes * start.num_parallel)
    overhead = int(OLLAMA_OVERHEAD_BYTES)
    needed = weights + overhead + reserved
    reason = f"{(total - needed) / GIB:.2f} GiB left over"
    if needed > total:
        reason = (
            f"{model.name} in {quantization.name} on {hardware.name}: weights {weights / GIB:.2f} GiB and KV "
            f"{reserved / GIB:.2f} GiB exceed {total / GIB:.2f} GiB; layers would run on the CPU"
        )
    return MemoryPlan(
        total_bytes=total,
        weight_bytes=weights,
        overhead_bytes=overhead,
        kv_bytes_per_token=slot_bytes / start.num_ctx,
        kv_capacity_bytes=reserved,
        kv_capacity_tokens=start.num_ctx * start.num_parallel,
        context_tokens=start.num_ctx,
        fits=needed <= total,
        reason=reason,
    )
