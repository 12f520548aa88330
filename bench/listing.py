"""`bench list`: the runs there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.options import FORMAT, RUNS, Format


@click.command("list")
@RUNS
@click.option("--index", is_flag=True, help="Also write FOLDER/index.html: all runs, and trend plots.")
@FORMAT
def list_runs(folder: Path, index: bool, format: Format) -> None:
    """List the runs below a folder, the newest first. Reads each run.json and nothing else; with --index its records.

    Example: bench list results
    """
    import json

    from harness.errors import InputError
    from harness.store import RunFolder, run_folders

    rows: list[dict[str, Any]] = []
    none_yet = folder == Path("results") and not folder.exists()
    found, passed = ([], []) if none_yet else run_folders(folder)
    for text in passed:
        click.secho(f"passed over: {text}", fg="yellow", err=True)
    for path in found:
        try:
            run = RunFolder(path).read_run()
        except InputError as error:
            rows.append({"folder": str(path), "status": f"unreadable: {error}"})
            continue
        rows.append(
            {
                "folder": str(path),
                "scenario": run.name,
                "started": run.started_at,
                "status": run.status,
                "engines": [engine.name for engine in run.engines],
                "points_done": sum(p.status in ("done", "client-limited") for p in run.points),
                "points": len(run.points),
            }
        )
    rows.sort(key=lambda row: str(row.get("started", "")), reverse=True)
    page = _write_index(folder) if index and rows else None
    if format == "json":
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo(f"no runs in {folder}; make one with: bench run quickstart")
    width = max((len(row["folder"]) for row in rows), default=0)
    for row in rows:
        done = f"{row.get('points_done', '-')}/{row.get('points', '-')} points"
        engines = ", ".join(row.get("engines", ()))
        click.echo(f"{row['folder']:<{width}}  {row['status']:<11}  {done:<12}  {engines}".rstrip())
    if page is not None:
        click.echo(page)


def _write_index(folder: Path) -> Path:
    from harness.home import data_folder
    from reports.history import figures
    from reports.index import write_index

    files, passed = figures(folder, data_folder() / "history")
    for text in passed:
        click.secho(f"passed over: {text}", fg="yellow", err=True)
    return write_index(folder, files)
