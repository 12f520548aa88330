"""What is dear to ask of a GPU, or slow to change: PCIe traffic, ECC errors, and whose processes hold it.

NVML measures PCIe traffic while it is asked, over 20 ms in each direction: hence rarely, and by a source of its own in
the sampler's second thread, for which nothing waits. Source: https://docs.nvidia.com/deploy/nvml-api.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import psutil

from harness.telemetry.nvidia import Gpu, NvidiaSource
from harness.units import show_bytes

PERIOD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process of somebody else, seen on a GPU at `time_s` of the watch's clock; its memory None where NVML does not
    tell."""

    time_s: float
    gpu: int
    pid: int
    name: str
    memory_bytes: int | None


class GpuWatch:
    """Tells the processes of the engine under test from all others on the GPUs.

    Another's is one that was there before the engine started, or that this machine's own process table knows and the
    engine's family does not. In a container NVML may give numbers of the host's process table, which mean nothing here:
    a process that only came after the engine's start is then taken for the engine's.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, exists: Callable[[int], bool] = psutil.pid_exists
    ) -> None:
        self._clock, self._exists = clock, exists
        self._family: Callable[[], Iterable[int]] | None = None
        self._present: dict[int, set[int]] = {}
        self._before: dict[int, set[int]] = {}
        self.sightings: list[Sighting] = []

    def engine(self, pids: Callable[[], Iterable[int]] | None) -> None:
        """An engine of ours is about to start (its family from now on: `pids`), or has ended (None)."""
        self._family = pids
        self._before = {gpu: set(present) for gpu, present in self._present.items()}

    def look(self, gpu: int, running: list[Any]) -> dict[str, float]:
        """What the compute processes of one GPU (as NVML lists them) mean; no figure while no engine of ours runs."""
        self._present[gpu] = {int(process.pid) for process in running}
        if self._family is None:
            return {}
        family, before, now_s = set(self._family()), self._before.get(gpu, set()), self._clock()
        others = [
            process
            for process in running
            if process.pid not in family and (process.pid in before or self._exists(int(process.pid)))
        ]
        for process in others:
            pid = int(process.pid)
            self.sightings.append(Sighting(now_s, gpu, pid, _name(pid), process.usedGpuMemory))
        ours = [process.usedGpuMemory for process in running if process.pid in family]
        values = {"foreign_processes": float(len(others))}
        if others and all(process.usedGpuMemory is not None for process in others):
            values["foreign_memory_bytes"] = float(sum(process.usedGpuMemory for process in others))
        if ours and None not in ours:
            values["engine_memory_bytes"] = float(sum(ours))
        return values

    def warnings(self, from_s: float, to_s: float) -> list[str]:
        """One line for each process of somebody else that was seen on a GPU within these times of the clock."""
        last = {(s.gpu, s.pid): s for s in self.sightings if from_s <= s.time_s <= to_s}
        return [
            f"another process was on GPU {seen.gpu} while this was measured: {seen.name}"
            + (f", {show_bytes(seen.memory_bytes)}" if seen.memory_bytes is not None else "")
            + ": these figures are of a shared GPU; end it and measure again"
            for seen in last.values()
        ]


class NvidiaDetailSource(NvidiaSource):
    """One GPU: `temperature_c`, `memory_clock_mhz`, `ecc_corrected_total`, `ecc_uncorrected_total` (since the driver
    was loaded), `engine_memory_bytes` (of the engine's processes), `foreign_processes` and `foreign_memory_bytes` (of
    others'), `nvlink_rx_bytes_s`, `nvlink_tx_bytes_s` (of all its NVLinks together, the mean since the last read; where
    there are several GPUs)."""

    period_s = PERIOD_S
    blocking = True

    def __init__(self, nvml: Any, gpu: Gpu, watch: GpuWatch) -> None:
        super().__init__(nvml, gpu, _calls(nvml, gpu, watch))
        self.label = f"{self.name} (ECC, NVLink, processes)"


class NvidiaPcieSource(NvidiaSource):
    """One GPU: `pcie_rx_bytes_s`, `pcie_tx_bytes_s`, over 20 ms each."""

    period_s = PERIOD_S
    blocking = True

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        def traffic(way: Any) -> float:
            return 1e3 * float(nvml.nvmlDeviceGetPcieThroughput(gpu.handle, way))

        calls: list[Callable[[], dict[str, float]]] = [
            lambda: {"pcie_rx_bytes_s": traffic(nvml.NVML_PCIE_UTIL_RX_BYTES)},
            lambda: {"pcie_tx_bytes_s": traffic(nvml.NVML_PCIE_UTIL_TX_BYTES)},
        ]
        super().__init__(nvml, gpu, calls)
        self.label = f"{self.name} (PCIe)"


def _calls(nvml: Any, of: Gpu, watch: GpuWatch) -> list[Callable[[], dict[str, float]]]:
    gpu = of.handle

    def errors(kind: Any) -> float:
        return float(nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, nvml.NVML_VOLATILE_ECC))

    def processes() -> dict[str, float]:
        return watch.look(of.index, [p for each in of.memory for p in nvml.nvmlDeviceGetComputeRunningProcesses(each)])

    # One GPU alone has nobody to talk to over NVLink.
    links = [_Links(nvml, gpu).read] if nvml.nvmlDeviceGetCount() > 1 else []
    return [
        processes,
        *links,
        lambda: {"temperature_c": float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU))},
        lambda: {"memory_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM))},
        lambda: {"ecc_corrected_total": errors(nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)},
        lambda: {"ecc_uncorrected_total": errors(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)},
    ]


class _Links:
    """The data of all NVLinks of a GPU, as rates between two reads of NVML's counters (KiB since the driver was
    loaded). They count what is sent, not what could be: NVML's raw counters have the protocol's own bytes, too."""

    FIELDS: Final = (("nvlink_tx_bytes_s", "TX"), ("nvlink_rx_bytes_s", "RX"))
    ALL: Final = 0xFFFFFFFF

    def __init__(self, nvml: Any, gpu: Any) -> None:
        self._nvml, self._gpu = nvml, gpu
        self._before: tuple[float, list[int]] | None = None

    def read(self) -> dict[str, float]:
        """Nothing at the first read. Raises NVMLError: this GPU has none, or the driver does not count them."""
        nvml, now_s = self._nvml, time.monotonic()
        numbers = [getattr(nvml, f"NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_{way}") for _, way in self.FIELDS]
        told = nvml.nvmlDeviceGetFieldValues(self._gpu, [(number, self.ALL) for number in numbers])
        if failed := next((field.nvmlReturn for field in told if field.nvmlReturn), None):
            raise nvml.NVMLError(failed)
        counted = [int(field.value.ullVal) for field in told]
        before, self._before = self._before, (now_s, counted)
        if before is None or now_s <= before[0] or any(new < old for new, old in zip(counted, before[1], strict=True)):
            return {}
        grown = zip(self.FIELDS, counted, before[1], strict=True)
        return {name: 1024 * (new - old) / (now_s - before[0]) for (name, _), new, old in grown}


def _name(pid: int) -> str:
    """`python3 (pid 4711)`; a process of another process table has a number only."""
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except (psutil.Error, ValueError):
        return f"pid {pid}"
