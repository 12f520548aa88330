"""The plots of a run as plotly figures with the table of their data: all of them, and here those over the load."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from reports.plots import (
    LATENCIES,
    Chart,
    bounded,
    figure_json,
    figures_table,
    look,
    plain,
    time_scale,
    values_of,
    with_interval,
)
from reports.recordcharts import distributions, errors, kv_memory, timeline
from reports.rows import PointState, Summary
from reports.summary import RunData


def charts(data: RunData, summary: Summary, shown_point: str | None = None) -> list[Chart]:
    """Every plot that the run has data for; `shown_point` is the load whose distributions are shown first."""
    found: list[Chart] = []
    for family in ("concurrency", "rate"):
        found += _throughput(summary, family) + _latency(summary, family)
    found += _trade_off(summary) + distributions(data, summary, shown_point) + kv_memory(summary)
    return found + errors(data, summary) + timeline(data, summary)


def _lines(summary: Summary, family: str) -> list[tuple[str, str, list[PointState]]]:
    """(engine, name of the line, its points by load) of the closed loops or the open ones: one line for each kind."""
    lines: dict[tuple[str, str], list[PointState]] = {}
    for state in summary.points:
        kind = str(state.load.get("kind"))
        if (kind == "concurrency") != (family == "concurrency") or not _load(state):
            continue
        variant = ("burst" if state.load.get("start") == "burst" else "") if family == "concurrency" else kind
        lines.setdefault((state.engine, variant), []).append(state)
    several = len({variant for _, variant in lines}) > 1
    return [
        (engine, f"{engine}, {variant}" if several and variant else engine, sorted(states, key=_load))
        for (engine, variant), states in lines.items()
    ]


def _load(state: PointState) -> float:
    return float(state.load.get("concurrency") or state.load.get("rate_rps") or 0)


def _load_axis(states: list[PointState], family: str) -> dict[str, Any]:
    loads = sorted({_load(state) for state in states})
    title = "Concurrent requests" if family == "concurrency" else "Requests due per second"
    axis = {"title": {"text": title}, "tickvals": loads, "ticktext": [f"{load:g}" for load in loads]}
    return axis | {"type": "log" if loads[-1] >= 8 * loads[0] else "linear"}


def _line(summary: Summary, line: tuple[str, str, list[PointState]], metric: str, factor: float, **more: Any) -> Any:
    """One metric of an engine over its loads, with intervals; a hollow marker where the client was the limit."""
    engine, name, states = line
    style, rows = look(summary, engine), [summary.row(engine, s.point, metric) for s in states]
    hollow, suffix = more.pop("hollow", False), more.pop("suffix", "")
    symbols = [f"{style.symbol}-open" if hollow or s.client_limited else style.symbol for s in states]
    line_style = {"color": style.colour, "dash": "dot" if hollow else "solid", "width": 1.5 if hollow else 2.2}
    up = [(r.ci_high - r.value) * factor if bounded(r) else None for r in rows]  # type: ignore[operator]
    down = [(r.value - r.ci_low) * factor if bounded(r) else None for r in rows]  # type: ignore[operator]
    return go.Scatter(
        x=[_load(s) for s in states], y=[None if r.value is None else float(f"{r.value * factor:.6g}") for r in rows],
        error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3,
                 "color": style.colour},
        name=plain(name + suffix), mode="lines+markers", line=line_style, legendgroup=plain(name),
        marker={"symbol": symbols, "size": 9, "color": style.colour},
        hovertext=[plain(f"{s.label}: {with_interval(r)}") for s, r in zip(states, rows, strict=True)],
        hoverinfo="text+name", **more,
    )  # fmt: skip


def _throughput(summary: Summary, family: str) -> list[Chart]:
    lines = _lines(summary, family)
    states = [state for _, _, found in lines for state in found]
    if not values_of(summary, states, ["output_tok_s"]):
        return []
    traces = [_line(summary, line, "output_tok_s", 1.0) for line in lines]
    columns, rows = figures_table(summary, lines, {"output_tok_s": "Output tokens/s", "request_s": "Requests/s"})
    figure = figure_json(
        traces, xaxis=_load_axis(states, family), yaxis={"title": {"text": "Output tokens/s"}, "rangemode": "tozero"}
    )
    over = "concurrency" if family == "concurrency" else "request rate"
    note = "Tokens that arrived inside the measured window. Bars are 95 % intervals; a hollow marker is client-limited."
    return [Chart(f"throughput-{family}", "load", f"Throughput over {over}", note, figure, columns, rows, [])]


def _latency(summary: Summary, family: str) -> list[Chart]:
    found = []
    lines = _lines(summary, family)
    states = [state for _, _, points in lines for state in points]
    over = "concurrency" if family == "concurrency" else "request rate"
    for name, title in LATENCIES.items():
        keys = {f"{name}_p50_s": f"{name.upper()} p50", f"{name}_p95_s": f"{name.upper()} p95"}
        values = values_of(summary, states, list(keys))
        if not values:
            continue
        factor, unit = time_scale(max(values))
        traces = []
        for line in lines:
            for key, hollow in zip(keys, (False, True), strict=True):
                if values_of(summary, line[2], [key]):
                    suffix = " p95" if hollow else " p50"
                    traces.append(_line(summary, line, key, factor, hollow=hollow, suffix=suffix))
        figure = figure_json(
            traces, xaxis=_load_axis(states, family),
            yaxis={"title": {"text": f"{name.upper()}, {unit}"}, "rangemode": "tozero"},
        )  # fmt: skip
        columns, rows = figures_table(summary, lines, keys)
        note = f"Median (solid) and 95th percentile (dotted, hollow) of {name.upper()}, with 95 % intervals."
        found.append(Chart(f"{name}-{family}", "load", f"{title} over {over}", note, figure, columns, rows, []))
    return found


def _trade_off(summary: Summary) -> list[Chart]:
    """Throughput against what a single user feels: up and to the left is better."""
    found = []
    lines = _lines(summary, "concurrency") or _lines(summary, "rate")
    for name in ("ttft", "tpot"):
        key = f"{name}_p50_s"
        values = values_of(summary, [s for _, _, states in lines for s in states], [key])
        if len(values) < 2:
            continue
        factor, unit = time_scale(max(values))
        traces = []
        for engine, label, states in lines:
            style, known = look(summary, engine), [s for s in states if values_of(summary, [s], [key])]
            traces.append(go.Scatter(
                x=[summary.row(engine, s.point, key).value * factor for s in known],  # type: ignore[operator]
                y=[summary.row(engine, s.point, "output_tok_s").value for s in known],
                name=plain(label), mode="lines+markers+text", text=[f"{_load(s):g}" for s in known],
                textposition="top center", line={"color": style.colour, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 9, "color": style.colour}, hoverinfo="text+name",
                cliponaxis=False, hovertext=[plain(s.label) for s in known],
            ))  # fmt: skip
        figure = figure_json(
            traces, xaxis={"title": {"text": f"{name.upper()} p50, {unit}"}, "rangemode": "tozero"},
            yaxis={"title": {"text": "Output tokens/s"}, "rangemode": "tozero"},
        )  # fmt: skip
        columns, rows = figures_table(summary, lines, {key: f"{name.upper()} p50", "output_tok_s": "Output tokens/s"})
        note = "Each marker is a load, named by its number. Up and to the left is better."
        title = f"Throughput against {LATENCIES[name].lower()}"
        found.append(Chart(f"trade-{name}", "trade", title, note, figure, columns, rows, []))
    return found
