"""Reads every telemetry source at its own fixed pace while a run goes on.

A source is any object with a `name`, a `period_s` and `read()`. The sampler knows nothing else of it, so a new one is a
new file and a line where the run makes its list.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from harness.cores import stand_back
from harness.records import TelemetrySample
from harness.telemetry.slot import SLOWEST_PERIOD_S, Slot, Source, label

STOP_S: Final = 2.0
REFRESH_S: Final = 4.0  # over the timeout of any source
REFRESH_LOOK_S: Final = 0.002
CPU_MAX: Final = 0.008  # of one core, for all reads together: with what lies between them it stays under 1 %
FEW_S: Final = 4.0  # samples further apart than this are few for a window of some seconds: that is said


class _Lane:
    """One thread and the sources it reads. `run_due` is the whole work; the thread only waits between."""

    def __init__(self, owner: Sampler, name: str) -> None:
        self.owner = owner
        self.slots: list[Slot] = []
        self.wake = threading.Condition()
        self.ended = False
        self.cpu_s = 0.0
        self.missed = 0
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def run_due(self) -> float | None:
        """Read each source whose deadline has come; the next deadline of all."""
        for slot in list(self.slots):
            if slot.due_s <= self.owner.clock() and not self.ended:
                began_s = self.owner.cpu_clock()
                self.owner.read(slot)
                slot.took(self.owner.cpu_clock() - began_s)
                self.missed += slot.postpone(self.owner.clock())
                self.owner.keep_cheap(slot)
        return self.next_due_s()

    def next_due_s(self) -> float | None:
        """The earliest deadline, None if there is no source."""
        return min((slot.due_s for slot in self.slots), default=None)

    def end(self) -> None:
        with self.wake:
            self.ended = True
            self.wake.notify_all()

    def _run(self) -> None:
        stand_back()
        began_s = time.thread_time()
        while not self.ended:
            self.run_due()
            self.cpu_s = time.thread_time() - began_s
            with self.wake:
                # Looked up again under the lock: what was added since `run_due` looked has notified nobody.
                due_s = self.next_due_s()
                if not self.ended:
                    self.wake.wait(None if due_s is None else max(due_s - self.owner.clock(), 0.0))


class Sampler:
    """Reads `sources` from `start()` to `stop()` and hands each value to `sink`, in threads of its own.

    Each source is read at fixed deadlines of its own period; a late one skips the deadlines it missed and is never read
    twice at once. A sample's time is the middle of its read, in seconds since `origin_s` on `clock` (default: now, and
    the monotonic clock). Sources that wait on a server (`blocking`) share a second thread: one that hangs delays, until
    its own timeout, other such sources at most, never host, processes and GPUs.

    All sources together may take `CPU_MAX` of one core: where they would take more, the dearest is read half as often,
    and so on; `paces` says what came of it, and `on_warning` is told once where a source's samples become few.

    A source that raises is reported once through `on_warning` and tried again ever more slowly (up to every 30 s); a
    success takes it back to its pace. Values that are not finite are dropped. `sink` is called from these threads, one
    call at a time and never after `stop()` has returned; what it raises is reported like a source's error.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        sink: Callable[[TelemetrySample], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        origin_s: float | None = None,
        on_warning: Callable[[str], None] = lambda text: None,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.clock, self.cpu_clock = clock, cpu_clock
        self._origin_s = clock() if origin_s is None else origin_s
        self._sink, self._on_warning = sink, on_warning
        self._engine: str | None = None
        self._passing = threading.Lock()
        self._warned: set[str] = set()
        self._slowed: set[str] = set()
        self._paces: dict[str, dict[str, float | None]] = {}
        self._lanes = (_Lane(self, "telemetry"), _Lane(self, "telemetry-http"))
        self._started_s: float | None = None
        self._stopped_s: float | None = None
        for source in sources:
            self.add(source)

    def start(self) -> None:
        """Begin; the first read of every source is due at once."""
        self._started_s = self.clock()
        for lane in self._lanes:
            for slot in lane.slots:
                # Deadlines count from here, not from when the list was made.
                slot.anchor_s = slot.due_s = self._started_s
            lane.thread.start()

    def stop(self) -> None:
        """End both threads and close the sources; returns within `STOP_S` even if a source hangs."""
        if self._stopped_s is not None:
            return
        give_up_s = time.monotonic() + STOP_S
        for lane in self._lanes:
            lane.end()
        for lane in self._lanes:
            if lane.thread.ident is not None:
                lane.thread.join(max(give_up_s - time.monotonic(), 0.0))
        with self._passing:
            self._stopped_s = self.clock()
        for lane in self._lanes:
            # One that still hangs in a read keeps its source: closing that under it could crash (NVML is a C library).
            if not lane.thread.is_alive():
                for slot in lane.slots:
                    _close(slot.source)

    def add(self, source: Source) -> None:
        """Read one more source from now on, for example that of an engine that has just come up."""
        lane = self._lanes[bool(getattr(source, "blocking", False))]
        self._paces[label(source)] = {"period_s": source.period_s, "read_cpu_s": None}
        with lane.wake:
            lane.slots = [*lane.slots, Slot(source, self.clock())]
            lane.wake.notify_all()

    def remove(self, source: Source) -> None:
        """Read a source no more. A read that is under way may still end and give its samples; it is not closed."""
        for lane in self._lanes:
            with lane.wake:
                lane.slots = [slot for slot in lane.slots if slot.source is not source]

    def refresh(self, sources: Iterable[Source], wait_s: float = REFRESH_S) -> None:
        """Read these sources once more at once, and wait until that is done, `wait_s` at most: for counters whose
        values at this very moment are wanted. Their own deadlines stay."""
        asked_s, give_up_s = self.clock(), time.monotonic() + wait_s
        wanted = {id(source) for source in sources}
        while self._stopped_s is None and time.monotonic() < give_up_s:
            late = [
                (lane, slot)
                for lane in self._lanes
                for slot in lane.slots
                if id(slot.source) in wanted and slot.read_s < asked_s
            ]
            if not late:
                return
            for lane, slot in late:  # again and again: a read under way sets the next deadline when it ends
                with lane.wake:
                    slot.due_s = min(slot.due_s, asked_s)
                    lane.wake.notify_all()
            time.sleep(REFRESH_LOOK_S)

    def set_engine(self, name: str | None) -> None:
        """The engine that samples are labelled with from now on (those of a read that begins now or later)."""
        self._engine = name

    @property
    def cost_ratio(self) -> float:
        """CPU time of the sampler's threads by the time since `start()`: 0.01 is one percent of one core."""
        if self._started_s is None:
            return 0.0
        end_s = self._stopped_s if self._stopped_s is not None else self.clock()
        wall_s = end_s - self._started_s
        return sum(lane.cpu_s for lane in self._lanes) / wall_s if wall_s > 0 else 0.0

    @property
    def paces(self) -> dict[str, dict[str, float | None]]:
        """Of each source that was ever read: how far apart its reads were at last, and the CPU time that one took."""
        return {name: dict(pace) for name, pace in self._paces.items()}

    def keep_cheap(self, slot: Slot) -> None:
        """Slow this source down if all together take too much, and none more than it. Called by the lanes alone."""
        shares = [each.share for lane in self._lanes for each in lane.slots]
        too_much = sum(shares) > CPU_MAX and slot.share >= max(shares, default=0.0)
        if too_much and slot.period_s < SLOWEST_PERIOD_S:
            slot.slow_down()
            if slot.period_s > max(FEW_S, 4 * slot.source.period_s):
                self._say_slowed(slot)
        self._paces[label(slot.source)] = {"period_s": slot.period_s, "read_cpu_s": slot.cost_s}

    def _say_slowed(self, slot: Slot) -> None:
        name = label(slot.source)
        if name not in self._slowed:
            self._slowed.add(name)
            self._on_warning(
                f"telemetry {name}: a read takes {1e3 * (slot.cost_s or 0.0):.1f} ms of CPU; it is read only every "
                f"{slot.period_s:g} s or less often, so that sampling stays under 1 % of one core"
            )

    @property
    def missed(self) -> int:
        """Deadlines skipped because a read, or this process, was late."""
        return sum(lane.missed for lane in self._lanes)

    def read(self, slot: Slot) -> None:
        """Read one source now and pass its values on. Called by the lanes alone."""
        source, engine = slot.source, self._engine
        before_s = self.clock()
        try:
            values = source.read()
            time_s = (before_s + self.clock()) / 2 - self._origin_s
            with self._passing:
                if self._stopped_s is None:
                    for metric, value in values.items():
                        if math.isfinite(value):
                            self._sink(TelemetrySample(time_s, engine, source.name, metric, float(value)))
            slot.failures = 0
        except Exception as error:  # whatever a source does, the run goes on
            slot.failures += 1
            self._warn(label(source), error)
        slot.read_s = before_s

    def _warn(self, name: str, error: Exception) -> None:
        with self._passing:
            first = name not in self._warned and self._stopped_s is None
            self._warned.add(name)
        if first:
            said = str(error) or type(error).__name__
            self._on_warning(f"telemetry {name}: {said}; its samples have gaps, it is tried again ever more slowly")


def _close(source: Source) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):  # nothing is measured any more, and nobody could act on it
            close()
