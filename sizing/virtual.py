"""The scheduler of `sizing.simulate` looped in virtual time: what an engine would answer, and when."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sizing.simulate import Scheduler

CLIENT_TURN_S = 0.001
"""From a token's leaving the engine to the next request's arrival. Any value above 0 makes that request miss the step
that starts at once, as it does in reality."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """A request of a load."""

    request_id: str
    input_tokens: int
    output_tokens: int
    due_s: float = 0.0
    """when it is sent; `run_closed_loop` takes no notice of it"""
    prefix_keys: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a request was sent and answered, in seconds of virtual time."""

    request_id: str
    input_tokens: int
    output_tokens: int
    sent_s: float
    first_token_s: float
    last_token_s: float

    @property
    def ttft_s(self) -> float:
        """First token minus sent."""
        return self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for a single token."""
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(slots=True)
class _Run:
    scheduler: Scheduler
    arrivals: list[tuple[float, int, SimRequest]] = field(default_factory=list)
    order: Iterator[int] = field(default_factory=itertools.count)
    sent: dict[str, tuple[float, SimRequest]] = field(default_factory=dict)
    first_s: dict[str, float] = field(default_factory=dict)

    def push(self, due_s: float, request: SimRequest) -> None:
        heapq.heappush(self.arrivals, (due_s, next(self.order), request))


def run_open_loop(scheduler: Scheduler, requests: Iterable[SimRequest]) -> list[Timeline]:
    """Send each request at its `due_s`; the timelines in order of finishing."""
    run = _Run(scheduler)
    for request in requests:
        run.push(request.due_s, request)
    return _drive(run, [], 0.0)


def run_closed_loop(
    scheduler: Scheduler,
    requests: Sequence[SimRequest],
    concurrency: int,
    client_turn_s: float = CLIENT_TURN_S,
    stagger_s: float = 0.0,
) -> list[Timeline]:
    """Keep `concurrency` requests in flight, a finished one's place taken after `client_turn_s`; order of finishing.

    The first ones start `stagger_s` apart: 0 is a burst.
    """
    run = _Run(scheduler)
    for index, request in enumerate(requests[:concurrency]):
        run.push(index * stagger_s, request)
    return _drive(run, list(reversed(requests[concurrency:])), client_turn_s)


def _drive(run: _Run, backlog: list[SimRequest], client_turn_s: float) -> list[Timeline]:
    """Step until nothing is due, waiting or running. `backlog` (last first) refills the places of finished requests."""
    done: list[Timeline] = []
    now_s = 0.0
    while run.arrivals or run.scheduler.has_work():
        if not run.scheduler.has_work():
            now_s = max(now_s, run.arrivals[0][0])
        while run.arrivals and run.arrivals[0][0] <= now_s:
            due_s, _, request = heapq.heappop(run.arrivals)
            run.scheduler.submit(
                request.request_id, request.input_tokens, request.output_tokens, due_s, request.prefix_keys
            )
            run.sent[request.request_id] = (due_s, request)
        quiet = run.scheduler.quiet_steps()
        if quiet > 1 and (quiet := _before_arrival(run, quiet, now_s)) > 1:
            now_s += run.scheduler.leap(quiet)
            continue
        result = run.scheduler.step(now_s)
        now_s = result.ended_s
        for request_id in result.first_tokens:
            run.first_s[request_id] = now_s
        for request_id in result.finished:
            sent_s, request = run.sent.pop(request_id)
            done.append(
                Timeline(
                    request_id, request.input_tokens, request.output_tokens, sent_s, run.first_s.pop(request_id), now_s
                )
            )
            if backlog:
                run.push(now_s + client_turn_s, backlog.pop())
    return done


def _before_arrival(run: _Run, quiet: int, now_s: float) -> int:
    """How many of the quiet steps surely end before the next arrival."""
    if not run.arrivals:
        return quiet
    room_s = run.arrivals[0][0] - now_s
    return min(quiet, int(room_s / run.scheduler.slowest_step_s(quiet)))
