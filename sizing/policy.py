"""How an engine schedules, as numbers: vLLM's continuous batching and Ollama's fixed slots."""

from __future__ import annotations

from dataclasses import dataclass

from sizing.memory import BLOCK_TOKENS, MemoryPlan


@dataclass(frozen=True, slots=True)
class Policy:
    """How an engine schedules. Engines differ in these numbers, not in code."""

    name: str
    max_sequences: int
    """vLLM's max_num_seqs, Ollama's slots (num_parallel)"""
    step_tokens: int
    """token budget of one step, prefill chunks and decodes together"""
    context_tokens: int
    """longest request, input plus output"""
    kv_capacity_tokens: int
    reserved_tokens: int = 0
    """KV that a sequence takes at admission whatever it needs (Ollama's num_ctx); 0 pages blocks on demand"""
    max_queue: int | None = None
    """waiting requests before new ones are refused; None is unbounded"""
    prefix_caching: bool = True
    scheduled_ahead: bool = False
    """a step is scheduled while the one before it runs: who comes in between waits for one step more"""


def vllm_policy(
    plan: MemoryPlan,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
    prefix_caching: bool = True,
    scheduled_ahead: bool = True,
) -> Policy:
    """Continuous batching, chunked prefill, paged KV, preemption by recomputing (vLLM V1's defaults)."""
    return Policy(
        name="vllm",
        max_sequences=max_num_seqs,
        step_tokens=max_num_batched_tokens,
        context_tokens=plan.context_tokens,
        kv_capacity_tokens=plan.kv_capacity_tokens,
        prefix_caching=prefix_caching,
        scheduled_ahead=scheduled_ahead,
    )


def ollama_policy(plan: MemoryPlan, num_parallel: int, max_queue: int = 512, prefix_caching: bool = True) -> Policy:
    """Fixed slots of num_ctx tokens behind a first-come queue; llama.cpp's batch of 512 tokens a step."""
    slot = -(-plan.context_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    return Policy(
        name="ollama",
        max_sequences=num_parallel,
        step_tokens=512,
        context_tokens=plan.context_tokens,
        kv_capacity_tokens=slot * num_parallel,
        reserved_tokens=slot,
        max_queue=max_queue,
        prefix_caching=prefix_caching,
    )
