"""The simulated engine in wall time: steps of `sizing.simulate` on an absolute timeline, each token handed out as its
step ends.

Step k+1 starts when step k was due to end, not when this process got round to it, so that lateness never adds up. An
engine that fell behind by a whole step starts its next step late instead: a stall shows as a stall, and no run of gaps
is shortened to make up for it. Lateness is counted and shown on /metrics.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from harness.simulated.metrics import GAP_BUCKETS_S, TTFT_BUCKETS_S, Histogram
from sizing.simulate import Scheduler, StepResult

# A step that is delivered later than this share of its duration moves the timeline. Below it the next step still ends
# on time, so that the jitter of a shared machine moves single tokens and not the mean; above it steps would pile up.
MAX_LATE_SHARE = 1.0
_CLOCK_MONOTONIC, _TIMER_ABSOLUTE = 1, 1


class Sink(Protocol):
    """One request's receiving end."""

    def emit(self, last: bool) -> None:
        """Take one token; called once per token, as its step ends."""


@dataclass(slots=True)
class Live:
    """A request that the engine knows, with its times on the monotonic clock."""

    sink: Sink
    input_tokens: int
    submitted_s: float
    admitted_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0


@dataclass(slots=True)
class Counters:
    """What /metrics reports, since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})
    ttft_s: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS_S))
    gap_s: Histogram = field(default_factory=lambda: Histogram(GAP_BUCKETS_S))
    steps: int = 0
    late_sum_s: float = 0.0
    late_max_s: float = 0.0
    delivered_max_s: float = 0.0
    """largest time from a step's due end until its last token was handed to the socket"""
    stalls: int = 0
    """times that the timeline was moved because the process fell behind"""


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )


class StepTimer:
    """Calls back at an absolute monotonic time, to some tens of microseconds.

    Event loops sleep in whole milliseconds (uvloop's timers, epoll's timeout). On Linux a timerfd wakes the loop
    through its poller instead; elsewhere `call_later` has to do.
    """

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if self._fd >= 0:
                self._loop.add_reader(self._fd, self._fire)

    def arm(self, when_s: float) -> None:
        """Call back once at `when_s` of time.monotonic(); a time that is past means at once."""
        if self._fd < 0:
            self._loop.call_later(max(0.0, when_s - time.monotonic()), self._callback)
            return
        when_ns = max(1, int(when_s * 1e9))
        spec = _Spec(0, 0, when_ns // 1_000_000_000, when_ns % 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _TIMER_ABSOLUTE, ctypes.byref(spec), None)

    def close(self) -> None:
        """Give the timer back."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fire(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._callback()


class SimulatedEngine:
    """Drives one scheduler in wall time. Everything runs on the event loop's thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.counters = Counters()
        self.step: StepResult | None = None
        """the step under way"""
        self._live: dict[str, Live] = {}
        self._count = 0
        self._timer = StepTimer(self._end_step)

    def submit(self, sink: Sink, input_tokens: int, output_tokens: int, prefix_keys: tuple[int, ...] = ()) -> str:
        """Queue a request and return its id; raises what `Scheduler.submit` raises."""
        now_s = time.monotonic()
        self._count += 1
        request_id = f"sim-{self._count}"
        self.scheduler.submit(request_id, input_tokens, output_tokens, now_s, prefix_keys)
        self._live[request_id] = Live(sink, input_tokens, now_s)
        if self.step is None:
            self._begin_step(now_s)
        return request_id

    def live(self, request_id: str) -> Live:
        """The request's times, for as long as it is known: from submit until its last token has been emitted."""
        return self._live[request_id]

    def cancel(self, request_id: str) -> None:
        """Drop a request whose client left. Without effect once it has finished."""
        if self._live.pop(request_id, None) is not None:
            self.scheduler.cancel(request_id)
            self.counters.finished["abort"] += 1

    def close(self) -> None:
        """Stop stepping."""
        self._timer.close()

    def _begin_step(self, start_s: float) -> None:
        self.step = step = self.scheduler.step(start_s)
        for request_id in step.admitted:
            self._live[request_id].admitted_s = start_s
        self._timer.arm(step.ended_s)

    def _end_step(self) -> None:
        step = self.step
        if step is None:
            return
        now_s = time.monotonic()
        late_s = now_s - step.ended_s
        if late_s < 0:  # woken early: the timeline is the law
            self._timer.arm(step.ended_s)
            return
        self._deliver(step, now_s)
        counters = self.counters
        counters.steps += 1
        counters.late_sum_s += late_s
        counters.late_max_s = max(counters.late_max_s, late_s)
        done_s = time.monotonic()
        counters.delivered_max_s = max(counters.delivered_max_s, done_s - step.ended_s)
        self.step = None
        if self.scheduler.has_work():
            behind = done_s - step.ended_s > MAX_LATE_SHARE * step.duration_s
            counters.stalls += behind
            self._begin_step(done_s if behind else step.ended_s)

    def _deliver(self, step: StepResult, now_s: float) -> None:
        """Hand each token out, the whole step's worth in one go."""
        counters, first, finished = self.counters, set(step.first_tokens), set(step.finished)
        for request_id in step.tokens:
            live = self._live.get(request_id)
            if live is None:  # cancelled while the step ran
                continue
            if request_id in first:
                live.first_s = now_s
                counters.ttft_s.observe(now_s - live.submitted_s)
                counters.prompt_tokens += live.input_tokens
            else:
                counters.gap_s.observe(now_s - live.last_s)
            live.last_s = now_s
            counters.generation_tokens += 1
            last = request_id in finished
            live.sink.emit(last)
            if last:
                del self._live[request_id]
