"""What the load processes of one job know of each other: who is warm, when the window is, who measures what.

It lies in shared memory. A process writes its own row; the window and the count of measured requests are everybody's,
and change under one lock. Times are seconds from the run's start.
"""

from __future__ import annotations

import math
import multiprocessing
from typing import Any

PROGRESS = ("done", "failed", "in_flight", "tokens", "measured_done", "ttft_s")
"""The figures that a job under way shows, of each process."""

_START, _OPEN, _CLOSE, _DRAWN = range(4)
_SHARED = 4
_READY, _WARM, _PENDING = range(len(PROGRESS), len(PROGRESS) + 3)
_ROW = len(PROGRESS) + 3


class Board:
    """The shared memory of up to `workers` processes. `reset` it before each job.

    `lead_s`, `open_lead_s`: how long ahead the common start, and the opening of the window, are settled.
    """

    lead_s = 0.01
    open_lead_s = 0.0

    def __init__(self, workers: int = 1, context: Any = multiprocessing) -> None:
        self._values = context.RawArray("d", _SHARED + workers * _ROW)
        self._lock = context.Lock()
        self.reset(workers)

    def reset(self, workers: int) -> None:
        """Blank for a job of that many workers."""
        self._values[:] = [0.0] * len(self._values)
        self._values[:3] = [math.nan] * 3
        self.workers = workers

    def join(self, workers: int) -> None:
        """Take part in a job of that many workers (the blank was made by another process)."""
        self.workers = workers

    def _row(self, worker: int, column: int) -> int:
        return _SHARED + worker * _ROW + column

    def _all(self, column: int) -> bool:
        return all(self._values[self._row(w, column)] for w in range(self.workers))

    # --- a common start, and the window ---

    def ready(self, worker: int) -> None:
        self._values[self._row(worker, _READY)] = 1.0

    def warm(self, worker: int) -> None:
        """All streams of this process are busy and have begun to be answered."""
        self._values[self._row(worker, _WARM)] = 1.0

    def is_ready(self, worker: int) -> bool:
        return bool(self._values[self._row(worker, _READY)])

    def is_warm(self, worker: int) -> bool:
        return bool(self._values[self._row(worker, _WARM)])

    @property
    def all_ready(self) -> bool:
        return self._all(_READY)

    @property
    def all_warm(self) -> bool:
        return self._all(_WARM)

    def _time(self, index: int) -> float | None:
        value = self._values[index]
        return None if math.isnan(value) else float(value)

    @property
    def start_s(self) -> float | None:
        return self._time(_START)

    @start_s.setter
    def start_s(self, value: float) -> None:
        self._values[_START] = value

    @property
    def open_s(self) -> float | None:
        return self._time(_OPEN)

    @open_s.setter
    def open_s(self, value: float) -> None:
        self._values[_OPEN] = value

    @property
    def close_s(self) -> float | None:
        return self._time(_CLOSE)

    @close_s.setter
    def close_s(self, value: float) -> None:
        self._values[_CLOSE] = value

    # --- measured requests ---

    def admit(self, worker: int, now_s: float, requests: int | None, until_s: float) -> bool:
        """Whether a request sent now is measured: one of the first `requests`, or sent before `until_s`. The first
        that is not closes the window."""
        with self._lock:
            over = self._values[_DRAWN] >= requests if requests is not None else now_s >= until_s
            if over:
                if self.close_s is None:
                    self.close_s = now_s if requests is not None else until_s
                return False
            self._values[_DRAWN] += 1
            self._values[self._row(worker, _PENDING)] += 1
            return True

    def expect(self, worker: int, requests: int) -> None:
        """So many requests of this process are to be measured, whenever they are sent."""
        self._values[self._row(worker, _PENDING)] += requests

    def measured(self, worker: int) -> None:
        """A measured request of this process has ended."""
        self._values[self._row(worker, _PENDING)] -= 1

    def pending_of(self, worker: int) -> float:
        return float(self._values[self._row(worker, _PENDING)])

    def set_pending(self, worker: int, value: float) -> None:
        """For a process on another host."""
        self._values[self._row(worker, _PENDING)] = value

    @property
    def drawn(self) -> float:
        """Requests admitted as measured ones so far."""
        return float(self._values[_DRAWN])

    @property
    def pending(self) -> int:
        """Measured requests that are still to end, of all processes."""
        return int(sum(self._values[self._row(w, _PENDING)] for w in range(self.workers)))

    # --- for the display ---

    def add(self, worker: int, figure: int, value: float = 1.0) -> None:
        """Add to one figure of this process, by its place in PROGRESS."""
        self._values[_SHARED + worker * _ROW + figure] += value

    def put(self, worker: int, figure: int, value: float) -> None:
        self._values[_SHARED + worker * _ROW + figure] = value

    def figure(self, worker: int, figure: int) -> float:
        return float(self._values[_SHARED + worker * _ROW + figure])

    def figures(self) -> dict[str, float]:
        """The figures of all processes together; `ttft_s` is the latest of one of them. `open_s` and `close_s` are the
        window's, as far as they are known: both may be to come."""
        found = {
            name: float(sum(self._values[self._row(w, i)] for w in range(self.workers)))
            for i, name in enumerate(PROGRESS)
        }
        last = PROGRESS.index("ttft_s")
        found["ttft_s"] = max(float(self._values[self._row(w, last)]) for w in range(self.workers))
        edges = {"open_s": self.open_s, "close_s": self.close_s}
        found |= {name: at for name, at in edges.items() if at is not None}
        return found | {"window_is_open": float(self.open_s is not None)}
