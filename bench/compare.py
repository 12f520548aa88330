"""`bench compare A B`: runs, engines, models or dates side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bench.options import FORMAT, PATH, Format

FOLDERS = "Run folders; the first is what the others are held to."


@click.command
@click.argument("folders", type=PATH, nargs=-1, required=True, metavar="FOLDER...", help=FOLDERS)
@click.option("--engine", multiple=True, help="Only this engine (can be repeated).")
@click.option("--out", type=PATH, default=Path("compare.html"), help="The page to write.")
@click.option("--text", is_flag=True, help="Only print; write no page.")
@click.option("--markdown", is_flag=True, help="Only print it as Markdown; write no page.")
@click.option("--force", is_flag=True, help="Compare unlike machines, prompts or loads too.")
@FORMAT
def compare(
    folders: tuple[Path, ...],
    engine: tuple[str, ...],
    out: Path,
    text: bool,
    markdown: bool,
    force: bool,
    format: Format,
) -> None:
    """Compare runs: each figure as a ratio with its interval, and whether it improved, regressed, or neither.

    Engines of the same name are compared; a single run compares its engines with its first one. Several repeats are
    needed to tell a difference from noise.

    Example: bench compare results/before results/after --out compare.html
    """
    from harness.errors import InputError
    from harness.store import RunFolder
    from reports.compare import refuse_unlike
    from reports.comparepage import Comparison, render
    from reports.comparetext import to_dict
    from reports.rundata import read

    if text and markdown:
        raise InputError("--text and --markdown exclude each other", "give one of them")
    found = Comparison([(path, read(RunFolder.open(path))) for path in folders], engine)
    if not force:
        refuse_unlike(found.pairs)
    page = None if text or markdown else out
    if page is not None:
        _write(page, render(found, force))
    if format == "json":
        print(json.dumps(to_dict(found.pairs, found.headline) | {"page": page and str(page)}, allow_nan=False))
    elif markdown:
        from reports.comparetext import markdown as as_markdown

        print(as_markdown(found.pairs, found.headline), end="")
    else:
        from rich.console import Console

        from reports.comparetext import render as as_text

        Console(highlight=False).print(as_text(found.pairs, found.headline))
        if page is not None:
            print(page)


def _write(path: Path, text: str) -> None:
    from harness.errors import InputError

    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "give another --out") from None
