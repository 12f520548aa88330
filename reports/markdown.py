"""The summary as Markdown, for a pull request or a note: the verdict, the main figures, the warnings."""

from __future__ import annotations

import re

from reports import asked, foretold
from reports.findings import sentences
from reports.rows import Summary
from reports.text import COLUMNS, STATES, figure, mark, reasons
from reports.verdict import judge


def render(summary: Summary) -> str:
    """A whole Markdown document, ending in a newline."""
    verdict = judge(summary)
    parts = [f"## {plain(summary.name)}", f"**{plain(verdict.headline)}**"]
    parts += [plain(text) for text in (verdict.support, STATES.get(summary.status, "")) if text]
    parts += [plain(text) for text in sentences(summary)[1 if verdict.kind == "swept" else 0 :]]
    if verdict.differences:
        parts.append("Differs besides the engine:\n\n" + _list(verdict.differences))
    parts.append(table(summary))
    if lines := reasons(summary):
        parts.append(_list([line.removeprefix("– ") for line in lines]))
    if rows := asked.table(summary.points, summary.rows):
        parts.append(f"Asked against got. {asked.NOTE}\n\n" + _table(list(asked.COLUMNS), rows, texts=2))
    if rows := foretold.rows(summary):
        parts.append(f"Predicted against measured. {foretold.NOTE}\n\n" + _table(list(foretold.COLUMNS), rows, texts=3))
    if summary.warnings:
        parts.append("Warnings:\n\n" + _list(summary.warnings))
    parts.append(
        f"<sub>enginebench {summary.tool_version}, scenario {summary.scenario_hash}, {summary.started_at}</sub>"
    )
    return "\n\n".join(parts) + "\n"


def table(summary: Summary) -> str:
    """Engine x point with the main figures."""
    rows = []
    for point in summary.point_names():
        for state in (state for state in summary.points if state.point == point):
            cells = [figure(summary.row(state.engine, point, key)) for key, _ in COLUMNS]
            rows.append([state.label, mark(state), *cells])
    return _table(["load", "engine", *(title for _, title in COLUMNS)], rows, texts=2)


def _table(titles: list[str], rows: list[list[str]], texts: int) -> str:
    """A table whose first `texts` columns are text and the others numbers."""
    aligned = [":--" if number < texts else "--:" for number in range(len(titles))]
    cells = [[plain(cell) if number < texts else cell for number, cell in enumerate(row)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, aligned, *cells])


def _list(items: list[str]) -> str:
    return "\n".join(f"- {plain(item)}" for item in items)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: names and errors come from outside."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))
