"""One figure of every engine at every load as bars: energy, cost, and what a comparison shows of resources."""

from __future__ import annotations

import plotly.graph_objects as go

from harness.metrics import METRICS
from reports.gpucount import ADDED, counts
from reports.plots import (
    Chart,
    error_bars,
    figure_json,
    figures_table,
    in_their_order,
    look,
    plain,
    short_labels,
    size_scale,
    values_of,
    with_interval,
)
from reports.rows import Summary


def bars(summary: Summary, key: str, section: str) -> list[Chart]:
    """One figure of every engine at every load as bars."""
    metric, states = METRICS[key], summary.points
    values = values_of(summary, states, [key])
    if not values:
        return []
    traces = []
    known = [row for s in states if (row := summary.row(s.engine, s.point, key)).value is not None]
    divisor, unit = {"bytes": size_scale(max(values)), "ratio": (0.01, "%")}.get(metric.unit, (1.0, known[0].unit))
    names, axis = short_labels(states)
    title = metric.title[0].upper() + metric.title[1:]
    for engine in summary.engines:
        mine = [s for s in states if s.engine == engine.name]
        rows = [summary.row(engine.name, s.point, key) for s in mine]
        traces.append(go.Bar(
            x=[plain(names[s.point]) for s in mine], y=[r.value and r.value / divisor for r in rows],
            name=plain(engine.name),
            marker={"color": look(summary, engine.name).colour}, hoverinfo="text+name",
            error_y=error_bars(rows, 1 / divisor) | {"color": "#8b919a"},
            hovertext=[plain(with_interval(r)) for r in rows],
        ))  # fmt: skip
    figure = figure_json(
        traces, barmode="group", bargap=0.35, bargroupgap=0.08,
        xaxis={"type": "category", "categoryarray": in_their_order(summary, names), "automargin": True,
               "title": {"text": axis}},
        yaxis={"title": {"text": f"{title}, {unit}"}, "rangemode": "tozero"},
    )  # fmt: skip
    lines = [(e.name, e.name, [s for s in states if s.engine == e.name]) for e in summary.engines]
    columns, table = figures_table(summary, lines, {key: metric.title})
    note = "With 95 % intervals." + (_added(summary) if key in ADDED else "")
    return [Chart(key, section, title, note, figure, columns, table, [], (key,))]


def _added(summary: Summary) -> str:
    """That a figure is of several GPUs together, where one is."""
    names = [engine.name for engine in summary.engines]
    found = counts(summary, names)
    if all(count is None or count == 1 for count in found):
        return ""
    if len(set(found)) == 1:
        return f" Added over {found[0]} GPUs."
    return " Added over GPUs: " + ", ".join(f"{name} {n}" for name, n in zip(names, found, strict=True) if n) + "."
