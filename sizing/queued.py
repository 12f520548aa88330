"""What a scheduler holds and tells: a request, the result of a step, its gauges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """A request in the engine."""

    request_id: str
    input_tokens: int
    output_tokens: int
    submitted_s: float
    prefix_keys: tuple[int, ...]
    computed: int = 0
    """tokens whose KV is stored"""
    generated: int = 0
    blocks: int = 0

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one comes out: 1 while decoding, more in prefill (and after preemption)."""
        return self.input_tokens + self.generated - self.computed


@dataclass(frozen=True, slots=True)
class StepResult:
    """One engine step. Every request that gets a token gets it at `ended_s`."""

    started_s: float
    duration_s: float
    token_count: int
    """requests that get one token each"""
    tokens: tuple[str, ...]
    """these, in order of admission; empty where the scheduler was told to name none"""
    first_tokens: tuple[str, ...]
    """those for which it is the first"""
    finished: tuple[str, ...]
    """those for which it is the last; their slots and KV are free for the next step"""
    admitted: tuple[str, ...]
    """requests that left the queue at the start of this step"""
    preempted: tuple[str, ...]
    """requests that lost their KV and went back to the head of the queue"""
    running: int
    """sequences in this step, those that it finishes included"""
    kv_used_tokens: int
    """KV in use during this step"""

    @property
    def ended_s(self) -> float:
        """When the step ends and its tokens arrive."""
        return self.started_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Gauges:
    """The scheduler's state between steps, and its counters since the start."""

    running: int
    waiting: int
    kv_used_tokens: int
    """allocated: whole blocks, or whole slots"""
    kv_live_tokens: int
    """holding tokens of running requests"""
    kv_capacity_tokens: int
    preemptions: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
