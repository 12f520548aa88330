"""How long one engine step takes: a roofline of memory and compute, plus what the engine itself costs.

    device = smooth maximum(weights read, matrix products) + live KV read + attention + communication + constants
    step = smooth maximum(device, what the host needs to schedule and launch it)

One formula serves decode, prefill and the mix of both that chunked prefill runs in one step. The coefficients of vLLM
are made in `sizing.speed_vllm`, those of llama.cpp and Ollama in `sizing.speed_llama`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sizing.catalog import ModelShape
from sizing.memory import kv_bytes

# How sharp the corner of the roofline is: memory and compute overlap, but not wholly.
ROOF_POWER = 4.0
# The host works ahead of the device: whichever takes longer shows, and little of the other.
HOST_POWER = 8.0
# Reading and unpacking quantized weights overlap less.
UNPACK_POWER = 3.0


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step does."""

    prefill_tokens: int = 0
    prefill_pairs: float = 0
    """sum over prefill tokens of the tokens each attends to: the quadratic part of attention"""
    decode_sequences: int = 0
    context_tokens: float = 0
    """sum of the live tokens of the sequences that decode"""
    sequences: int = 0
    """sequences in the step, decoding or in prefill"""


@dataclass(frozen=True, slots=True)
class StepTime:
    """The step-time model of one model, quantization and engine on one device (or several as one)."""

    model: ModelShape
    dense_bytes: float
    """weight bytes on each device that every step reads"""
    expert_bytes: float
    """weight bytes of all routed experts on each device; a step reads those that its tokens chose"""
    bandwidth_bytes_s: float
    """reached, not peak"""
    expert_bandwidth_bytes_s: float
    kv_bandwidth_bytes_s: float
    linear_flops_s: float
    """reached, of all devices together"""
    attention_flops_s: float
    constant_s: float
    """per step"""
    sequence_s: float
    """per sequence in a step"""
    token_s: float = 0.0
    """communication between devices, per token"""
    host_s: float = 0.0
    """what the host needs for a step: it runs beside the device, the slower of them counts"""
    host_prefill_s: float = 0.0
    """the same for a step with prefill: its kernels are launched one by one, not replayed from a captured graph"""
    serial_s: float = 0.0
    """between two steps, where the next is scheduled only when the last has ended"""
    serial_sequence_s: float = 0.0
    """and for each sequence of it"""
    unpack_s: float = 0.0
    """to unpack all weights once, where that is not hidden in the bandwidth (llama.cpp)"""
    expert_skew: float = 1.0
    request_s: float = 0.0
    """of each request, outside the steps; the simulated engine leaves it to its own HTTP server"""
    front_request_s: float = 0.0
    """work of the server process for a request, one at a time; left out by the simulated engine, too"""
    front_token_s: float = 0.0
    """and for a token"""
    tensor_parallel: int = 1
    kv_bytes_per_element: float = 2.0
    time_scale: float = 1.0
    """wall seconds per modelled second; 0.1 runs ten times as fast"""
    _products: tuple[int, int] = field(init=False, repr=False, compare=False)
    """weights that every token is multiplied with, and those that every sequence is: the same in each step"""

    def __post_init__(self) -> None:
        model = self.model
        head = model.vocab * model.hidden
        body = model.active_params - model.embedding_params if model.embedding_params else model.active_params - head
        object.__setattr__(self, "_products", (body, head))

    def memory_s(self, work: StepWork) -> float:
        """Seconds to read (and unpack) the weights that a step touches."""
        share = self._experts_touched(work.prefill_tokens + work.decode_sequences) if self.model.n_experts else 0.0
        read = self.dense_bytes / self.bandwidth_bytes_s + self.expert_bytes * share / self.expert_bandwidth_bytes_s
        if not self.unpack_s:
            return read
        total = self.dense_bytes + self.expert_bytes
        unpack = self.unpack_s * (self.dense_bytes + self.expert_bytes * share) / total
        return float((read**UNPACK_POWER + unpack**UNPACK_POWER) ** (1 / UNPACK_POWER))

    def kv_s(self, work: StepWork) -> float:
        """Seconds to read the live KV once."""
        if not work.decode_sequences:
            return 0.0
        mean = work.context_tokens / work.decode_sequences
        held = kv_bytes(self.model, mean, self.kv_bytes_per_element, self.tensor_parallel)
        return work.decode_sequences * held / self.kv_bandwidth_bytes_s

    def compute_s(self, work: StepWork) -> float:
        """Seconds for the matrix products: the layers for every token, the output head for every sequence."""
        body, head = self._products
        tokens = work.prefill_tokens + work.decode_sequences
        return 2.0 * (body * tokens + head * work.sequences) / self.linear_flops_s

    def attention_s(self, work: StepWork) -> float:
        """Seconds for the attention of the prefill tokens: two products over heads x head_dim, where it grows."""
        if not work.prefill_pairs:
            return 0.0
        model = self.model
        full = 4.0 * model.full_layers * model.heads * model.head_dim * work.prefill_pairs
        return full / self.attention_flops_s

    def seconds(self, work: StepWork) -> float:
        """Duration of a step, in wall seconds (time_scale applied)."""
        memory, compute = self.memory_s(work), self.compute_s(work)
        roof = (memory**ROOF_POWER + compute**ROOF_POWER) ** (1 / ROOF_POWER)
        tokens = work.prefill_tokens + work.decode_sequences
        fixed = self.constant_s + self.sequence_s * work.sequences + self.token_s * tokens
        device = roof + self.kv_s(work) + self.attention_s(work) + fixed
        host = self.host_prefill_s if work.prefill_tokens else self.host_s
        between = self.serial_s + self.serial_sequence_s * work.sequences
        return float((device**HOST_POWER + host**HOST_POWER) ** (1 / HOST_POWER) + between) * self.time_scale

    def _experts_touched(self, tokens: int) -> float:
        """Share of the routed experts that the tokens of a step choose between them."""
        model = self.model
        if not model.n_experts:
            return 0.0
        share = model.experts_per_token / model.n_experts
        # One token touches its own share exactly; more repeat what others chose.
        return float(1.0 - (1.0 - share) ** (1.0 + (tokens - 1) * self.expert_skew)) if tokens else 0.0
