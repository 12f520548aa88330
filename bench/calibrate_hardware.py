"""`bench calibrate hardware`: what this machine really gives, kept as receipts that later predictions read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bench.options import FORMAT, PATH, Format, one_of

if TYPE_CHECKING:
    from bench.scored import Scored


Startable = Literal["ollama", "vllm"]
FIRST = "The engine to start. Default: the first that is installed."


@click.command(short_help="Measure the host's memory and arithmetic, and start an engine.")
@click.option("--run", type=PATH, help="Learn from this finished run instead: its start and its speeds.")
@click.option("--seconds", type=click.FloatRange(0.5, 120), default=5.0, help="How long to measure the host.")
@click.option("--engine", type=one_of(Startable), help=FIRST)
@click.option("--no-engine", is_flag=True, help="Measure the host alone.")
@FORMAT
def hardware(run: Path | None, seconds: float, engine: Startable | None, no_engine: bool, format: Format) -> None:
    """Measure the host's memory bandwidth and arithmetic, and one short start of an engine; or learn from a run.

    The engine serves a tiny random model, which teaches start-up and overhead alone. Speeds on a GPU are learnt from a
    run: `bench run` with a real model does so at its end, --run of a finished one. A simulated one teaches nothing.

    Example: bench calibrate hardware --engine ollama

    \b
    Exit codes: 0 done (also where no engine is installed), 1 the engine failed,
    2 wrong input, 130 interrupted.
    """
    if run is not None:
        _refuse_with_run(engine, no_engine)
        found = _from_run(run)
    else:
        found = _measured(seconds, engine, no_engine, format == "json")
    if format == "json":
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        for line in found["lines"]:
            click.echo(line)
        click.echo(f"kept in {found['receipts']}" if found["receipts"] else "nothing to keep")
    if "error" in (found.get("engine") or {}):
        raise SystemExit(1)


def _refuse_with_run(engine: Startable | None, no_engine: bool) -> None:
    from harness.errors import InputError

    if engine is not None or no_engine:
        raise InputError("--run starts no engine: it takes no --engine, no --no-engine", "leave them out")


def _measured(seconds: float, engine: Startable | None, no_engine: bool, quiet: bool) -> dict[str, Any]:
    """The host, then an engine. Lines tell what was found; what happens meanwhile goes to stderr."""
    import signal

    from bench.display import Display
    from bench.engine_start import choose, installed, lines, none_there, start
    from bench.run import interrupt
    from harness.receipts import add

    if no_engine and engine is not None:
        from harness.errors import InputError

        raise InputError("--engine and --no-engine exclude each other", "leave one of them out")
    kind = None if no_engine else choose(engine, installed())
    signal.signal(signal.SIGTERM, interrupt)
    click.echo(f"measuring the host for {seconds:g} s", err=True)
    found = _host(seconds) | {"engine": None}
    if kind is None:
        found["lines"] += [] if no_engine else none_there()
        return found
    taught = start(kind, Display(stderr=True))
    if "error" not in taught:
        add("engine_start", taught)
    return found | {"engine": taught, "lines": found["lines"] + lines(taught)}


def _host(seconds: float) -> dict[str, Any]:
    from harness.hostspeed import measure
    from harness.receipts import add

    speed = measure(seconds)
    path = add("host", {"bandwidth_gbs": speed.bandwidth_gbs, "gflops": speed.gflops})
    lines = [
        f"memory: {speed.bandwidth_gbs:.1f} GB/s copied and read (best of {speed.repeats})",
        f"arithmetic: {speed.gflops:.0f} GFLOP/s in 32 bits",
        "a GPU is learnt from a run: bench calibrate hardware --run DIR",
    ]
    return {"bandwidth_gbs": speed.bandwidth_gbs, "gflops": speed.gflops, "lines": lines, "receipts": str(path)}


def _from_run(folder: Path) -> dict[str, Any]:
    from bench.scored import keep, score

    scored = score(folder)
    path = keep(scored)
    return {
        "points": [vars_of(item) for item in scored],
        "lines": [line(item) for item in scored] or ["no engine of this run was real: nothing to learn"],
        "receipts": str(path) if path else None,
    }


def vars_of(item: Scored) -> dict[str, Any]:
    """A scored figure as plain values."""
    return {key: getattr(item, key) for key in item.__slots__ if key != "query"}


def line(item: Scored) -> str:
    """`engine point figure: predicted x, measured y (+12 %)`."""
    error = f" ({item.predicted / item.measured - 1:+.0%})" if item.predicted and item.measured else ""
    shown = "–" if item.predicted is None else f"{item.predicted:.4g}"
    return f"{item.engine} {item.point} {item.figure}: predicted {shown}, measured {item.measured:.4g}{error}"
