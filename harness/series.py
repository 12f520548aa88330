"""The samples of one window as arrays, by source and metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Floats = np.ndarray[Any, np.dtype[np.float64]]
Series = tuple[Floats, Floats]
AT_EDGES = ("energy_j",)  # a counter whose growth over the window is wanted: a part of a second of many watts counts
USED_GPU = "engine_memory_bytes"  # told of a GPU on which a process of the engine is
EDGE_S = 5.0  # how far from an end of the window a sample may lie that tells the value there


def series_within(telemetry: pa.Table, open_s: float, close_s: float) -> dict[tuple[str, str], list[Series]]:
    """Times and values of each (source, metric) inside the window, one series; that of a counter of
    energy reaches to the window's very ends."""
    if telemetry.num_rows == 0:
        return {}
    near = (pc.field("time_s") >= open_s - EDGE_S) & (pc.field("time_s") < close_s + EDGE_S)
    frame = telemetry.filter(near).select(["time_s", "source", "metric", "value"]).to_pandas().dropna()
    found = {}
    for key, group in frame.groupby(["source", "metric"], sort=False):
        times, values = group["time_s"].to_numpy(), group["value"].to_numpy()
        inside = (times >= open_s) & (times < close_s)
        series = times[inside], values[inside]
        if key[1] in AT_EDGES:
            series = _to_edges(times, values, inside, (open_s, close_s))
        if len(series[0]):
            found[str(key[0]), str(key[1])] = [series]
    return found


def of_used_gpus(telemetry: pa.Table) -> pa.Table:
    """An engine's samples without those of GPUs that it does not use: where its processes were seen on some, the others
    only idle, or work for somebody else. All of them where nobody told whose processes are on which."""
    if telemetry.num_rows == 0:
        return telemetry
    seen = telemetry.filter((pc.field("metric") == USED_GPU) & (pc.field("value") > 0))["source"]
    if len(seen) == 0:
        return telemetry
    of_gpus = pc.starts_with(telemetry["source"], "nvidia:")
    return telemetry.filter(pc.or_(pc.invert(of_gpus), pc.is_in(telemetry["source"], value_set=pc.unique(seen))))


def _to_edges(times: Floats, values: Floats, inside: Any, edges: tuple[float, float]) -> Series:
    """The samples inside a window, and the values at its very ends: between the two samples around each."""
    at = np.array([edge for edge in edges if times[0] <= edge <= times[-1] and edge not in times[inside]])
    where = np.concatenate([times[inside], at])
    order = np.argsort(where, kind="stable")
    return where[order], np.concatenate([values[inside], np.interp(at, times, values)])[order]
