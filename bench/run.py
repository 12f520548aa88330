"""`bench run`: measure a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.options import ONE_OR_MORE, PATH

if TYPE_CHECKING:
    from bench.scored import Answer
    from harness.cluster.connect import Cluster
    from harness.records import RunRecord
    from harness.scenario import Scenario
    from harness.store import RunFolder
    from reports.rows import Summary


PORT_HELP = "Live figures at http://127.0.0.1:PORT/metrics while it runs (docs/monitoring.md)."


@click.command
@click.argument("file", required=False, help="A scenario file, or the name of a shipped scenario.")
@click.option("--out", type=PATH, help="The run folder itself. Default: results/<utc>-<scenario>.")
@click.option("--resume", type=PATH, metavar="DIR", help="Go on with an interrupted run.")
@click.option("--engine", multiple=True, help="Only this engine of the scenario (can be repeated).")
@click.option("--repeats", type=ONE_OR_MORE, help="Instead of the scenario's.")
@click.option(
    "--cluster", metavar="auto|ADDRESS", help="Load from the hosts of a running Ray cluster (docs/cluster.md)."
)
@click.option("--prometheus", type=click.IntRange(0, 65535), metavar="PORT", help=PORT_HELP)
@click.option("--report/--no-report", default=True, help="Write summary.json and report.html at the end.")
def run(
    file: str | None,
    out: Path | None,
    resume: Path | None,
    engine: tuple[str, ...],
    repeats: int | None,
    cluster: str | None,
    prometheus: int | None,
    report: bool,
) -> None:
    """Launch the engines of a scenario, drive each with the same load, and write a run folder with a report.

    Example: bench run scenarios/ollama-vs-vllm-cpu.yaml --out results/first

    \b
    Exit codes: 0 done, 1 an engine or a point failed, 2 wrong input,
    130 interrupted (go on with --resume).
    """
    import signal

    from bench.display import Display
    from bench.scored import foretell
    from harness import plan as harness_plan
    from harness import run as harness_run
    from harness.engines import check_engines
    from harness.store import RunFolder

    signal.signal(signal.SIGTERM, interrupt)
    if resume is not None:
        _refuse_with_resume(file, out, engine, repeats)
        folder = RunFolder.open(resume)
        folder.lock()
        scenario, record = harness_plan.resume(folder, cluster is not None)
    else:
        scenario = _scenario(file, engine, repeats)
        if cluster is None:  # files of other hosts are theirs to look for
            check_engines(scenario.engines)
        folder = RunFolder.create(out or default_folder(scenario.name))
        folder.lock()
        record = None
    with Display() as display, _connected(cluster) as hosts, _watched(display, prometheus) as observer:
        display.headline(scenario.name, str(folder.path), resumed=record is not None)
        try:
            record = harness_run.run(scenario, folder, observer, record, cluster=hosts)
        except KeyboardInterrupt:
            display.note(f"interrupted; what was measured is kept. Go on with: bench run --resume {folder.path}")
            if report:
                write_report_of(folder, display)
            raise SystemExit(130) from None
        if report:
            try:
                found = foretell(folder, record)
                _learn(folder, display, write_report_of(folder, display), found)
            except KeyboardInterrupt:
                display.note(f"interrupted; all was measured. Make the report with: bench report {folder.path}")
                raise SystemExit(130) from None
        else:
            display.note(f"the records are in {folder.path}; for the report: bench report {folder.path}")
    raise SystemExit(_exit_code(record))


def _connected(cluster: str | None) -> AbstractContextManager[Cluster | None]:
    """The Ray cluster that was asked for. Without one, Ray is not even imported."""
    if cluster is None:
        return nullcontext()
    from harness.cluster.connect import connected

    return connected(cluster)


def _watched(display: Any, port: int | None) -> AbstractContextManager[Any]:
    """The display, with a page for Prometheus beside it if that was asked for."""
    if port is None:
        return nullcontext(display)
    from harness.live.serve import live

    return live(display, port)


def _learn(folder: RunFolder, display: Any, summary: Summary, found: list[Answer]) -> None:
    """What prediction against measurement teaches goes to the receipts. Never fails a run."""
    from bench.scored import keep, score
    from harness.errors import BenchError

    try:
        path = keep(score(folder.path, summary=summary, found=found))
    except BenchError as error:
        display.note(f"nothing was learnt from this run: {error}")
        return
    if path is not None:
        display.note(f"what this run taught is kept in {path}")


def _exit_code(record: RunRecord) -> int:
    return 0 if record.status == "done" else 1


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _refuse_with_resume(file: str | None, out: Path | None, engine: Sequence[str], repeats: int | None) -> None:
    from harness.errors import InputError

    given = [n for n, v in (("FILE", file), ("--out", out), ("--engine", engine), ("--repeats", repeats)) if v]
    if given:
        raise InputError(
            f"--resume takes no {', '.join(given)}: the run folder holds its own scenario",
            "leave it out, or start a new run",
        )


def _scenario(file: str | None, engines: Sequence[str], repeats: int | None) -> Scenario:
    """The scenario as asked for on the command line."""
    from harness.errors import InputError
    from harness.scenariofile import load_scenario

    scenario = load_scenario(find_scenario(file))
    if repeats is not None:
        scenario = scenario.model_copy(update={"repeats": repeats})
    if engines:
        names = [e.name for e in scenario.engines]
        if unknown := [name for name in engines if name not in names]:
            raise InputError(f"no engine '{unknown[0]}' in the scenario", f"it has: {', '.join(names)}")
        scenario = scenario.model_copy(update={"engines": [e for e in scenario.engines if e.name in engines]})
    return scenario


def find_scenario(file: str | None) -> Path:
    """A path, or the name of a scenario that ships with the tool."""
    from harness.errors import InputError
    from scenarios import shipped

    known = shipped()
    if file is None:
        raise InputError("no scenario was given", f"name a file, or one that ships: {', '.join(known)}")
    path = Path(file)
    if path.exists():
        return path
    if path.name.removesuffix(".yaml") in known:
        return known[path.name.removesuffix(".yaml")]
    raise InputError(f"{file}: no such file", f"check the path, or name a scenario that ships: {', '.join(known)}")


def default_folder(name: str) -> Path:
    from datetime import UTC, datetime

    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path, number = Path("results") / f"{stamp}-{name}", 1
    while path.exists():
        number += 1
        path = Path("results") / f"{stamp}-{name}-{number}"
    return path


def write_report_of(folder: RunFolder, display: Any) -> Summary:
    from reports.html import write_all
    from reports.text import render

    summary, page = write_all(folder)
    display.finish(render(summary), page)
    return summary
