"""The host: CPU, memory, swap and disks through psutil.

What a read costs on which machine: docs/telemetry.md. The paces are chosen so that all of it stays well under 1 % of
one core; where it does not, the sampler itself reads the dearest less often.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import psutil

from harness.telemetry.cgroup import Limits, limits

HOST_PERIOD_S: Final = 1.0
CORES_PERIOD_S: Final = 5.0


class HostSource:
    """The whole machine: `cpu_ratio` (0..1) and busy `cpu_cores` since the last read, memory and swap in bytes.

    Inside a cgroup with a memory limit the limit counts: `memory_total_bytes` is the smaller of machine and limit,
    `memory_used_bytes` what the group holds, `memory_available_bytes` what is left of both; `memory_limit_bytes`,
    `cpu_limit_cores` and `cpu_throttled_total_s` (how long the group was held back for it) are given only where there
    is a limit. CPU stays that of the machine: neighbours disturb too. `swap_in_total_bytes`, `swap_out_total_bytes`,
    `disk_read_total_bytes` count since the machine's start.
    """

    name = "host"
    period_s = HOST_PERIOD_S

    def __init__(self, cgroup: Limits | None = None) -> None:
        self._limits = limits() if cgroup is None else cgroup
        self._cores = psutil.cpu_count() or 1
        self._before: tuple[float, float] | None = None

    def read(self) -> dict[str, float]:
        """The first read gives no CPU: there is no interval yet to speak of."""
        values = self._cpu() | self._memory() | self._disk()
        if self._limits.cpu_cores is not None:
            values["cpu_limit_cores"] = self._limits.cpu_cores
            throttled_s = self._limits.cpu_throttled_s()
            values |= {} if throttled_s is None else {"cpu_throttled_total_s": throttled_s}
        return values

    def _disk(self) -> dict[str, float]:
        swap, disks = psutil.swap_memory(), psutil.disk_io_counters()
        values = {"swap_used_bytes": float(swap.used), "swap_in_total_bytes": float(swap.sin),
                  "swap_out_total_bytes": float(swap.sout)}  # fmt: skip
        return values if disks is None else values | {"disk_read_total_bytes": float(disks.read_bytes)}

    def _cpu(self) -> dict[str, float]:
        busy, total = _busy(psutil.cpu_times())
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


class CoresSource:
    """Each core by itself: `core_0_ratio` and so on (busy since the last read, 0..1), `busiest_core_ratio`, and
    `frequency_mhz`, their mean clock. One core that is full limits a server whose machine is idle."""

    name = "cores"
    period_s = CORES_PERIOD_S

    def __init__(self) -> None:
        self._before: list[tuple[float, float]] = []

    def read(self) -> dict[str, float]:
        """The first read gives no share: there is no interval yet to speak of."""
        before, self._before = self._before, [_busy(times) for times in psutil.cpu_times(percpu=True)]
        shares = {
            f"core_{number}_ratio": min(max((busy - busy0) / (total - total0), 0.0), 1.0)
            for number, ((busy0, total0), (busy, total)) in enumerate(zip(before, self._before, strict=False))
            if total > total0
        }
        return shares | ({"busiest_core_ratio": max(shares.values())} if shares else {}) | _frequency()


def _frequency() -> dict[str, float]:
    """A VM may hide it, or tell 0."""
    with contextlib.suppress(OSError, NotImplementedError, AttributeError):
        told = psutil.cpu_freq()
        return {"frequency_mhz": float(told.current)} if told is not None and told.current else {}
    return {}


def _busy(times: Any) -> tuple[float, float]:
    """Busy and all CPU time in seconds. Linux counts guest time in user time too: adding it again would make a host of
    VMs look twice as busy."""
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total
