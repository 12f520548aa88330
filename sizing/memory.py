"""What takes memory whatever the engine: weights, KV bytes per token, what a device shows of its size, and the plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization

GIB = 1024**3
BLOCK_TOKENS = 16
"""vLLM's default KV block; Ollama reserves whole slots"""

LINEAR_STATES = 2
"""vLLM keeps two states of linear attention a sequence (MambaSpec in its kv_cache_interface.py, cache mode `align`); a
step reads one and writes the other"""

# What a process sees of a device as sold: 23.5-23.6 of 24 GiB, 79.15-79.2 of 80 (measured/vllm_kv.csv gpu_total_gib,
# engine-logs); a hundredth for error correction and a fixed part for the driver.
VISIBLE_SHARE = 0.99
DRIVER_BYTES = 0.22 * GIB


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
    activation_bytes: int = 0
    """part of the overhead: working memory of a step"""
    graph_bytes: int = 0
    """part of the overhead: CUDA graphs"""
    gpu_layers: int | None = None
    """llama.cpp: layers on the device, None for all"""

    @property
    def max_concurrency(self) -> float:
        """How many requests of the full context fit at once."""
        return self.kv_capacity_tokens / self.context_tokens


def weight_bytes(
    model: ModelShape, quantization: Quantization, tensor_parallel: int = 1, with_vision: bool = True
) -> int:
    """Bytes of the weights on each device.

    A GGUF figure is of the whole file. Tensor formats below 16 bits keep embeddings, output head and vision tower at
    16, and some keep everything but the routed experts there. The model's own files, where they were read, are exact.
    """
    if model.file_bytes is not None:
        return math.ceil(model.file_bytes / tensor_parallel)
    vision_bytes = 2 * model.vision_params
    params = model.params - model.vision_params
    if quantization.kind == "gguf" or not quantization.quantized:
        bits = params * quantization.bits_per_weight
    else:
        quantized = params - model.embedding_params
        if quantization.experts_only and model.moe:
            quantized = round(model.expert_params)
        bits = quantized * quantization.bits_per_weight + (params - quantized) * quantization.rest_bits
    return math.ceil((bits / 8 + (vision_bytes if with_vision else 0)) / tensor_parallel)


def lookup_bytes(model: ModelShape, quantization: Quantization) -> float:
    """Of the input embedding, where the head is another table."""
    bits = quantization.bits_per_weight if quantization.kind == "gguf" else quantization.rest_bits
    return model.lookup_params * min(bits, 16) / 8


def split_weights(model: ModelShape, quantization: Quantization) -> tuple[float, float, float]:
    """(bytes that every step reads, bytes of the routed experts, bytes only looked up), of all devices together."""
    total = float(weight_bytes(model, quantization))
    looked_up = lookup_bytes(model, quantization)
    if model.file_bytes is None:
        looked_up += 2 * model.vision_params
    if not model.moe:
        return total - looked_up, 0.0, looked_up
    expert_share = model.expert_params / (model.params - model.vision_params)
    experts = total * expert_share
    if quantization.kind != "gguf" and quantization.quantized and model.file_bytes is None:
        experts = model.expert_params * quantization.bits_per_weight / 8
    return total - experts - looked_up, experts, looked_up


def kv_bytes(
    model: ModelShape,
    context_tokens: float,
    bytes_per_element: float = 2.0,
    tensor_parallel: int = 1,
    beyond_window: int = 0,
) -> float:
    """KV bytes that one sequence of `context_tokens` holds on each device.

    `beyond_window` tokens are kept beside a sliding window: those of the batch that is being computed.

    Latent attention stores its compressed vector once (not split by tensor parallelism); a sliding-window layer stops
    growing at its window; a linear-attention layer has a state of constant size.
    """
    states = model.linear_layers * model.linear_state_bytes * LINEAR_STATES / tensor_parallel
    if model.mla_dim:
        return model.full_layers * model.mla_dim * bytes_per_element * context_tokens + states
    per_layer = 2 * math.ceil(model.kv_heads / tensor_parallel) * model.head_dim * bytes_per_element
    windowed = min(context_tokens, model.sliding_window_tokens + beyond_window)
    return per_layer * (model.full_layers * context_tokens + model.sliding_layers * windowed) + states


def kv_bytes_per_token(
    model: ModelShape, context_tokens: int = 1, bytes_per_element: float = 2.0, tensor_parallel: int = 1
) -> float:
    """Mean KV bytes of a token in a sequence of `context_tokens`; for full attention it is the same at every length."""
    return kv_bytes(model, context_tokens, bytes_per_element, tensor_parallel) / context_tokens


def visible_bytes(hardware: Hardware, memory_gib: float | None = None) -> int:
    """Memory that a process sees: `memory_gib` as measured, else the table's size less what the driver keeps.

    Raises ValueError for hardware whose memory is the host's (Apple, CPU) when none is stated.
    """
    if memory_gib is None:
        memory_gib = hardware.usable_gib
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if hardware.memory_gib is None:
        raise ValueError(f"{hardware.name} has no memory size of its own: state the memory in GiB")
    if hardware.kind == "apple":
        # Metal's default limit of what the GPU may wire: two thirds up to 36 GiB, three quarters above.
        return int(hardware.memory_gib * (0.75 if hardware.memory_gib > 36 else 2 / 3) * GIB)
    if hardware.kind in ("cpu", "unified"):
        return int(hardware.memory_gib * 0.9 * GIB)  # the system itself needs some: UNVERIFIED
    return int(hardware.memory_gib * VISIBLE_SHARE * GIB - DRIVER_BYTES)


def kv_tokens(kv_capacity_bytes: float, bytes_per_token: float) -> int:
    """Tokens that fit, in whole blocks of 16."""
    if not bytes_per_token:
        return 0
    return int(kv_capacity_bytes / (bytes_per_token * BLOCK_TOKENS)) * BLOCK_TOKENS
