"""`bench history METRIC`: one figure over the runs of a results folder."""

from __future__ import annotations

from pathlib import Path

import click

from bench.options import FORMAT, RUNS, Format


@click.command
@click.argument("metric", help="A metric, with or without its unit: ttft_p95, output_tok_s.")
@RUNS
@click.option("--engine", help="Only this engine.")
@click.option("--load", help="Only this load: c16, or '16 concurrent'.")
@click.option("--scenario", help="Only runs of this scenario.")
@FORMAT
def history(
    metric: str, folder: Path, engine: str | None, load: str | None, scenario: str | None, format: Format
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
        click.secho(f"passed over: {text}", fg="yellow", err=True)
    if passed and not files:
        raise InputError(f"no run below {folder} could be read", "see what is said of each above")
    found = past_runs.past(files, key, {"engine": engine, "load": load, "scenario": scenario})
    if format == "json":
        print(json.dumps([asdict(row) for row in found], ensure_ascii=False, allow_nan=False))
    elif not found:
        none = f"no runs in {folder}; make one with: bench run quickstart"
        print(f"no run below {folder} has this figure of that engine, load or scenario" if files else none)
    else:
        from rich.console import Console

        from reports.historytext import render

        Console(highlight=False).print(render(found, key))
