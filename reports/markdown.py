"""The summary as Markdown, for a pull request or a note: the verdict, the main figures, the warnings."""

from __future__ import annotations

import re

from reports.rows import Summary
from reports.text import COLUMNS, STATES, figure, mark, reasons
from reports.verdict import judge


def render(summary: Summary) -> str:
    """A whole Markdown document, ending in a newline."""
    verdict = judge(summary)
    parts = [f"## {plain(summary.name)}", f"**{plain(verdict.headline)}**"]
    parts += [plain(text) for text in (verdict.support, STATES.get(summary.status, "")) if text]
    if verdict.differences:
        parts.append("Differs besides the engine:\n\n" + _list(verdict.differences))
    parts.append(table(summary))
    if lines := reasons(summary):
        parts.append(_list([line.removeprefix("– ") for line in lines]))
    if summary.warnings:
        parts.append("Warnings:\n\n" + _list(summary.warnings))
    parts.append(
        f"<sub>enginebench {summary.tool_version}, scenario {summary.scenario_hash}, {summary.started_at}</sub>"
    )
    return "\n\n".join(parts) + "\n"


def table(summary: Summary) -> str:
    """Engine x point with the main figures."""
    titles = ["load", "engine", *(title for _, title in COLUMNS)]
    lines = [titles, [":--", ":--", *("--:" for _ in COLUMNS)]]
    for point in summary.point_names():
        for state in (state for state in summary.points if state.point == point):
            cells = [figure(summary.row(state.engine, point, key)) for key, _ in COLUMNS]
            lines.append([plain(state.label), plain(mark(state)), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {plain(item)}" for item in items)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: names and errors come from outside."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))
