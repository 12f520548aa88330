"""`bench report FOLDER`: the figures and the page of a run, made anew from its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bench.options import FORMAT, PATH, Format, one_of

if TYPE_CHECKING:
    from harness.store import RunFolder
    from reports.rows import Summary

Export = Literal["csv", "json", "parquet", "png", "svg"]


@click.command
@click.argument("folder", type=PATH, help="A run folder; it may be unfinished.")
@click.option("--text", is_flag=True, help="Only print the summary; write nothing.")
@click.option("--markdown", is_flag=True, help="Only print it as Markdown; write nothing.")
@click.option("--export", type=one_of(Export), help="Only write the figures, or every plot.")
@click.option("--chart", help="With png or svg: only this plot.")
@click.option("--out", type=PATH, help="Where --export writes. Default: FOLDER/export.")
@FORMAT
def report(
    folder: Path,
    text: bool,
    markdown: bool,
    export: Export | None,
    chart: str | None,
    out: Path | None,
    format: Format,
) -> None:
    """Make summary.json and report.html anew from a run's records, and print the summary.

    Works on a finished, a cancelled and a killed run alike: what is missing says why. --export csv|json|parquet writes
    figures.csv and so on, --export png|svg one image a plot (needs enginebench[images] and an installed Chrome).

    Example: bench report results/20260102T030405Z-ollama-vs-vllm
    """
    from harness.errors import InputError
    from harness.store import RunFolder
    from reports.summary import summarize

    if text + markdown + (export is not None) > 1:
        raise InputError("--text, --markdown and --export exclude each other", "give one of them")
    if export not in ("png", "svg") and chart is not None:
        raise InputError("--chart is for --export png or svg", "give both, or leave it out")
    run = RunFolder.open(folder)
    if export is not None:
        for path in _export(run, export, chart, out or folder / "export"):
            print(path)
        return
    if text or markdown:
        summary, paths = summarize(run), {}
    else:
        from reports.html import write_all

        summary, page = write_all(run)
        paths = {"summary": run.path / "summary.json", "report": page}
    if format == "json":
        _print_json(summary, paths)
    elif markdown:
        from reports.markdown import render

        print(render(summary), end="")
    else:
        _print_table(summary, paths)
        if summary.status in ("interrupted", "running"):
            print(f"to go on with this run: bench run --resume {folder}")


def _export(run: RunFolder, kind: Export, chart: str | None, out: Path) -> list[Path]:
    from reports import export, images
    from reports.charts import charts
    from reports.rundata import read
    from reports.summary import summarize_data
    from reports.verdict import judge

    data = read(run)
    summary = summarize_data(data)
    if kind in export.TABLES:
        return [export.write(summary, kind, out / f"figures.{kind}")]
    found = charts(data, summary, judge(summary).point)
    return images.write(images.chosen(found, chart), kind, out)


def _print_json(summary: Summary, paths: dict[str, Path]) -> None:
    from dataclasses import asdict

    from reports.verdict import judge

    found = {"verdict": asdict(judge(summary)), "paths": {key: str(path) for key, path in paths.items()}}
    print(json.dumps(found | summary.to_dict(), ensure_ascii=False, allow_nan=False))


def _print_table(summary: Summary, paths: dict[str, Path]) -> None:
    from rich.console import Console

    from reports.text import render

    console = Console(highlight=False)
    console.print(render(summary))
    for path in paths.values():
        # Not through the console: it would wrap a path in the middle.
        print(path)
