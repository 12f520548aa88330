"""The hardware as the user names it: of the catalogue, a YAML file of his own, or `auto`: this machine as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.units import parse_size_bytes
from sizing.catalog import Hardware, hardware

GIB = 1024**3
_KEYS = {
    "name", "memory", "bandwidth_gbs", "fp16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops", "tdp_w", "kind", "cores",
    "clock_ghz", "family",
}  # fmt: skip
_LEAST_BYTES = 64 * 1024**2
_KINDS = ("hbm", "gddr", "unified", "apple", "cpu")


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and how many of it."""

    hardware: Hardware
    count: int
    notes: tuple[str, ...] = ()


def find_machine(name: str, memory: str | None = None) -> Machine:
    """`auto`, a file that ends in .yaml, or a name; `memory` replaces the size ("22GiB").

    Raises:
        InputError: nothing of that name, a wrong file, a wrong size, or no GPU for `auto` and an unknown CPU.
    """
    if name == "auto":
        machine = _detected()
    elif name.endswith((".yaml", ".yml")):
        machine = Machine(_own(Path(name)), 1)
    else:
        from sizing.hardware_names import split_count

        try:
            machine = Machine(_named(name, memory), split_count(name)[0])
        except LookupError as error:
            raise InputError(
                str(error.args[0]),
                "see `bench advise --list hardware`, or describe yours in a YAML file (docs/advise.md)",
            ) from None
    if memory is None:
        return machine
    try:
        size = parse_size_bytes(memory)
    except ValueError as error:
        raise InputError(f"--memory: {error}", "write for example --memory 22GiB") from None
    if size < _LEAST_BYTES:
        raise InputError(f"--memory {memory} is {size} bytes: too little", "write for example --memory 22GiB")
    return dataclasses.replace(machine, hardware=dataclasses.replace(machine.hardware, usable_gib=size / GIB))


def _named(name: str, memory: str | None) -> Hardware:
    """A name of the catalogue; where it fits boards of several sizes, `memory` tells which. Raises LookupError."""
    try:
        return hardware(name)
    except LookupError:
        if memory is None:
            raise
        with contextlib.suppress(ValueError, LookupError):
            return hardware(f"{name} {parse_size_bytes(memory) / GIB:.0f}GB")
        raise


def _own(path: Path) -> Hardware:
    import yaml  # here, as is psutil: a name of the catalogue needs neither, and `bench advise` is to answer at once

    try:
        data: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "give a YAML file as docs/advise.md shows it") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no mapping", "write `name:`, `memory:` and `bandwidth_gbs:`")
    if unknown := sorted(set(map(str, data)) - _KEYS):
        raise InputError(f"{path}: unknown key '{unknown[0]}'", f"known are: {', '.join(sorted(_KEYS))}")
    try:
        kind = str(data.get("kind", "gddr"))
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}")
        return Hardware(
            name=str(data["name"]),
            vendor="own",
            kind=kind,
            memory_gib=_memory_gib(data["memory"]),
            bandwidth_gbs=_positive(data, "bandwidth_gbs"),
            fp16_tflops=_maybe(data, "fp16_tflops"),
            fp8_tflops=_maybe(data, "fp8_tflops"),
            int8_tops=_maybe(data, "int8_tops"),
            tdp_w=_maybe(data, "tdp_w"),
            source=str(path),
            verified="as the user states",
            fp4_tflops=_maybe(data, "fp4_tflops"),
            family=str(data.get("family", "")),
            cores=int(_positive(data, "cores")) if "cores" in data else None,
            clock_ghz=_maybe(data, "clock_ghz"),
            usable_gib=_memory_gib(data["memory"]),
        )
    except KeyError as error:
        raise InputError(f"{path}: lacks {error.args[0]}", "name, memory and bandwidth_gbs are needed") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}", "see docs/advise.md") from None


def _maybe(data: dict[str, Any], key: str) -> float | None:
    return _positive(data, key) if data.get(key) is not None else None


def _memory_gib(size: Any) -> float:
    """Raises ValueError."""
    found = parse_size_bytes(size)
    if found < _LEAST_BYTES:
        raise ValueError(f"memory {size} is {found} bytes: write for example 22GiB")
    return found / GIB


def _positive(data: dict[str, Any], key: str) -> float:
    """Raises ValueError."""
    value = float(data[key])
    if not 0 < value < math.inf:
        raise ValueError(f"{key} must be a number above 0, not {data[key]}")
    return value


def _detected() -> Machine:
    """The first GPU and those like it with their free memory; without a GPU, this CPU with its free memory."""
    from harness.telemetry import nvidia

    gpus, reason = nvidia.devices()
    if not gpus:
        return _cpu(reason or "no GPU was found")
    first = gpus[0]
    like = [gpu for gpu in gpus if gpu.name == first.name]
    try:
        known = _named(first.name or "", f"{round(first.memory_bytes / GIB)}GiB" if first.memory_bytes else None)
    except LookupError as error:
        raise InputError(
            f"this machine's GPU is not in the catalogue: {error.args[0]}",
            "describe it in a YAML file (docs/advise.md)",
        ) from None
    free = [_free_bytes(gpu.index) for gpu in like]
    sizes = [size for size in free if size is not None] or [gpu.memory_bytes for gpu in like if gpu.memory_bytes]
    notes = (f"{len(like)} x {first.name}; the least free memory counts: {min(sizes) / GIB:.1f} GiB",) if sizes else ()
    usable = min(sizes) / GIB if sizes else None
    return Machine(dataclasses.replace(known, usable_gib=usable), len(like), notes)


def _free_bytes(index: int) -> int | None:
    """Free memory of a GPU, None when NVML does not tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).free)
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML's errors have no common type without it; a size is a bonus here
        return None


def _cpu(reason: str) -> Machine:
    """This CPU: its bandwidth is taken as two channels of DDR4, the least that a machine of today has."""
    base = hardware("CPU dual-channel DDR4-3200")
    from harness.receipts import read

    measured = [r["bandwidth_gbs"] for r in read("host") if r.get("bandwidth_gbs")]
    if measured:
        base = dataclasses.replace(base, bandwidth_gbs=float(measured[-1]), source="bench calibrate hardware")
    import psutil

    free = psutil.virtual_memory().available / GIB
    name = f"this machine's CPU ({psutil.cpu_count(logical=False) or '?'} cores)"
    how = "measured by bench calibrate hardware" if measured else "assumed: `bench calibrate hardware` measures it"
    note = f"{reason}; memory bandwidth {base.bandwidth_gbs:.1f} GB/s, {how}"
    return Machine(dataclasses.replace(base, name=name, usable_gib=free), 1, (note,))
