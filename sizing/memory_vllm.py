"""vLLM's memory: KV = utilisation x total - weights - non-torch - peak of a trial step - CUDA graphs.

Formulas by version: the old engine (V0) tried a prompt of the full context, the new one tries a batch of its token
budget; CUDA graphs are counted inside the budget from 0.21 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.memory import GIB, MemoryPlan, kv_bytes_per_token, kv_tokens, visible_bytes, weight_bytes

# Memory outside torch at start: 0.11, 0.25 and 0.35 GiB logged on three cards (vllm_kv.csv, non_torch_gib); with tensor
# parallelism the buffers of the collectives come on top (UNVERIFIED: of the size of two 200 MiB workspaces).
NON_TORCH_BYTES = 0.35 * GIB
COLLECTIVE_BYTES = 0.4 * GIB
# CUDA graphs: 0.45 GiB of 16 layers (engine-logs, H100), 0.65-0.73 of about 28-32 (vllm_kv.csv, cudagraph_gib).
GRAPH_BYTES = 0.2 * GIB
GRAPH_BYTES_PER_LAYER = 0.016 * GIB
# The peak of a step of many tokens: three feed-forward and three hidden vectors of 16 bits a token. It gives 110.6 kB a
# token of Llama-3.1-8B; vllm-project/vllm#10517 logged 109.7 (1.72 GiB at 20000 tokens, 2.64 at 29000).
VECTORS = 3
# The trial of the sampler holds logits of max_num_seqs requests in 32 bits three times over: 0.41 GiB more for 256 more
# requests of Qwen3-14B (samilazrak/vllm-optimization-lab) is 11 bytes a logit.
BYTES_PER_LOGIT = 12
DEFAULT_VERSION = "0.24.0"
GRAPHS_IN_BUDGET = (0, 21)
HIGHER_UTILIZATION = (0, 22)
LARGE_DEVICE_GIB = 40.0
# vLLM 0.14.0's release notes: asynchronous scheduling is on by default (vllm-project/vllm#27614).
ASYNC_SCHEDULING = (0, 14)


@dataclass(frozen=True, slots=True)
class VllmStart:
    """The options of a vLLM start that its memory follows from (vLLM's own names). None takes vLLM's default."""

    gpu_memory_utilization: float | None = None
    """None: 0.9, from 0.22 on 0.92"""
    max_model_len: int = 8192
    max_num_batched_tokens: int | None = None
    """None: 8192 on devices of 40 GiB and more, else 2048"""
    kv_bytes_per_element: float = 2.0
    tensor_parallel: int = 1
    memory_gib: float | None = None
    """measured total of the device, in place of the table's"""
    max_num_seqs: int = 256
    version: str = DEFAULT_VERSION
    enforce_eager: bool = False
    overhead_bytes: int | None = None
    """non-weight, non-KV memory as a start on this machine logged it; None computes it"""
    overhead_extra_bytes: int = 0
    """what such a start logged beyond the formula; added to it"""


@cache
def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a version text; what has no number is taken as the default version, "V0" as 0.6."""
    if re.search(r"\bv0\b", text.lower()):
        return 0, 6
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else version_of(DEFAULT_VERSION)


def default_utilization(version: str) -> float:
    """vLLM's own default of gpu_memory_utilization."""
    return 0.92 if version_of(version) >= HIGHER_UTILIZATION else 0.9


def scheduled_ahead(version: str) -> bool:
    """Whether a step is scheduled while the one before it runs (vLLM's default by version)."""
    return version_of(version) >= ASYNC_SCHEDULING


def default_batched_tokens(hardware: Hardware, start: VllmStart) -> int:
    """Tokens of the largest step: what the start says, else vLLM's default; V0 took whole prompts."""
    if start.max_num_batched_tokens is not None:
        return start.max_num_batched_tokens
    if version_of(start.version) < (0, 8):
        # V0 took whole prompts, but chunked them by itself above 32k of context.
        return start.max_model_len if start.max_model_len <= 32768 else 2048
    large = visible_bytes(hardware, start.memory_gib) >= LARGE_DEVICE_GIB * GIB
    return 8192 if large else 2048


def plan_vllm(hardware: Hardware, model: ModelShape, quantization: Quantization, start: VllmStart) -> MemoryPlan:
    """The budget of one device. Raises ValueError for hardware without a memory size."""
    total = visible_bytes(hardware, start.memory_gib)
    utilization = start.gpu_memory_utilization or default_utilization(start.version)
    weights = weight_bytes(model, quantization, start.tensor_parallel)
    activation, graphs = _activation_bytes(hardware, model, start), _graph_bytes(model, start)
    collective = COLLECTIVE_BYTES if start.tensor_parallel > 1 else 0
    overhead = int(NON_TORCH_BYTES + collective + activation + graphs) + start.overhead_extra_bytes
    if start.overhead_bytes is not None:
        overhead, activation, graphs = start.overhead_bytes, 0, 0
    per_token = kv_bytes_per_token(model, start.max_model_len, start.kv_bytes_per_element, start.tensor_parallel)
    left = max(0, int(utilization * total) - weights - overhead)
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
        activation_bytes=int(activation),
        graph_bytes=int(graphs),
    )


def _activation_bytes(hardware: Hardware, model: ModelShape, start: VllmStart) -> float:
    """The larger of the two trials at start, which do not overlap: a full step, and the sampler on a full batch."""
    ffn = model.ffn or 3.5 * model.hidden
    per_token = 2 * VECTORS * (ffn / start.tensor_parallel + model.hidden)
    step = default_batched_tokens(hardware, start) * per_token
    sampler = 0.0 if version_of(start.version) < (0, 8) else start.max_num_seqs * model.vocab * BYTES_PER_LOGIT
    return max(step, sampler)


def _graph_bytes(model: ModelShape, start: VllmStart) -> float:
    if start.enforce_eager or version_of(start.version) < GRAPHS_IN_BUDGET:
        return 0.0
    return GRAPH_BYTES + GRAPH_BYTES_PER_LAYER * model.layers
