"""NVIDIA's GPUs through a fake NVML, processors through files, and the watch of a run over both."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import watch as watching
from harness.records import RunRecord, TelemetrySample
from harness.telemetry import nvidia_detail
from harness.telemetry.nvidia import GpuProcess, NvidiaEnergySource, NvidiaSource, devices, nvidia_sources
from harness.telemetry.nvidia_detail import GpuWatch, NvidiaDetailSource, NvidiaPcieSource
from harness.telemetry.rapl import RaplSource, rapl_sources
from harness.watch import Watch
from tests.sources import Clock


class FakeNvml:
    """As much of pynvml as is used. `broken` maps a function's name to the error code that it raises."""

    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION, NVML_ERROR_DRIVER_NOT_LOADED = 3, 4, 9
    NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_GPU_IS_LOST = 12, 13, 15
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2
    NVML_VOLATILE_ECC, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 0, 1
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 138, 139

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
    "power_w": 350.5, "sm_clock_mhz": 1980.0,
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
    (source, energy), _ = nvidia_sources(
        nvml, "", lambda nvml, gpu: [NvidiaSource(nvml, gpu), NvidiaEnergySource(nvml, gpu)]
    )
    lacking = ("utilization_ratio", "memory_busy_ratio")
    for _ in range(2):
        assert source.read() == {k: v for k, v in WHOLE.items() if k not in lacking}
        assert energy.read() == {}
    assert nvml.calls.count("nvmlDeviceGetUtilizationRates") == 1
    assert nvml.calls.count("nvmlDeviceGetTotalEnergyConsumption") == 1


def test_nvidia_what_an_older_binding_lacks_is_no_value() -> None:
    nvml = FakeNvml(1)
    del nvml.answers["nvmlDeviceGetPcieThroughput"], nvml.answers["nvmlDeviceGetTotalEccErrors"]
    del nvml.answers["nvmlDeviceGetTotalEnergyConsumption"]
    make = lambda nvml, gpu: [  # noqa: E731
        NvidiaDetailSource(nvml, gpu, GpuWatch()), NvidiaPcieSource(nvml, gpu), NvidiaEnergySource(nvml, gpu)
    ]  # fmt: skip
    (source, pcie, energy), _ = nvidia_sources(nvml, "", make)
    assert pcie.read() == energy.read() == {}
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
    make = lambda nvml, gpu: [  # noqa: E731
        NvidiaDetailSource(nvml, gpu, watch), NvidiaPcieSource(nvml, gpu), NvidiaEnergySource(nvml, gpu)
    ]  # fmt: skip
    (source, pcie, energy), _ = nvidia_sources(nvml, "", make)
    assert pcie.read() == {"pcie_rx_bytes_s": 2e6, "pcie_tx_bytes_s": 1e6}
    assert energy.read() == {"energy_j": 12000.0}
    rest = {
        "temperature_c": 55.0,
        "memory_clock_mhz": 2619.0,
        "ecc_corrected_total": 3.0,
        "ecc_uncorrected_total": 4.0,
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
    for each in (source, pcie, energy):
        each.close()


def test_nvlink_traffic_is_the_growth_of_its_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, clock, sent, failing = FakeNvml(2), Clock(0.0), {138: 500, 139: 0}, 0
    monkeypatch.setattr(nvidia_detail.time, "monotonic", clock)
    nvml.answers["nvmlDeviceGetFieldValues"] = lambda gpu, fields: [
        SimpleNamespace(nvmlReturn=failing, value=SimpleNamespace(ullVal=sent[number])) for number, _ in fields
    ]
    watch = GpuWatch(clock)
    sources, _ = nvidia_sources(nvml, "", lambda nvml, gpu: [NvidiaDetailSource(nvml, gpu, watch)])
    assert not [name for name in sources[1].read() if "nvlink" in name]  # nothing to compare with yet
    clock.now_s, sent[138], sent[139] = 4.0, 500 + 4096, 1024
    read = sources[1].read()
    assert (read["nvlink_tx_bytes_s"], read["nvlink_rx_bytes_s"]) == (1024 * 1024, 256 * 1024)
    clock.now_s, sent[138] = 5.0, 0  # the driver was loaded anew
    assert "nvlink_tx_bytes_s" not in sources[1].read()
    failing = nvml.NVML_ERROR_NOT_SUPPORTED
    nvml.calls.clear()
    assert "temperature_c" in sources[1].read()
    sources[1].read()
    assert nvml.calls.count("nvmlDeviceGetFieldValues") == 1  # asked no more


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


# --- processors --------------------------------------------------------------------------------


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


# --- the watch of a run ----------------------------------------------------------------------


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
        asked = nvml.calls.count("nvmlDeviceGetTotalEnergyConsumption")
        past, future = watch.now(), watch.now() + 1e9
        for window in ((None, None), (future, future), (past, future), (past, future), (past, past), (past, past)):
            watch.window(*window)
        grown = nvml.calls.count("nvmlDeviceGetTotalEnergyConsumption") - asked
        warnings = watch.strangers(since_s)
        watch.engine_stops()
        watch.engine_stopped()
    assert said == ["idle"]
    assert grown == 2, "read as the window opens and as it closes"
    asked = [nvml.calls.count(f"nvmlDeviceGet{name}") for name in ("TotalEnergyConsumption", "PcieThroughput")]
    assert asked[0] > asked[1] / 2, "counters are read at the ends of what is measured, traffic (two calls) is not"
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
