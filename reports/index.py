"""index.html over a results folder: every run with what it says, and how the main figures went from run to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plotly.graph_objects as go
import pyarrow.parquet as pq

from harness.errors import InputError
from harness.metrics import METRICS
from reports.html import frame, template
from reports.pageparts import definitions, family
from reports.plots import Chart, figure_json, look_of, plain, time_scale
from reports.sections import Section

TRENDS = ("output_tok_s", "ttft_p50_s", "tpot_p50_s", "e2e_p50_s", "error_ratio", "energy_per_token_j")
Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the index lists it, with all its figures."""

    folder: Path
    verdict: str
    status: str
    figures: list[Figure]

    @property
    def started_at(self) -> str:
        return str(self.figures[0]["started_at"]) if self.figures else ""


def write_index(results: Path, files: dict[Path, Path]) -> Path:
    """Make index.html anew from the figures of each run (`history.figures`).

    Raises:
        InputError: the folder cannot be written to.
    """
    path = results / "index.html"
    try:
        path.write_text(render(results, files), encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "make the folder writable") from None
    return path


def render(results: Path, files: dict[Path, Path]) -> str:
    runs = sorted((_read(folder, path) for folder, path in files.items()), key=lambda r: r.started_at, reverse=True)
    sections = trends(runs)
    shown = {family(key) for section in sections for chart in section.charts for key in chart.metrics}
    scenarios = {figure["scenario"] for run in runs for figure in run.figures[:1]}
    text: str = template("index.html.j2").render(
        name=results.resolve().name, runs=[_listed(run, results) for run in runs], sections=sections, marks={},
        headline=_headline(len(runs), len(scenarios)),
        definitions=[item for item in definitions() if item["key"] in shown], **frame(),
    )  # fmt: skip
    return text.lstrip()


def _headline(runs: int, scenarios: int) -> str:
    if runs == 1:
        return "One run"
    return f"{runs} runs of " + ("one scenario" if scenarios == 1 else f"{scenarios} scenarios")


def _read(folder: Path, path: Path) -> Run:
    table = pq.read_table(path)
    said = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    verdict = json.loads(said.get("enginebench_verdict", '""'))
    return Run(folder, verdict, said.get("enginebench_status", ""), table.to_pylist())


def _listed(run: Run, results: Path) -> dict[str, Any]:
    engines = list(dict.fromkeys(figure["engine"] for figure in run.figures))
    page = run.folder / "report.html"
    link = quote(page.relative_to(results).as_posix()) if page.exists() else ""
    return {
        "started_at": run.started_at, "started": _date(run.started_at), "status": run.status,
        "simulated": any(figure["simulated"] for figure in run.figures), "link": link, "folder": run.folder.name,
        "scenario": run.figures[0]["scenario"] if run.figures else run.folder.name, "engines": ", ".join(engines),
        "verdict": run.verdict or "Nothing was measured.",
    }  # fmt: skip


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return text


def trends(runs: list[Run]) -> list[Section]:
    """A section for each scenario that was run more than once, the one with the most runs first."""
    by_scenario: dict[str, list[Run]] = {}
    for run in reversed(runs):  # the oldest first
        if run.figures:
            by_scenario.setdefault(str(run.figures[0]["scenario"]), []).append(run)
    several = sorted((item for item in by_scenario.items() if len(item[1]) > 1), key=lambda item: -len(item[1]))
    return [
        Section(f"trend-{number}", f"{scenario}: {len(group)} runs", "", _charts(group, number))
        for number, (scenario, group) in enumerate(several)
    ]


def _charts(runs: list[Run], number: int) -> list[Chart]:
    figures = [figure for run in runs for figure in run.figures if figure["value"] is not None]
    engines = list(dict.fromkeys(str(figure["engine"]) for figure in figures))
    loads = dict.fromkeys((str(figure["point"]), str(figure["load"])) for figure in figures)
    counts = {point: len({f["started_at"] for f in figures if f["point"] == point}) for point, _ in loads}
    most = max(counts.values(), default=0)
    first = next((point for point, _ in reversed(loads) if counts[point] == most), None)
    choices = [(point, label, point == first) for point, label in loads]
    charts = []
    for key in TRENDS:
        rows = [figure for figure in figures if figure["metric"] == key]
        if rows and (key != "error_ratio" or any(figure["value"] for figure in rows)):
            charts.append(_trend(key, rows, engines, choices, number))
    return charts


def _trend(
    key: str, figures: list[Figure], engines: list[str], choices: list[tuple[str, str, bool]], number: int
) -> Chart:
    """One figure over the runs' dates: a line an engine, its intervals, a load to choose."""
    metric = METRICS[key]
    title = metric.title[0].upper() + metric.title[1:]
    factor, unit = (100.0, "%") if metric.unit == "ratio" else (1.0, str(figures[0]["unit"]))
    if metric.unit == "s":
        factor, unit = time_scale(max(figure["value"] for figure in figures))
    traces = []
    for point, _, first in choices:
        for index, engine in enumerate(engines):
            mine = [f for f in figures if (f["point"], f["engine"]) == (point, engine)]
            if not mine:
                continue
            style = look_of(index)
            up = [_reach(f["ci_high"], f["value"], factor) for f in mine]
            down = [_reach(f["ci_low"], f["value"], factor) for f in mine]
            traces.append(go.Scatter(
                x=[f["started_at"] for f in mine], y=[float(f"{f['value'] * factor:.6g}") for f in mine],
                mode="lines+markers", name=plain(engine), meta={"point": point}, visible=first,
                line={"color": style.colour, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 8, "color": style.colour},
                error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2,
                         "width": 3, "color": style.colour},
                hovertemplate="%{y:.4~g} " + unit + "<br>%{x|%-d %b %Y %H:%M}",
            ))  # fmt: skip
    figure = figure_json(
        traces, xaxis={"type": "date", "automargin": True},
        yaxis={"title": {"text": title if unit == "tok/s" else f"{title}, {unit}"}, "rangemode": "tozero"},
    )  # fmt: skip
    rows = [[str(f["started_at"])[:16].replace("T", " "), str(f["engine"]), str(f["load"]),
             f"{f['value'] * factor:.4g} {unit}"] for f in figures]  # fmt: skip
    note = "With 95 % intervals. One line may hold unlike machines and versions: `bench compare` says so."
    return Chart(f"trend-{number}-{key}", "trend", f"{title} from run to run", note, figure,
                 ["Started", "Engine", "Load", title], rows, choices, (key,))  # fmt: skip


def _reach(end: float | None, value: float, factor: float) -> float | None:
    return None if end is None else abs(end - value) * factor
