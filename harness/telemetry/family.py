"""The process family of one engine: CPU, memory and what it read from disks, through psutil and /proc."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import psutil

FAMILY_PERIOD_S: Final = 1.0
LISTING_PERIOD_S: Final = 5.0  # it looks at every process of the machine
DETAIL_PERIOD_S: Final = 10.0
PSS_DEAREST_S: Final = 0.25
"""A PSS read that took longer is the last: the kernel walks all pages of a process under a lock that they share."""


@dataclass(slots=True)
class _Member:
    """One process as last seen. `own_s`: its CPU time; `reaped_s`: that of its children that ended and were waited for;
    `owed_s`: what was counted of ended descendants while they ran, and will turn up in `reaped_s` once more."""

    process: psutil.Process
    parent: int
    own_s: float
    reaped_s: float
    owed_s: float = 0.0

    def advance(self, own_s: float, reaped_s: float) -> float:
        """Take new readings; the CPU time that they add to the family's, never negative."""
        new_own_s, new_reaped_s = max(own_s - self.own_s, 0.0), max(reaped_s - self.reaped_s, 0.0)
        paid_s = min(self.owed_s, new_reaped_s)
        self.owed_s -= paid_s
        self.own_s, self.reaped_s = own_s, reaped_s
        return new_own_s + new_reaped_s - paid_s


class ProcessFamilySource:
    """An engine and its children together: `cpu_cores`, `rss_bytes`, `processes`.

    `cpu_cores` is the CPU time that the family used since the last read, by the time between. It counts children that
    ended: what they used after they were last seen (all of it, if they never were) turns up in the parent that waited
    for them. It is never negative. RSS counts a shared page once a process. `pids` is asked every five seconds and when
    a process has gone; who was listed once stays a member while it lives.
    """

    name = "process"
    period_s = FAMILY_PERIOD_S

    def __init__(self, pids: Callable[[], list[int]], clock: Callable[[], float] = time.monotonic) -> None:
        self._pids, self._clock = pids, clock
        self._members: dict[int, _Member] = {}
        self._read_s: float | None = None
        self._listed_s: float | None = None
        self._list_again = True

    def members(self) -> list[int]:
        """The processes that were there at the last read; from any thread."""
        return list(self._members)

    def read(self) -> dict[str, float]:
        """No value at all while the family has no process; the first read gives no CPU."""
        now = self._clock()
        if self._list_again or self._listed_s is None or now - self._listed_s >= LISTING_PERIOD_S:
            self._list(now)
        readings, rss = self._sweep()
        # Only when it is known who ended can a parent's sum be told apart from what was counted before.
        used_s = sum(self._members[pid].advance(*times) for pid, times in readings.items())
        before, self._read_s = self._read_s, now if self._members else None
        if not self._members:
            return {}
        values = {"rss_bytes": float(rss), "processes": float(len(self._members))}
        if before is not None and now > before:
            values["cpu_cores"] = used_s / (now - before)
        return values

    def _list(self, now: float) -> None:
        """Let in whom `pids` names anew."""
        elapsed_s = None if self._listed_s is None else now - self._listed_s
        self._listed_s, self._list_again = now, False
        for pid in self._pids():
            if pid not in self._members and (member := _newcomer(pid, elapsed_s)) is not None:
                self._members[pid] = member
        if not self._members:
            self._listed_s = None

    def _sweep(self) -> tuple[dict[int, tuple[float, float]], int]:
        """CPU times (own, reaped) of all that live, and their RSS; who ended is struck off."""
        readings: dict[int, tuple[float, float]] = {}
        rss, gone = 0, []
        # Parents are older than their children and come first: a child that ends during the sweep is then found missing
        # here before a parent's sum can hold it, and is not counted twice.
        for pid, member in sorted(self._members.items(), key=lambda item: (item[1].process.create_time(), item[0])):
            try:
                times = member.process.cpu_times()
                rss += member.process.memory_info().rss
            except psutil.Error:
                gone.append(pid)
                continue
            readings[pid] = (times.user + times.system, times.children_user + times.children_system)
        for pid in reversed(gone):  # children before their parents, to whom they leave what was counted of them
            self._bury(pid)
        if gone:
            self._list_again = True
            for member in self._members.values():  # orphans have got another parent
                with contextlib.suppress(psutil.Error):
                    member.parent = member.process.ppid()
        return readings, rss

    def _bury(self, pid: int) -> None:
        """Strike off an ended process. What was counted of it comes once more: through the parent that waits for it."""
        member = self._members.pop(pid)
        parent = self._members.get(member.parent)
        if parent is not None:
            parent.owed_s += member.own_s + member.reaped_s + member.owed_s


class FamilyDetailSource:
    """What is dear to know of an engine's family: `pss_bytes` (a shared page counts once in all) and
    `disk_read_total_bytes` (what it had read from disks since its start).

    PSS is read only while that is cheap (`PSS_DEAREST_S`). It is `blocking`: the kernel walks every page of a process,
    and what is read beside it must not wait.
    """

    name = "process"
    label = "process (PSS, disk)"
    period_s = DETAIL_PERIOD_S
    blocking = True

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._too_dear = False

    def read(self) -> dict[str, float]:
        """Raises PermissionError: the family is another user's."""
        pids = list(self._pids())
        if not pids:
            return {}
        return self._pss(pids) | _whole("disk_read_total_bytes", _disk_read_bytes, pids)

    def _pss(self, pids: list[int]) -> dict[str, float]:
        if self._too_dear:
            return {}
        began_s = time.perf_counter()
        values = _whole("pss_bytes", _pss_bytes, pids)
        self._too_dear = time.perf_counter() - began_s > PSS_DEAREST_S
        return values


def _whole(metric: str, of: Callable[[Iterable[int]], int], pids: list[int]) -> dict[str, float]:
    """One sum over a family; nothing where one of it ended meanwhile: a part of a sum would be no bound of anything."""
    try:
        return {metric: float(of(pids))}
    except PermissionError:
        raise
    except OSError:
        return {}


def _newcomer(pid: int, elapsed_s: float | None) -> _Member | None:
    """A process that was not listed before; `elapsed_s` is the time since the last listing, None at the first.

    Born since, all its CPU time is new. What could not have been used since then is older and not counted: psutil knows
    birth times to a second only, which is too coarse to ask for them.
    """
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        own_s, reaped_s = times.user + times.system, times.children_user + times.children_system
        if elapsed_s is not None and own_s + reaped_s <= elapsed_s * (psutil.cpu_count() or 1):
            own_s = reaped_s = 0.0
        return _Member(process, process.ppid(), own_s, reaped_s)
    except (psutil.Error, ValueError):
        return None


def _pss_bytes(pids: Iterable[int]) -> int:
    """PSS of all together. Raises OSError: one has gone, or may not be looked at, or this is no Linux."""
    total_kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            total_kib += next((int(line.split()[1]) for line in file if line.startswith(b"Pss:")), 0)
    return total_kib * 1024


def disk_read_bytes(pids: Iterable[int]) -> int | None:
    """Bytes that reached these processes from disks (not from the page cache), their ended children's included; None
    where that cannot be told."""
    pids = list(pids)
    try:
        return _disk_read_bytes(pids) if pids else None
    except OSError:
        return None


def _disk_read_bytes(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/io", "rb") as file:
            total += next((int(line.split()[1]) for line in file if line.startswith(b"read_bytes:")), 0)
    return total
