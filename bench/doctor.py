"""`bench doctor`: what this machine has for a run, and what to do about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.options import FORMAT, PATH, Format

if TYPE_CHECKING:
    from rich.table import Table

    from harness.checks import Check


@click.command
@FORMAT
@click.option("--results", type=PATH, default=Path("results"), help="The folder where runs are kept.")
def doctor(format: Format, results: Path) -> None:
    """Look at what a run needs: Python, CPU, memory, disk, GPUs, Ollama, vLLM.

    Each row that is not ok says what to do. What is missing is no failure: many runs need no GPU, or one engine alone.
    The exit code is 0 unless Python is too old.

    Example: bench doctor --format json
    """
    import dataclasses
    import json

    from harness.checks import all_checks, python_version

    checks = all_checks(results)
    if format == "json":
        click.echo(json.dumps({"checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    else:
        from rich.console import Console

        console = Console()
        console.print(_table(checks))
        if all(check.state == "ok" for check in checks):
            console.print("Everything is there.")
    if python_version().state != "ok":
        raise SystemExit(1)


def _table(checks: list[Check]) -> Table:
    """Two columns of text and the state: within 80 columns. What to do stands below what was found."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("What", "State", "Found"):
        table.add_column(title, no_wrap=title != "Found", overflow="fold")
    for check in checks:
        found = Text(check.detail)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="dim")
        table.add_row(check.what, Text(check.state, style=_STYLES[check.state]), found)
    return table


_STYLES = {"ok": "green", "warn": "yellow", "missing": "red"}
