"""llama.cpp's and Ollama's memory: whole slots of KV at start, buffers, and layers that stay on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.memory import GIB, MemoryPlan, kv_bytes, lookup_bytes, visible_bytes, weight_bytes
from sizing.memory_vllm import version_of

# Context of the driver and buffers of a batch of 512 tokens: what ollama/ollama#9988's table leaves at 2048 and 4096
# tokens besides weights on the GPU, KV and attention scores.
BASE_BYTES = 0.3 * GIB
BATCH_TOKENS = 512
# Ollama turns flash attention on by itself from about this version (UNVERIFIED); before, scores of a whole batch
# against the whole context are stored in 32 bits, for all heads.
FLASH_FROM = (0, 12)
# The vision tower's own buffers: 1.0 GiB in the log of ollama/ollama#12000 (gemma3:12b).
TOWER_BYTES = 1.0 * GIB
# Ollama leaves this part of a GPU alone when it decides how many layers fit: 457 MiB (ollama/ollama#8430, rick-github).
RESERVE_BYTES = 457 * 2**20


@dataclass(frozen=True, slots=True)
class OllamaStart:
    """The settings of an Ollama daemon (or llama-server) that its memory follows from."""

    num_ctx: int = 4096
    """tokens of one slot"""
    num_parallel: int = 1
    kv_bytes_per_element: float = 2.0
    memory_gib: float | None = None
    """measured total of the device, in place of the table's"""
    devices: int = 1
    """GPUs that the layers are spread over"""
    version: str = "0.13"
    flash_attention: bool | None = None
    """None: as the version does by itself"""
    vision: bool = True
    """whether the vision tower is loaded too: Ollama's tags hold it, llama-server takes it by --mmproj"""


def uses_flash_attention(start: OllamaStart) -> bool:
    """Whether attention scores are never stored as a whole."""
    return version_of(start.version) >= FLASH_FROM if start.flash_attention is None else start.flash_attention


def buffer_bytes(model: ModelShape, start: OllamaStart) -> float:
    """Compute buffers and the driver's context, of all devices."""
    logits = BATCH_TOKENS * model.vocab * 4
    scores = 0.0
    if not uses_flash_attention(start):
        scores = model.heads * start.num_ctx * start.num_parallel * BATCH_TOKENS * 4.0
    tower = TOWER_BYTES if start.vision and model.vision_params else 0.0
    # Each GPU has buffers of its own: at 65536 and 131072 tokens ollama/ollama#9988 spread over two, and used 46.1 and
    # 70.9 GiB, where one set of scores would make 39.8 and 60.8.
    return (BASE_BYTES + scores) * start.devices + logits + tower


def plan_ollama(hardware: Hardware, model: ModelShape, quantization: Quantization, start: OllamaStart) -> MemoryPlan:
    """KV of context x slots is reserved before the first request; the input embedding stays in the host's memory.

    Where it does not all fit, as many layers as do go on the device and `gpu_layers` says how many: `fits` is then
    False, and the rest runs on the CPU. Raises ValueError for hardware without a memory size.
    """
    total = visible_bytes(hardware, start.memory_gib) * start.devices
    on_host = lookup_bytes(model, quantization) if hardware.kind != "cpu" else 0.0
    weights = math.ceil(weight_bytes(model, quantization, with_vision=start.vision) - on_host)
    slot_bytes = kv_bytes(model, start.num_ctx, start.kv_bytes_per_element, beyond_window=BATCH_TOKENS)
    reserved = math.ceil(slot_bytes * start.num_parallel)
    overhead = int(buffer_bytes(model, start))
    needed = weights + overhead + reserved
    fits = needed <= total
    layers: int | None = None
    reason = f"{(total - needed) / GIB:.2f} GiB left over"
    if not fits:
        per_layer = (weights + reserved) / (model.layers + 1)  # the head counts as one more layer
        room = total - overhead - RESERVE_BYTES * start.devices
        layers = max(0, min(model.layers, int(room / per_layer))) if per_layer else 0
        reason = (
            f"{model.name} in {quantization.name} on {hardware.name}: weights {weights / GIB:.2f} GiB, KV "
            f"{reserved / GIB:.2f} GiB and buffers {overhead / GIB:.2f} GiB exceed {total / GIB:.2f} GiB; about "
            f"{layers} of {model.layers + 1} layers go on the GPU, the rest runs on the CPU"
        )
    return MemoryPlan(
        total_bytes=total,
        weight_bytes=weights,
        overhead_bytes=overhead,
        kv_bytes_per_token=slot_bytes / start.num_ctx,
        kv_capacity_bytes=reserved,
        kv_capacity_tokens=start.num_ctx * start.num_parallel,
        context_tokens=start.num_ctx,
        fits=fits,
        reason=reason,
        activation_bytes=overhead,
        gpu_layers=layers,
    )
