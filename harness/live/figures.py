"""What a run shows while it goes on, under names that dashboards know.

Engines' own values keep vLLM's names, GPUs those of NVIDIA's DCGM exporter (with its units: percent, MiB), memory of
the host those of node_exporter; what the load generator counts is `enginebench_*`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from harness.records import TelemetrySample
from harness.telemetry.vllm import NAMES

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Exposed:
    """A metric of the page: `counter` (its name ends in `_total`) or `gauge`."""

    kind: str
    help: str


LOAD: dict[str, Exposed] = {
    "enginebench_requests_total": Exposed("counter", "Requests ended in this point, by outcome (ok, failed)"),
    "enginebench_output_tokens_total": Exposed(
        "counter", "Output tokens that have arrived in this point; of answers under way by their reads"
    ),
    "enginebench_requests_in_flight": Exposed("gauge", "Requests sent and not ended"),
    "enginebench_time_to_first_token_seconds": Exposed("gauge", "TTFT of the latest measured request"),
    "enginebench_window_open": Exposed("gauge", "1 while the measured window is open"),
    "enginebench_points": Exposed("gauge", "Points of this run by status"),
    "enginebench_telemetry": Exposed("gauge", "Every sampled value, by source and metric, in the unit of its name"),
}
HOST = {
    "cpu_ratio": ("enginebench_host_cpu_ratio", 1.0, "Busy share of the host's cores"),
    "memory_available_bytes": ("node_memory_MemAvailable_bytes", 1.0, "Memory available on the host"),
    "memory_total_bytes": ("node_memory_MemTotal_bytes", 1.0, "Memory of the host, or its limit"),
}
GPU = {
    "utilization_ratio": ("DCGM_FI_DEV_GPU_UTIL", 100.0, "GPU utilisation, percent"),
    "memory_used_bytes": ("DCGM_FI_DEV_FB_USED", 1 / MIB, "GPU memory used, MiB"),
    "power_w": ("DCGM_FI_DEV_POWER_USAGE", 1.0, "GPU power, watts"),
    "temperature_c": ("DCGM_FI_DEV_GPU_TEMP", 1.0, "GPU temperature, degrees Celsius"),
}
VLLM = {metric: names[0] for metric, names in NAMES.items()}
_TABLES = (HOST, GPU)
EXPOSED: dict[str, Exposed] = {
    **LOAD,
    **{name: Exposed("gauge", text) for table in _TABLES for name, _, text in table.values()},
    **{name: Exposed("counter" if name.endswith("_total") else "gauge", f"As the engine says: {metric}")
       for metric, name in VLLM.items()},
}  # fmt: skip

Labels = tuple[tuple[str, str], ...]


class Figures:
    """The latest value of every series. Written by the run's threads, read by whoever scrapes."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        self._lock = threading.Lock()

    def put(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] = value

    def count(self, name: str, value: float, **labels: str) -> None:
        """A counter of what is estimated while it goes on: whole, and never less than it was (Prometheus takes a step
        back for a restart, and adds the whole count once more)."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = max(float(math.floor(value)), self._values.get(key, 0.0))

    def sample(self, row: TelemetrySample) -> None:
        """One sampled value: under its own name here, and under the usual one where there is one. Sources of other
        hosts and of replicas carry theirs as labels."""
        host, _, source = row.source.rpartition("/")
        replica, _, metric = row.metric.rpartition(".")
        labels = {"engine": row.engine or "", "host": host or "here", "replica": replica}
        self.put("enginebench_telemetry", row.value, source=source, metric=metric, **labels)
        if source == "vllm" and metric in VLLM:
            self.put(VLLM[metric], row.value, **labels)
        elif source == "host" and metric in HOST:
            name, factor, _ = HOST[metric]
            self.put(name, row.value * factor, host=labels["host"])
        elif source.startswith("nvidia:") and metric in GPU:
            name, factor, _ = GPU[metric]
            self.put(name, row.value * factor, gpu=source.partition(":")[2], host=labels["host"])

    def series(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """All of them, by name."""
        with self._lock:
            rows = sorted(self._values.items())
        yield from ((name, dict(labels), value) for (name, labels), value in rows)
