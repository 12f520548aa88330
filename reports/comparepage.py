"""The page of a comparison: what differs first, then every plot with all runs in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from harness.errors import InputError
from reports import compare, comparetext
from reports.charts import charts
from reports.compare import Difference, Pair
from reports.html import Head, render_page
from reports.merge import engine_labels, merged, renamed, run_labels
from reports.plots import Chart, figure_json, look, plain
from reports.rows import Summary
from reports.rundata import RunData
from reports.sections import LONG, Page, Section, Table
from reports.sides import sides_of
from reports.summary import summarize_data
from reports.telemetrycharts import timeline
from reports.verdict import judge

DRAWN = ("output_tok_s", "ttft_p50_s", "tpot_p50_s", "e2e_p95_s")


class Comparison:
    """Runs side by side: `pairs` hold what differs, `headline` says it in a sentence."""

    def __init__(self, runs: Sequence[tuple[Path, RunData]], engines: Sequence[str] = ()) -> None:
        """`engines`: only those of these names.

        Raises:
            InputError: there is nothing to compare, or an engine that was named is in no run.
        """
        labels = run_labels([path for path, _ in runs])
        paths = dict(zip(labels, (path for path, _ in runs), strict=True))
        named = [(label, _only(data, engines)) for label, (_, data) in zip(labels, runs, strict=True)]
        known = {engine.name for _, data in runs for engine in data.run.engines}
        if missing := [name for name in engines if name not in known]:
            raise InputError(f"no run holds an engine '{missing[0]}'", f"they have: {', '.join(sorted(known))}")
        names = engine_labels(named)
        sides = [
            (label, names[label, engine], side)
            for label, data in named
            for engine, side in sides_of(data, list(compare.KEYS), str(paths[label])).items()
        ]
        self.pairs = compare.differences(compare.pairs(sides))
        self.data = merged(named)
        self.runs = [(label, renamed(label, data, names)) for label, data in named]
        self.summary = summarize_data(self.data)
        self.verdict = judge(self.summary)
        self.headline = _as_sure(self.verdict.headline, self.pairs)


def _as_sure(headline: str, pairs: list[Pair]) -> str:
    """No ratio stands as a fact where one repeat a side is all there is."""
    reasons = {difference.reason for pair in pairs for difference in pair.differences}
    before, with_, rest = headline.partition("With ")  # "Simulated: " may stand before it
    if compare.ONE not in reasons or not with_:
        return headline
    return f"{before}As far as one repeat a side can say, with {rest}"


def _only(data: RunData, engines: Sequence[str]) -> RunData:
    """A run without the engines that were not asked for."""
    if not engines:
        return data
    kept = [engine for engine in data.run.engines if engine.name in engines]
    points = [point for point in data.run.points if point.engine in engines]
    measured = {key: parts for key, parts in data.measured.items() if key[0] in engines}
    return replace(data, run=replace(data.run, engines=kept, points=points), measured=measured)


def render(found: Comparison, forced: bool = False) -> str:
    """The whole page. `forced`: unlike environments were compared on demand, which it says at its top."""
    data, summary, verdict = found.data, found.summary, found.verdict
    drawn = charts(data, summary, verdict.point) + _over_time(found)
    page = Page(data, summary, verdict, drawn, compared=True)
    said = [f"{pair.said()}." for pair in found.pairs]
    unlike = [f"{pair.candidate} against {pair.baseline}: {why}" for pair in found.pairs for why in pair.unlike]
    if forced and unlike:
        said.insert(0, "Compared by force although unlike: " + "; ".join(unlike) + ".")
    first = [_section(summary, pair, number, len(found.pairs)) for number, pair in enumerate(found.pairs)]
    return render_page(page, Head("enginebench comparison", found.headline, [*said, verdict.support], first))


def _over_time(found: Comparison) -> list[Chart]:
    """Each run's telemetry on its own clock, in the colours of the comparison. A single run's is among its plots."""
    if len(found.runs) < 2:
        return []
    return [
        replace(chart, key=f"telemetry-{number}", title=f"{label}: telemetry over time")
        for number, (label, data) in enumerate(found.runs)
        for chart in timeline(data, found.summary)
    ]


def _section(summary: Summary, pair: Pair, number: int, of: int) -> Section:
    rows: list[list[Any]] = []
    for row in pair.differences:
        figure, before, after, ratio, interval, word = comparetext.cells(row)
        rows.append([row.label, figure, word, ratio, interval, before, after])
    columns = ["Load", "Figure", "Seen", "Ratio", "95 % interval", pair.baseline, pair.candidate]
    fold = f"All {len(rows)} figures" if len(rows) > LONG else ""
    table = Table(f"Differences: {pair.candidate} against {pair.baseline}", columns, rows, fold=fold)
    title = "Differences" if of == 1 else f"{pair.candidate} against {pair.baseline}"
    items = [*pair.unlike, *comparetext.reasons(pair), *pair.notes]
    charts_ = [_ratios(summary, pair, f"ratios-{number}")] if any(d.change for d in pair.differences) else []
    return Section(f"differences-{number}", title, comparetext.HOW, charts_, [table] if rows else [], items,
                   "" if rows else "No point was measured on both.")  # fmt: skip


def _ratios(summary: Summary, pair: Pair, key: str) -> Chart:
    """The ratios of the main figures with their intervals, one line a figure and load; 1 is no change."""
    drawn = [d for d in pair.differences if d.metric in DRAWN and d.change is not None and not d.points]
    colour = look(summary, pair.candidate).colour
    hollow = ["circle" if d.state in ("improved", "regressed") else "circle-open" for d in drawn]
    trace = go.Scatter(
        x=[d.change for d in drawn], y=[plain(f"{d.title}, {d.label}") for d in drawn], mode="markers",
        marker={"size": 9, "color": colour, "symbol": hollow}, name=plain(pair.candidate),
        error_x={"type": "data", "symmetric": False, "color": colour, "thickness": 1.4, "width": 3,
                 "array": [_reach(d.high, d) for d in drawn], "arrayminus": [_reach(d.low, d) for d in drawn]},
        hovertext=[plain(f"{comparetext.change(d)} {comparetext.interval(d)}, {d.state}") for d in drawn],
        hoverinfo="text",
    )  # fmt: skip
    line = {"type": "line", "xref": "x", "yref": "paper", "x0": 1, "x1": 1, "y0": 0, "y1": 1,
            "line": {"color": "#8b919a", "width": 1.5, "dash": "dash"}}  # fmt: skip
    figure = figure_json(
        [trace], shapes=[line], showlegend=False, height=110 + 24 * len(drawn),
        xaxis={"title": {"text": f"{plain(pair.candidate)} over {plain(pair.baseline)}"}, "type": "log",
               **_ticks([v for d in drawn for v in (d.change, d.low, d.high) if v])},
        yaxis={"autorange": "reversed", "automargin": True},
    )  # fmt: skip
    columns = ["Figure", "Load", "Ratio", "95 % interval", "Seen"]
    rows = [[d.title, d.label, comparetext.change(d), comparetext.interval(d), d.state] for d in drawn]
    note = "Right of the dashed line is more, left is less. Full: improved or regressed; hollow: not."
    return Chart(key, "differences", f"{pair.candidate} over {pair.baseline}", note, figure, columns, rows, [], DRAWN)


def _ticks(values: list[float]) -> dict[str, Any]:
    """Ratios at which a log axis is named: 1 and round ones around it, no more than read well."""
    near = [0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.5]
    far = [0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5]
    wide = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    low, high = min([1.0, *values]), max([1.0, *values])
    ticks = near if low >= 0.7 and high <= 1.5 else far if low >= 0.2 and high <= 5 else wide
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _reach(end: float | None, row: Difference) -> float | None:
    return None if end is None or row.change is None else abs(end - row.change)
