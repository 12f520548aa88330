"""The plots that go back to the records: distributions, KV memory, failed requests, telemetry over time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from harness.metrics import METRICS, Measured, pooled, quantile_of
from harness.records import PointRun
from harness.units import show, significant
from reports.plots import (
    LATENCIES,
    Chart,
    faded,
    figure_json,
    figures_table,
    look,
    plain,
    rounded,
    time_scale,
    values_of,
    with_interval,
)  # fmt: skip
from reports.rows import Summary
from reports.summary import RunData

CURVE_POINTS = 200  # of a distribution, however many requests are behind it
ERROR_KINDS = 8
SERIES_POINTS = 500  # of a telemetry series, as the least and the most of each of half as many spans
LABELLED_WINDOWS = 40  # more names than that would lie on each other


def distributions(data: RunData, summary: Summary, shown_point: str | None) -> list[Chart]:
    """Cumulative distributions of each latency; the page shows one load at a time."""
    labels = {s.point: s.label for s in summary.points if (s.engine, s.point) in data.measured}
    first = shown_point if shown_point in labels else next(reversed(labels), None)
    whole = {key: pooled([part for _, part in parts]) for key, parts in data.measured.items()}
    found = []
    for name, title in LATENCIES.items():
        curves = {key: values for key, part in whole.items() if len(values := _ordered(part, name)) >= 2}
        if not curves:
            continue
        factor, unit = time_scale(max(quantile_of(v, 0.99) for v in curves.values()))
        traces, rows = [], []
        for (engine, point), values in curves.items():
            style, shares = look(summary, engine), np.linspace(0, 1, min(CURVE_POINTS, len(values)))
            traces.append(go.Scatter(
                x=rounded([quantile_of(values, share) * factor for share in shares]), y=rounded(shares * 100),
                mode="lines", name=plain(engine), meta={"point": point}, visible=point == first,
                line={"color": style.colour, "dash": style.dash, "width": 2.2},
                hovertemplate="%{y:.0f} % within %{x:.4~g} " + unit,
            ))  # fmt: skip
            marks = [show(quantile_of(values, q), "s") for q in (0, 0.25, 0.5, 0.75, 1)]
            rows.append([labels[point], engine, f"{len(values):,}", *marks])
        figure = figure_json(
            traces, xaxis={"title": {"text": f"{name.upper()}, {unit}"}, "rangemode": "tozero"},
            yaxis={"title": {"text": "Requests, %"}, "range": [0, 101]},
        )  # fmt: skip
        columns = ["Load", "Engine", "Requests", "least", "p25", "p50", "p75", "most"]
        note = "Share of the requests that took at most this long. Steeper is steadier; further left is faster."
        choices = [(point, label, point == first) for point, label in labels.items()]
        found.append(Chart(f"cdf-{name}", "cdf", title, note, figure, columns, rows, choices))
    return found


def _ordered(part: Measured, name: str) -> Any:
    """A latency of all requests that ended well, from the least to the most."""
    samples = METRICS[f"{name}_p50_s"].samples
    assert samples is not None
    return part.ordered(name, samples)


def kv_memory(summary: Summary) -> list[Chart]:
    keys = {"kv_capacity_bytes": "reserved", "kv_live_bytes": "live at the peak"}
    if not values_of(summary, summary.points, list(keys)):
        return []
    traces = []
    for engine in summary.engines:
        states, style = [s for s in summary.points if s.engine == engine.name], look(summary, engine.name)
        if not values_of(summary, states, list(keys)):
            continue
        for key, title in keys.items():
            rows = [summary.row(engine.name, s.point, key) for s in states]
            live = key == "kv_live_bytes"
            traces.append(go.Bar(
                x=[plain(s.label) for s in states], y=[None if r.value is None else r.value / 2**30 for r in rows],
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
        yaxis={"title": {"text": "GiB"}},
        xaxis={"type": "category"},
    )
    note = "What the engine reserves for the KV cache (pale) and what running requests held of it at most (full)."
    return [Chart("kv-memory", "memory", "KV cache: reserved and live", note, figure, columns, table, [])]


def errors(data: RunData, summary: Summary) -> list[Chart]:
    table = data.requests.select(["engine", "phase", "status", "http_status", "error"]).to_pandas()
    failed = table[(table["phase"] == "measure") & (table["status"] != "ok")]
    if failed.empty:
        return []
    counts: Counter[tuple[str, str]] = Counter(
        (str(r.engine), f"{r.status}: {r.error or 'no text'}"[:200]) for r in failed.itertuples()
    )
    totals: Counter[str] = Counter()
    for (_, kind), count in counts.items():
        totals[kind] += count
    kinds = [kind for kind, _ in totals.most_common(ERROR_KINDS)]
    short = {kind: f"{i + 1}. {kind[:26]}{'…' if len(kind) > 26 else ''}" for i, kind in enumerate(kinds)}
    traces = [
        go.Bar(
            y=[plain(short[kind]) for kind in kinds], x=[counts[engine.name, kind] for kind in kinds], orientation="h",
            name=plain(engine.name), marker={"color": look(summary, engine.name).colour}, hoverinfo="x+name",
        )
        for engine in summary.engines
    ]  # fmt: skip
    figure = figure_json(
        traces, barmode="group", height=150 + 44 * len(kinds), yaxis={"automargin": True, "autorange": "reversed"},
        xaxis={"title": {"text": "Requests"}, "rangemode": "tozero"},
    )  # fmt: skip
    rows = [[engine, kind, significant(count)] for (engine, kind), count in counts.most_common(50)]
    note = "Measured requests that did not end well. They count as misses, and their times are in no latency figure."
    return [
        Chart("errors", "errors", "Failed requests by kind", note, figure, ["Engine", "Kind", "Requests"], rows, [])
    ]


@dataclass(frozen=True, slots=True)
class Panel:
    """One strip of the telemetry plot: which (source, metric) pairs it shows, divided by `unit`."""

    title: str
    series: tuple[tuple[str, str, str], ...]
    unit: float = 1.0


PANELS = (
    Panel("CPU, cores", (("process", "cpu_cores", ""), ("host", "cpu_cores", "host"))),
    Panel("Memory, GiB", (("process", "rss_bytes", ""), ("host", "memory_used_bytes", "host")), 2**30),
    Panel("GPU busy, %", (("nvidia", "utilization_ratio", "GPU"),), 0.01),
    Panel("GPU power, W", (("nvidia", "power_w", "GPU"),)),
    Panel("GPU memory, GiB", (("nvidia", "memory_used_bytes", "GPU"), ("ollama", "size_vram_bytes", "model")), 2**30),
    Panel("Requests in engine", (("vllm", "running", "running"), ("vllm", "waiting", "waiting"))),
    Panel("KV cache used, %", (("vllm", "kv_used_ratio", "KV"),), 0.01),
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
    panels = [panel for panel in PANELS if any((source, metric) in groups for source, metric, _ in panel.series)]
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
                traces.append(trace.update(yaxis=f"y{number}", showlegend=False))
                rows.append(row)
    shapes, labels = _windows(data, summary)
    last = "" if len(panels) == 1 else str(len(panels))
    figure = figure_json(
        traces, height=70 + 125 * len(panels), shapes=shapes, annotations=labels, hovermode="x", margin={
            "l": 64, "r": 14, "t": 46, "b": 46},
        xaxis={"title": {"text": "Seconds since the run's start"}, "anchor": f"y{last}"}, **axes,
    )  # fmt: skip
    columns = ["Quantity", "Series", "Samples", "least", "mean", "most"]
    note = (
        "Shaded: the measured windows, in the colour of the engine that ran; figures use only samples inside them. "
        "Dotted: the whole host, or requests that wait."
    )
    return [Chart("telemetry", "telemetry", "Telemetry over time", note, figure, columns, rows, [])]


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


def _windows(data: RunData, summary: Summary) -> tuple[list[Any], list[Any]]:
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
