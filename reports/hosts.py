"""What a report says of a run on several: replicas and how the balancer dealt to them, hosts, clocks and gaps."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from harness.records import PointRun, RunRecord

REPLICA = re.compile(r"replica(\d+)\.(finished_total|kv_used_ratio|running)$")
BALANCE = ("Engine", "Load", "Repeat", "Replica", "Requests served", "Share", "Running, mean", "KV used, peak", "GPUs",
           "GPU busy, mean", "GPU power, mean")  # fmt: skip
HOSTS = ("Host", "Address", "Load processes", "Cores", "CPU", "GPUs", "Lost")
CLOCKS = ("Host", "Address", "Engine", "Load", "Repeat", "Offset, s", "Off by at most, ms", "Shortest exchange, ms")
GAPS = ("Host", "Address", "From, s", "Why")


def balance(run: RunRecord, telemetry: Any) -> list[list[str]]:
    """Rows of BALANCE: what each replica served between a point's start and end, by its own counter."""
    metrics = [name for name in pc.unique(telemetry["metric"]).to_pylist() if name and REPLICA.match(name)]
    if not metrics:
        return []
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in telemetry.filter(pc.is_in(telemetry["metric"], value_set=pa.array(metrics))).to_pylist():
        samples.setdefault((row["engine"], row["metric"]), []).append((row["time_s"], row["value"]))
    numbers = sorted({int(found[1]) for name in metrics if (found := REPLICA.match(name))})
    gpus, rows = _Gpus(run, telemetry), []
    for point in run.points:
        if point.start_s is None or point.end_s is None:
            continue
        served = {n: _grown(samples.get((point.engine, f"replica{n}.finished_total"), []), point) for n in numbers}
        total = sum(value for value in served.values() if value is not None)
        for number in numbers:
            if (count := served[number]) is None:
                continue
            running = _within(samples.get((point.engine, f"replica{number}.running"), []), point)
            used = _within(samples.get((point.engine, f"replica{number}.kv_used_ratio"), []), point)
            rows.append([
                point.engine, point.point, str(point.repeat + 1), str(number), f"{count:,.0f}",
                f"{count / total:.1%}" if total else "–", f"{sum(running) / len(running):.1f}" if running else "–",
                f"{max(used):.1%}" if used else "–", *gpus.cells(point, number),
            ])  # fmt: skip
    return rows


class _Gpus:
    """What the GPUs of each replica did, where the tool dealt them out (the fact `replica_gpus`, as `0,1; 2,3`)."""

    def __init__(self, run: RunRecord, telemetry: Any) -> None:
        self.of: dict[str, list[list[str]]] = {}
        for engine in run.engines:
            told = next((str(fact.value) for fact in engine.facts if fact.name == "replica_gpus"), None)
            if told:
                self.of[engine.name] = [share.split(",") for share in told.split("; ")]
        wanted = pc.is_in(telemetry["metric"], value_set=pa.array(["utilization_ratio", "power_w"]))
        self.samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for row in telemetry.filter(wanted).to_pylist() if self.of else ():
            self.samples.setdefault((row["source"], row["metric"]), []).append((row["time_s"], row["value"]))

    def cells(self, point: PointRun, number: int) -> list[str]:
        """Their numbers, the mean share of time in which they were busy, and their power together."""
        mine = self.of.get(point.engine, [])[number - 1 : number]
        if not mine:
            return ["–"] * 3
        busy = [self._mean(gpu, "utilization_ratio", point) for gpu in mine[0]]
        power = [self._mean(gpu, "power_w", point) for gpu in mine[0]]
        known_busy, known_power = ([value for value in values if value is not None] for values in (busy, power))
        return [
            ", ".join(mine[0]),
            f"{sum(known_busy) / len(busy):.0%}" if len(known_busy) == len(busy) else "–",
            f"{sum(known_power):.0f} W" if len(known_power) == len(power) else "–",
        ]

    def _mean(self, gpu: str, metric: str, point: PointRun) -> float | None:
        found = _within(self.samples.get((f"nvidia:{gpu}", metric), []), point)
        return sum(found) / len(found) if found else None


def hosts(run: RunRecord) -> list[list[str]]:
    """Rows of HOSTS."""
    return [
        [host["name"], host["address"], _text(host.get("load_processes")), _text(host.get("cores_allowed")),
         _text(host.get("cpu_model")), ", ".join(gpu.get("name", "?") for gpu in host.get("gpus") or []) or "–",
         host.get("lost") or "–"]
        for host in run.cluster.get("hosts", [])
    ]  # fmt: skip


def clocks(run: RunRecord) -> list[list[str]]:
    """Rows of CLOCKS."""
    return [
        [row["host"], row["address"], row["engine"], row.get("point", "–"),
         str(row["repeat"] + 1) if "repeat" in row else "–", f"{row['offset_s']:.6f}", _ms(row["error_s"]),
         _ms(row["round_trip_s"])]
        for row in run.cluster.get("clocks", [])
    ]  # fmt: skip


def gaps(run: RunRecord) -> list[list[str]]:
    """Rows of GAPS."""
    return [[row["host"], row["address"], f"{row['from_s']:.1f}", row["reason"]] for row in run.cluster.get("gaps", [])]


def _grown(samples: list[tuple[float, float]], point: PointRun) -> float | None:
    """What a counter grew by from the last reading before a point to the first one after it."""
    assert point.start_s is not None
    assert point.end_s is not None
    before = [value for at, value in samples if at <= point.start_s]
    after = [value for at, value in samples if at >= point.end_s] or [value for at, value in samples][-1:]
    return after[0] - before[-1] if before and after else None


def _within(samples: list[tuple[float, float]], point: PointRun) -> list[float]:
    if point.open_s is None or point.close_s is None:
        return []
    return [value for at, value in samples if point.open_s <= at < point.close_s]


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1e3:.3f}"


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
