"""KV memory: what each engine reserves and what running requests hold of it, at the peak and over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from harness.units import show
from reports.plots import (
    Chart,
    faded,
    figure_json,
    figures_table,
    in_their_order,
    look,
    plain,
    rounded,
    short_labels,
    size_scale,
    values_of,
    with_interval,
)
from reports.rows import Summary
from reports.rundata import RunData
from reports.telemetrycharts import thinned, windows

Scale = tuple[float, str]  # bytes of a unit, and its name


def kv_memory(summary: Summary) -> list[Chart]:
    keys = {"kv_capacity_bytes": "reserved", "kv_live_bytes": "live at the peak"}
    if not values_of(summary, summary.points, list(keys)):
        return []
    traces = []
    divisor, unit = size_scale(max(values_of(summary, summary.points, list(keys))))
    names, axis = short_labels(summary.points)
    for engine in summary.engines:
        states, style = [s for s in summary.points if s.engine == engine.name], look(summary, engine.name)
        if not values_of(summary, states, list(keys)):
            continue
        for key, title in keys.items():
            rows = [summary.row(engine.name, s.point, key) for s in states]
            live = key == "kv_live_bytes"
            traces.append(go.Bar(
                x=[plain(names[s.point]) for s in states],
                y=[None if r.value is None else r.value / divisor for r in rows],
                name=plain(f"{engine.name} {title}"), offsetgroup=engine.name, hoverinfo="text+name",
                text=[show(r.value, "bytes") if live and r.value is not None else "" for r in rows],
                textposition="outside", textangle=0, cliponaxis=False,
                hovertext=[plain(with_interval(r)) for r in rows], marker={
                    "color": style.colour if live else faded(style.colour), "line": {"width": 0}},
            ))  # fmt: skip
    lines = [(e.name, e.name, [s for s in summary.points if s.engine == e.name]) for e in summary.engines]
    titles = {"kv_capacity_bytes": "Reserved", "kv_live_bytes": "Live at the peak", "kv_efficiency_ratio": "Efficiency"}
    columns, table = figures_table(summary, lines, titles)
    figure = figure_json(
        traces,
        barmode="group",
        bargap=0.35,
        bargroupgap=0.12,
        yaxis={"title": {"text": unit}},
        xaxis={
            "type": "category",
            "categoryarray": in_their_order(summary, names),
            "automargin": True,
            "title": {"text": axis},
        },
    )
    note = "What the engine reserves for the KV cache (pale) and what running requests held of it at most (full)."
    return [
        Chart(
            "kv-memory",
            "memory",
            "KV cache: reserved and live",
            note,
            figure,
            columns,
            table,
            [],
            ("kv_capacity_bytes", "kv_live_bytes", "kv_efficiency_ratio"),
        )
    ]


def kv_over_time(data: RunData, summary: Summary) -> list[Chart]:
    """Reserved against held over the run's time, and what is held by itself: next to 60 GiB, 60 MiB are no line."""
    held = {engine.name: _held(data, engine.name) for engine in summary.engines}
    held = {name: series for name, series in held.items() if series}
    if not held:
        return []
    reserved = {name: _fact(summary, name, "kv_capacity_bytes") for name in held}
    rows, lines = [], []
    for name, series in held.items():
        for label, times, live in series:
            capacity = reserved[name]
            share = f"{show(float(live.max()) / capacity, 'ratio')}" if capacity else "– (capacity not stated)"
            rows.append([label, name, show(capacity, "bytes"), show(float(live.mean()), "bytes"),
                         show(float(live.max()), "bytes"), share])  # fmt: skip
            lines.append((name, times, live))
    columns = ["Load", "Engine", "Reserved", "Held, mean", "Held, most", "Most of reserved"]
    metrics = ("kv_capacity_bytes", "kv_live_bytes", "kv_efficiency_ratio")
    shapes, labels = windows(data, summary)
    most = max(float(live.max()) for _, _, live in lines)
    whole, close = size_scale(max(most, *(size or 0.0 for size in reserved.values()))), size_scale(most)
    both = [_held_trace(summary, line, whole) for line in lines]
    both += [
        _reserved_trace(summary, name, series, (size, *whole))
        for name, series in held.items() if (size := reserved[name])
    ]  # fmt: skip
    note = (
        "Line: bytes the engine reserves. Filled: bytes that hold tokens of running requests, derived from the "
        "requests' own records inside the measured windows."
    )
    charts = [("kv-time", "KV memory over time: reserved and held", note, both, whole[1])]
    own = [_held_trace(summary, line, close) for line in lines] + _reported(data, summary, reserved, close)
    note = "Without what is reserved. Dotted: what the engine itself reports to be in use, cached prefixes too."
    charts.append(("kv-held", "KV memory over time: held only", note, own, close[1]))
    return [
        Chart(key, "memory", title, text, _over_time(traces, shapes, labels, unit), columns, rows, [], metrics)
        for key, title, text, traces, unit in charts
    ]


def _over_time(traces: list[Any], shapes: list[Any], labels: list[Any], unit: str) -> str:
    named: set[str] = set()
    for trace in traces:  # one entry an engine in the legend, however many windows it has
        trace.update(showlegend=trace.name not in named)
        named.add(trace.name)
    return figure_json(
        traces, shapes=shapes, annotations=labels, height=380, margin={"l": 56, "r": 14, "t": 52, "b": 96},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "xanchor": "left"},
        xaxis={"title": {"text": "Seconds since the run's start"}},
        yaxis={"title": {"text": unit}, "rangemode": "tozero"},
    )  # fmt: skip


def _held(data: RunData, engine: str) -> list[tuple[str, Any, Any]]:
    """(load, times, bytes) of each measured window of an engine."""
    found = []
    for (name, _), parts in data.measured.items():
        for point, part in parts:
            fact = part.facts.get("kv_bytes_per_token")
            if name == engine and part.live is not None and fact and isinstance(fact.value, int | float):
                found.append((point.point, part.live[0], part.live[1] * float(fact.value)))
    return sorted(found, key=lambda item: float(item[1][0]))


def _held_trace(summary: Summary, line: tuple[str, Any, Any], scale: Scale) -> Any:
    (engine, times, live), (divisor, unit) = line, scale
    style = look(summary, engine)
    return go.Scatter(
        x=rounded(times), y=rounded(live / divisor), mode="lines", line={"color": style.colour, "width": 1.4},
        fill="tozeroy", fillcolor=faded(style.colour), name=plain(f"{engine}, held"), legendgroup=plain(f"{engine}h"),
        hovertemplate="%{y:.4~g} " + unit + " held",
    )  # fmt: skip


def _reserved_trace(summary: Summary, engine: str, series: list[Any], size: tuple[float, float, str]) -> Any:
    capacity, divisor, unit = size
    ends = [float(series[0][1][0]), float(series[-1][1][-1])]
    style = look(summary, engine)
    return go.Scatter(
        x=rounded(ends), y=[capacity / divisor] * 2, mode="lines", name=plain(f"{engine}, reserved"),
        line={"color": style.colour, "width": 2.4, "dash": style.dash}, hovertemplate="%{y:.4~g} " + unit + " reserved",
    )  # fmt: skip


def _reported(data: RunData, summary: Summary, reserved: dict[str, float | None], scale: Scale) -> list[Any]:
    """What engines report of their cache's use, as bytes of what they reserve."""
    if data.telemetry.num_rows == 0:
        return []
    frame = data.telemetry.to_pandas()
    frame = frame[frame["metric"] == "kv_used_ratio"]
    traces = []
    for engine, part in frame.groupby("engine", sort=False):
        capacity = reserved.get(str(engine))
        if not capacity:
            continue
        times, values = thinned(part["time_s"].to_numpy(), part["value"].to_numpy() * capacity / scale[0])
        traces.append(go.Scatter(
            x=rounded(times), y=rounded(values), mode="lines", name=plain(f"{engine}, reported"),
            line={"color": look(summary, str(engine)).colour, "width": 1.2, "dash": "dot"},
            hovertemplate="%{y:.4~g} " + scale[1] + " reported",
        ))  # fmt: skip
    return traces


def _fact(summary: Summary, engine: str, name: str) -> float | None:
    value = next((e.facts.get(name) for e in summary.engines if e.name == engine), None)
    return float(value) if isinstance(value, int | float) and not np.isnan(value) else None
