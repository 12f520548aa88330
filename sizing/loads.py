"""What a load meets: the scheduler run in virtual time, from staggered starts, from a burst, or at a rate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sizing.policy import Policy
from sizing.simulate import Scheduler
from sizing.speed import StepTime
from sizing.steady import Load, Steady, steady_state
from sizing.virtual import SimRequest, Timeline, run_closed_loop, run_open_loop

# A rate this near to what can be served gives queues that depend on the length of the run, not on the engine.
STABLE_SHARE = 0.97
SEED = 42


@dataclass(frozen=True, slots=True)
class Offered:
    """A load as a user states it."""

    input_tokens: int
    output_tokens: int
    concurrency: int = 1
    rate_rps: float | None = None
    """an open loop of Poisson arrivals; the concurrency then says nothing"""
    burst_requests: int | None = None
    """started all at once, `concurrency` in flight; None: a steady closed loop with staggered starts"""


@dataclass(frozen=True, slots=True)
class Met:
    """What the requests of a load met; all in seconds."""

    ttft_p50_s: float
    ttft_p95_s: float
    ttft_mean_s: float
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    request_s: float
    output_tok_s: float


class OverloadError(ValueError):
    """More is asked for than the engine can serve, or than it can hold; the message says which."""


def meet(times: StepTime, policy: Policy, offered: Offered, most_requests: int = 1200) -> Met:
    """Simulate the load. Raises OverloadError for a rate beyond what can be served and a request beyond the context."""
    total = offered.input_tokens + offered.output_tokens
    room = min(policy.context_tokens, policy.kv_capacity_tokens)
    if total > room:
        raise OverloadError(f"a request of {total} tokens exceeds the {room} that fit")
    load = Load(offered.input_tokens, offered.output_tokens, offered.concurrency)
    if offered.rate_rps is not None:
        return _at_rate(times, policy, offered, offered.rate_rps)
    state = steady_state(times, load, policy)
    if offered.burst_requests is not None:
        done = _closed(times, policy, offered, min(offered.burst_requests, most_requests), 0.0)
        return _summary(done, times, done, load)
    whole = state.request_s
    count = min(max(3 * offered.concurrency, 12), most_requests + offered.concurrency)
    done = _closed(times, policy, offered, count, whole / max(offered.concurrency, 1))
    # Ramp and drain stay out: what is sent once every place is taken, and before the last ones are.
    steady = [t for t in done if int(t.request_id) >= offered.concurrency]
    steady = [t for t in steady if int(t.request_id) < count - offered.concurrency] or steady or done
    return _summary(steady, times, _window(done, offered.concurrency), load)


def _closed(times: StepTime, policy: Policy, offered: Offered, count: int, stagger_s: float) -> list[Timeline]:
    requests = [SimRequest(str(i), offered.input_tokens, offered.output_tokens) for i in range(count)]
    return run_closed_loop(Scheduler(policy, times), requests, offered.concurrency, stagger_s=stagger_s)


def _window(done: Sequence[Timeline], concurrency: int) -> list[Timeline]:
    """The middle of a run by finishing time: all places were taken then."""
    ordered = sorted(done, key=lambda t: t.last_token_s)
    return ordered[concurrency - 1 : max(len(ordered) - concurrency, concurrency + 1)]


def _at_rate(times: StepTime, policy: Policy, offered: Offered, rate_rps: float) -> Met:
    most = steady_state(times, Load(offered.input_tokens, offered.output_tokens, policy.max_sequences), policy)
    served = most.output_tok_s / offered.output_tokens
    if rate_rps > STABLE_SHARE * served:
        raise OverloadError(f"{rate_rps:g} requests/s exceed the about {served:.2f}/s that can be served")
    chance, due, requests = random.Random(SEED), 0.0, []
    for index in range(300):
        due += chance.expovariate(rate_rps)
        requests.append(SimRequest(str(index), offered.input_tokens, offered.output_tokens, due))
    done = run_open_loop(Scheduler(policy, times), requests)
    measured = [t for t in done if int(t.request_id) >= 60]
    met = _summary(measured, times, measured, Load(offered.input_tokens, offered.output_tokens, 1))
    return Met(
        met.ttft_p50_s, met.ttft_p95_s, met.ttft_mean_s, met.tpot_p50_s, met.tpot_p95_s, met.request_s,
        rate_rps * offered.output_tokens,
    )  # fmt: skip


def _summary(sent: Sequence[Timeline], times: StepTime, window: Sequence[Timeline], load: Load) -> Met:
    ttft = sorted(t.ttft_s + times.request_s for t in sent)
    tpot = sorted(t.tpot_s for t in sent if t.tpot_s is not None)
    whole = sum(t.last_token_s - t.sent_s + times.request_s for t in sent) / len(sent)
    first, last = min(t.last_token_s for t in window), max(t.last_token_s for t in window)
    # Between the first and the last end one request less ends than there are.
    if last > first:
        rate = (len(window) - 1) / (last - first)
        rate = min(rate, load.concurrency / whole) if load.concurrency > 1 else 1 / whole
    else:
        rate = load.concurrency / whole
    return Met(
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p95_s=_quantile(ttft, 0.95),
        ttft_mean_s=sum(ttft) / len(ttft),
        tpot_p50_s=_quantile(tpot, 0.5) if tpot else None,
        tpot_p95_s=_quantile(tpot, 0.95) if tpot else None,
        request_s=whole,
        output_tok_s=rate * load.output_tokens,
    )


def _quantile(ordered: Sequence[float], at: float) -> float:
    """Linear between the two nearest values, as numpy's default."""
    place = at * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def closed_form(times: StepTime, policy: Policy, offered: Offered) -> Steady:
    """The means alone, in microseconds of computing: for screening."""
    return steady_state(times, Load(offered.input_tokens, offered.output_tokens, offered.concurrency), policy)
