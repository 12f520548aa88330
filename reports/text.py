"""The summary for a terminal: the verdict, the main figures in 80 columns, the warnings."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.units import show
from reports import asked, foretold
from reports.findings import sentences
from reports.rows import PointState, Row, Summary
from reports.termplots import bars
from reports.termplots import columns as terminal
from reports.verdict import judge

COLUMNS = (
    ("output_tok_s", "tok/s"), ("ttft_p50_s", "TTFT p50"), ("ttft_p95_s", "TTFT p95"), ("tpot_p50_s", "TPOT p50"),
    ("e2e_p95_s", "E2E p95"), ("error_ratio", "failed"),
)  # fmt: skip
WIDE_ONLY, NARROW = ("ttft_p95_s", "e2e_p95_s"), 78  # left out of a terminal of fewer columns; the page has them
STATES = {
    "running": "This run has not ended: it is still going on, or was killed.",
    "interrupted": "This run was interrupted.",
    "failed": "This run failed.",
}


def render(summary: Summary) -> RenderableType:
    """Everything about a run that fits a terminal; names are printed as they are, never read as markup."""
    verdict = judge(summary)
    lines: list[RenderableType] = [Text(verdict.headline, style="bold")]
    lines += [Text(text) for text in (verdict.support, STATES.get(summary.status, "")) if text]
    lines += [Text(text) for text in sentences(summary)[1 if verdict.kind == "swept" else 0 :]]
    lines += [Text(f"Differs besides the engine: {text}", style="yellow") for text in verdict.differences]
    if any(state.repeats for state in summary.points):
        lines += [Text(""), table(summary)]
        lines += [Text(text, style="dim") for text in reasons(summary)]
    lines += [Text(text) for text in bars(summary)]
    lines += [lengths(summary)] if asked.lengths(summary.points, summary.rows) else []
    lines += [Text(text, style="dim") for text in [foretold.in_short(summary)] if text]
    lines += [Text(f"Warning: {_brief(text)}", style="yellow") for text in summary.warnings]
    return Group(*lines)


def _brief(warning: str) -> str:
    """A warning without the lines of a log, which the page and the log itself hold."""
    before, log, rest = warning.partition("\nlast lines of its log:\n")
    remedy = rest.rpartition("\nremedy: ")[2]
    return f"{before}\nremedy: {remedy}" if log else warning


def table(summary: Summary) -> Table:
    """Engine x point with the main figures: 80 columns wide."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    found.add_column("load", min_width=7, max_width=13, overflow="fold")
    found.add_column("engine", max_width=14, overflow="fold")
    shown = [column for column in COLUMNS if terminal() >= NARROW or column[0] not in WIDE_ONLY]
    for _, title in shown:
        found.add_column(title, justify="right", max_width=8, overflow="fold")
    for point in summary.point_names():
        states = [state for state in summary.points if state.point == point]
        for index, state in enumerate(states):
            label = state.label if index == 0 else ""
            cells = [figure(summary.row(state.engine, state.point, key)) for key, _ in shown]
            found.add_row(*map(Text, [label, mark(state), *cells]), end_section=index == len(states) - 1)
    return found


def lengths(summary: Summary) -> RenderableType:
    """Asked against got: a line where all is as asked for, else a table."""
    if (short := asked.in_short(summary.points, summary.rows)) is not None:
        return Text(f"\n{short}", style="dim")
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, title_justify="left")
    for title in asked.COLUMNS:
        found.add_column(
            title, justify="left" if title in ("load", "engine") else "right", max_width=14, overflow="fold"
        )
    for row in asked.table(summary.points, summary.rows):
        found.add_row(*map(Text, row))
    return Group(Text(""), found)


def mark(state: PointState) -> str:
    """The engine's name, with a star where the client was the limit."""
    return state.engine + (" *" if state.client_limited else "")


def figure(row: Row) -> str:
    """A figure without the unit that its column names; `–` where there is none."""
    if row.value is None:
        return "–"
    return show(row.value, "" if row.metric == "output_tok_s" else row.unit)


def reasons(summary: Summary) -> list[str]:
    """Why figures are missing, each reason once, and what the star means."""
    lines = [f"– {text}" for text in summary.missing(COLUMNS)]
    if any(state.client_limited for state in summary.points):
        lines.append("* client-limited: the client, not the server, set these figures; no verdict uses them")
    return lines
