"""Telemetry sources of tests: one on a clock that passes when told to, one that counts its reads."""

from __future__ import annotations

import threading


class Clock:
    """Time that passes only when told to."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Scripted:
    """A source that takes `cost_s` of a fake clock and gives, or raises, what it was told to."""

    def __init__(self, clock: Clock, period_s: float = 1.0, cost_s: float = 0.0, name: str = "s") -> None:
        self.clock, self.period_s, self.cost_s, self.name = clock, period_s, cost_s, name
        self.answer: dict[str, float] | Exception = {"x": 1.0}
        self.reads_s: list[float] = []
        self.closed = False

    def read(self) -> dict[str, float]:
        self.reads_s.append(self.clock())
        self.clock.now_s += self.cost_s
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed = True


class Counting:
    """A real source: counts its reads and says when there were enough."""

    def __init__(self, name: str, enough: int, blocking: bool = False, hang: threading.Event | None = None) -> None:
        self.name, self.period_s, self.blocking, self.hang = name, 0.005, blocking, hang
        self.enough, self.reads, self.done = enough, 0, threading.Event()
        self.threads: set[int] = set()

    def read(self) -> dict[str, float]:
        self.reads += 1
        self.threads.add(threading.get_ident())
        if self.reads >= self.enough:
            self.done.set()
        if self.hang is not None:
            self.hang.wait()
        return {"reads": float(self.reads)}
