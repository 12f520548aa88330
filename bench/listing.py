"""`bench list`: the runs there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from bench.formats import Format


def list_runs(
    folder: Path = typer.Argument(Path("results"), help="The folder that holds run folders."),
    index: bool = typer.Option(False, "--index", help="Also write FOLDER/index.html: all runs, and trend plots."),
    format: Format = typer.Option(Format.table, "--format", help="table or json."),
) -> None:
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
        typer.secho(f"passed over: {text}", fg="yellow", err=True)
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
    if format is Format.json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo(f"no runs in {folder}; make one with: bench run quickstart")
    width = max((len(row["folder"]) for row in rows), default=0)
    for row in rows:
        done = f"{row.get('points_done', '-')}/{row.get('points', '-')} points"
        engines = ", ".join(row.get("engines", ()))
        typer.echo(f"{row['folder']:<{width}}  {row['status']:<11}  {done:<12}  {engines}".rstrip())
    if page is not None:
        typer.echo(page)


def _write_index(folder: Path) -> Path:
    from harness.home import data_folder
    from reports.history import figures
    from reports.index import write_index

    files, passed = figures(folder, data_folder() / "history")
    for text in passed:
        typer.secho(f"passed over: {text}", fg="yellow", err=True)
    return write_index(folder, files)
