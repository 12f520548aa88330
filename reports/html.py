"""The report page: one self-contained file that works offline, in light and dark, on a phone and on paper.

Everything that comes from outside (model names, servers' errors) is escaped; scripts run only by their hash.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.metrics import METRICS
from harness.store import RunFolder
from reports.charts import charts
from reports.findings import sentences
from reports.pageparts import Cell, definitions, family, figure_cell, in_code
from reports.plots import SYMBOLS, data_block, look
from reports.rows import PointState, Summary
from reports.rundata import RunData, read
from reports.sections import Page, Section, sections
from reports.summary import NOT_PLANNED, save_summary, summarize_data, write_text
from reports.throttling import is_throttled
from reports.verdict import judge

COLUMNS = (
    ("output_tok_s", "Output tok/s"), ("ttft_p50_s", "TTFT p50"), ("ttft_p95_s", "TTFT p95"),
    ("tpot_p50_s", "TPOT p50"), ("tpot_p95_s", "TPOT p95"), ("e2e_p95_s", "E2E p95"), ("error_ratio", "Failed"),
    ("kv_live_bytes", "KV live"),
)  # fmt: skip
PATHS = {
    "circle": "M6 0a6 6 0 1 0 0 12a6 6 0 1 0 0-12z", "square": "M.7.7h10.6v10.6H.7z", "diamond": "M6-1l7 7-7 7-7-7z",
    "triangle-up": "M6-.5L13 11.5H-1z", "cross": "M4 0h4v4h4v4H8v4H4V8H0V4h4z",
    "x": "M2 0l4 4 4-4 2 2-4 4 4 4-2 2-4-4-4 4-2-2 4-4-4-4z",
}  # fmt: skip


def write_all(folder: RunFolder) -> tuple[Summary, Path]:
    """summary.json and report.html from one reading of the records.

    Raises:
        InputError: the folder is damaged, or cannot be written to.
    """
    data = read(folder)
    summary = summarize_data(data)
    save_summary(folder, summary)
    write_text(folder, "report.html", render(data, summary))
    return summary, folder.path / "report.html"


def render(data: RunData, summary: Summary) -> str:
    """The whole page of one run."""
    verdict = judge(summary)
    page = Page(data, summary, verdict, charts(data, summary, verdict.point))
    swept = sentences(summary)[1 if verdict.kind == "swept" else 0 :]
    return render_page(page, Head("enginebench report", verdict.headline, [t for t in [verdict.support, *swept] if t]))


@dataclass(frozen=True, slots=True)
class Head:
    """The first screen of a page, above its summary table; `first`: sections that come before all others."""

    kicker: str
    headline: str
    support: list[str]
    first: list[Section] = field(default_factory=list)


def render_page(page: Page, head: Head) -> str:
    """A page from its parts."""
    data, summary = page.data, page.summary
    engines = {state.engine for state in summary.points} | {engine.name for engine in data.run.engines}
    text: str = template("report.html.j2").render(
        run=data.run,
        head=head,
        started=_date(data.run.started_at),
        verdict=page.verdict,
        badges=_badges(summary),
        columns=[{"title": title, "definition": family(key)} for key, title in COLUMNS] + _slo_column(summary),
        groups=_groups(summary),
        missing=summary.missing(COLUMNS),
        sections=head.first + sections(page),
        marks={name: _mark(summary, name) for name in engines},
        definitions=definitions(),
        scenario=yaml.safe_dump(data.run.scenario, sort_keys=False, allow_unicode=True, width=100),
        **frame(),
    )
    return text.lstrip()


def template(name: str) -> Any:
    """A page's template: everything put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["block"] = lambda figure: Markup(data_block(figure))
    environment.filters["defined"] = _defined
    environment.filters["code"] = in_code
    return environment.get_template(name)


def frame() -> dict[str, Any]:
    """What every page with plots carries: its style, its two scripts and the policy that lets it run nothing else."""
    plotly, script = resource("static/plotly-basic.min.js"), resource("templates/report.js")
    return {"csp": _policy([plotly, script]), "css": Markup(resource("templates/report.css")),
            "plotly": Markup(plotly), "script": Markup(script)}  # fmt: skip


def _defined(keys: tuple[str, ...]) -> list[dict[str, str]]:
    """The definitions of what a plot shows: one a quantity."""
    found = {family(key): METRICS[key] for key in keys}
    return [
        {"key": name, "title": metric.title.removesuffix(f" {metric.stat}"), "help": metric.help}
        for name, metric in found.items()
    ]


def resource(name: str) -> str:
    return (files("reports") / name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """A page that may run these scripts and load nothing. Plotly sets inline styles, hence `unsafe-inline` for them."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return text


def _badges(summary: Summary) -> list[dict[str, str]]:
    badges = []
    if summary.simulated:
        names = [engine.name for engine in summary.engines if engine.simulated]
        text = "Simulated" if len(names) == len(summary.engines) else f"Simulated: {', '.join(names)}"
        badges.append({"text": text, "tone": "warn", "title": "A model of the hardware set the speed, not hardware"})
    state = {"running": ("Unfinished", "The run is still going on, or was killed"),
             "interrupted": ("Interrupted", "The run was stopped before its end"),
             "failed": ("Failed", "The run could not be finished")}.get(summary.status)  # fmt: skip
    if state:
        badges.append({"text": state[0], "tone": "bad", "title": state[1]})
    limited = sum(point.client_limited for point in summary.points)
    if limited:
        text = f"Client-limited: {limited} of {len(summary.points)} points"
        badges.append({"text": text, "tone": "bad", "title": "There the client, not the server, was the limit"})
    if summary.warnings:
        text = "1 warning" if len(summary.warnings) == 1 else f"{len(summary.warnings)} warnings"
        badges.append({"text": text, "tone": "warn", "title": "Listed below", "link": "#h-warnings"})
    return [{"link": ""} | badge for badge in badges]


def _groups(summary: Summary) -> list[dict[str, Any]]:
    """The summary table: one group a load, in it one row an engine, so that like stands by like."""
    groups = []
    for point in summary.point_names():
        states = [state for state in summary.points if state.point == point]
        rows = [{"engine": s.engine, "notes": _notes(summary, s), "cells": _cells(summary, s)} for s in states]
        groups.append({"label": states[0].label, "rows": rows})
    return groups


def _notes(summary: Summary, state: PointState) -> list[str]:
    notes = ["client-limited"] if state.client_limited else []
    notes += ["throttled"] if is_throttled(summary.row(state.engine, state.point, "gpu_throttled_ratio").value) else []
    if state.limited_repeats and not state.client_limited:
        notes.append(f"{state.limited_repeats} of {state.repeats} repeats client-limited")
    if state.reason == NOT_PLANNED:
        notes.append("not in this run")
    elif state.status not in ("done", "client-limited"):
        notes.append({"pending": "not reached", "running": "unfinished"}.get(state.status, state.status))
    if 0 < state.repeats < state.planned:
        notes.append(f"{state.repeats} of {state.planned} repeats")
    return notes


def _cells(summary: Summary, state: PointState) -> list[Cell]:
    cells = [figure_cell(summary.row(state.engine, state.point, key)) for key, _ in COLUMNS]
    reserved = figure_cell(summary.row(state.engine, state.point, "kv_capacity_bytes"))
    if reserved.number:  # live KV means little without what it is a part of
        cells[-1] = replace(cells[-1], interval=f"of {reserved.number} {reserved.unit}")
    targets = [t for t in summary.targets if (t.engine, t.point) == (state.engine, state.point)]
    if not summary.targets:
        return cells
    missed = [t.target for t in targets if t.met is False]
    unknown = [f"{t.target}: {t.reason}" for t in targets if t.met is None]
    if unknown and not missed:
        return [*cells, Cell(reason="; ".join(unknown))]
    reasons = "; ".join(f"{t.target}: {t.reason}" for t in targets if t.reason and t.met is not None)
    number, tone = ("missed", "bad") if missed else ("met", "good")
    title = ("missed: " + ", ".join(missed) if missed else "") + ("; " + reasons if reasons else "")
    return [*cells, Cell(number, tone=tone, title=title.strip("; "))]


def _slo_column(summary: Summary) -> list[dict[str, str]]:
    return [{"title": "SLO", "definition": "slo_ratio"}] if summary.targets else []


def _mark(summary: Summary, engine: str) -> dict[str, str]:
    style = look(summary, engine)
    return {"colour": style.colour, "path": PATHS[style.symbol] if style.symbol in SYMBOLS else PATHS["circle"]}
