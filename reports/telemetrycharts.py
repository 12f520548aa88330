"""Telemetry over the run's time: one strip a quantity, all on one time axis, the measured windows marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from harness.records import PointRun
from harness.units import significant
from reports.plots import Chart, figure_json, look, plain, rounded, size_scale
from reports.rows import Summary
from reports.rundata import RunData

SERIES_POINTS = 500  # of a telemetry series, as the least and the most of each of half as many spans
METRICS_SHOWN = ("engine_cpu_cores", "engine_rss_bytes", "gpu_util_ratio", "gpu_power_w", "gpu_memory_bytes")
LABELLED_WINDOWS = 40  # more names than that would lie on each other


QUEUES = ("vllm", "llama-server", "transformers")  # the sources that say how many requests they serve


@dataclass(frozen=True, slots=True)
class Panel:
    """One strip of the telemetry plot: which (source, metric) pairs it shows, divided by `unit`; 0: bytes, in the unit
    that reads best."""

    title: str
    series: tuple[tuple[str, str, str], ...]
    unit: float = 1.0


PANELS = (
    Panel("CPU, cores", (("process", "cpu_cores", ""), ("host", "cpu_cores", "host"))),
    Panel("Memory", (("process", "rss_bytes", ""), ("host", "memory_used_bytes", "host")), 0),
    Panel("GPU busy, %", (("nvidia", "utilization_ratio", "GPU"),), 0.01),
    Panel("GPU power, W", (("nvidia", "power_w", "GPU"),)),
    Panel("GPU memory", (("nvidia", "memory_used_bytes", "GPU"), ("ollama", "size_vram_bytes", "model")), 0),
    Panel(
        "NVLink, GB/s",
        (("nvidia", "nvlink_rx_bytes_s", "NVLink in, GPU"), ("nvidia", "nvlink_tx_bytes_s", "NVLink out, GPU")),
        1e9,
    ),
    Panel("Requests, in engine", tuple((source, what, what) for source in QUEUES for what in ("running", "waiting"))),
    Panel("KV cache used, %", (("vllm", "kv_used_ratio", "KV"), ("llama-server", "kv_used_ratio", "KV")), 0.01),
)


def timeline(data: RunData, summary: Summary) -> list[Chart]:
    """Telemetry over the run's time: one strip a quantity, one time axis, the measured windows shaded."""
    if data.telemetry.num_rows == 0:
        return []
    frame = data.telemetry.to_pandas()
    frame["base"] = frame["source"].str.split(":").str[0]
    groups = {
        (str(base), str(metric)): group for (base, metric), group in frame.groupby(["base", "metric"], sort=False)
    }
    on_gpu = [
        fact for engine in data.run.engines for fact in engine.facts if fact.name == "layers_on_gpu" and fact.value
    ]
    if not on_gpu and not any(engine.simulated for engine in data.run.engines):
        groups.pop(("ollama", "size_vram_bytes"), None)  # on a CPU it counts other buffers (AMX)
    panels = [
        _in_bytes(panel, groups)
        for panel in PANELS
        if any((source, metric) in groups for source, metric, _ in panel.series)
    ]
    if not panels:
        return []
    traces, rows, axes = [], [], {}
    for index, panel in enumerate(panels):
        top, bottom = 1 - index / len(panels), 1 - (index + 1) / len(panels)
        number = "" if index == 0 else str(index + 1)
        axes[f"yaxis{number}"] = {
            "domain": [bottom + 0.028, top - 0.012], "rangemode": "tozero", "nticks": 4, "anchor": "x",
            "title": {"text": panel.title.replace(", ", "<br>"), "standoff": 6},
        }  # fmt: skip
        for source, metric, name in panel.series:
            for trace, row in _series(groups.get((source, metric)), panel, name, summary):
                named = index == 0 and name == ""  # one entry an engine
                traces.append(trace.update(yaxis=f"y{number}", showlegend=named))
                rows.append(row)
    shapes, labels = windows(data, summary)
    last = "" if len(panels) == 1 else str(len(panels))
    figure = figure_json(
        traces, height=94 + 125 * len(panels), shapes=shapes, annotations=labels, hovermode="x", margin={
            "l": 64, "r": 14, "t": 46, "b": 70},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "xanchor": "left"},
        xaxis={"title": {"text": "Seconds since the run's start"}, "anchor": f"y{last}"}, **axes,
    )  # fmt: skip
    columns = ["Quantity", "Series", "Samples", "least", "mean", "most"]
    note = (
        "Shaded: the measured windows, in the colour of the engine that ran; figures use only samples inside them. "
        "Dotted: the whole host, "
    ) + ("requests that wait, or a GPU other than GPU 0." if _other_gpus(frame) else "or requests that wait.")
    return [Chart("telemetry", "telemetry", "Telemetry over time", note, figure, columns, rows, [], METRICS_SHOWN)]


def _other_gpus(frame: Any) -> bool:
    """Whether a GPU other than GPU 0 is in the plot: its lines are dotted."""
    return any(
        source.partition(":")[2] not in ("", "0") for source in frame.loc[frame["base"] == "nvidia", "source"].unique()
    )


def _in_bytes(panel: Panel, groups: dict[tuple[str, str], Any]) -> Panel:
    """A strip of bytes in the unit that fits its largest sample."""
    if panel.unit:
        return panel
    most = max(float(groups[key]["value"].max()) for *key_, _ in panel.series if (key := tuple(key_)) in groups)
    divisor, unit = size_scale(most)
    return replace(panel, title=f"{panel.title}, {unit}", unit=divisor)


def _series(group: Any, panel: Panel, name: str, summary: Summary) -> list[tuple[Any, list[str]]]:
    """The traces of one (source, metric) pair: one for each engine and device."""
    found = []
    parts = group.groupby(["engine", "source"], sort=False, dropna=False) if group is not None else ()
    for (engine, source), part in parts:
        owner = engine if isinstance(engine, str) else None
        device = source.partition(":")[2]
        style = look(summary, owner) if owner else None
        title = " ".join(filter(None, [owner, name, device]))
        times, values = thinned(part["time_s"].to_numpy(), part["value"].to_numpy() / panel.unit)
        second = name in ("host", "waiting") or device not in ("", "0")
        line = {"color": style.colour if style else "#8b919a", "width": 1.3, "dash": "dot" if second else "solid"}
        trace = go.Scatter(
            x=rounded(times), y=rounded(values), mode="lines", name=plain(title), line=line,
            hovertemplate="%{y:.4~g}",
        )  # fmt: skip
        whole = part["value"].to_numpy() / panel.unit
        marks = [significant(float(v)) for v in (whole.min(), whole.mean(), whole.max())]
        found.append((trace, [panel.title, title, f"{len(whole):,}", *marks]))
    return found


def thinned(times: Any, values: Any) -> tuple[Any, Any]:
    """At most `SERIES_POINTS` samples that keep each span's least and most, so that no peak is lost."""
    if len(values) <= SERIES_POINTS:
        return times, values
    spans = np.array_split(np.arange(len(values)), SERIES_POINTS // 2)
    kept = np.unique([span[pick(values[span])] for span in spans for pick in (np.argmin, np.argmax)])
    return times[kept], values[kept]


def _short(point: PointRun) -> str:
    """A load in few letters, for a narrow window."""
    rate = point.load.get("rate_rps")
    return f"{rate:g}/s" if rate else point.point


def windows(data: RunData, summary: Summary) -> tuple[list[Any], list[Any]]:
    """Shaded windows of all points, and their names where there is room."""
    shapes, labels = [], []
    windows = [p for p in data.run.points if p.open_s is not None and p.close_s is not None]
    for point in windows:
        colour = look(summary, point.engine).colour
        shapes.append({
            "type": "rect", "xref": "x", "yref": "paper", "x0": point.open_s, "x1": point.close_s, "y0": 0, "y1": 1,
            "fillcolor": colour, "opacity": 0.09, "line": {"width": 0}, "layer": "below",
        })  # fmt: skip
        if len(windows) <= LABELLED_WINDOWS:
            labels.append({
                "text": plain(_short(point)), "x": (point.open_s + point.close_s) / 2,  # type: ignore[operator]
                "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "textangle": -90,
                "font": {"size": 9},
            })  # fmt: skip
    return shapes, labels
