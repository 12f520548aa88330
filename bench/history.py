"""`bench history METRIC`: one figure over the runs of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.formats import Format


def history(
    metric: Annotated[str, typer.Argument(help="A metric, with or without its unit: ttft_p95, output_tok_s.")],
    folder: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("results"),
    engine: Annotated[str | None, typer.Option("--engine", help="Only this engine.")] = None,
    load: Annotated[str | None, typer.Option("--load", help="Only this load: c16, or '16 concurrent'.")] = None,
    scenario: Annotated[str | None, typer.Option("--scenario", help="Only runs of this scenario.")] = None,
    format: Annotated[Format, typer.Option("--format", help="How the result is printed.")] = Format.table,
) -> None:
    """Show one figure over all runs below a folder, by scenario, engine and load, the newest last.

    Reads the Parquet files through DuckDB (enginebench[history]), no server. A star: client-limited.

    Example: bench history ttft_p95 results
    """
    import json
    from dataclasses import asdict

    from harness.errors import InputError
    from harness.home import data_folder
    from harness.metrics import metric_key
    from reports import history as past_runs

    try:
        key = metric_key(metric)
    except ValueError as error:
        raise InputError(str(error), "docs/metrics.md has all names") from None
    files, passed = past_runs.figures(folder, data_folder() / "history")
    for text in passed:
        typer.secho(f"passed over: {text}", fg="yellow", err=True)
    if passed and not files:
        raise InputError(f"no run below {folder} could be read", "see what is said of each above")
    found = past_runs.past(files, key, {"engine": engine, "load": load, "scenario": scenario})
    if format is Format.json:
        print(json.dumps([asdict(row) for row in found], ensure_ascii=False, allow_nan=False))
    elif not found:
        print(f"no run below {folder} has this figure" + (" of that engine, load or scenario" if files else ""))
    else:
        from rich.console import Console

        from reports.historytext import render

        Console(highlight=False).print(render(found, key))
