"""The host, its limits, and the process family of an engine, against known answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.telemetry import family
from harness.telemetry.cgroup import Limits, limits
from harness.telemetry.family import FamilyDetailSource, ProcessFamilySource
from harness.telemetry.host import CoresSource, HostSource
from tests.cli import until
from tests.sources import Clock


def test_host_source() -> None:
    source = HostSource(Limits())
    first = source.read()
    assert "cpu_ratio" not in first
    assert 0 < first["memory_available_bytes"] <= first["memory_total_bytes"] == psutil.virtual_memory().total
    assert not {"memory_limit_bytes", "cpu_limit_cores"} & first.keys()
    spent_s = time.process_time()
    while time.process_time() - spent_s < 0.03:  # some ticks of the kernel's clock
        pass
    second = source.read()
    assert 0 < second["cpu_ratio"] <= 1
    assert second["cpu_cores"] == pytest.approx(second["cpu_ratio"] * (psutil.cpu_count() or 1))


def test_cores_source() -> None:
    source = CoresSource()
    assert "busiest_core_ratio" not in source.read()
    spent_s = time.process_time()
    while time.process_time() - spent_s < 0.03:
        pass
    second = source.read()
    cores = [value for key, value in second.items() if key.startswith("core_")]
    assert len(cores) == psutil.cpu_count()
    assert 0 < second["busiest_core_ratio"] == max(cores) <= 1
    assert second.get("frequency_mhz", 1000.0) > 100


def test_host_source_in_a_limited_group(tmp_path: Path) -> None:
    group = tmp_path / "cg/app/inner"
    group.mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/app/inner\n")
    (group / "memory.max").write_text("max\n")
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "cpu.stat").write_text("usage_usec 7\nnr_throttled 3\nthrottled_usec 2500000\n")
    outer = group.parent
    (outer / "memory.max").write_text(f"{2**30}\n")
    (outer / "memory.current").write_text(f"{3 * 2**28}\n")
    (outer / "memory.stat").write_text(f"anon 1\ninactive_file {2**28}\n")
    (outer / "cpu.max").write_text("max 100000\n")
    found = limits(tmp_path / "cg", tmp_path / "membership")
    assert (found.memory_bytes, found.cpu_cores, found.memory_group) == (2**30, 1.5, outer)
    values = HostSource(found).read()
    assert values["memory_limit_bytes"] == values["memory_total_bytes"] == 2**30
    assert values["memory_used_bytes"] == values["memory_available_bytes"] == 2**29
    assert (values["cpu_limit_cores"], values["cpu_throttled_total_s"]) == (1.5, 2.5)


def test_limits_of_the_old_kind_and_of_none(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    for name in ("memory", "cpu"):
        (tmp_path / name).mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert limits(tmp_path, membership) == Limits()
    limits.cache_clear()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1048576\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    assert limits(tmp_path, membership) == Limits(1048576, 0.5, tmp_path / "memory", tmp_path / "cpu")
    assert limits(tmp_path, tmp_path / "nothing") == Limits()
    limits.cache_clear()


# --- the process family ----------------------------------------------------------------------

BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"
PARENT = """
import subprocess, sys
for line in sys.stdin:
    child = subprocess.Popen([sys.executable, "-c", {burn!r} + "input()"], stdin=subprocess.PIPE)
    print(child.pid, flush=True)
    sys.stdin.readline()
    child.communicate(b"\\n")
    print("reaped", flush=True)
"""


@pytest.fixture
def parent() -> Iterator[Callable[[], str]]:
    """A process that, at each line, starts a child which uses 0.1 s of CPU, and at the next waits for its end."""
    code = PARENT.format(burn=BURN.format(seconds=0.1))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sending, receiving = process.stdin, process.stdout

        def ask() -> str:
            sending.write("\n")
            sending.flush()
            return receiving.readline().strip()

        ask.pid = process.pid  # type: ignore[attr-defined]
        yield ask
        sending.close()


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@pytest.mark.parametrize("seen", [True, False], ids=["child-seen-alive", "child-never-seen"])
def test_family_counts_children_that_ended_once(parent: Any, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "LISTING_PERIOD_S", 1.0)
    clock = Clock()
    pids = [parent.pid]
    source = ProcessFamilySource(lambda: list(pids), clock)
    assert "cpu_cores" not in source.read()
    used: list[float] = []

    def read() -> dict[str, float]:
        clock.now_s += 1.0  # a second of the source's time: its cpu_cores are then CPU seconds
        values = source.read()
        used.append(values["cpu_cores"])
        return values

    child = int(parent())
    if seen:
        pids.append(child)
        assert read()["processes"] == 2
    assert until(lambda: _cpu_s(child) >= 0.1)
    assert read()["processes"] == (2 if seen else 1)
    assert parent() == "reaped"
    assert read()["processes"] == 1
    for _ in range(2):
        read()
    assert min(used) >= 0
    own_s = psutil.Process(parent.pid).cpu_times()
    total_s = own_s.user + own_s.system + own_s.children_user + own_s.children_system
    # All of the child, once, within ticks of 10 ms; what the parent used before the first read is not in it.
    assert 0.09 <= sum(used) <= total_s + 0.03


def test_family_loses_a_child_of_somebody_else() -> None:
    """Its time turns up nowhere any more: nothing is counted twice, nothing goes below zero."""
    clock = Clock()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stays:
        code = BURN.format(seconds=0.1) + "input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as goes:
            source = ProcessFamilySource(lambda: [stays.pid, goes.pid], clock)
            source.read()
            assert until(lambda: _cpu_s(goes.pid) >= 0.1)
            clock.now_s += 1
            source.read()
            goes.communicate(b"\n")
        for _ in range(2):
            clock.now_s += 1
            values = source.read()
            assert values["processes"] == 1
            assert 0 <= values["cpu_cores"] < 0.1
        stays.communicate(b"\n")
    clock.now_s += 1
    assert source.read() == {}


def test_family_grandchildren_ending_together_are_counted_once() -> None:
    """1 waits for 2, which waits for 3; 2 and 3 end between two reads. Times as the kernel would show them."""
    times = {1: (1.0, 0.0), 2: (2.0, 0.0), 3: (4.0, 0.0)}
    source = ProcessFamilySource(lambda: list(times), Clock())

    def process(pid: int) -> Any:
        def cpu_times() -> Any:
            if pid not in times:
                raise psutil.NoSuchProcess(pid)
            return SimpleNamespace(user=times[pid][0], system=0.0, children_user=times[pid][1], children_system=0.0)

        return SimpleNamespace(
            create_time=lambda: float(pid),
            ppid=lambda: pid - 1,
            cpu_times=cpu_times,
            memory_info=lambda: SimpleNamespace(rss=1),
        )

    for pid in times:
        source._members[pid] = family._Member(process(pid), pid - 1, *times[pid])
    del times[2], times[3]
    times[1] = (1.5, 2.25 + 4.5)  # 2 used 0.25 more, 3 used 0.5 more
    readings, rss = source._sweep()
    assert rss == 1
    assert source._members[1].advance(*readings[1]) == pytest.approx(0.5 + 0.25 + 0.5)
    assert source._list_again


def test_family_adopts_without_counting_the_past() -> None:
    """A process that is let in late brings no past CPU time with it: a spike that never was."""
    clock = Clock()
    pids: list[int] = [os.getpid()]
    source = ProcessFamilySource(lambda: list(pids), clock)
    source.read()
    code = BURN.format(seconds=0.1) + "print(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as old:
        assert old.stdout is not None
        old.stdout.readline()
        pids[:] = [old.pid]
        source._listed_s = clock() - 0.001  # nobody can have used 0.1 s since then
        source._list_again = True
        source._members.clear()
        source.read()
        assert source._members[old.pid].own_s >= 0.1
        old.communicate(b"\n")


def test_family_pss_and_disk_of_a_real_process() -> None:
    values = FamilyDetailSource(lambda: [os.getpid()]).read()
    assert 0 < values["pss_bytes"] <= psutil.Process().memory_info().rss * 1.1
    assert values["disk_read_total_bytes"] >= 0
    assert FamilyDetailSource(list).read() == {}
    assert family.disk_read_bytes([]) is None
    assert family.disk_read_bytes([2**22 + 1]) is None


def test_family_pss_is_given_up_where_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FamilyDetailSource(lambda: [os.getpid()])
    monkeypatch.setattr(family, "PSS_DEAREST_S", -1.0)
    assert "pss_bytes" in source.read()
    assert source.read().keys() == {"disk_read_total_bytes"}


def test_family_pss_of_some_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FamilyDetailSource(lambda: [os.getpid(), 2**22 + 1])  # the second has ended
    assert source.read() == {}

    def refuse(pids: object) -> int:
        raise PermissionError

    monkeypatch.setattr(family, "_pss_bytes", refuse)
    with pytest.raises(PermissionError):  # the sampler says so once, and goes on
        source.read()
