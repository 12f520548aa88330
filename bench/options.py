"""What the options of several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import click

Format = Literal["table", "json"]

PATH = click.Path(path_type=Path)
ONE_OR_MORE = click.IntRange(min=1)


def one_of(kind: Any) -> click.Choice[str]:
    """The values of a `Literal`, as what an option takes."""
    return click.Choice(get_args(kind))


FORMAT = click.option("--format", type=one_of(Format), default="table", help="For people, or for programs.")
RUNS = click.argument(
    "folder", type=PATH, default=Path("results"), help="The folder that holds run folders. Default: results."
)


class Group(click.Group):
    """Lists its commands as they are given, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
