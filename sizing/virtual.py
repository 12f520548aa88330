"""The scheduler of `sizing.simulate` looped in virtual time: what an engine would answer, and when.

A request passes the server's front end (`sizing.frontend`), waits and runs in the scheduler, and its tokens pass the
front end on their way back.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sizing.frontend import Frontend, Written
from sizing.simulate import Scheduler, StepResult

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


@dataclass(frozen=True, slots=True)
class Path:
    """What lies between client and scheduler. All 0: nothing."""

    way_s: float = 0.0
    """of each request on its way in, however many there are"""
    front_request_s: float = 0.0
    """work of the front end for a request, one at a time"""
    front_token_s: float = 0.0
    """and for a token"""


def run_open_loop(scheduler: Scheduler, requests: Iterable[SimRequest], path: Path | None = None) -> list[Timeline]:
    """Send each request at its `due_s`; the timelines in order of finishing."""
    run = _Run(scheduler, path or Path(), iter(()), 0.0)
    for request in requests:
        run.push(request.due_s, request)
    return run.drive()


def run_closed_loop(
    scheduler: Scheduler,
    requests: Iterable[SimRequest],
    concurrency: int,
    stagger_s: float = 0.0,
    path: Path | None = None,
    enough: Callable[[Timeline], bool] | None = None,
    written: list[Written] | None = None,
) -> list[Timeline]:
    """Keep `concurrency` requests in flight, a finished one's place taken after `CLIENT_TURN_S`; order of finishing.

    The first ones start `stagger_s` apart: 0 is a burst. The loop ends when `enough` says so of one that finished, or
    when there are no more requests, which may be endless. `written` gets the tokens as they go out.
    """
    backlog = iter(requests)
    run = _Run(scheduler, path or Path(), backlog, CLIENT_TURN_S, written)
    for index, request in enumerate(itertools.islice(backlog, concurrency)):
        run.push(index * stagger_s, request)
    return run.drive(enough)


class _Run:
    """A run under way: what is on its way to the engine, in it, and on its way back."""

    def __init__(
        self,
        scheduler: Scheduler,
        path: Path,
        backlog: Iterator[SimRequest],
        client_turn_s: float,
        written: list[Written] | None = None,
    ) -> None:
        self.scheduler, self.path = scheduler, path
        self.backlog, self.client_turn_s = backlog, client_turn_s
        self.front = Frontend(path.front_request_s, path.front_token_s, written)
        self.arrivals: list[tuple[float, int, SimRequest]] = []
        self.order = itertools.count()
        self.sent: dict[str, tuple[float, SimRequest]] = {}
        self.first_s: dict[str, float] = {}
        self.done: list[Timeline] = []

    def push(self, sent_s: float, request: SimRequest) -> None:
        """The request is sent at that time."""
        heapq.heappush(self.arrivals, (sent_s + self.path.way_s, next(self.order), request))
        self.sent[request.request_id] = (sent_s, request)

    def drive(self, enough: Callable[[Timeline], bool] | None = None) -> list[Timeline]:
        """Step until nothing is due, waiting, running or on its way, or until it is enough."""
        now_s, seen = 0.0, 0
        while True:
            self.pass_front(now_s)
            while enough is not None and seen < len(self.done):
                seen += 1
                if enough(self.done[seen - 1]):
                    return self.done
            if not self.scheduler.has_work():
                now_s = self.next_s()
                if math.isinf(now_s):
                    return self.done
                continue
            quiet = self.scheduler.quiet_steps() if self.front.idle else 0
            if quiet > 1 and (quiet := self.before_arrival(quiet, now_s)) > 1:
                running = self.scheduler.gauges().running
                ended_s = now_s + self.scheduler.leap(quiet)
                self.front.quiet(quiet * running, quiet, now_s, ended_s)
                now_s = ended_s
                continue
            result = self.scheduler.step(now_s)
            self.pass_front(result.ended_s)
            self.hand_over(result)
            now_s = result.ended_s

    def next_s(self) -> float:
        """When something next reaches the engine or a client."""
        return min(self.arrivals[0][0] if self.arrivals else math.inf, self.front.next_s())

    def pass_front(self, to_s: float) -> None:
        """Whatever goes through the front end up to then, in order of time."""
        arrivals, front = self.arrivals, self.front
        while True:
            due_s = arrivals[0][0] if arrivals else math.inf
            front.go_round(to_s, due_s)
            at_s = front.next_s()
            if due_s < at_s:
                at_s = due_s
            if at_s > to_s:
                return
            while due_s <= at_s:
                front.take(heapq.heappop(arrivals)[2].request_id, at_s)
                due_s = arrivals[0][0] if arrivals else math.inf
            ready, told = front.come_through(at_s)
            for request_id in ready:
                request = self.sent[request_id][1]
                self.scheduler.submit(
                    request_id, request.input_tokens, request.output_tokens, at_s, request.prefix_keys
                )
            for request_id, last in told:
                self.tell(request_id, last, at_s)

    def hand_over(self, result: StepResult) -> None:
        """A step's tokens go to the front end."""
        last = set(result.finished)
        # Who ends was there long, and is written first; who begins came last.
        awaited = [(place, name, True) for place, name in enumerate(result.finished)]
        count = result.token_count - len(result.first_tokens)
        awaited += [(count + at, name, False) for at, name in enumerate(result.first_tokens) if name not in last]
        self.front.give(result.token_count, awaited, result.ended_s)

    def tell(self, request_id: str, last: bool, now_s: float) -> None:
        """A first or last token reaches its client, which sends its next request after the last."""
        self.first_s.setdefault(request_id, now_s)
        if not last:
            return
        sent_s, request = self.sent.pop(request_id)
        first_s = self.first_s.pop(request_id)
        self.done.append(Timeline(request_id, request.input_tokens, request.output_tokens, sent_s, first_s, now_s))
        following = next(self.backlog, None)
        if following is not None:
            self.push(now_s + self.client_turn_s, following)

    def before_arrival(self, quiet: int, now_s: float) -> int:
        """How many of the quiet steps surely end before the next arrival."""
        if not self.arrivals:
            return quiet
        room_s = self.arrivals[0][0] - now_s
        return min(quiet, int(room_s / self.scheduler.slowest_step_s(quiet)))
