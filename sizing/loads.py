"""What a load meets: the scheduler run in virtual time as `bench run` drives a server: from staggered starts, from a
burst, or at a rate."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sizing.frontend import Written
from sizing.policy import Policy
from sizing.simulate import Scheduler
from sizing.speed import StepTime
from sizing.steady import Load, steady_state
from sizing.virtual import Path, SimRequest, Timeline, run_closed_loop, run_open_loop

# A rate this near to what can be served gives queues that depend on the length of the run, not on the engine.
STABLE_SHARE = 0.97
SEED = 42
# `bench run` staggers starts over what a request took in its warm-up, of up to so many at once, and at most so long.
WARMUP_STREAMS = 8
RAMP_MAX_S = 30.0
# A measured window is simulated until it repeats itself.
MOST_WAVES = 8
MOST_REQUESTS = 4096


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
    duration_s: float | None = None
    """of the measured window of a closed loop"""
    measured: int | None = None
    """requests of that window where it has no duration; None: three for each stream, and at least twelve"""
    length_spread: float = 0.0
    """lengths are drawn between 1 - this and 1 + this of the stated ones; 0: all alike"""
    drawn: tuple[tuple[int, int], ...] = ()
    """(input, output) tokens of requests in their order, again from the beginning after the last; the stated lengths
    are then their means"""
    ramp_s: float | None = None
    """over which a closed loop's starts are spread; None: over what a request takes in `bench run`'s warm-up"""
    most_ttft_p95_s: float | None = None
    """where a closed loop's p95 is surely above this or the next, nothing else of it is wanted: `meet` raises"""
    most_tpot_p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class Met:
    """What the requests of a load met; all in seconds."""

    ttft_p50_s: float
    ttft_p95_s: float
    ttft_mean_s: float
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    tpot_mean_s: float | None
    request_s: float
    output_tok_s: float


class OverloadError(ValueError):
    """More is asked for than the engine can serve, hold, or answer within the limits; the message says which."""


def meet(times: StepTime, policy: Policy, offered: Offered) -> Met:
    """Simulate the load. Raises OverloadError for a rate beyond what can be served, a request beyond the context, and
    limits that are surely missed."""
    total = int((offered.input_tokens + offered.output_tokens) * (1 + offered.length_spread))
    total = max((sum(each) for each in offered.drawn), default=total)
    room = min(policy.context_tokens, policy.kv_capacity_tokens)
    if total > room:
        raise OverloadError(f"a request of {total} tokens exceeds the {room} that fit")
    if offered.rate_rps is not None:
        return _at_rate(times, policy, offered, offered.rate_rps)
    if offered.burst_requests is not None and offered.duration_s is None:
        done = _closed(times, policy, offered, min(offered.burst_requests, MOST_REQUESTS), 0.0)
        return _summary(done, done, (0.0, max(t.last_token_s for t in done)))
    return _steady(times, policy, offered)


def _steady(times: StepTime, policy: Policy, offered: Offered) -> Met:
    """A closed loop as `bench run` measures it: the window opens when every stream's first answer has begun, for a
    burst at once."""
    window = _Window(offered)
    ramp_s = 0.0 if offered.burst_requests is not None else stagger_s(times, policy, offered)
    written: list[Written] | None = None if offered.duration_s is None else []
    done = _closed(times, policy, offered, None, ramp_s / offered.concurrency, window.enough, written)
    if window.close_s is not None and offered.burst_requests is not None:  # its window ends with its last answer
        return _summary(window.sent, window.sent, (0.0, max(t.last_token_s for t in window.sent)))
    if window.close_s is not None and written is not None:
        # Counted as `bench run` counts them: a window may hold the prompts of a wave and not its answers.
        came = sum(_came_within(each, window.open_s, window.close_s) for each in written)
        return _summary(window.sent, done, None, came / (window.close_s - window.open_s))
    close_s = max(t.sent_s for t in window.sent)
    if close_s <= window.open_s:  # a stream or two: from end to end
        close_s = max(t.last_token_s for t in window.sent)
    return _summary(window.sent, done, (window.open_s, close_s))


def window_requests(offered: Offered) -> int:
    """The most requests that a closed loop's window takes."""
    wanted = offered.measured or max(12, 3 * offered.concurrency)
    if offered.duration_s is not None:
        wanted = MOST_REQUESTS
    return min(wanted, MOST_REQUESTS, MOST_WAVES * max(offered.concurrency, 12))


class _Window:
    """Says when a closed loop was watched for long enough, and what was sent in the measured window.

    Requests are looked at in the order of their sending, each when all before it have ended: so the short ones among
    them count no more than the long ones.
    """

    def __init__(self, offered: Offered) -> None:
        streams = offered.concurrency
        self.ramp = 0 if offered.burst_requests is not None else streams
        self.duration_s = offered.duration_s
        self.most = window_requests(offered)
        self.open_s = 0.0
        self.close_s: float | None = None
        """None where it was watched for so many requests, not for so long"""
        self.sent: list[Timeline] = []
        self.limits = (offered.most_ttft_p95_s, offered.most_tpot_p95_s)
        self._late = [0, 0]
        # Above p95 of the window, even if as many as there are streams end at once at its end.
        self._too_late = 0.05 * (self.most + streams) + 1
        self._ended: dict[int, Timeline] = {}
        self._next = 0

    def enough(self, ended: Timeline) -> bool:
        """One request more has ended."""
        self._ended[int(ended.request_id)] = ended
        while (t := self._ended.pop(self._next, None)) is not None:
            if self._next < self.ramp:
                self.open_s = max(self.open_s, t.first_token_s)
            elif self.duration_s is not None and t.sent_s >= self.open_s + self.duration_s:
                self.close_s = self.open_s + self.duration_s
                return True
            elif t.sent_s >= self.open_s:
                self.sent.append(t)
                self._count_late(t)
            self._next += 1
        return len(self.sent) >= self.most

    def _count_late(self, t: Timeline) -> None:
        """Raises OverloadError once more than one in twenty of the window's requests are above a limit."""
        for place, (value, limit) in enumerate(zip((t.ttft_s, t.tpot_s), self.limits, strict=True)):
            if limit is None or value is None or value <= limit:
                continue
            self._late[place] += 1
            if self._late[place] > self._too_late:
                raise OverloadError(f"the p95 of {('TTFT', 'TPOT')[place]} is above {limit * 1e3:.0f} ms")


def stagger_s(times: StepTime, policy: Policy, offered: Offered) -> float:
    """The time over which `bench run` spreads the starts: a request's in its warm-up, a few sent at once."""
    if offered.ramp_s is not None:
        return offered.ramp_s
    streams = min(WARMUP_STREAMS, offered.concurrency)
    alike = Offered(
        offered.input_tokens, offered.output_tokens, streams,
        length_spread=offered.length_spread, drawn=offered.drawn[:streams],
    )  # fmt: skip
    return min(RAMP_MAX_S, _warmup_s(times, policy, alike))


@functools.lru_cache(maxsize=256)
def _warmup_s(times: StepTime, policy: Policy, offered: Offered) -> float:
    """What each of so many requests takes that are sent at once; loads of one engine and one length share it."""
    done = _closed(times, policy, offered, offered.concurrency, 0.0)
    return sum(t.last_token_s - t.sent_s for t in done) / len(done)


def _load(offered: Offered, streams: int) -> Load:
    return Load(offered.input_tokens, offered.output_tokens, streams)


def _lengths(offered: Offered, chance: random.Random, index: int) -> tuple[int, int]:
    """Tokens of one prompt and its answer."""
    if offered.drawn:
        return offered.drawn[index % len(offered.drawn)]
    sent, made = offered.input_tokens, offered.output_tokens
    if not offered.length_spread:
        return sent, made
    low, high = 1 - offered.length_spread, 1 + offered.length_spread
    return max(1, round(sent * chance.uniform(low, high))), max(1, round(made * chance.uniform(low, high)))


def _path(times: StepTime) -> Path:
    return Path(times.request_s, times.front_request_s, times.front_token_s)


def _closed(
    times: StepTime,
    policy: Policy,
    offered: Offered,
    count: int | None,
    apart_s: float,
    enough: Callable[[Timeline], bool] | None = None,
    written: list[Written] | None = None,
) -> list[Timeline]:
    """`count` requests, or as many as it takes."""
    chance = random.Random(SEED)
    numbers = itertools.count() if count is None else range(count)
    requests = (SimRequest(str(i), *_lengths(offered, chance, i)) for i in numbers)
    scheduler = Scheduler(policy, times, named=False)
    return run_closed_loop(scheduler, requests, offered.concurrency, apart_s, _path(times), enough, written)


def _at_rate(times: StepTime, policy: Policy, offered: Offered, rate_rps: float) -> Met:
    most = steady_state(times, _load(offered, policy.max_sequences), policy)
    served = most.output_tok_s / offered.output_tokens
    if rate_rps > STABLE_SHARE * served:
        raise OverloadError(f"{rate_rps:g} requests/s exceed the about {served:.2f}/s that can be served")
    chance, due, requests = random.Random(SEED), 0.0, []
    for index in range(600):
        due += chance.expovariate(rate_rps)
        requests.append(SimRequest(str(index), *_lengths(offered, chance, index), due))
    done = run_open_loop(Scheduler(policy, times, named=False), requests, _path(times))
    measured = [t for t in done if int(t.request_id) >= 120]
    return _summary(measured, done, None, rate_rps * offered.output_tokens)


def _summary(
    sent: Sequence[Timeline], done: Sequence[Timeline], window: tuple[float, float] | None, tok_s: float = 0.0
) -> Met:
    """Latencies of what was sent in the window, and the tokens that came in it (`tok_s` where there is none)."""
    ttft = sorted(t.ttft_s for t in sent)
    tpot = sorted(t.tpot_s for t in sent if t.tpot_s is not None)
    if window is not None:
        tok_s = sum(_tokens_within(t, *window) for t in done) / (window[1] - window[0])
    return Met(
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p95_s=_quantile(ttft, 0.95),
        ttft_mean_s=sum(ttft) / len(ttft),
        tpot_p50_s=_quantile(tpot, 0.5) if tpot else None,
        tpot_p95_s=_quantile(tpot, 0.95) if tpot else None,
        tpot_mean_s=sum(tpot) / len(tpot) if tpot else None,
        request_s=sum(t.last_token_s - t.sent_s for t in sent) / len(sent),
        output_tok_s=tok_s,
    )


def _came_within(written: Written, open_s: float, close_s: float) -> float:
    """Of tokens that went out, those within a window."""
    from_s, to_s, tokens = written
    if from_s == to_s:
        return tokens if open_s <= to_s <= close_s else 0.0
    return tokens * max(0.0, min(close_s, to_s) - max(open_s, from_s)) / (to_s - from_s)


def _tokens_within(t: Timeline, open_s: float, close_s: float) -> float:
    """Tokens of a request that came in a window, taken as evenly spread."""
    span_s = t.last_token_s - t.first_token_s
    inside_s = min(close_s, t.last_token_s) - max(open_s, t.first_token_s)
    first = 1.0 if open_s <= t.first_token_s <= close_s else 0.0
    return first + (t.output_tokens - 1) * max(0.0, inside_s) / span_s if span_s else first * t.output_tokens


def _quantile(ordered: Sequence[float], at: float) -> float:
    """Linear between the two nearest values, as numpy's default."""
    place = at * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
