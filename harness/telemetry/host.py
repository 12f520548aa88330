"""The host, and the process family of one engine: CPU and memory through psutil.

Each class says what a read costs: CPU time of the reading thread at the pace below, so with cold caches (a tight loop
shows less than half of it), on Python 3.11, Linux 6.18, a Xeon VM of 2 cores. With these periods all of it together
takes 0.3 % of one core; with a vLLM page each second, and the journal as the sink, the sampler showed 0.7 %.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import psutil

from harness.telemetry.cgroup import Limits, limits

HOST_PERIOD_S: Final = 1.0
FAMILY_PERIOD_S: Final = 0.5
LISTING_PERIOD_S: Final = 1.0
PSS_PERIOD_S: Final = 10.0
PSS_DEAREST_S: Final = 0.05
"""A PSS read that took longer is the last: the kernel walks all pages of a process under a lock that they share."""


class HostSource:
    """The whole machine: `cpu_ratio` (0..1) and busy `cpu_cores` since the last read, memory and swap in bytes.

    Inside a cgroup with a memory limit the limit counts: `memory_total_bytes` is the smaller of machine and limit,
    `memory_used_bytes` what the group holds, `memory_available_bytes` what is left of both; `memory_limit_bytes` and
    `cpu_limit_cores` are given only where there is a limit. CPU stays that of the machine: neighbours disturb too.
    A read costs 0.6 ms.
    """

    name = "host"
    period_s = HOST_PERIOD_S

    def __init__(self, cgroup: Limits | None = None) -> None:
        self._limits = limits() if cgroup is None else cgroup
        self._cores = psutil.cpu_count() or 1
        self._before: tuple[float, float] | None = None

    def read(self) -> dict[str, float]:
        """The first read gives no CPU: there is no interval yet to speak of."""
        values = self._cpu() | self._memory() | {"swap_used_bytes": float(psutil.swap_memory().used)}
        if self._limits.cpu_cores is not None:
            values["cpu_limit_cores"] = self._limits.cpu_cores
        return values

    def _cpu(self) -> dict[str, float]:
        times = psutil.cpu_times()
        # Linux counts guest time in user time too: adding it again would make a host of VMs look twice as busy.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        before, self._before = self._before, (busy, total)
        if before is None or total <= before[1]:
            return {}
        ratio = min(max((busy - before[0]) / (total - before[1]), 0.0), 1.0)
        return {"cpu_ratio": ratio, "cpu_cores": ratio * self._cores}

    def _memory(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        total, used, available = float(memory.total), float(memory.used), float(memory.available)
        values: dict[str, float] = {}
        limit, held = self._limits.memory_bytes, self._limits.memory_used_bytes()
        if limit is not None and limit < total:
            values["memory_limit_bytes"] = total = float(limit)
            if held is not None:
                used, available = float(held), min(available, max(total - held, 0.0))
        return values | {
            "memory_used_bytes": used, "memory_available_bytes": available, "memory_total_bytes": total,
        }  # fmt: skip


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
    """An engine and its children together: `cpu_cores`, `rss_bytes`, `processes` and, now and then, `pss_bytes`.

    `cpu_cores` is the CPU time that the family used since the last read, by the time between. It counts children that
    ended: what they used after they were last seen (all of it, if they never were) turns up in the parent that waited
    for them. It is never negative. RSS counts a shared page once a process, PSS once in all; PSS is read at most every
    `PSS_PERIOD_S`, only while that is cheap (`PSS_DEAREST_S`) and allowed for all. `pids` is asked once a second and
    when a process has gone; who was listed once stays a member while it lives. A read of 8 processes costs 0.9 ms
    (and what `pids` itself costs), PSS 6 ms more.
    """

    name = "process"
    period_s = FAMILY_PERIOD_S

    def __init__(self, pids: Callable[[], list[int]], clock: Callable[[], float] = time.monotonic) -> None:
        self._pids, self._clock = pids, clock
        self._members: dict[int, _Member] = {}
        self._read_s: float | None = None
        self._listed_s: float | None = None
        self._list_again = True
        self._pss_due_s: float | None = clock()

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
        return values | self._pss(now)

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

    def _pss(self, now: float) -> dict[str, float]:
        if self._pss_due_s is None or now < self._pss_due_s:
            return {}
        started_s = time.perf_counter()
        self._pss_due_s = now + PSS_PERIOD_S
        try:
            values = {"pss_bytes": float(_pss_bytes(self._members))}
        except PermissionError:
            self._pss_due_s = None
            return {}
        except OSError:  # one ended meanwhile: a part of the sum would be no bound of anything
            return {}
        if time.perf_counter() - started_s > PSS_DEAREST_S:
            self._pss_due_s = None
        return values


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
