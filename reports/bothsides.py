"""What client and server each recorded of a load point, as sums: the two sides that `clientserver` compares. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from harness.records import PointRun


def clients_of(requests: pa.Table) -> dict[tuple[str, str, int], dict[str, float]]:
    """Sums over the requests of each (engine, point, repeat)."""
    column = {name: requests[name] for name in requests.column_names}
    ok, began = pc.equal(column["status"], "ok"), pc.is_valid(column["first_token_s"])
    prompt = pc.coalesce(column["input_tokens"], column["asked_input_tokens"])
    output = pc.coalesce(column["output_tokens"], 0)
    later = pc.subtract(output, pc.coalesce(column["first_chunk_tokens"], 1))
    several = pc.and_(began, pc.greater(later, 0))
    timings = {name: pc.map_lookup(column["server_timings"], pa.scalar(f"{name}_s"), "first")
               for name in ("total", "load", "prompt_eval", "eval")}  # fmt: skip
    timed = pc.and_(ok, pc.is_valid(timings["total"]))
    sums = {
        "finished": ok, "began": began, "cut": pc.equal(column["status"], "cancelled"), "timed": timed,
        "prompt": pc.if_else(began, prompt, 0), "unknown": pc.and_(began, pc.is_null(prompt)),
        "output": pc.if_else(began, output, 0), "chunks": pc.if_else(timed, column["chunks"], 0),
        "timed_output": pc.if_else(timed, output, 0),
        "ttft_s": pc.if_else(began, pc.subtract(column["first_token_s"], column["sent_s"]), 0.0),
        "e2e_s": pc.if_else(ok, pc.subtract(column["last_token_s"], column["sent_s"]), 0.0),
        "timed_ttft_s": pc.if_else(timed, pc.subtract(column["first_token_s"], column["sent_s"]), 0.0),
        "timed_e2e_s": pc.if_else(timed, pc.subtract(column["last_token_s"], column["sent_s"]), 0.0),
        "spent_s": pc.if_else(several, pc.subtract(column["last_token_s"], column["first_token_s"]), 0.0),
        "later": pc.if_else(several, later, 0),
        **{f"server_{name}_s": pc.if_else(timed, pc.coalesce(value, 0.0), 0.0) for name, value in timings.items()},
    }  # fmt: skip
    table = pa.table({
        **{name: column[name] for name in ("engine", "point", "repeat")},
        **{name: pc.cast(values, pa.float64()) for name, values in sums.items()},
        "longest": pc.cast(output, pa.float64()), "largest": pc.cast(prompt, pa.float64()),
    })  # fmt: skip
    wanted = [(name, "sum") for name in sums] + [("longest", "max"), ("largest", "max")]
    grouped = table.group_by(["engine", "point", "repeat"]).aggregate(wanted).to_pylist()
    return {
        (row["engine"], row["point"], row["repeat"]): {name: float(row[f"{name}_{how}"] or 0.0) for name, how in wanted}
        for row in grouped
    }


def added(each: Iterable[dict[str, float]]) -> dict[str, float]:
    """Repeats together: sums added, the larger of what is a maximum; what one lacks is left out."""
    parts = list(each)
    names = set.intersection(*(set(part) for part in parts)) if parts else set()
    most = ("longest", "largest")
    return {name: (max if name in most else sum)(part[name] for part in parts) for name in names}


COUNTING = ("vllm", "transformers")  # sources whose counters have the names of vLLM's


@dataclass(frozen=True, slots=True)
class Counters:
    """The times and values of a server's counters and gauges, by metric."""

    series: dict[str, tuple[Any, Any]]

    def grown(self, point: PointRun) -> dict[str, float]:
        """By how much each grew from just before a point to just after it; `running` as it was just before."""
        found: dict[str, float] = {}
        if point.start_s is None or point.end_s is None:
            return found
        for metric, (times, values) in self.series.items():
            before = int(times.searchsorted(point.start_s, "right")) - 1
            after = int(times.searchsorted(point.end_s, "left"))
            if before >= 0 and after < len(times):
                found[metric] = float(values[before] if metric == "running" else values[after] - values[before])
        return found


def servers_of(telemetry: pa.Table, sources: Sequence[str] = COUNTING) -> dict[str, Counters]:
    """The counters of these sources, of each engine that has them."""
    counting = pc.is_in(telemetry["source"], pa.array(list(sources)))
    mine = telemetry.filter(pc.and_(counting, pc.is_valid(telemetry["engine"])))
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    frame = mine.select(["engine", "metric", "time_s", "value"]).to_pandas().sort_values("time_s", kind="stable")
    for (engine, metric), group in frame.groupby(["engine", "metric"], sort=False):
        found.setdefault(str(engine), {})[str(metric)] = (group["time_s"].to_numpy(), group["value"].to_numpy())
    return {engine: Counters(series) for engine, series in found.items()}
