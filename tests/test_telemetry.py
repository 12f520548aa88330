"""Telemetry: the sampler's deadlines on a fake clock and in real threads, and each source against known answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness import watch as watching
from harness.http import HttpError
from harness.records import RunRecord, TelemetrySample
from harness.telemetry import family
from harness.telemetry import sampler as sampling
from harness.telemetry.cgroup import Limits, limits
from harness.telemetry.family import FamilyDetailSource, ProcessFamilySource
from harness.telemetry.host import CoresSource, HostSource
from harness.telemetry.nvidia import GpuProcess, devices, nvidia_sources
from harness.telemetry.nvidia_detail import GpuWatch, NvidiaDetailSource
from harness.telemetry.ollama import OllamaSource, read_ps
from harness.telemetry.prometheus import PrometheusSample, parse
from harness.telemetry.rapl import RaplSource, rapl_sources
from harness.telemetry.sampler import Sampler
from harness.telemetry.vllm import VllmSource, read_metrics
from harness.watch import Watch

# --- the sampler ---------------------------------------------------------------------------------


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


def _drive(sampler: Sampler, clock: Clock, until_s: float) -> None:
    """What the threads do, without them: go from deadline to deadline."""
    while clock() < until_s:
        dues = [due for lane in sampler._lanes if (due := lane.run_due()) is not None]
        clock.now_s = max(clock.now_s, min(dues))


def test_deadlines_are_absolute_and_lateness_never_adds_up() -> None:
    clock = Clock()
    quick, slow = Scripted(clock, 1.0, 0.3, "quick"), Scripted(clock, 2.5, 0.0, "slow")
    samples: list[TelemetrySample] = []
    sampler = Sampler([quick, slow], samples.append, clock)
    _drive(sampler, clock, 110.0)
    assert quick.reads_s == pytest.approx([100.0 + k for k in range(10)])
    assert [sample.time_s for sample in samples if sample.source == "quick"][:3] == pytest.approx([0.15, 1.15, 2.15])
    assert slow.reads_s == pytest.approx([100.3, 102.5, 105.3, 107.5])  # after quick, where both are due at once
    assert sampler.missed == 0


def test_a_late_source_skips_what_it_missed() -> None:
    clock = Clock()
    source = Scripted(clock, 1.0, 2.2)
    sampler = Sampler([source], lambda sample: None, clock)
    _drive(sampler, clock, 109.0)
    assert source.reads_s == pytest.approx([100.0, 103.0, 106.0])
    assert sampler.missed == 6


def test_a_broken_source_is_reported_once_and_tried_ever_more_slowly() -> None:
    clock = Clock()
    source, other = Scripted(clock), Scripted(clock, name="other")
    source.answer = OSError("gone")
    warnings: list[str] = []
    samples: list[TelemetrySample] = []
    sampler = Sampler([source, other], samples.append, clock, on_warning=warnings.append)
    _drive(sampler, clock, 200.0)
    assert [b - a for a, b in pairwise(source.reads_s)] == [2, 4, 8, 16, 30, 30]
    assert len(other.reads_s) == 100
    assert len(warnings) == 1
    assert warnings[0].startswith("telemetry s: gone")

    source.answer = {"x": 1.0}
    tried = len(source.reads_s)
    _drive(sampler, clock, 250.0)
    assert {round(b - a) for a, b in pairwise(source.reads_s[tried:])} == {1}
    source.answer = OSError("gone again")
    _drive(sampler, clock, 255.0)
    assert len(warnings) == 1


def test_what_all_takes_too_much_is_read_less_often() -> None:
    clock, cpu = Clock(), Clock(0.0)

    class Dear(Scripted):
        def read(self) -> dict[str, float]:
            cpu.now_s += {"dear": 0.035, "cheap": 0.003}[self.name]
            return super().read()

    dear, cheap = Dear(clock, name="dear"), Dear(clock, name="cheap")
    warnings: list[str] = []
    sampler = Sampler([dear, cheap], lambda sample: None, clock, on_warning=warnings.append, cpu_clock=cpu)
    _drive(sampler, clock, 200.0)
    # 3.8 % of a core: the dear one every 2 s, every 4 s (1.2 % in all), then every 8 s (0.7 %), and no further.
    assert {b - a for a, b in pairwise(dear.reads_s[-10:])} == {8.0}
    assert {b - a for a, b in pairwise(cheap.reads_s)} == {1.0}
    assert sampler.paces["dear"] == {"period_s": 8.0, "read_cpu_s": pytest.approx(0.035)}
    (text,) = warnings
    assert text.startswith("telemetry dear: a read takes 35.0 ms of CPU; it is read only every 8 s or less often")


def test_a_read_that_was_disturbed_slows_nothing_down() -> None:
    clock, cpu = Clock(), Clock(0.0)

    class Disturbed(Scripted):
        def read(self) -> dict[str, float]:
            cpu.now_s += 5.0 if len(self.reads_s) % 8 == 0 else 0.001  # the first one, too
            return super().read()

    source = Disturbed(clock)
    sampler = Sampler([source], lambda sample: None, clock, cpu_clock=cpu)
    _drive(sampler, clock, 150.0)
    assert sampler.paces["s"]["period_s"] == 1.0


def test_samples_are_labelled_and_never_not_a_number() -> None:
    clock = Clock()
    source = Scripted(clock)
    source.answer = {"x": 2.0, "nan": math.nan, "inf": math.inf}
    samples: list[TelemetrySample] = []
    sampler = Sampler([source], samples.append, clock, origin_s=90.0)
    _drive(sampler, clock, 101.0)
    sampler.set_engine("a")
    _drive(sampler, clock, 102.0)
    assert samples == [TelemetrySample(10.0, None, "s", "x", 2.0), TelemetrySample(11.0, "a", "s", "x", 2.0)]


def test_sources_come_and_go() -> None:
    clock = Clock()
    first, second = Scripted(clock), Scripted(clock)
    sampler = Sampler([first], lambda sample: None, clock)
    _drive(sampler, clock, 102.0)
    clock.now_s = 102.4
    sampler.add(second)
    _drive(sampler, clock, 104.0)
    sampler.remove(first)
    _drive(sampler, clock, 106.0)
    assert first.reads_s == pytest.approx([100, 101, 102.4, 103])
    assert second.reads_s == pytest.approx([102.4, 103.4, 104.4, 105.4])
    sampler.stop()
    assert (first.closed, second.closed) == (False, True)


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


def test_threads_read_stop_and_count_their_cost() -> None:
    local, http = Counting("local", 20), Counting("http", 20, blocking=True)
    samples: list[TelemetrySample] = []
    sampler = Sampler([local], samples.append)
    sampler.start()
    sampler.add(http)
    assert local.done.wait(10)
    assert http.done.wait(10)
    sampler.stop()
    seen = len(samples)
    assert len(local.threads) == len(http.threads) == 1
    assert local.threads != http.threads
    assert [s.value for s in samples if s.source == "local"] == [float(k + 1) for k in range(local.reads)]
    times = [s.time_s for s in samples if s.source == "local"]
    assert times == sorted(times)
    assert 0 < sampler.cost_ratio < 1
    time.sleep(0.03)
    assert len(samples) == seen
    sampler.stop()


def test_a_source_is_read_once_more_when_that_is_asked_for() -> None:
    sources = counter, broken, other = (
        Counting("counter", 1, blocking=True),
        Counting("broken", 1),
        Counting("other", 1),
    )
    for source in sources:
        source.period_s = 30.0  # no deadline comes in this test
    samples: list[TelemetrySample] = []
    sampler = Sampler(sources, samples.append)
    sampler.start()
    assert all(source.done.wait(10) for source in sources)

    def fail() -> dict[str, float]:
        raise OSError("gone")

    broken.read = fail  # type: ignore[method-assign]
    before_s = time.monotonic()
    sampler.refresh([counter, broken])
    sampler.refresh([counter, broken])  # one that failed is asked again, and waited for no longer than its answer takes
    assert time.monotonic() - before_s < sampling.REFRESH_S
    assert (counter.reads, other.reads, sampler.missed) == (3, 1, 0)
    assert (samples[-1].source, samples[-1].value) == ("counter", 3.0)
    sampler.stop()
    sampler.refresh([counter])
    assert counter.reads == 3


def test_a_hanging_source_delays_neither_the_others_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "STOP_S", 0.2)
    release = threading.Event()
    hanging, local = Counting("http", 1, blocking=True, hang=release), Counting("local", 20)
    samples: list[TelemetrySample] = []
    sampler = Sampler([hanging, local], samples.append)
    sampler.start()
    assert hanging.done.wait(10)
    assert local.done.wait(10)
    began_s = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began_s < 10
    release.set()
    sampler._lanes[1].thread.join(10)
    assert {sample.source for sample in samples} == {"local"}  # what came after the end is not passed on


# --- the host ------------------------------------------------------------------------------------


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


# --- the process family --------------------------------------------------------------------------

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


def _until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


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
    _until(lambda: _cpu_s(child) >= 0.1)
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
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stays:
        code = BURN.format(seconds=0.1) + "input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as goes:
            source = ProcessFamilySource(lambda: [stays.pid, goes.pid], clock)
            source.read()
            _until(lambda: _cpu_s(goes.pid) >= 0.1)
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


# --- NVIDIA --------------------------------------------------------------------------------------


class FakeNvml:
    """As much of pynvml as is used. `broken` maps a function's name to the error code that it raises."""

    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION, NVML_ERROR_DRIVER_NOT_LOADED = 3, 4, 9
    NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_GPU_IS_LOST = 12, 13, 15
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2
    NVML_VOLATILE_ECC, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 0, 1
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"code {value}")
            self.value = value

    def __init__(self, count: int = 2, **broken: int) -> None:
        self.count, self.broken, self.opened = count, broken, 0
        self.calls: list[str] = []
        self.answers: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}aaa-bbb",
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=25 * (gpu + 1), memory=1),
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=10, total=80),
            "nvmlDeviceGetPowerUsage": lambda gpu: 350_500,
            "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: 12_000_000,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 55,
            "nvmlDeviceGetClockInfo": lambda gpu, kind: {1: 1980, 2: 2619}[kind],
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 4,
            "nvmlDeviceGetName": lambda gpu: b"NVIDIA H100",
            "nvmlSystemGetDriverVersion": lambda: "580.95",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
            "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 700_000,
            "nvmlDeviceGetMigMode": lambda gpu: [0, 0],
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: self.running,
            "nvmlDeviceGetTotalEccErrors": lambda gpu, kind, since: 3 + kind,
            "nvmlDeviceGetPcieThroughput": lambda gpu, way: 1000 * (1 + way),
            "nvmlDeviceGetEccMode": lambda gpu: [1, 1],
            "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: 1980,
            "nvmlDeviceGetCurrPcieLinkWidth": lambda gpu: 16,
            "nvmlDeviceGetCurrPcieLinkGeneration": lambda gpu: 5,
            "nvmlDeviceGetHandleByUUID": lambda uuid: {"MIG-a": 10, "MIG-b": 11}[uuid],
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda part: 1,
            "nvmlDeviceGetIndex": lambda gpu: gpu,
        }
        self.running: list[Any] = [SimpleNamespace(pid=7, usedGpuMemory=None)]

    def nvmlInit(self) -> None:
        self._check("nvmlInit")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def _check(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.NVMLError(self.broken[name])

    def __getattr__(self, name: str) -> Any:
        answer = self.__dict__.get("answers", {}).get(name)
        if answer is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self._check(name)
            return answer(*arguments)

        return call


WHOLE = {
    "utilization_ratio": 0.25, "memory_busy_ratio": 0.01, "memory_used_bytes": 10.0, "memory_total_bytes": 80.0,
    "power_w": 350.5,
    "energy_j": 12000.0, "sm_clock_mhz": 1980.0,
    "throttle_reasons": 4.0,
}  # fmt: skip


def test_nvidia_sources() -> None:
    nvml = FakeNvml()
    sources, reason = nvidia_sources(nvml, visible="")
    assert reason is None
    assert [source.name for source in sources] == ["nvidia:0", "nvidia:1"]
    assert sources[0].read() == WHOLE
    assert sources[1].read() == WHOLE | {"utilization_ratio": 0.5}
    for source in sources:
        source.close()
    assert nvml.opened == 0


def test_nvidia_what_is_not_supported_is_no_value_and_not_asked_again() -> None:
    nvml = FakeNvml(1, nvmlDeviceGetUtilizationRates=3, nvmlDeviceGetTotalEnergyConsumption=13)
    (source,), _ = nvidia_sources(nvml, visible="")
    lacking = ("utilization_ratio", "memory_busy_ratio", "energy_j")
    for _ in range(2):
        assert source.read() == {k: v for k, v in WHOLE.items() if k not in lacking}
    assert nvml.calls.count("nvmlDeviceGetUtilizationRates") == 1


def test_nvidia_what_an_older_binding_lacks_is_no_value() -> None:
    nvml = FakeNvml(1)
    del nvml.answers["nvmlDeviceGetPcieThroughput"], nvml.answers["nvmlDeviceGetTotalEccErrors"]
    make = lambda nvml, gpu: [NvidiaDetailSource(nvml, gpu, GpuWatch())]  # noqa: E731
    (source,), _ = nvidia_sources(nvml, "", make)
    assert source.read() == source.read() == {"temperature_c": 55.0, "memory_clock_mhz": 2619.0}


def test_nvidia_a_call_that_fails_once_is_asked_again_and_a_lost_gpu_raises() -> None:
    nvml = FakeNvml(1, nvmlDeviceGetPowerUsage=999)
    (source,), _ = nvidia_sources(nvml, visible="")
    assert "power_w" not in source.read()
    nvml.broken.clear()
    assert source.read() == WHOLE
    nvml.broken.update(dict.fromkeys(nvml.answers, nvml.NVML_ERROR_GPU_IS_LOST))
    with pytest.raises(FakeNvml.NVMLError):
        source.read()


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (FakeNvml(nvmlInit=12), "no NVIDIA driver"),
        (FakeNvml(nvmlInit=9), "not loaded"),
        (FakeNvml(nvmlInit=999), "code 999"),
        (FakeNvml(0), "there is no GPU"),
        (FakeNvml(nvmlDeviceGetCount=999), "there is no GPU"),
        (FakeNvml(nvmlDeviceGetHandleByIndex=15), "code 15"),
    ],
)
def test_nvidia_says_why_there_is_none(nvml: FakeNvml, reason: str) -> None:
    for found, why in (nvidia_sources(nvml, visible=""), devices(nvml)):
        assert found == []
        assert reason in (why or "")


def test_nvidia_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_sources() == ([], "the library nvidia-ml-py is not installed")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["nvidia:1"]), ("1,0", ["nvidia:0", "nvidia:1"]), ("GPU-1aaa", ["nvidia:1"]),
        ("GPU-9", ["nvidia:0", "nvidia:1"]),
    ],
)  # fmt: skip
def test_nvidia_reads_the_gpus_that_engines_may_use(
    visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [source.name for source in nvidia_sources(FakeNvml(), visible)[0]] == names
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [source.name for source in nvidia_sources(FakeNvml())[0]] == names


def test_nvidia_slices_of_a_gpu() -> None:
    """Memory is that of the slices that engines may use; power and clocks are the board's, and counted once."""
    nvml = FakeNvml()
    (source,), _ = nvidia_sources(nvml, "MIG-a,MIG-b")
    assert source.name == "nvidia:1"
    values = source.read()
    assert (values["memory_used_bytes"], values["memory_total_bytes"], values["power_w"]) == (20, 160, 350.5)
    lost = FakeNvml(2, nvmlDeviceGetHandleByUUID=3)
    assert [source.name for source in nvidia_sources(lost, "MIG-a")[0]] == ["nvidia:0", "nvidia:1"]


def _on_gpu(*held: tuple[int, int | None]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in held]


def test_nvidia_processes_of_the_engine_and_of_others() -> None:
    clock, nvml = Clock(0.0), FakeNvml(1)
    watch = GpuWatch(clock, exists=lambda pid: pid < 1000)
    (source,), _ = nvidia_sources(nvml, "", lambda nvml, gpu: [NvidiaDetailSource(nvml, gpu, watch)])
    rest = {
        "temperature_c": 55.0,
        "memory_clock_mhz": 2619.0,
        "ecc_corrected_total": 3.0,
        "ecc_uncorrected_total": 4.0,
        "pcie_rx_bytes_s": 2e6,
        "pcie_tx_bytes_s": 1e6,
    }
    nvml.running = _on_gpu((5000, 7))  # of a process table that is not ours: there before, so not the engine's
    assert source.read() == rest
    watch.engine(lambda: [20, 21])
    nvml.running = _on_gpu((5000, 7), (20, 100), (21, 50), (6000, 9))  # 6000 came with the engine, and may be its own
    clock.now_s = 10.0
    whole = {"foreign_processes": 1.0, "foreign_memory_bytes": 7.0, "engine_memory_bytes": 150.0}
    assert source.read() == rest | whole
    nvml.running = _on_gpu((20, None), (99, 2**31))
    clock.now_s = 20.0
    assert source.read() == rest | {"foreign_processes": 1.0, "foreign_memory_bytes": 2.0**31}
    assert [text.split(": ")[1] for text in watch.warnings(5.0, 15.0)] == ["pid 5000, 7 B"]
    assert "pid 99, 2.00 GiB" in watch.warnings(15.0, 25.0)[0].replace("(", "").replace(")", "")
    assert watch.warnings(21.0, 30.0) == []
    watch.engine(None)
    assert source.read() == rest
    source.close()


def test_nvidia_devices() -> None:
    (gpu, _), reason = devices(FakeNvml())
    assert reason is None
    assert (gpu.name, gpu.memory_bytes, gpu.driver, gpu.cuda) == ("NVIDIA H100", 80, "580.95", "13.1")
    assert (gpu.power_limit_w, gpu.mig, gpu.processes) == (700.0, False, (GpuProcess(7, None),))
    assert (gpu.ecc, gpu.sm_clock_max_mhz, gpu.pcie) == (True, 1980.0, "5.0 x16")
    nvml = FakeNvml(1, nvmlDeviceGetMemoryInfo=3, nvmlDeviceGetMigMode=3, nvmlDeviceGetComputeRunningProcesses=4)
    (bare,), _ = devices(nvml)
    assert (bare.memory_bytes, bare.mig, bare.processes) == (None, None, None)
    assert nvml.opened == 0


# --- processors -----------------------------------------------------------------------------------


def _zone(folder: Path, number: str, name: str, energy_uj: int) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    return zone


def test_rapl_counts_on_where_the_counter_starts_again(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "0", "package-0", 999_000_000)
    _zone(tmp_path, "0:0", "core", 1)  # a part of the package: not counted twice
    _zone(tmp_path, "0:1", "dram", 5_000_000)
    sources, reason = rapl_sources(tmp_path)
    assert ([source.name for source in sources], reason) == (["rapl:package-0", "rapl:dram-0"], None)
    clock = Clock(0.0)
    package = RaplSource(zone, "package-0", clock)
    assert package.read() == {"energy_j": 999.0}
    clock.now_s = 0.5
    (zone / "energy_uj").write_text("4000000\n")
    assert package.read() == {"energy_j": 1004.0, "power_w": 10.0}


def test_rapl_says_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rapl_sources(tmp_path / "none") == ([], "this machine shows no RAPL counters (/sys/class/powercap)")
    zone = _zone(tmp_path, "0", "package-0", 1)
    (zone / "energy_uj").write_text("")
    assert "cannot be read" in str(rapl_sources(tmp_path)[1])
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()  # as unreadable for root, who runs these tests, as a file of root is for others
    assert "by root alone" in str(rapl_sources(tmp_path)[1])


# --- the watch of a run ----------------------------------------------------------------------------


class _Journal:
    def __init__(self) -> None:
        self.samples: list[TelemetrySample] = []
        self.add = self.samples.append

    def due(self) -> bool:
        return False

    def close(self) -> None:
        pass


def test_a_run_measures_idle_power_and_names_who_shares_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(1)
    began_s = time.monotonic()
    nvml.answers["nvmlDeviceGetTotalEnergyConsumption"] = lambda gpu: 70_000 * (time.monotonic() - began_s)
    nvml.running = _on_gpu((99_999_999, 2**30))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(watching, "IDLE_S", 0.1)
    record, journal, said = RunRecord("x", {}, "", "", began_s, ""), _Journal(), []
    engine: Any = SimpleNamespace(command=["x"], pids=lambda: [os.getpid()], sources=list)
    with Watch(journal, record, said.append) as watch:  # type: ignore[arg-type]
        watch.idle(lambda: said.append("idle"))
        watch.idle(lambda: said.append("idle"))  # once a run
        watch.engine_starts(engine, "a")
        watch.engine_started(engine)
        assert [fact.name for fact in watch.engine_ready(engine)] == ["load_disk_read_bytes"]
        since_s = watch.refresh()
        warnings = watch.strangers(since_s)
        watch.engine_stops()
        watch.engine_stopped()
    assert said == ["idle"]
    assert record.environment["idle_power_w"]["nvidia:0"] == pytest.approx(70, rel=0.05)
    from_s, to_s = record.environment["idle_window_s"]
    assert to_s - from_s >= 0.1
    assert len(warnings) == 1
    assert "GPU 0 while this was measured: pid 99999999, 1.00 GiB" in warnings[0]
    assert {"host", "cores", "nvidia:0"} <= record.environment["telemetry_paces"].keys()
    assert {s.engine for s in journal.samples if s.metric == "foreign_processes"} == {"a"}
    assert nvml.opened == 0


def test_idle_power_without_an_energy_counter() -> None:
    samples = [TelemetrySample(float(n), None, "nvidia:0", "power_w", 60.0 + n) for n in range(7)]
    assert watching.idle_power_w(samples) == {"nvidia:0": 63.0}
    assert watching.idle_power_w([]) == {}


# --- servers -------------------------------------------------------------------------------------

PAGE_0_32 = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/m/tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="/m/tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="/m/tiny",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="/m/tiny"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="/m/tiny"} 9220.0
vllm:prefix_cache_queries_created{engine="0",model_name="/m/tiny"} 1.795305976995198e+09
vllm:prefix_cache_hits_total{engine="0",model_name="/m/tiny"} 0.0
vllm:num_preemptions_total{engine="0",model_name="/m/tiny"} 0.0
vllm:prompt_tokens_total{engine="0",model_name="/m/tiny"} 9220.0
vllm:generation_tokens_total{engine="0",model_name="/m/tiny"} 13214.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="/m/tiny"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="/m/tiny"} 3.287459135055542
vllm:inter_token_latency_seconds_count{engine="0",model_name="/m/tiny"} 13145.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="/m/tiny"} 101.97813759899736
vllm:request_success_total{engine="0",finished_reason="stop",model_name="/m/tiny"} 2.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="/m/tiny"} 67.0
vllm:request_success_created{engine="0",finished_reason="stop",model_name="/m/tiny"} 1.795305976995286e+09
vllm:iteration_tokens_total_count{engine="0",model_name="/m/tiny"} 4211.0
vllm:iteration_tokens_total_sum{engine="0",model_name="/m/tiny"} 22434.0
vllm:request_time_per_output_token_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_time_per_output_token_seconds_sum{engine="0",model_name="/m/tiny"} 0.535
vllm:e2e_request_latency_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="/m/tiny"} 105.25
vllm:request_queue_time_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="/m/tiny"} 0.125
vllm:request_prefill_time_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="/m/tiny"} 3.0
vllm:request_decode_time_seconds_count{engine="0",model_name="/m/tiny"} 69.0
vllm:request_decode_time_seconds_sum{engine="0",model_name="/m/tiny"} 101.97
"""


def test_vllm_page() -> None:
    assert read_metrics(PAGE_0_32) == {
        "running": 3, "waiting": 0, "kv_used_ratio": 0.25, "preemptions_total": 0, "prompt_tokens_total": 9220,
        "generation_tokens_total": 13214, "prefix_cache_queries_total": 9220, "prefix_cache_hits_total": 0,
        "ttft_sum_s": 3.287459135055542, "ttft_count": 69, "itl_sum_s": 101.97813759899736, "itl_count": 13145,
        "tpot_sum_s": 0.535, "tpot_count": 69, "e2e_sum_s": 105.25, "e2e_count": 69, "queue_sum_s": 0.125,
        "queue_count": 69, "prefill_sum_s": 3, "prefill_count": 69, "decode_sum_s": 101.97, "decode_count": 69,
        "finished_total": 69, "steps_total": 4211, "steps_tokens_total": 22434,
    }  # fmt: skip


def test_vllm_older_names_several_engines_and_missing_values() -> None:
    page = """\
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:gpu_cache_usage_perc{engine="0"} 0.2
vllm:gpu_cache_usage_perc{engine="1"} 0.4
vllm:num_requests_waiting{engine="0"} NaN
vllm:time_per_output_token_seconds_sum 1.5
vllm:time_per_output_token_seconds_count 10
"""
    assert read_metrics(page) == {"running": 7, "kv_used_ratio": pytest.approx(0.3), "itl_sum_s": 1.5, "itl_count": 10}
    assert read_metrics("") == read_metrics("<html>no metrics here</html>") == {}


def test_prometheus_lines() -> None:
    page = r"""
# TYPE a counter
a{x="1",y="with \"quotes\", a , and }\\ \n"} 1.5 1395066363000
b 2e3
 torn
c{x="1"
d{} +Inf
e abc
"""
    found = list(parse(page))
    assert found == [
        PrometheusSample("a", {"x": "1", "y": 'with "quotes", a , and }\\ \n'}, 1.5),
        PrometheusSample("b", {}, 2000.0),
        PrometheusSample("d", {}, math.inf),
    ]
    assert [sample.name for sample in parse(page, {"b", "d"})] == ["b", "d"]


def test_ollama_page() -> None:
    row = {
        "name": "tiny:latest",
        "model": "tiny:latest",
        "size": 21705522,
        "size_vram": 1572864,
        "context_length": 2048,
    }
    whole = {"loaded": 1, "size_bytes": 21705522, "size_vram_bytes": 1572864, "context_tokens": 2048}
    for model in ("tiny", "tiny:latest"):
        assert read_ps({"models": [row]}, model) == whole
    assert read_ps({"models": [row]}, "tiny:8b") == read_ps({"models": None}, "tiny") == {"loaded": 0}
    assert read_ps({"models": [{"name": "host:5000/tiny:latest"}]}, "host:5000/tiny") == {"loaded": 1}


class _Handler(BaseHTTPRequestHandler):
    release = threading.Event()

    def do_GET(self) -> None:
        if self.path.startswith("/hang"):
            self.release.wait(20)
            return
        body = {"/metrics": PAGE_0_32, "/api/ps": json.dumps({"models": []})}.get(self.path, "broken")
        self.send_response(500 if body == "broken" else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.release = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        _Handler.release.set()
        httpd.shutdown()
        thread.join()


def test_sources_of_a_real_server(server: str) -> None:
    assert VllmSource(f"{server}/metrics", 20.0).read()["running"] == 3
    assert OllamaSource(f"{server}/", "tiny", 20.0).read() == {"loaded": 0}
    for source in (VllmSource(f"{server}/500", 20.0), OllamaSource(f"{server}/500", "tiny", 20.0)):
        with pytest.raises(HttpError) as refused:
            source.read()
        assert refused.value.status == 500


def test_sources_of_a_hanging_server_give_up(server: str) -> None:
    for source in (VllmSource(f"{server}/hang", 0.05), OllamaSource(f"{server}/hang", "tiny", 0.05)):
        with pytest.raises(HttpError, match="no answer within"):
            source.read()


def test_a_hanging_server_in_the_sampler(server: str) -> None:
    samples: list[TelemetrySample] = []
    warnings: list[str] = []
    local = Counting("local", 30)
    hanging = VllmSource(f"{server}/hang", 0.05)
    sampler = Sampler([hanging, local], samples.append, on_warning=warnings.append)
    sampler.start()
    assert local.done.wait(10)
    _until(lambda: bool(warnings))
    sampler.stop()
    assert {sample.source for sample in samples} == {"local"}
    assert len([text for text in warnings if "telemetry vllm: http" in text]) == 1
