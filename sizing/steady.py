"""A closed loop in its steady state, in closed form: what the scheduler of `sizing.simulate` settles to on average.

    time per token = decode step + (concurrency - 1) / output tokens x what a prompt adds to the steps of the others

The scheduler itself gives the percentiles; this gives the middle in microseconds, for screening and for fitting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sizing.policy import Policy
from sizing.speed import StepTime, StepWork

# A server process that is busier than this has a queue that no mean tells.
MOST_BUSY = 0.9


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop of equal requests."""

    input_tokens: int
    output_tokens: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Steady:
    """What a request meets on average, and what the engine delivers."""

    ttft_s: float
    tpot_s: float
    decode_step_s: float
    prompt_s: float
    """of a prompt among the running decodes, all its chunks"""
    batched_prompt_s: float
    """of one prompt when many are waiting and steps are full"""
    front_s: float
    """of a request in the server process, alone"""
    missed: int
    """steps that a request of a closed loop waits for"""
    running: int
    """requests that run at once; the others queue"""
    output_tok_s: float
    request_s: float
    """from sent to the last token"""


def running_at_once(load: Load, policy: Policy) -> int:
    """How many of the concurrent requests the sequences and the KV let run, half-grown on average."""
    held = policy.reserved_tokens or load.input_tokens + load.output_tokens / 2
    by_kv = int(policy.kv_capacity_tokens / max(held, 1))
    return max(1, min(load.concurrency, policy.max_sequences, by_kv))


def steady_state(times: StepTime, load: Load, policy: Policy) -> Steady:
    """The means of a closed loop with staggered starts. Prefix caching is left out: prompts are taken as unlike."""
    running = running_at_once(load, policy)
    context = load.input_tokens + load.output_tokens / 2
    decode = times.seconds(StepWork(0, 0, running, running * context, running))
    prompt, chunks = _prompt_s(times, load.input_tokens, running - 1, context, policy.step_tokens)
    added = max(0.0, prompt - chunks * decode)
    tpot = decode + (running - 1) / load.output_tokens * added
    front = running * (times.front_token_s + times.front_request_s / load.output_tokens)
    tpot = max(tpot, front)
    busy = min(MOST_BUSY, front / tpot)
    first = times.request_s + times.front_request_s / (1 - busy) + prompt
    if load.concurrency > 1:
        first += missed_steps(policy) * tpot
    request = first + (load.output_tokens - 1) * tpot
    waiting = (load.concurrency - running) * request / running
    full = _full_step_s(times, load.input_tokens, policy.step_tokens)
    return Steady(
        ttft_s=first + waiting,
        tpot_s=tpot,
        decode_step_s=decode,
        prompt_s=prompt,
        batched_prompt_s=full,
        front_s=times.front_request_s,
        missed=missed_steps(policy),
        running=running,
        output_tok_s=running * load.output_tokens / request,
        request_s=request + waiting,
    )


def missed_steps(policy: Policy) -> int:
    """Steps that a request of a closed loop waits for: it is sent when a step has ended, so that the next one is under
    way when it comes, and the one after that is already scheduled where the engine schedules ahead."""
    return 2 if policy.scheduled_ahead else 1


def burst_mean_ttft_s(state: Steady, load: Load, requests: int, equal_lengths: bool = True) -> float:
    """Mean TTFT of `requests` started as a burst and then kept at the concurrency.

    The first wave comes through the front end together, and stands in a queue of prompts, (concurrency - 1) / 2 of them
    on average before each. Requests of equal length then finish one step after another for ever: the steps that each of
    them misses hold prompts of others. Lengths that vary break the chain.
    """
    first = min(load.concurrency, state.running, requests)
    chain = 0.0
    if equal_lengths and load.concurrency > 1:
        chain = state.missed * max(0.0, state.prompt_s - state.tpot_s)
    queue = (first - 1) / 2 * state.batched_prompt_s + (first - 1) * state.front_s
    return state.ttft_s + chain + first / requests * queue


def _prompt_s(times: StepTime, tokens: int, others: int, context: float, budget: int) -> tuple[float, int]:
    """(seconds of a prompt's steps beside `others` decodes, how many steps)."""
    room = max(1, budget - others)
    chunks = math.ceil(tokens / room)
    total, done = 0.0, 0
    for _ in range(min(chunks, 64)):
        count = min(room, tokens - done)
        pairs = count * done + count * (count + 1) / 2
        total += times.seconds(StepWork(count, pairs, others, others * context, others + 1))
        done += count
    return (total * chunks / min(chunks, 64), chunks) if done < tokens else (total, chunks)


def _full_step_s(times: StepTime, tokens: int, budget: int) -> float:
    """Seconds that one of many waiting prompts takes of a full step."""
    whole = times.seconds(StepWork(budget, budget * tokens / 2, 0, 0, max(1, budget // tokens)))
    return whole * tokens / budget
