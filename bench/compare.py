"""`bench compare A B`: runs, engines, models or dates side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.formats import Format


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Run folders; the first is what the others are held to.")],
    engine: Annotated[list[str] | None, typer.Option("--engine", help="Only this engine (can be repeated).")] = None,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("compare.html"),
    text: Annotated[bool, typer.Option("--text", help="Only print; write no page.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Only print it as Markdown; write no page.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Compare unlike machines, prompts or loads too.")] = False,
    format: Annotated[Format, typer.Option("--format", help="How the result is printed.")] = Format.table,
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
    found = Comparison([(path, read(RunFolder.open(path))) for path in folders], engine or ())
    if not force:
        refuse_unlike(found.pairs)
    page = None if text or markdown else out
    if page is not None:
        _write(page, render(found, force))
    if format is Format.json:
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
