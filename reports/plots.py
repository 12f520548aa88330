"""What all plots share: the look of an engine, the layout, the texts of figures.

One colour, marker and dash per engine through all plots (Okabe-Ito, told apart by the colour-blind too). Colours of
text and grid are left to the page, which knows whether it is light or dark. Only trace types of plotly's basic bundle.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from harness.units import show
from reports.rows import PointState, Row, Summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LATENCIES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2e": "End to end"}


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot: `figure` is plotly JSON, `columns` and `rows` the same data as text. `choices` are the load points
    that the page lets a reader pick between: (point, label, whether it is shown first). `metrics`: what it shows, so
    that their definitions can stand beside it."""

    key: str
    section: str
    title: str
    note: str
    figure: str
    columns: list[str]
    rows: list[list[str]]
    choices: list[tuple[str, str, bool]]
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """How an engine is drawn."""

    colour: str
    symbol: str
    dash: str


def look(summary: Summary, engine: str) -> Look:
    """The engine's look: by its place in the run, so that it is the same in every plot."""
    names = [state.name for state in summary.engines]
    return look_of(names.index(engine) if engine in names else len(names))


def look_of(index: int) -> Look:
    """The look of the engine at this place; from the seventh on colours come again, with another marker and dash."""
    turn = index + index // 6
    return Look(COLOURS[index % 6], SYMBOLS[turn % 6], DASHES[turn % 6])


def varied(style: Look, variant: int) -> Look:
    """The same engine under another kind of load: its colour, with another marker and dash. 0: as it is."""
    place = SYMBOLS.index(style.symbol) + variant
    return style if not variant else Look(style.colour, SYMBOLS[place % 6], DASHES[place % 6])


def figure_json(traces: list[Any], **layout: Any) -> str:
    """A figure as JSON with the layout that all plots share and no template: the page brings the theme."""
    shared = {
        "height": 330, "margin": {"l": 56, "r": 14, "t": 10, "b": 46}, "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": True,
    }  # fmt: skip
    figure = go.Figure(traces, shared | layout).to_dict()
    figure["layout"].pop("template", None)
    return json.dumps(figure, allow_nan=False, separators=(",", ":"))


def faded(colour: str) -> str:
    """The same colour, pale on any ground."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.3)"


def plain(text: object) -> str:
    """Text for a plot: plotly reads a few HTML tags in labels, and names come from outside."""
    return html.escape(str(text), quote=False)


def rounded(values: Any) -> list[float | None]:
    """Plain floats of six digits: the page need not carry more than a screen can show."""
    return [None if v is None or np.isnan(v) else float(f"{v:.6g}") for v in values]


def bounded(row: Row) -> bool:
    return row.value is not None and row.ci_low is not None and row.ci_high is not None


def error_bars(rows: list[Row], factor: float) -> dict[str, Any]:
    """The 95 % intervals of figures as plotly's error bars."""
    up = [(row.ci_high - row.value) * factor if bounded(row) else None for row in rows]  # type: ignore[operator]
    down = [(row.value - row.ci_low) * factor if bounded(row) else None for row in rows]  # type: ignore[operator]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 3}


def with_interval(row: Row) -> str:
    """A figure with its interval as text, or why it is missing."""
    if row.value is None:
        return f"– ({row.reason})"
    if row.ci_low is None or row.ci_high is None:
        return show(row.value, row.unit)
    return f"{show(row.value, row.unit)} ({show(row.ci_low, row.unit)} to {show(row.ci_high, row.unit)})"


def figures_table(summary: Summary, lines: list[Any], metrics: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [state.label, name, *(with_interval(summary.row(engine, state.point, key)) for key in metrics)]
        for engine, name, states in lines
        for state in states
    ]
    return ["Load", "Engine", *metrics.values()], rows


def time_scale(largest_s: float) -> tuple[float, str]:
    """The factor and unit in which times up to this one read best."""
    return (1.0, "s") if largest_s >= 5 else (1e3, "ms")


def size_scale(largest_bytes: float) -> tuple[float, str]:
    """The divisor and unit in which sizes up to this one read best."""
    for divisor, unit in ((2.0**30, "GiB"), (2.0**20, "MiB")):
        if largest_bytes >= 0.5 * divisor:
            return divisor, unit
    return 2.0**10, "KiB"


def short_labels(states: list[PointState]) -> tuple[dict[str, str], str]:
    """What loads are called under bars, and what that is: `16`, `16 burst`, `8/s`; whole where those are not unique."""
    whole = {state.point: state.label for state in states}
    short = {point: label.replace(" concurrent", "").replace(",", "") for point, label in whole.items()}
    short = {point: label.partition("/s ")[0] + "/s" if "/s " in label else label for point, label in short.items()}
    if len(set(short.values())) < len(short) or max(map(len, short.values()), default=0) > 12:
        return whole, ""
    closed = all(state.load.get("kind") == "concurrency" for state in states)
    return short, "Concurrent requests" if closed else "Concurrent requests, or rate"


def in_their_order(summary: Summary, labels: dict[str, str]) -> list[str]:
    """The labels of bars as the tables have the loads, however the engines' own go."""
    return [plain(labels[point]) for point in summary.point_names() if point in labels]


def values_of(summary: Summary, states: list[PointState], keys: list[str]) -> list[float]:
    """The values that are there."""
    values = [summary.row(state.engine, state.point, key).value for state in states for key in keys]
    return [value for value in values if value is not None]


def slo_limit(summary: Summary, key: str) -> float | None:
    """The limit that the SLO sets on a figure (`ttft_p95_s`), in seconds."""
    return next((t.limit_s for t in summary.targets if f"{t.target}_s" == key), None)


def room_for(limits: list[float], share: float = 0.12) -> dict[str, Any]:
    """What makes an axis reach past its limit lines by a share of them, so that their names fit into the plot."""
    return {"autorangeoptions": {"include": [(1 + share) * limit for limit in limits]}} if limits else {}


def limit_line(axis: str, value: float, text: str) -> dict[str, Any]:
    """A limit across the plot, on the `x` or `y` axis, named where there is room: on the left, or at its top."""
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": value, "y1": value}
    along = {"yref": "paper", "y0": 0, "y1": 1, "xref": "x", "x0": value, "x1": value}
    style = {"color": "#8b919a", "width": 1.5, "dash": "dash"}
    return {
        "type": "line", **(across if axis == "y" else along), "line": style,
        "label": {"text": text, "textposition": "end" if axis == "x" else "start", "font": {"size": 10}, "padding": 2,
                  **({"textangle": 0, "xanchor": "left", "yanchor": "top"} if axis == "x" else {})},
    }  # fmt: skip


def data_block(figure: str) -> str:
    """A figure for a `<script type="application/json">`: nothing in it can end the block or start a tag."""
    json.loads(figure)  # a figure that is no JSON must fail here, not in a reader's browser
    return figure.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
