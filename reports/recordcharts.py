"""The plots that go back to the requests: distributions, and failed requests by kind."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import plotly.graph_objects as go

from harness.metrics import METRICS, Measured, pooled, quantile_of
from harness.units import show
from reports.hidden import hidden
from reports.plots import (
    LATENCIES,
    Chart,
    figure_json,
    look,
    plain,
    rounded,
    time_scale,
)  # fmt: skip
from reports.rows import Summary
from reports.rundata import RunData

CURVE_POINTS = 200  # of a distribution, however many requests are behind it
ERROR_KINDS = 8


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
        found.append(Chart(f"cdf-{name}", "cdf", title, note, figure, columns, rows, choices, (f"{name}_p50_s",)))
    return found


def _ordered(part: Measured, name: str) -> Any:
    """A latency of all requests that ended well, from the least to the most."""
    samples = METRICS[f"{name}_p50_s"].samples
    assert samples is not None
    return part.ordered(name, samples)


def readable(error: str) -> str:
    """An error as one reads it: of a page (a balancer's 502) its words alone, each once."""
    if "<html" not in error.lower():
        return error
    head, words = error[: error.lower().index("<html")], re.sub(r"<[^>]*>", "\n", error[error.lower().index("<html") :])
    return " ".join([head.strip(), *dict.fromkeys(line.strip() for line in words.splitlines() if line.strip())])


def _kind(status: str, error: str) -> str:
    return status if error == status else f"{status}: {error}"


def errors(data: RunData, summary: Summary) -> list[Chart]:
    table = data.requests.select(["engine", "phase", "status", "http_status", "error"]).to_pandas()
    failed = table[(table["phase"] == "measure") & (table["status"] != "ok")]
    if failed.empty:
        return []
    counts: Counter[tuple[str, str]] = Counter(
        (str(r.engine), hidden(_kind(r.status, readable(r.error or "no text")))[:200]) for r in failed.itertuples()
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
    rows = [[engine, kind, f"{count:,}"] for (engine, kind), count in counts.most_common(50)]
    note = "Measured requests that did not end well. They count as misses, and their times are in no latency figure."
    columns = ["Engine", "Kind", "Requests"]
    return [Chart("errors", "errors", "Failed requests by kind", note, figure, columns, rows, [], ("error_ratio",))]
