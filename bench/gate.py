"""`bench gate`: does a candidate hold its limits against a baseline? `bench gate run` measures both first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bench.options import PATH, Group, one_of

if TYPE_CHECKING:
    from reports.gate import Verdict
    from reports.limits import Rules
    from reports.sides import Side

EXITS = {"pass": 0, "fail": 1, "inconclusive": 3}
Format = Literal["table", "json", "markdown", "github"]
Outcome = Literal["inconclusive", "pass", "fail"]
HELD = "Largest change for the worse, e.g. 'ttft_p95: 5%'."
ENDINGS = ".md .html .json .xml (JUnit) .svg (badge) .codequality.json (GitLab)"
PRINTED = "github: annotations, and the job summary."
LIMIT = click.option("--limit", multiple=True, metavar="'METRIC: N%'", help=HELD)
WRITE = click.option(
    "--write", type=PATH, multiple=True, help=f"Also write a file, by its ending: {ENDINGS}. Can be repeated."
)
FORMAT = click.option("--format", type=one_of(Format), default="table", help=PRINTED)


def _rules(baseline: str, candidate: Path, limits: Sequence[str], inconclusive: Outcome | None) -> Rules:
    """From the options, else from the scenario of the baseline's run, else of the candidate's."""
    from harness.store import RunFolder
    from reports.limits import scenario_rules

    runs = [Path(baseline), candidate] if (Path(baseline) / "run.json").is_file() else [candidate]
    found = [RunFolder.open(path).read_run().scenario for path in runs]
    stated = next((scenario for scenario in found if scenario.get("gate")), {})
    return scenario_rules(stated, limits, inconclusive)


def _pairs(baseline: str, candidate: Path, engine: str | None, rules: Rules) -> list[tuple[Side, Side]]:
    """Baseline and candidate, engine by engine: those that were named, else those that both have.

    Raises:
        InputError: a side cannot be read, or it is not clear which engines are meant.
    """
    from concurrent.futures import ThreadPoolExecutor

    from harness.errors import InputError
    from reports.baseline import FOLDER, as_side, path_of
    from reports.sides import chosen, read_sides

    first, _, second = (engine or "").partition(":")
    names = first or None, second or first or None
    if not (Path(baseline) / "run.json").is_file():
        if Path(baseline).is_dir():
            raise InputError(f"{baseline} holds no run (no run.json)", "name a run folder or a baseline")
        base, after = as_side(path_of(baseline, FOLDER)), read_sides(candidate, rules.keys)
        only = names[1] or (base.engine if base.engine in after else None)
        return [(base, chosen(after, only, str(candidate)))]
    with ThreadPoolExecutor(1) as pool:  # reading and sorting arrays leaves the interpreter free
        job = pool.submit(read_sides, Path(baseline), rules.keys)
        after = read_sides(candidate, rules.keys)
        before = job.result()
    both = [name for name in before if name in after]
    if engine or not both or len(before) == len(after) == 1:
        return [(chosen(before, names[0], baseline), chosen(after, names[1], str(candidate)))]
    if missing := [name for name in before if name not in after]:
        raise InputError(
            f"{candidate} holds no engine '{missing[0]}', the baseline does", "name the ones to compare: --engine NAME"
        )
    return [(before[name], after[name]) for name in both]


def check_files(write: Sequence[Path]) -> None:
    """Refuse a file of no known kind before anything is measured."""
    if write:
        from reports.gatefiles import writer

        for path in write:
            writer(path)


def finish(verdict: Verdict, write: Sequence[Path], format: Format) -> None:
    """Print and write a verdict, and exit as it says."""
    import os

    from reports.gatefiles import as_json
    from reports.gatefiles import write as write_file
    from reports.gatetext import github, markdown, render

    for path in write:
        write_file(verdict, path)
    if format == "json":
        print(as_json(verdict), end="")
    elif format == "markdown":
        print(markdown(verdict), end="")
    elif format == "github":
        print(github(verdict), end="")
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(summary, "a", encoding="utf-8") as file:
                file.write(markdown(verdict))
    else:
        from rich.console import Console

        Console(highlight=False).print(render(verdict))
    raise SystemExit(EXITS[verdict.outcome])


@click.command(short_help="Measure two engines of a scenario in turn, until it is decided.")
@click.argument("file", help="A scenario file, or the name of a shipped scenario.")
@click.option("--baseline", required=True, metavar="ENGINE", help="The engine of the scenario to hold to.")
@click.option("--candidate", required=True, metavar="ENGINE", help="The engine that may be slower.")
@LIMIT
@click.option("--out", type=PATH, help="The run folder itself. Default: results/<utc>-<scenario>.")
@WRITE
@FORMAT
def run(
    file: str,
    baseline: str,
    candidate: str,
    limit: tuple[str, ...],
    out: Path | None,
    write: tuple[Path, ...],
    format: Format,
) -> None:
    """Measure two engines of a scenario in turn (A B B A ...) until the gate is decided, or the repeats are used up.

    Example: bench gate run gate-cpu --baseline current --candidate proposed

    Each repeat starts its engine anew; the two never run together. The scenario's `gate:` part says how many repeats
    (4 to 12) and what else is held.

    \b
    Exit codes: 0 pass, 1 fail, 3 inconclusive, 2 wrong usage, 130 interrupted.
    """
    from bench.gaterun import measure

    check_files(write)
    verdict = measure(file, (baseline, candidate), limit, out, quiet=format != "table")
    finish(verdict, write, format)


@click.command(short_help="Find the commit that made a noisy figure worse.")
@click.argument("good", help="A commit that was fast.")
@click.argument("bad", help="A later commit that is slow.")
@click.argument(
    "command", nargs=-1, required=True, metavar="-- COMMAND...", help="Measures the checked-out commit, once."
)
@click.option("--limit", default="5%", help="A percentage of the figure that COMMAND prints; or 'METRIC: N%'.")
@click.option("--higher-is-better", "higher", is_flag=True, help="Of the figure that COMMAND prints.")
@click.option(
    "--max-repeats", "most", type=click.IntRange(3, 100), default=12, help="Of each commit, before it is skipped."
)
def bisect(good: str, bad: str, command: tuple[str, ...], limit: str, higher: bool, most: int) -> None:
    """Find the commit that made a noisy figure worse: `git bisect run`, with repeats until each step is decided.

    Example: bench gate bisect v1.0 main --limit 5% -- python measure.py

    COMMAND runs in a work tree of its own, in turn at GOOD and at the commit in question. The last line that it prints
    is its figure; or, where it holds {out}, it leaves a run folder there and --limit names the metric. A commit that
    cannot be decided, or whose COMMAND fails, is skipped. Your own work tree is left alone.

    Exit codes: 0 found, 3 not decided, 2 wrong usage.
    """
    from bench.gatebisect import find

    raise SystemExit(find(good, bad, list(command), (limit, higher, most)))


class Gate(Group):
    """Folders are options here: without them a folder would be taken for a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and Path(args[0]).exists():
            raise click.UsageError("folders are given as options: --baseline FOLDER --candidate FOLDER", ctx)
        return super().resolve_command(ctx, args)


@click.group("gate", cls=Gate, invoke_without_command=True, commands=[run, bisect])
@click.option("--baseline", help="A run folder, a baseline's name or its file.")
@click.option("--candidate", type=PATH, help="A run folder.")
@LIMIT
@click.option("--engine", metavar="NAME[:NAME]", help="The engine; or baseline's:candidate's.")
@click.option("--inconclusive", type=one_of(Outcome), help="Exit an undecided gate as this.")
@WRITE
@FORMAT
@click.pass_context
def gate(
    context: click.Context,
    baseline: str | None,
    candidate: Path | None,
    limit: tuple[str, ...],
    engine: str | None,
    inconclusive: Outcome | None,
    write: tuple[Path, ...],
    format: Format,
) -> None:
    """Compare a candidate's run with a baseline and decide: pass, fail or inconclusive, and why.

    \b
    Example: bench gate --baseline main --candidate results/pr \\
      --limit 'ttft_p95: 5%' --limit 'output_tok_s: 3%'

    Limits stand on the command line, or in the scenario's `gate:` part. Fails only when the whole interval of a change
    is past its limit.

    Exit codes: 0 pass, 1 fail, 3 inconclusive, 2 wrong usage.
    """
    from harness.errors import InputError

    if context.invoked_subcommand is not None:
        if baseline or candidate or limit or engine:
            raise InputError("options stand after the command", f"bench gate {context.invoked_subcommand} --help")
        return
    if not baseline or not candidate:
        raise InputError("give --baseline and --candidate", "for example: bench gate --baseline main --candidate "
                         "results/pr --limit 'ttft_p95: 5%'")  # fmt: skip
    from reports.gate import judge

    check_files(write)
    rules = _rules(baseline, candidate, limit, inconclusive)
    finish(judge(_pairs(baseline, candidate, engine, rules), rules), write, format)
