"""The `bench` command. Commands import what they need when they run, so that `bench --help` answers at once."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import NoReturn

import typer

from bench import (
    advise,
    baseline,
    calibrate,
    calibrate_hardware,
    compare,
    doctor,
    gate,
    history,
    listing,
    predict,
    report,
    run,
    scenario,
)

app = typer.Typer(
    name="bench",
    help="Measure how Ollama and vLLM serve language models on your own hardware, under the same load.",
    epilog="Start with: bench run quickstart (no engine needed), bench doctor (what this machine has).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"enginebench {version('enginebench')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Measure how Ollama and vLLM serve language models on your own hardware, under the same load."""


app.command("run")(run.run)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("list")(listing.list_runs)
app.command("history")(history.history)
app.command("advise")(advise.advise)
app.command("predict")(predict.predict)
calibrate.app.command("hardware")(calibrate_hardware.hardware)
app.command("doctor")(doctor.doctor)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(scenario.app, name="scenario")
app.add_typer(gate.app, name="gate")
app.add_typer(baseline.app, name="baseline")


def main() -> None:
    """The console script: errors become one message with its remedy on stderr, and an exit code."""
    gc.set_threshold(
        100_000, 20, 100
    )  # what commands import stays: looking for garbage in it a hundred times finds none
    try:
        app()
        code: int | str | None = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `bench list | head`
        sys.stderr.close()
        code = 0
    except Exception as error:
        from harness.errors import BenchError

        if not isinstance(error, BenchError):
            raise
        show_error(error)
        code = error.exit_code
    leave(code)


def leave(code: int | str | None) -> NoReturn:
    """End this process as `sys.exit` does, but without taking the interpreter apart, which takes 0.1 s."""
    if threading.active_count() > 1 or isinstance(code, str):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(code or 0)


def show_error(error: Exception) -> None:
    """What happened, the engine's last lines if there are any, and what to do about it."""
    typer.secho(f"error: {error}", fg="red", err=True)
    if tail := getattr(error, "log_tail", ""):
        typer.echo("last lines of its log:", err=True)
        typer.echo("\n".join(f"  | {line}" for line in tail.splitlines()), err=True)
    if remedy := getattr(error, "remedy", ""):
        typer.secho(f"remedy: {remedy}", err=True)


if __name__ == "__main__":
    main()
