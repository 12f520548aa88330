"""One telemetry source in the sampler: when it is read, and what that costs."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Final, Protocol

SLOWEST_RETRY_S: Final = 30.0
SLOWEST_PERIOD_S: Final = 60.0
KNOWN_READS: Final = 3  # before that a source's cost is not known


class Source(Protocol):
    """Something that can be read again and again.

    `name` is the samples' `source` column, `period_s` the time between reads. `read` gives metric to value in base
    units; what could not be measured is left out, never 0; it may raise anything. Three more are optional: `close()`,
    `blocking = True` for one that may wait on somebody else (HTTP), which then is read in a second thread, and `label`
    for one that shares its `name` with another.
    """

    @property
    def name(self) -> str: ...

    @property
    def period_s(self) -> float: ...

    def read(self) -> dict[str, float]: ...


class Slot:
    """One source and its deadlines: `anchor_s + k * period_s`, so that lateness never adds up."""

    def __init__(self, source: Source, anchor_s: float) -> None:
        self.source = source
        self.period_s = source.period_s
        self.anchor_s = anchor_s
        self.due_s = anchor_s
        self.failures = 0
        self.read_s = -math.inf  # when its last read that has ended began
        self._began = False
        self._costs: deque[float] = deque(maxlen=7)

    def postpone(self, now_s: float) -> int:
        """Move to the next deadline that lies ahead; how many were missed. After failures the next ones are left out:
        2, 4, 8... periods, up to `SLOWEST_RETRY_S` or one period."""
        period_s = self.period_s
        passed = math.floor((now_s - self.anchor_s) / period_s)
        missed = max(passed - round((self.due_s - self.anchor_s) / period_s), 0)
        rest = 0
        if self.failures:
            wanted_s = min(period_s * 2 ** min(self.failures, 16), max(SLOWEST_RETRY_S, period_s))
            rest = max(round(wanted_s / period_s) - 1, 0)
        self.due_s = self.anchor_s + (passed + 1 + rest) * period_s
        return missed

    def took(self, cpu_s: float) -> None:
        """Note what a read took, its samples' way to the disk included. The first one also imports, opens and looks
        around: it says nothing of the others."""
        if self._began:
            self._costs.append(cpu_s)
        self._began = True

    @property
    def cost_s(self) -> float | None:
        """The CPU time of a read, the median of the last ones: one that was disturbed does not count."""
        return statistics.median(self._costs) if len(self._costs) >= KNOWN_READS else None

    @property
    def share(self) -> float:
        """What it takes of one core at its present pace; 0 while that is not known."""
        return (self.cost_s or 0.0) / self.period_s

    def slow_down(self) -> None:
        """Half as often, from its next deadline on."""
        self.period_s = min(2 * self.period_s, SLOWEST_PERIOD_S)
        self.anchor_s = self.due_s


def label(source: Source) -> str:
    """What tells two sources of one `name` apart (a GPU's quick and its dear calls)."""
    return str(getattr(source, "label", source.name))
