"""The plots of a run as plotly figures with the table of their data: all of them, and here those over the load."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from harness.units import show
from reports.barcharts import bars
from reports.kvcharts import kv_memory, kv_over_time
from reports.plots import (
    LATENCIES,
    Chart,
    Look,
    error_bars,
    figure_json,
    figures_table,
    limit_line,
    look,
    plain,
    room_for,
    slo_limit,
    time_scale,
    values_of,
    varied,
    with_interval,
)
from reports.recordcharts import distributions, errors
from reports.requestcharts import request_timelines
from reports.rows import PointState, Summary
from reports.rundata import RunData
from reports.telemetrycharts import timeline

ENERGY = ("energy_per_token_j", "energy_per_token_above_idle_j", "tok_s_per_w", "gpu_power_w",
          "cost_per_m_output_tokens", "cost_per_m_tokens")  # fmt: skip
VARIANTS = {
    "burst": 3,
    "constant": 1,
    "gamma": 2,
    "ramp": 3,
    "steps": 4,
    "trace": 5,
}  # other markers than the usual load
RESOURCES = ("engine_cpu_cores", "engine_rss_bytes", "gpu_util_ratio", "gpu_memory_bytes")
TICKS_MAX = 8  # more loads than that (a sweep) would write over one another
NAMED = 6  # loads named at their markers
Line = tuple[str, str, list[PointState]]  # an engine, the name of its line, its points


def charts(data: RunData, summary: Summary, shown_point: str | None = None) -> list[Chart]:
    """Every plot that the run has data for; `shown_point` is the load whose distributions are shown first."""
    found: list[Chart] = []
    for family in ("concurrency", "rate"):
        lines = _lines(summary, family)
        if _several(lines):
            found += _throughput(summary, lines, family) + _latency(summary, lines, family)
        elif len(lines) > 1:
            found += _alone(summary, lines)
    found += _trade_off(summary) + distributions(data, summary, shown_point) + kv_memory(summary)
    found += kv_over_time(data, summary) + timeline(data, summary)
    if data.telemetry.num_rows == 0:  # several runs: what each used, load by load, in place of lines over time
        found += [chart for key in RESOURCES for chart in bars(summary, key, "used")]
    found += [chart for key in ENERGY for chart in bars(summary, key, "energy")]
    return found + request_timelines(data, summary, shown_point) + errors(data, summary)


def _lines(summary: Summary, family: str) -> list[Line]:
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
    axis: dict[str, Any] = {"title": {"text": title}}
    if len(loads) <= TICKS_MAX:
        axis |= {"tickvals": loads, "ticktext": [f"{load:g}" for load in loads]}
    return axis | {"type": "log" if loads[-1] >= 8 * loads[0] else "linear"}


def _several(lines: list[Line]) -> bool:
    """Whether there is more than one load to draw a line over; a lone one is in the summary table."""
    return len({_load(state) for _, _, states in lines for state in states}) > 1


def _line(summary: Summary, line: Line, metric: str, factor: float, **more: Any) -> Any:
    """One metric of an engine over its loads, with intervals; a hollow marker where the client was the limit."""
    engine, name, states = line
    style, rows = _look(summary, line), [summary.row(engine, s.point, metric) for s in states]
    hollow, suffix = more.pop("hollow", False), more.pop("suffix", "")
    symbols = [f"{style.symbol}-open" if hollow or s.client_limited else style.symbol for s in states]
    dash = "dot" if hollow else "solid" if name == engine else "dash"
    line_style = {"color": style.colour, "dash": dash, "width": 1.5 if hollow else 2.2}
    return go.Scatter(
        x=[_load(s) for s in states], y=[None if r.value is None else float(f"{r.value * factor:.6g}") for r in rows],
        error_y=error_bars(rows, factor) | {"color": style.colour},
        name=plain(name + suffix), mode="lines+markers", line=line_style, legendgroup=plain(name),
        marker={"symbol": symbols, "size": 9, "color": style.colour},
        hovertext=[plain(f"{s.label}: {with_interval(r)}") for s, r in zip(states, rows, strict=True)],
        hoverinfo="text+name", **more,
    )  # fmt: skip


def _look(summary: Summary, line: Line) -> Look:
    """The engine's look; where it has several lines, that of the unusual load with another marker."""
    engine, name, states = line
    load = states[0].load
    kind = "burst" if load.get("start") == "burst" else str(load.get("kind"))
    return varied(look(summary, engine), 0 if name == engine else VARIANTS.get(kind, 0))


def _throughput(summary: Summary, lines: list[Line], family: str) -> list[Chart]:
    states = [state for _, _, found in lines for state in found]
    if not values_of(summary, states, ["output_tok_s"]):
        return []
    over = "concurrency" if family == "concurrency" else "request rate"
    traces = [
        _line(summary, line, "output_tok_s", 1.0) for line in lines if values_of(summary, line[2], ["output_tok_s"])
    ]
    columns, rows = figures_table(summary, lines, {"output_tok_s": "Output tokens/s", "request_s": "Requests/s"})
    figure = figure_json(
        traces, xaxis=_load_axis(states, family), yaxis={"title": {"text": "Output tokens/s"}, "rangemode": "tozero"}
    )
    note = "Tokens that arrived inside the measured window. Bars are 95 % intervals; a hollow marker is client-limited."
    return [
        Chart(
            f"throughput-{family}",
            "load",
            f"Throughput over {over}",
            note,
            figure,
            columns,
            rows,
            [],
            ("output_tok_s", "request_s"),
        )
    ]


def _alone(summary: Summary, lines: list[Line]) -> list[Chart]:
    """One load only: bars of throughput, and of each latency's median, one an engine. A single engine needs none."""
    found = []
    label = lines[0][2][0].label
    for key, title in {"output_tok_s": "Throughput", **{f"{k}_p50_s": v for k, v in LATENCIES.items()}}.items():
        rows = [summary.row(engine, states[0].point, key) for engine, _, states in lines]
        largest = max((row.value for row in rows if row.value is not None), default=None)
        if largest is None:
            continue
        factor, unit = (1.0, "tokens/s") if key == "output_tok_s" else time_scale(largest)
        traces = [
            go.Bar(
                x=[plain(line[1])], y=[None if row.value is None else row.value * factor], name=plain(line[1]),
                marker={"color": look(summary, line[0]).colour}, width=0.5,
                error_y=error_bars([row], factor) | {"color": "#8b919a", "thickness": 2},
                hovertext=[plain(with_interval(row))], hoverinfo="text",
            )
            for line, row in zip(lines, rows, strict=True)
        ]  # fmt: skip
        name = "Output" if key == "output_tok_s" else key.removesuffix("_s").replace("_", " ").replace("ttft", "TTFT")
        axis = {"title": {"text": f"{name.replace('tpot', 'TPOT').replace('e2e', 'E2E')}, {unit}"}}
        figure = figure_json(traces, yaxis=axis | {"rangemode": "tozero"}, showlegend=False, height=280)
        columns, table = figures_table(summary, lines, {key: axis["title"]["text"].split(",")[0]})
        note = "The only load of its kind. The thin bars are 95 % intervals."
        found.append(
            Chart(
                f"{key}-{lines[0][2][0].point}", "load", f"{title} at {label}", note, figure, columns, table, [], (key,)
            )
        )
    return found


def _latency(summary: Summary, lines: list[Line], family: str) -> list[Chart]:
    found = []
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
        limits = {key: limit for key in keys if (limit := _near_limit(summary, key, values)) is not None}
        figure = figure_json(
            traces, xaxis=_load_axis(states, family),
            yaxis={"title": {"text": f"{name.upper()}, {unit}"}, "rangemode": "tozero",
                   **room_for([limit * factor for limit in limits.values()])},
            shapes=[
                limit_line("y", limit * factor, f"SLO: {keys[key][-3:]} ≤ {show(limit, 's')}")
                for key, limit in limits.items()
            ],
        )  # fmt: skip
        columns, rows = figures_table(summary, lines, keys)
        note = f"Median (solid) and 95th percentile (dotted, hollow) of {name.upper()}, with 95 % intervals."
        found.append(
            Chart(f"{name}-{family}", "load", f"{title} over {over}", note, figure, columns, rows, [], tuple(keys))
        )
    return found


def _near_limit(summary: Summary, key: str, values: list[float]) -> float | None:
    """The SLO's limit, unless it is far above all figures, which it would flatten."""
    limit = slo_limit(summary, key)
    return limit if limit is not None and limit < 3 * max(values) else None


def _trade_off(summary: Summary) -> list[Chart]:
    """Throughput against what a single user feels, with the SLO drawn in: up and to the left is better."""
    found = []
    lines = _lines(summary, "concurrency") or _lines(summary, "rate")
    states = [state for _, _, points in lines for state in points]
    for name in ("ttft", "tpot"):
        key = _felt(summary, states, name)
        values = values_of(summary, states, [key])
        if len(values) < 2:
            continue
        stat, (factor, unit) = key.split("_")[1], time_scale(max(values))
        traces = [_trade_line(summary, line, key, factor) for line in lines]
        limit = _near_limit(summary, key, values)
        shapes = []
        if limit is not None:
            shapes.append(limit_line("x", limit * factor, f"SLO ≤ {show(limit, 's')}"))
        figure = figure_json(
            traces, xaxis={"title": {"text": f"{name.upper()} {stat}, {unit}"}, "rangemode": "tozero",
                           **room_for([limit * factor] if limit is not None else [], 0.3)},
            yaxis={"title": {"text": "Output tokens/s"}, "rangemode": "tozero"}, shapes=shapes,
        )  # fmt: skip
        columns, rows = figures_table(
            summary, lines, {key: f"{name.upper()} {stat}", "output_tok_s": "Output tokens/s"}
        )
        note = "Each marker is a load, named by its number. Up and to the left is better" + (
            "; left of the dashed line the SLO holds." if limit is not None else "."
        )
        title = f"Throughput against {LATENCIES[name].lower()}"
        found.append(Chart(f"trade-{name}", "trade", title, note, figure, columns, rows, [], ("output_tok_s", key)))
    return found


def _felt(summary: Summary, states: list[PointState], name: str) -> str:
    """The statistic that the SLO names, where most points have it; else the median."""
    named = next((t.target for t in summary.targets if t.target.startswith(f"{name}_")), None)
    known = len(values_of(summary, states, [f"{named}_s"])) if named else 0
    return f"{named}_s" if known >= 0.75 * len(states) and known >= 2 else f"{name}_p50_s"


def _trade_line(summary: Summary, line: Line, key: str, factor: float) -> Any:
    engine, label, states = line
    style, known = _look(summary, line), [s for s in states if values_of(summary, [s], [key])]
    return go.Scatter(
        x=[summary.row(engine, s.point, key).value * factor for s in known],  # type: ignore[operator]
        y=[summary.row(engine, s.point, "output_tok_s").value for s in known],
        name=plain(label), mode="lines+markers+text", text=_named(known),
        textposition="top center", line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={"symbol": style.symbol, "size": 9, "color": style.colour}, hoverinfo="text+name",
        cliponaxis=False, hovertext=[plain(s.label) for s in known],
    )  # fmt: skip


def _named(states: list[PointState]) -> list[str]:
    """The loads at their markers; of many (a sweep) only the ends, which would else lie on one another."""
    ends = (0, len(states) - 1)
    return [f"{_load(s):g}" if len(states) <= NAMED or i in ends else "" for i, s in enumerate(states)]
