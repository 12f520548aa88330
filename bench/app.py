"""The `bench` command: a table of commands, each imported when it is called, so that `bench --help` answers at once."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import sys
import threading
from importlib import import_module
from typing import NoReturn

import click

from bench.options import Group

COMMANDS = {
    "run": ("bench.run:run", "Measure a scenario: its engines, one after the other."),
    "report": ("bench.report:report", "Make the report of a run anew; tables, exports."),
    "compare": ("bench.compare:compare", "Runs side by side: what improved or regressed."),
    "list": ("bench.listing:list_runs", "The runs there are; --index: a page of them."),
    "history": ("bench.history:history", "One figure over all runs."),
    "advise": ("bench.advise:advise", "Which model, format and engine for this hardware."),
    "predict": ("bench.predict:predict", "Memory and speed of a model, without running it."),
    "doctor": ("bench.doctor:doctor", "What this machine has, and what is missing."),
    "calibrate": ("bench.calibrate:calibrate", "Learn what this machine can do."),
    "scenario": ("bench.scenario:scenario", "Check, write and describe scenario files."),
    "gate": ("bench.gate:gate", "Fail on a regression: two runs, two engines, a commit."),
    "baseline": ("bench.baseline:baseline", "Figures that later runs are held to."),
}
"""name: where it is, and what `bench --help` says of it"""


def load(name: str) -> click.Command:
    """A command of the table, imported."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


class Lazy(Group):
    """A group that holds a name and a line of help in place of each command, until it is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else found, rest


app = Lazy(
    name="bench",
    help="Measure how Ollama and vLLM serve language models on your own hardware, under the same load.",
    epilog="Start with: bench run quickstart (no engine needed), bench doctor (what this machine has).",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    commands={name: click.Command(name, short_help=text) for name, (_, text) in COMMANDS.items()},
)
click.version_option(package_name="enginebench", message="%(package)s %(version)s", help="Print the version.")(app)


def main() -> None:
    """The console script: errors become one message with its remedy on stderr, and an exit code."""
    gc.set_threshold(100_000, 20, 100)  # what commands import stays: there is no garbage to look for in it
    for stream in (sys.stdout, sys.stderr):  # a terminal in ASCII shows ? for what it cannot, and no traceback
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code: int | str | None = _invoke()
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


def _invoke() -> int:
    """Parse the command line and do it. By hand: `app.main` ends in 1 after Ctrl-C, and takes a torn pipe for it."""
    program = os.path.basename(sys.argv[0])
    try:
        with app.make_context("python -m bench" if program == "__main__.py" else program, sys.argv[1:]) as context:
            app.invoke(context)
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code
    except click.ClickException as error:  # a word or an option that is not known
        error.show()
        return error.exit_code
    return 0


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
    click.secho(f"error: {error}", fg="red", err=True)
    if tail := getattr(error, "log_tail", ""):
        click.echo("last lines of its log:", err=True)
        click.echo("\n".join(f"  | {line}" for line in tail.splitlines()), err=True)
    if remedy := getattr(error, "remedy", ""):
        click.secho(f"remedy: {remedy}", err=True)


if __name__ == "__main__":
    main()
