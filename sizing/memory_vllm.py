"""vLLM's memory: KV = utilisation x total - weights - non-torch - peak of a trial step - CUDA graphs.

Formulas by version: the old engine (V0) tried a prompt of the full context, the new one tries a batch of its token
budget; CUDA graphs are counted inside the budget from 0.21 on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.kv_groups import Pool, pool_of
from sizing.memory import GIB, MemoryPlan, kv_bytes_per_token, kv_tokens, visible_bytes, weight_bytes

# Memory outside torch at start: 0.11, 0.25 and 0.35 GiB logged on three cards (vllm_kv.csv, non_torch_gib); with tensor
# parallelism the buffers of the collectives come on top (UNVERIFIED: of the size of two 200 MiB workspaces).
NON_TORCH_BYTES = 0.35 * GIB
COLLECTIVE_BYTES = 0.4 * GIB
# An H100 under 0.11.0 (llm-d's capacity planner, "vLLM Empirical Memory Profiling Results"): 0.13 GiB, 0.55 on two.
V1_NON_TORCH_BYTES = 0.14 * GIB
# CUDA graphs: 0.45 GiB of 16 layers (engine-logs, H100), 0.65-0.73 of about 28-32 (vllm_kv.csv, cudagraph_gib).
GRAPH_BYTES = 0.2 * GIB
GRAPH_BYTES_PER_LAYER = 0.016 * GIB
# The peak of a step of many tokens: three feed-forward and three hidden vectors of 16 bits a token. It gives 110.6 kB a
# token of Llama-3.1-8B; vllm-project/vllm#10517 logged 109.7 (1.72 GiB at 20000 tokens, 2.64 at 29000).
VECTORS = 3
# The trial of the sampler holds logits of max_num_seqs requests in 32 bits three times over: 0.41 GiB more for 256 more
# requests of Qwen3-14B (samilazrak/vllm-optimization-lab) is 11 bytes a logit.
BYTES_PER_LOGIT = 12
# Before the fused samplers the trial sorted every logit: 38.4 to 39.6 bytes each for 1,024 requests of six models under
# 0.11.0 on H100s (the same source): 4.8 GiB of Llama-3.1-8B. UNVERIFIED: that 0.16 is where it ended.
SORTED_BYTES_PER_LOGIT = 39
SORTED_UNTIL = (0, 16)
V1 = (0, 8)
# Columns of a tile of MXFP4 experts: what the loaded sizes of the same source come to.
MXFP4_TILE = 256
DEFAULT_VERSION = "0.24.0"
# From here a window keeps the tokens of two steps, as one is scheduled while another runs (0.32's max_in_flight_tokens;
# UNVERIFIED: since when).
TWO_STEPS_UNDER_WAY = (0, 24)
GRAPHS_IN_BUDGET = (0, 21)
HIGHER_UTILIZATION = (0, 22)
# vLLM's arg_utils.py: devices of 70 GiB and more, but for A100s, take 8192 tokens a step and 1024 requests at once.
LARGE_DEVICE_GIB = 70.0
# The trial of the largest step needs as much on an L40S (45 GiB) as 8192 tokens would, though its default is 2048.
LARGE_TRIAL_GIB = 40.0
# vLLM 0.14.0's release notes: asynchronous scheduling is on by default (vllm-project/vllm#27614).
ASYNC_SCHEDULING = (0, 14)


@dataclass(frozen=True, slots=True)
class VllmStart:
    """The options of a vLLM start that its memory follows from (vLLM's own names). None takes vLLM's default."""

    gpu_memory_utilization: float | None = None
    """None: 0.9, from 0.22 on 0.92"""
    max_model_len: int = 8192
    max_num_batched_tokens: int | None = None
    """None: 8192 on devices of 70 GiB and more that are no A100, else 2048"""
    kv_bytes_per_element: float = 2.0
    tensor_parallel: int = 1
    memory_gib: float | None = None
    """measured total of the device, in place of the table's"""
    max_num_seqs: int | None = None
    """None: 1024 on devices of 70 GiB and more that are no A100 (from 0.8), else 256"""
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
    return 8192 if _large(hardware, start) else 2048


def default_max_seqs(hardware: Hardware, start: VllmStart) -> int:
    """Requests that run at once: what the start says, else vLLM's default."""
    if start.max_num_seqs is not None:
        return start.max_num_seqs
    return 1024 if version_of(start.version) >= V1 and _large(hardware, start) else 256


def _large(hardware: Hardware, start: VllmStart) -> bool:
    # 5 % less: `auto` knows free memory alone.
    enough = visible_bytes(hardware, start.memory_gib) >= 0.95 * LARGE_DEVICE_GIB * GIB
    return enough and "a100" not in hardware.name.lower()


def plan_vllm(hardware: Hardware, model: ModelShape, quantization: Quantization, start: VllmStart) -> MemoryPlan:
    """The budget of one device. Raises ValueError for hardware without a memory size."""
    total = visible_bytes(hardware, start.memory_gib)
    utilization = start.gpu_memory_utilization or default_utilization(start.version)
    weights = weight_bytes(model, quantization, start.tensor_parallel) + _padding_bytes(model, quantization, start)
    activation, graphs = _activation_bytes(hardware, model, start), _graph_bytes(model, start)
    collective = COLLECTIVE_BYTES if start.tensor_parallel > 1 else 0
    non_torch = V1_NON_TORCH_BYTES if V1 <= version_of(start.version) < SORTED_UNTIL else NON_TORCH_BYTES
    overhead = int(non_torch + collective + activation + graphs) + start.overhead_extra_bytes
    if start.overhead_bytes is not None:
        overhead, activation, graphs = start.overhead_bytes, 0, 0
    per_token, left = _kv_per_token(hardware, model, start), max(0, int(utilization * total) - weights - overhead)
    tokens = logged_tokens(hardware, model, start, left)
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


def _padding_bytes(model: ModelShape, quantization: Quantization, start: VllmStart) -> int:
    """MXFP4 experts are widened to whole tiles: gpt-oss-120b loads 64.4 GiB for 60.8, gpt-oss-20b 13.5 for 12.8."""
    if quantization.name != "mxfp4" or not model.moe or model.file_bytes is not None:
        return 0
    width = model.ffn / model.experts_per_token / start.tensor_parallel
    wider = math.ceil(width / MXFP4_TILE) * MXFP4_TILE / width - 1
    return int(model.expert_params * quantization.bits_per_weight / 8 / start.tensor_parallel * wider)


def _pool(hardware: Hardware, model: ModelShape, start: VllmStart) -> Pool | None:
    """The pool of blocks of a model whose layers differ in kind."""
    version = version_of(start.version)
    page = 2 * math.ceil(model.kv_heads / start.tensor_parallel) * model.head_dim * start.kv_bytes_per_element
    if model.mla_dim:
        page = model.mla_dim * start.kv_bytes_per_element
    scheduled = default_batched_tokens(hardware, start) * (2 if version >= TWO_STEPS_UNDER_WAY else 1)
    return pool_of(model, start.max_model_len, page, start.tensor_parallel, (scheduled, version))


def _kv_per_token(hardware: Hardware, model: ModelShape, start: VllmStart) -> float:
    if pool := _pool(hardware, model, start):
        return pool.bytes_per_token(start.max_model_len)
    return kv_bytes_per_token(model, start.max_model_len, start.kv_bytes_per_element, start.tensor_parallel)


def logged_tokens(hardware: Hardware, model: ModelShape, start: VllmStart, capacity_bytes: float) -> int:
    """Tokens of KV that the start's log says of so many bytes."""
    if pool := _pool(hardware, model, start):
        return pool.tokens(capacity_bytes, start.max_model_len, version_of(start.version))
    return kv_tokens(capacity_bytes, _kv_per_token(hardware, model, start))


def _activation_bytes(hardware: Hardware, model: ModelShape, start: VllmStart) -> float:
    """The larger of the two trials at start, which do not overlap: a full step, and the sampler on a full batch."""
    version, ffn = version_of(start.version), model.ffn or 3.5 * model.hidden
    per_token = 2 * VECTORS * (ffn / start.tensor_parallel + model.hidden)
    tokens = default_batched_tokens(hardware, start)
    if start.max_num_batched_tokens is None and version >= V1:
        tokens = 8192 if visible_bytes(hardware, start.memory_gib) >= LARGE_TRIAL_GIB * GIB else 2048
    if version < V1:
        return tokens * per_token
    if version < SORTED_UNTIL:
        return max(tokens * per_token, default_max_seqs(hardware, start) * model.vocab * SORTED_BYTES_PER_LOGIT)
    # The newer runner's trial leaves sorting out: 1024 requests by default show no more than 256 do (H100, 0.24.0).
    return max(tokens * per_token, (start.max_num_seqs or 256) * model.vocab * BYTES_PER_LOGIT)


def _graph_bytes(model: ModelShape, start: VllmStart) -> float:
    if start.enforce_eager or version_of(start.version) < GRAPHS_IN_BUDGET:
        return 0.0
    return GRAPH_BYTES + GRAPH_BYTES_PER_LAYER * model.layers


def vllm_defaults(hardware: Hardware, start: VllmStart) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of a start, those that it leaves open included."""
    return default_batched_tokens(hardware, start), default_max_seqs(hardware, start)
