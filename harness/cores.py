"""How many load processes a scenario needs, and on which cores they run."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.scenario import Point, Scenario

CHUNKS_PER_WORKER = 40_000.0  # a second; about half of what one core can take before its stamps suffer
TPOT_GUESS_S = 0.01  # of an engine nobody has measured yet: a chunk every 10 ms in each stream
ROOM_CORES = 8  # from here on, cores are set apart for the load
SHARE = 4  # at most one core in so many


def asked_chunks_s(point: Point, output_tokens: float) -> float:
    """About how many chunks a second a point asks the client to take."""
    if point.concurrency is not None:
        return point.concurrency / TPOT_GUESS_S
    return (point.peak_rps or 0.0) * output_tokens


def worker_count(scenario: Scenario, cores: int, chunks_per_worker: float | None = None) -> int:
    """How many load processes to start: what the scenario says, else what its largest load needs and the machine has.

    `chunks_per_worker`: what one of them can take on this machine, where that was measured.
    """
    asked = scenario.client.workers
    if isinstance(asked, int):
        return asked
    workloads = [scenario.workload, *(e.workload or scenario.workload for e in scenario.engines)]
    tokens = max(float(w.typical_output()) for w in workloads)
    points = scenario.points() + [sweep.point(sweep.max_rate) for sweep in scenario.sweeps() if sweep.max_rate]
    most = max((asked_chunks_s(point, tokens) for point in points), default=0.0)
    return max(1, min(math.ceil(most / (chunks_per_worker or CHUNKS_PER_WORKER)), cores // SHARE))


def stand_back() -> None:
    """On Linux, let this thread alone give way to others: what it does may wait a little, a stamp may not."""
    with contextlib.suppress(AttributeError, OSError):
        if sys.platform.startswith("linux"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def available() -> list[int]:
    """The cores that this process may use; empty where the system does not say."""
    with contextlib.suppress(AttributeError, OSError):
        return sorted(os.sched_getaffinity(0))
    return []


def cores_apart(workers: int, cores: list[int]) -> list[int] | None:
    """A core of its own for each load process, the last ones, where the machine has room; else None."""
    return cores[-workers:] if len(cores) >= max(ROOM_CORES, SHARE * workers) else None


@contextmanager
def away_from(taken: list[int] | None, cores: list[int]) -> Iterator[None]:
    """This process, its later threads and whatever it starts keep off the cores of the load."""
    if not taken:
        yield
        return
    os.sched_setaffinity(0, set(cores) - set(taken))
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))
