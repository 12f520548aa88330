"""Advice for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports.advice import TITLES, commands, facts, headline, rows
from sizing.advise import Advice


def render(advice: Advice, notes: tuple[str, ...] = ()) -> RenderableType:
    """The recommendation, the ranked table, the facts, the commands."""
    lines: list[RenderableType] = [Text(headline(advice), style="bold"), Text("")]
    if advice.ranked:
        lines += [_table(advice), Text("")]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, text in facts(advice):
        grid.add_row(Text(title), Text(text))
    lines.append(grid)
    if advice.best:
        lines += [Text(""), *(Text(command) for command in commands(advice.best))]
    lines += [Text(f"note: {note}", style="yellow") for note in notes]
    return Group(*lines)


def _table(advice: Advice) -> Table:
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for index, title in enumerate(TITLES):
        found.add_column(title, justify="left" if index < 4 else "right", overflow="fold")
    for row in rows(advice):
        found.add_row(*map(Text, row))
    return found
