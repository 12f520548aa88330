"""`bench baseline save | show | list`: figures to hold later runs to, as a small file in your repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.options import FORMAT, PATH, Format, Group

if TYPE_CHECKING:
    from reports.sides import Side

DIR = click.option("--dir", "folder", type=PATH, default=Path("baselines"), help="Where baselines are kept.")
MAIN = ("ttft_p95_s", "tpot_p95_s", "e2e_p95_s", "output_tok_s", "error_ratio")


@click.command
@click.argument("name", help="What to call it, such as `main`; or a path to a .json file.")
@click.argument("run", type=PATH, help="A run folder.")
@click.option("--engine", help="The engine, if the run has several.")
@click.option("--new", "fresh", is_flag=True, help="Begin anew, without the sessions that are in the file.")
@DIR
def save(name: str, run: Path, engine: str | None, fresh: bool, folder: Path) -> None:
    """Add a run to a baseline. Later runs are compared with the newest; the earlier ones tell how much sessions differ.

    Example: bench baseline save main results/20260102T030405Z-mine
    """
    from reports.baseline import KEYS, path_of
    from reports.baseline import save as keep
    from reports.sides import chosen, read_sides

    path = path_of(name, folder)
    sessions = keep(path, chosen(read_sides(run, KEYS), engine, str(run)), fresh)
    click.echo(f"{path}: {sessions} session{'s' if sessions > 1 else ''}. Review it and commit it.")
    if sessions < 3:
        click.echo("With three sessions or more, the gate knows how much sessions differ when nothing has changed.")


@click.command(short_help="Show what a baseline holds.")
@click.argument("name", help="The baseline's name, or its file.")
@DIR
@FORMAT
def show(name: str, folder: Path, format: Format) -> None:
    """Show what a baseline holds: its sessions, and the main figures of the newest.

    Example: bench baseline show main
    """
    import json

    from reports.baseline import load, path_of

    sessions = load(path_of(name, folder))
    if format == "json":
        click.echo(json.dumps([_session(side) for side in sessions], indent=1, ensure_ascii=False))
        return
    for side in sessions:
        click.echo(f"{side.started_at}  {side.engine} ({side.kind} {side.version or '?'}, {side.model})  "
                   f"machine {side.fingerprint or 'unknown'}")  # fmt: skip
    _figures(sessions[-1])


def _figures(side: Side) -> None:
    from harness.metrics import METRICS
    from harness.units import show as text

    for point in side.points.values():
        click.echo(f"  {point.label}, {point.counted} repeats")
        for key in MAIN:
            repeats = point.figures.get(key)
            if repeats is None:
                click.echo(f"    {METRICS[key].title:<16} –")
                continue
            low, high, unit = min(repeats.values), max(repeats.values), METRICS[key].unit
            mean = sum(repeats.values) / len(repeats)
            click.echo(f"    {METRICS[key].title:<16} {text(mean, unit)}  ({text(low, unit)} to {text(high, unit)})")


def _session(side: Side) -> dict[str, Any]:
    points = {
        name: {"load": point.load, "repeats": point.counted, "limited": point.limited, "failed": point.failed,
               "figures": {key: repeats.values for key, repeats in point.figures.items()}}
        for name, point in side.points.items()
    }  # fmt: skip
    about = ("engine", "kind", "model", "version", "simulated", "started_at", "tool_version", "fingerprint", "machine")
    return {key: getattr(side, key) for key in about} | {"points": points}


@click.command("list")
@DIR
@FORMAT
def list_baselines(folder: Path, format: Format) -> None:
    """List the baselines there are.

    Example: bench baseline list
    """
    import json

    from harness.errors import InputError
    from reports.baseline import load

    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            sessions = load(path)
        except InputError as error:
            rows.append({"name": path.stem, "error": str(error)})
            continue
        last = sessions[-1]
        rows.append({"name": path.stem, "engine": last.engine, "model": last.model, "sessions": len(sessions),
                     "newest": last.started_at, "points": list(last.points)})  # fmt: skip
    if format == "json":
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        click.echo(f"no baselines in {folder}; make one with: bench baseline save NAME RUN")
    for row in rows:
        held = f"{row['sessions']} session{'s' if row['sessions'] != 1 else ''}" if "sessions" in row else ""
        said = row.get("error") or (
            f"{row['engine']}, {held}, newest {_when(row['newest'])}, {', '.join(row['points'])}"
        )
        click.echo(f"{row['name']}  {said}")


def _when(started_at: str) -> str:
    """`2026-01-02 03:04`, in UTC."""
    return started_at[:16].replace("T", " ")


baseline = Group(
    "baseline",
    help="Keep a run's figures as a baseline for `bench gate`.",
    epilog="Example: bench baseline save main results/20260102T030405Z-mine",
    commands=[save, show, list_baselines],
)
