"""The limits that a container or a service puts on this process: cgroup v2, and v1 where a host still has it.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (`memory.max`, `memory.current`, `cpu.max`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

MOUNT: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
_V1_UNLIMITED_BYTES: Final = 2**60  # v1 writes "no limit" as the largest number of whole pages


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory_bytes` and `cpu_cores` of the tightest group above this process; None: no limit. `memory_group` and
    `cpu_group` are the folders of the groups whose memory and CPU are limited."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    memory_group: Path | None = None
    cpu_group: Path | None = None

    def memory_used_bytes(self) -> int | None:
        """What the limited group holds, less file pages that the kernel gives up at once (as `docker stats` counts)."""
        if self.memory_group is None:
            return None
        used = _number(self.memory_group / "memory.current") or _number(self.memory_group / "memory.usage_in_bytes")
        if used is None:
            return None
        return int(max(used - _inactive_file_bytes(self.memory_group), 0))

    def cpu_throttled_s(self) -> float | None:
        """For how long, in all, the group's processes were held back because its CPU time was used up."""
        if self.cpu_group is None:
            return None
        for line in _text(self.cpu_group / "cpu.stat").splitlines():
            key, _, value = line.partition(" ")
            if key in ("throttled_usec", "throttled_time"):  # v1 counts nanoseconds
                return float(value) / (1e6 if key == "throttled_usec" else 1e9)
        return None


@functools.cache
def limits(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Limits:
    """The limits of this process; read once, as engines and containers don't change them while a run goes on."""
    found = Limits()
    for group in _groups(mount, membership):
        memory = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if memory is not None and memory < min(found.memory_bytes or _V1_UNLIMITED_BYTES, _V1_UNLIMITED_BYTES):
            found = replace(found, memory_bytes=int(memory), memory_group=group)
        cores = _cores(group)
        if cores is not None and cores < (found.cpu_cores or float("inf")):
            found = replace(found, cpu_cores=cores, cpu_group=group)
    return found


def _groups(mount: Path, membership: Path) -> list[Path]:
    """The groups of this process and all above them, in each hierarchy that knows memory or CPU."""
    groups: list[Path] = []
    for line in _text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            bases = [mount]
        else:
            bases = [mount / name for name in controllers.split(",") if name in ("memory", "cpu")]
        for base in bases:
            # In a container the path may be the host's, which is not mounted here: the mount itself is then our group.
            group = base / path.strip("/")
            group = group if group.is_dir() else base
            groups += [group, *(parent for parent in group.parents if parent.is_relative_to(base))]
    return groups


def _cores(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    try:
        cores = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
    return cores if cores > 0 else None  # v1 writes "no limit" as -1


def _inactive_file_bytes(group: Path) -> float:
    for line in _text(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file"):
            return float(value)
    return 0.0


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
