"""Advice for a terminal."""

from __future__ import annotations

import re
import shlex
import textwrap

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
        lines += [
            Text(""),
            *(Text(continued(command), overflow="fold") for command in commands(advice.best)),
        ]
    lines += [Text(f"note: {note}", style="yellow") for note in notes]
    return Group(*lines)


def continued(command: str, width: int = 78) -> str:
    """A command over several lines, broken before options and further commands: it can be pasted as it is."""
    if command.startswith("#"):
        return textwrap.fill(command, width, subsequent_indent="# ")
    lines: list[str] = []
    for part in re.split(r" (?=--|&& |ollama serve)", command):
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part if not lines else f"    {part}")
    found = " \\\n".join(lines)
    return found if shlex.split(found.replace(" \\\n", " ")) == shlex.split(command) else command


def _table(advice: Advice) -> Table:
    found = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for index, title in enumerate(TITLES):
        found.add_column(title, justify="left" if index < 4 else "right", overflow="fold")
    for row in rows(advice):
        found.add_row(*map(Text, row))
    return found
