"""`bench scenario check | schema | new`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bench.options import PATH, Group, one_of

if TYPE_CHECKING:
    from harness.scenario import Scenario

Text = Literal["text", "json"]


@click.command
@click.argument("file", help="A scenario file.")
@click.option("--format", type=one_of(Text), default="text", help="What it would do, or all of it.")
def check(file: str, format: Text) -> None:
    """Validate a scenario without running it; prints what would be run.

    Example: bench scenario check scenarios/quickstart.yaml
    """
    import json

    from bench.run import find_scenario
    from harness.scenariofile import load_scenario

    scenario = load_scenario(find_scenario(file))
    absent = _absent(scenario)
    if format == "json":
        click.echo(json.dumps(scenario.resolved(), indent=1))
        return
    points, sweeps = scenario.points(), scenario.sweeps()
    loads = _count(len(points), "point") if points or not sweeps else ""
    loads += ((" and " if loads else "") + _count(len(sweeps), "sweep")) if sweeps else ""
    engines = _count(len(scenario.engines), "engine")
    click.echo(f"{scenario.name}: good. {engines} x {loads} x {_count(scenario.repeats, 'repeat')}")
    click.echo(f"  prompts {scenario.workload.kind}: {scenario.workload.said()}")
    for engine in scenario.engines:
        own = f"; prompts {engine.workload.kind}: {engine.workload.said()}" if engine.workload else ""
        click.echo(f"  engine {engine.name}: {engine.kind}, {engine.model}{own}")
    for text in absent:
        click.echo(f"  not on this machine: {text}")
    for point in points:
        amount = f"{point.requests} requests" if point.requests else f"{point.duration_s:g} s"
        click.echo(f"  point  {point.name}: {amount}")
    for sweep in sweeps:
        amount = f"{sweep.requests} requests" if sweep.requests else f"{sweep.duration:g} s"
        sought = ", ".join(f"{key} <= {limit:g} s" for key, limit in scenario.slo_of(sweep).items())
        click.echo(f"  sweep  {sweep.name}: at most {sweep.probes} points of {amount}; {sought or 'no SLO'}")


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


@click.command(short_help="Print the JSON Schema of a scenario, for editors.")
def schema() -> None:
    """Print the JSON Schema of a scenario, so that editors complete and check it.

    Example: bench scenario schema > scenario.schema.json
    """
    import json

    from harness.scenario import json_schema

    click.echo(json.dumps(json_schema(), indent=1))


@click.command
@click.argument("file", type=PATH, help="Where to write it.")
@click.option("--like", default="quickstart", help="The shipped scenario to start from.")
def new(file: Path, like: str) -> None:
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
    click.echo(f"wrote {file}; check it with: bench scenario check {file}")


scenario = Group(
    "scenario",
    help="Check scenario files, print their JSON Schema, write a new one.",
    epilog="Example: bench scenario new mine.yaml --like ollama-vs-vllm",
    commands=[check, schema, new],
)
