"""NVIDIA GPUs through NVML (`pynvml` of nvidia-ml-py), imported only when asked for and absent without error.

Source: https://docs.nvidia.com/deploy/nvml-api. NVML answers per call whether a device supports it: what it does not
support is no value here, never 0.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

PERIOD_S: Final = 1.0
"""NVML renews utilization every 1/6 to 1 s and averages power over up to 1 s: reading more often adds cost alone."""
COUNTER_PERIOD_S: Final = 5.0
"""What a counter grew by needs no more than its ends, which a run reads anyway; of the energy's a read takes 3.5 ms."""
NO_DRIVER: Final = "no NVIDIA driver (libnvidia-ml.so.1 was not found)"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute process that holds the GPU; its memory is None where NVML does not tell (containers, MIG, WSL)."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU as the environment describes it. None: not supported, or not told.

    `cuda` is the newest CUDA version that the driver serves. `processes` is None where they can't be listed.
    `sm_clock_max_mhz` is what its clock is measured against where it was throttled.
    """

    index: int
    name: str | None
    memory_bytes: int | None
    driver: str | None
    cuda: str | None
    power_limit_w: float | None
    mig: bool | None
    processes: tuple[GpuProcess, ...] | None
    ecc: bool | None = None
    sm_clock_max_mhz: float | None = None
    pcie: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that engines may use: NVML's number and handle of it, and the handles whose memory counts: its own, or
    those of the MIG slices of it that engines may use."""

    index: int
    handle: Any
    memory: tuple[Any, ...]


class NvidiaSource:
    """One GPU: `utilization_ratio`, `memory_busy_ratio`, `memory_used_bytes`, `memory_total_bytes`, `power_w`,
    `sm_clock_mhz`, `throttle_reasons` (NVML's bit mask).

    Utilization is the share of time in which any kernel ran, not how full the GPU was. On Ampere and later `power_w` is
    NVML's mean over a second; the difference of `energy_j` is the better figure of a window. Where engines use MIG
    slices, memory is that of the slices; power, energy and clocks are the whole board's, as there are no others.
    """

    period_s = PERIOD_S

    def __init__(self, nvml: Any, gpu: Gpu, calls: list[Callable[[], dict[str, float]]] | None = None) -> None:
        self.name = f"nvidia:{gpu.index}"
        nvml.nvmlInit()  # counted by NVML: each source holds the library until its own close()
        self._nvml = nvml
        self._calls = _calls(nvml, gpu) if calls is None else calls

    def read(self) -> dict[str, float]:
        """Raises NVMLError: no call succeeds any more (the GPU fell off the bus, the driver was unloaded)."""
        return ask_all(self._nvml, self._calls)

    def close(self) -> None:
        self._nvml.nvmlShutdown()


class NvidiaEnergySource(NvidiaSource):
    """One GPU: `energy_j`, a counter since the driver was loaded."""

    period_s = COUNTER_PERIOD_S

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        super().__init__(nvml, gpu, [lambda: {"energy_j": nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1000}])
        self.label = f"{self.name} (energy)"


def ask_all(nvml: Any, calls: list[Callable[[], dict[str, float]]]) -> dict[str, float]:
    """What all calls give together; one that this GPU or binding does not know is taken out of it for good.

    Raises:
        NVMLError: not one of them succeeded.
    """
    values: dict[str, float] = {}
    failed: Exception | None = None
    for call in list(calls):
        try:
            values |= call()
        except AttributeError:  # an older binding
            calls.remove(call)
        except nvml.NVMLError as error:
            if _unsupported(nvml, error):
                calls.remove(call)  # it never will be: don't pay for asking again
            else:
                failed = error
    if not values and failed is not None:
        raise failed
    return values


def nvidia_sources(
    nvml: Any = None, visible: str | None = None, make: Callable[[Any, Gpu], list[Any]] | None = None
) -> tuple[list[Any], str | None]:
    """The sources that `make` gives for each GPU (default: its `NvidiaSource`), and the reason when there is none.

    `visible` is a list as CUDA_VISIBLE_DEVICES holds (numbers or UUIDs; default: that variable): a GPU that engines
    can't use must not add its idle power to theirs. If NVML knows nothing of it, all GPUs are read.
    """
    nvml, reason = _opened(nvml)
    if nvml is None:
        return [], reason
    make = make or (lambda nvml, gpu: [NvidiaSource(nvml, gpu)])
    try:
        gpus = _visible(nvml, os.environ.get("CUDA_VISIBLE_DEVICES", "") if visible is None else visible)
        return [source for gpu in gpus for source in make(nvml, gpu)], None
    except nvml.NVMLError as error:
        return [], f"NVML: {error}"
    finally:
        nvml.nvmlShutdown()


def devices(nvml: Any = None) -> tuple[list[GpuDevice], str | None]:
    """All GPUs of the machine for the environment's description, and the reason when there is none."""
    nvml, reason = _opened(nvml)
    if nvml is None:
        return [], reason
    try:
        return [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())], None
    except nvml.NVMLError as error:
        return [], f"NVML: {error}"
    finally:
        nvml.nvmlShutdown()


def _opened(nvml: Any) -> tuple[Any, str | None]:
    """NVML, initialised and with at least one device, or None and what is missing."""
    if nvml is None and "pynvml" not in sys.modules and not _has_driver():
        return None, NO_DRIVER
    try:
        nvml = importlib.import_module("pynvml") if nvml is None else nvml
    except ImportError:
        return None, "the library nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if _is(nvml, error, "NVML_ERROR_LIBRARY_NOT_FOUND"):
            return None, NO_DRIVER
        if _is(nvml, error, "NVML_ERROR_DRIVER_NOT_LOADED"):
            return None, "the NVIDIA driver is installed but not loaded"
        return None, f"NVML: {error}"
    if _told(nvml, nvml.nvmlDeviceGetCount):
        return nvml, None
    nvml.nvmlShutdown()
    return None, "the NVIDIA driver is loaded but there is no GPU"


def _has_driver() -> bool:
    """Whether NVML may be there. Asking for the library itself is ten times as fast as importing what speaks to it."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _calls(nvml: Any, of: Gpu) -> list[Callable[[], dict[str, float]]]:
    """One call of NVML each, with its units turned into ours: mW and percent come in."""
    gpu = of.handle

    def memory() -> dict[str, float]:
        held = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in of.memory]
        return {
            "memory_used_bytes": float(sum(each.used for each in held)),
            "memory_total_bytes": float(sum(each.total for each in held)),
        }

    def busy() -> dict[str, float]:
        rates = nvml.nvmlDeviceGetUtilizationRates(gpu)
        return {"utilization_ratio": rates.gpu / 100, "memory_busy_ratio": rates.memory / 100}

    return [
        busy,
        memory,
        lambda: {"power_w": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000},
        lambda: {"sm_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))},
        # The older of two names for one thing: every driver still has it.
        lambda: {"throttle_reasons": float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))},
    ]


def _device(nvml: Any, index: int) -> GpuDevice:
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _told(nvml, nvml.nvmlDeviceGetMemoryInfo, gpu)
    cuda = _told(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    limit_mw = _told(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)
    mig = _told(nvml, nvml.nvmlDeviceGetMigMode, gpu)
    running = _told(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, gpu)
    ecc, clock = (_told(nvml, nvml.nvmlDeviceGetEccMode, gpu),
                  _told(nvml, nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_SM))  # fmt: skip
    lanes = _told(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, gpu)
    generation = _told(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, gpu)
    return GpuDevice(
        index=index,
        name=_text(_told(nvml, nvml.nvmlDeviceGetName, gpu)),
        memory_bytes=None if memory is None else int(memory.total),
        driver=_text(_told(nvml, nvml.nvmlSystemGetDriverVersion)),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        mig=None if mig is None else bool(mig[0]),
        processes=None if running is None else tuple(GpuProcess(int(p.pid), p.usedGpuMemory) for p in running),
        ecc=None if ecc is None else bool(ecc[0]),
        sm_clock_max_mhz=None if clock is None else float(clock),
        pcie=None if lanes is None or generation is None else f"{generation}.0 x{lanes}",
    )


def _visible(nvml: Any, visible: str) -> list[Gpu]:
    # CUDA numbers the fastest GPU first, NVML goes by bus, unless CUDA_DEVICE_ORDER=PCI_BUS_ID: the same on like GPUs.
    count = nvml.nvmlDeviceGetCount()
    wanted = [part.strip() for part in visible.split(",") if part.strip()]
    numbers = [int(part) for part in wanted if part.isdecimal() and int(part) < count]
    uuids = [part for part in wanted if part.startswith("GPU-")]
    for index in range(count if uuids else 0):
        own = _text(_told(nvml, nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetHandleByIndex(index))) or ""
        numbers += [index for uuid in uuids if own.startswith(uuid)]
    slices = _slices(nvml, [part for part in wanted if part.startswith("MIG-")])
    found = []
    for index in sorted({*numbers, *slices}) or range(count):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        found.append(Gpu(index, handle, tuple(slices.get(index, ())) or (handle,)))
    return found


def _slices(nvml: Any, uuids: list[str]) -> dict[int, list[Any]]:
    """Handles of these MIG slices, by the number of the GPU that each is a part of."""
    found: dict[int, list[Any]] = {}
    for uuid in uuids:
        part = _told(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
        whole = None if part is None else _told(nvml, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, part)
        index = None if whole is None else _told(nvml, nvml.nvmlDeviceGetIndex, whole)
        if index is not None:
            found.setdefault(int(index), []).append(part)
    return found


def _told(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of one call of NVML, None where it refuses."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def _unsupported(nvml: Any, error: Exception) -> bool:
    names = ("NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION")
    return any(_is(nvml, error, name) for name in names)


def _is(nvml: Any, error: Exception, name: str) -> bool:
    return bool(getattr(error, "value", None) == getattr(nvml, name))


def _text(value: object) -> str | None:
    """Older bindings answer in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
