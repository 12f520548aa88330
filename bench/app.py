"""The `bench` command. Commands import what they need when they run, so that `bench --help` answers at once."""

from __future__ import annotations

import atexit
import contextlib
import errno
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


app.command("run", short_help="Measure a scenario: its engines, one after the other.")(run.run)
app.command("report", short_help="Make the report of a run anew; tables, exports.")(report.report)
app.command("compare", short_help="Runs side by side: what improved or regressed.")(compare.compare)
app.command("list", short_help="The runs there are; --index: a page of them.")(listing.list_runs)
app.command("history", short_help="One figure over all runs.")(history.history)
app.command("advise", short_help="Which model, format and engine for this hardware.")(advise.advise)
app.command("predict", short_help="Memory and speed of a model, without running it.")(predict.predict)
calibrate.app.command("hardware")(calibrate_hardware.hardware)
app.command("doctor", short_help="What this machine has, and what is missing.")(doctor.doctor)
app.add_typer(calibrate.app, name="calibrate", short_help="Learn what this machine can do.")
app.add_typer(scenario.app, name="scenario", short_help="Check, write and describe scenario files.")
app.add_typer(gate.app, name="gate", short_help="Fail on a regression: two runs, two engines, a commit.")
app.add_typer(baseline.app, name="baseline", short_help="Figures that later runs are held to.")


def main() -> None:
    """The console script: errors become one message with its remedy on stderr, and an exit code."""
    gc.set_threshold(100_000, 20, 100)  # what commands import stays: there is no garbage to look for in it
    for stream in (sys.stdout, sys.stderr):  # a terminal in ASCII shows ? for what it cannot, and no traceback
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
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

        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = BenchError(*_no_space(error))
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


def _no_space(error: OSError) -> tuple[str, str]:
    where = f" at {error.filename}" if error.filename else ""
    return f"no space is left on the disk{where}", "make room; what was written before is kept: see `bench report DIR`"


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
