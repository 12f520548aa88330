"""`bench scenario check | schema | new`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bench.formats import Text

if TYPE_CHECKING:
    from harness.scenario import Scenario

app = typer.Typer(
    help="Check scenario files, print their JSON Schema, write a new one.",
    epilog="Example: bench scenario new mine.yaml --like ollama-vs-vllm",
    no_args_is_help=True,
)


@app.command()
def check(
    file: str = typer.Argument(help="A scenario file."),
    format: Text = typer.Option(Text.text, "--format", help="text or json (the resolved scenario)."),
) -> None:
    """Validate a scenario without running it; prints what would be run.

    Example: bench scenario check scenarios/quickstart.yaml
    """
    import json

    from bench.run import find_scenario
    from harness.scenariofile import load_scenario

    scenario = load_scenario(find_scenario(file))
    absent = _absent(scenario)
    if format is Text.json:
        typer.echo(json.dumps(scenario.resolved(), indent=1))
        return
    points, sweeps = scenario.points(), scenario.sweeps()
    loads = _count(len(points), "point") if points or not sweeps else ""
    loads += ((" and " if loads else "") + _count(len(sweeps), "sweep")) if sweeps else ""
    engines = _count(len(scenario.engines), "engine")
    typer.echo(f"{scenario.name}: good. {engines} x {loads} x {_count(scenario.repeats, 'repeat')}")
    typer.echo(f"  prompts {scenario.workload.kind}: {scenario.workload.said()}")
    for engine in scenario.engines:
        own = f"; prompts {engine.workload.kind}: {engine.workload.said()}" if engine.workload else ""
        typer.echo(f"  engine {engine.name}: {engine.kind}, {engine.model}{own}")
    for text in absent:
        typer.echo(f"  not on this machine: {text}")
    for point in points:
        amount = f"{point.requests} requests" if point.requests else f"{point.duration_s:g} s"
        typer.echo(f"  point  {point.name}: {amount}")
    for sweep in sweeps:
        amount = f"{sweep.requests} requests" if sweep.requests else f"{sweep.duration:g} s"
        sought = ", ".join(f"{key} <= {limit:g} s" for key, limit in scenario.slo_of(sweep).items())
        typer.echo(f"  sweep  {sweep.name}: at most {sweep.probes} points of {amount}; {sought or 'no SLO'}")


def _absent(scenario: Scenario) -> list[str]:
    """Files of models that are not on this machine: where it is to run they may be. A name in no catalogue raises."""
    from harness.engines import check_engines
    from harness.errors import InputError

    found = []
    for engine in scenario.engines:
        try:
            check_engines([engine])
        except InputError as error:
            if engine.kind == "sim":
                raise
            found.append(error.message)
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@app.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, so that editors complete and check it.

    Example: bench scenario schema > scenario.schema.json
    """
    import json

    from harness.scenario import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))


@app.command()
def new(
    file: Path = typer.Argument(help="Where to write it."),
    like: str = typer.Option("quickstart", "--like", help="The shipped scenario to start from."),
) -> None:
    """Write a scenario to start from; nothing is overwritten.

    Example: bench scenario new mine.yaml --like ollama-vs-vllm
    """
    import json
    import re

    from harness.errors import InputError
    from scenarios import shipped

    known = shipped()
    if like not in known:
        raise InputError(f"no scenario '{like}' ships with this tool", f"there are: {', '.join(known)}")
    if file.exists():
        raise InputError(f"{file} exists", "give another name")
    try:
        text = known[like].read_text("utf-8")
        shipped_data = re.compile(r"(?<=\bfile: )data/[^\s,}]+")  # it stays where it is, and the new file elsewhere
        text = shipped_data.sub(lambda found: json.dumps(str(known[like].parent / found.group())), text)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}", "give another path") from None
    typer.echo(f"wrote {file}; check it with: bench scenario check {file}")
