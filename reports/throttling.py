"""Points at which the machine held the engine back: a GPU's clocks, a container's CPU quota, swapping, GPUs that talk
through the host though links join them. Pure."""

from __future__ import annotations

import numpy as np

from harness.metrics import METRICS, THROTTLED, Measured
from harness.records import PointRun
from harness.units import show_bytes
from reports.rows import load_label

SHARE_MIN = 0.05  # of a window: below that no mean shows it
CPU_SHARE_MIN = 0.01  # of a window: a quota stops all threads at once, which latencies show soon
SWAPPED_MIN_BYTES = 16 * 2**20
THROUGH_HOST_BYTES_S = 1e9  # of PCIe, each GPU: requests and answers take a tenth of that (results/reference/h200-*)
Parts = dict[tuple[str, str], list[tuple[PointRun, Measured]]]


def is_throttled(share: float | None) -> bool:
    """Whether a `gpu_throttled_ratio` is worth a mark."""
    return share is not None and share >= SHARE_MIN


def warnings(parts: Parts) -> list[str]:
    """One line for each engine and kind: at which loads and how much, and why."""
    return _clocks(parts) + _quota(parts) + _swapping(parts) + _links(parts)


def _clocks(parts: Parts) -> list[str]:
    found: dict[str, list[tuple[PointRun, Measured, float]]] = {}
    for (engine, _), repeats in parts.items():
        for point, part in repeats:
            share = METRICS["gpu_throttled_ratio"].formula(part).value
            if share is not None and is_throttled(share):
                found.setdefault(engine, []).append((point, part, share))
    return [_told(engine, each) for engine, each in found.items()]


def _told(engine: str, found: list[tuple[PointRun, Measured, float]]) -> str:
    shares: dict[str, float] = {}
    for point, _, share in found:
        label = load_label(point.load, point.point)
        shares[label] = max(shares.get(label, 0.0), share)
    places = ", ".join(f"{label} ({share * 100:.0f} %)" for label, share in shares.items())
    reasons = sorted({reason for _, part, _ in found for reason in _reasons(part)})
    clocks = [float(value) for _, part, _ in found for value in _values(part, "sm_clock_mhz")]
    range_ = f"; its clock was {min(clocks):,.0f} to {max(clocks):,.0f} MHz" if clocks else ""
    return (
        f"{engine}: a GPU's clocks were held down ({', '.join(reasons)}) at {places} of the window{range_}: the same "
        "engine is faster where power and cooling allow more; compare only runs under the same limits"
    )


def _quota(parts: Parts) -> list[str]:
    """The container's CPU quota: how long it stopped whoever is in it, engine and client alike."""
    held = {
        (engine, load_label(point.load, point.point)): grown_s / part.window_s
        for (engine, _), repeats in parts.items()
        for point, part in repeats
        if (grown_s := _grown(part, "cpu_throttled_total_s")) > CPU_SHARE_MIN * part.window_s
    }
    return [
        f"{engine}: the CPU quota of this container was used up: " + ", ".join(
            f"at {label} processes stood still for {share * 100:.0f} % of the window"
            for (name, label), share in held.items() if name == engine
        ) + "; raise the quota (docker run --cpus), or give the engine fewer threads"
        for engine in dict.fromkeys(engine for engine, _ in held)
    ]  # fmt: skip


def _swapping(parts: Parts) -> list[str]:
    swapped: dict[str, list[str]] = {}
    for (engine, _), repeats in parts.items():
        for point, part in repeats:
            if (grown := _grown(part, "swap_in_total_bytes")) > SWAPPED_MIN_BYTES:
                label = load_label(point.load, point.point)
                swapped.setdefault(engine, []).append(f"{show_bytes(grown)} at {label}")
    return [
        f"{engine}: the machine swapped inside the window ({', '.join(places)}): these figures are those of its disk; "
        "free some memory, or take a smaller model or context"
        for engine, places in swapped.items()
    ]


def _links(parts: Parts) -> list[str]:
    """Tensor parallel GPUs whose NVLinks stand still: their halves go over PCIe."""
    found: dict[str, dict[str, float]] = {}
    for (engine, _), repeats in parts.items():
        for point, part in repeats:
            busy = [each for each in (_means(part, f"pcie_{way}_bytes_s") for way in ("tx", "rx")) if len(each) > 1]
            linked = [_means(part, f"nvlink_{way}_bytes_s") for way in ("tx", "rx")]
            if not busy or len(linked[0]) < 2 or any(value for each in linked for value in each):
                continue
            if (least := min(min(each) for each in busy)) > THROUGH_HOST_BYTES_S:
                found.setdefault(engine, {})[load_label(point.load, point.point)] = least
    return [
        f"{engine}: NVLink carried nothing at {', '.join(places)}, but PCIe did, {min(places.values()) / 1e9:.3g} "
        "GB/s and more on each GPU: they exchange their parts through the host's memory, which costs time; look at "
        "NCCL_P2P_DISABLE, disable_custom_all_reduce and `nvidia-smi topo -m`"
        for engine, places in found.items()
    ]


def _means(part: Measured, metric: str) -> list[float]:
    """Each GPU's mean of the samples inside the window."""
    found = []
    for (where, what), series in part.telemetry.items():
        if what == metric and where.startswith("nvidia"):
            values = [float(value) for _, each in series for value in np.asarray(each)]
            found += [sum(values) / len(values)] if values else []
    return found


def _grown(part: Measured, metric: str) -> float:
    """By how much a counter of the host grew inside the window; 0 where it was not sampled."""
    return sum(float(values[-1] - values[0]) for _, values in part.telemetry.get(("host", metric), []))


def _reasons(part: Measured) -> set[str]:
    masks = [int(value) for value in _values(part, "throttle_reasons")]
    return {words for bit, words in THROTTLED.items() if any(mask & bit for mask in masks)}


def _values(part: Measured, metric: str) -> list[float]:
    series = [s for (where, what), s in part.telemetry.items() if what == metric and where.startswith("nvidia")]
    return [float(value) for each in series for _, values in each for value in np.asarray(values)]
