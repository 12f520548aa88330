"""`bench gate bisect`: `git bisect run` on a noisy figure. Every step measures GOOD and the commit in question in turn.

Both are work trees of their own in a temporary folder, so that the two can alternate and the user's own is left alone.
Git calls back `python -m bench.gatebisect PLAN` at each step: exit 0 good, 1 bad, 125 not decided.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEAST = 3  # repeats of each commit before the first look
PASS_ERROR = 0.01  # a bad commit taken for a good one leads the whole search astray
GOOD_EXIT, BAD_EXIT, SKIP_EXIT = 0, 1, 125


@dataclass(frozen=True, slots=True)
class Plan:
    """What every step does. `metric`: read from the run folder that COMMAND leaves at {out}; None: a printed number."""

    good_tree: str
    step_tree: str
    command: list[str]
    metric: str | None
    share: float
    better: str | None
    most: int


class CannotMeasure(Exception):
    """COMMAND failed, or left no figure: the commit is skipped."""


def find(good: str, bad: str, command: list[str], how: tuple[str, bool, int]) -> int:
    """Search; the exit code. Prints each step, and at the end the commit.

    Raises:
        InputError: no such commits, no command, a limit that is none.
    """
    from harness.errors import InputError

    metric, share, better = _limit(how[0], how[1], command)
    commits = [_git("rev-parse", "--verify", f"{name}^{{commit}}") for name in (good, bad)]
    if _git("merge-base", *commits) != commits[0]:
        raise InputError(f"{good} is no ancestor of {bad}", "GOOD comes first, then a later commit that is BAD")
    with _trees(*commits) as (good_tree, step_tree):
        plan = Plan(str(good_tree), str(step_tree), command, metric, share, better, how[2])
        print(f"is {bad} worse than {good}?", flush=True)
        if (code := step(plan)) != BAD_EXIT:
            print("it could not be decided" if code == SKIP_EXIT else f"no: {bad} holds the limit against {good}")
            return 3
        path = Path(good_tree).parent / "plan.json"
        path.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        _git("bisect", "start", commits[1], commits[0], tree=step_tree)
        here = [sys.executable, "-P", "-m", "bench.gatebisect", str(path)]
        done = subprocess.run(["git", "bisect", "run", *here], cwd=step_tree, check=False)
        first = _git("rev-parse", "refs/bisect/bad", tree=step_tree)
        print()
        if done.returncode:
            print(f"not decided: commits were skipped; the change is at or before {first[:12]}")
            return 3
        print("the first commit past the limit:\n" + _git("log", "-1", "--stat", "--format=%h %an %as%n%n  %s", first))
        return 0


def step(plan: Plan) -> int:
    """One commit against GOOD, measured in turn until decided: git's exit code for it."""
    from reports.decide import Levels, Span, decide
    from reports.effects import Repeats, compare
    from reports.gate import ALARM
    from reports.spending import levels

    looks = tuple(range(LEAST, plan.most + 1))
    trees = (plan.good_tree, plan.step_tree)
    found: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    place = 0
    for count in range(1, plan.most + 1):
        for side in (0, 1) if count % 2 else (1, 0):
            try:
                found[side].append((figure(plan, Path(trees[side])), float(place)))
            except CannotMeasure as error:
                print(f"  skipped: {error}", flush=True)
                return SKIP_EXIT
            place += 1
        if count < LEAST:
            continue
        a, b = (Repeats([v for v, _ in rows], [at for _, at in rows], [0.0] * len(rows)) for rows in found)
        positive = min(*a.values, *b.values) > 0
        effect = compare(a, b, "ratio") if positive else None
        if effect is None:
            print("  skipped: a figure is not above 0", flush=True)
            return SKIP_EXIT
        look = count - LEAST
        at = Levels(levels(looks, ALARM)[look], levels(looks, PASS_ERROR)[look])
        state, _, low, high = decide(effect, Span.of(plan.share, plan.better, "ratio"), at, guard=False)
        if state != "inconclusive" or count == plan.most:
            said = f"{math.expm1(effect.estimate):+.1%} ({math.expm1(low):+.1%} to {math.expm1(high):+.1%})"
            print(f"  {said} after {count} repeats a side: {state}", flush=True)
            return {"pass": GOOD_EXIT, "fail": BAD_EXIT}.get(state, SKIP_EXIT)
    return SKIP_EXIT


def figure(plan: Plan, tree: Path) -> float:
    """One measurement of the commit that `tree` has checked out."""
    with tempfile.TemporaryDirectory(prefix="bench-bisect-") as scratch:
        out = Path(scratch) / "run"
        words = [word.replace("{out}", str(out)) for word in plan.command]
        try:
            done = subprocess.run(words, cwd=tree, stdout=subprocess.PIPE, text=True, errors="replace", check=False)
        except OSError as error:
            raise CannotMeasure(f"{words[0]}: {error.strerror}") from None
        if done.returncode:
            raise CannotMeasure(f"COMMAND exited with {done.returncode}")
        return _printed(done.stdout) if plan.metric is None else _of_run(out, plan.metric)


def _printed(text: str) -> float:
    last = (text.strip().splitlines() or [""])[-1].strip()
    try:
        value = float(last)
    except ValueError:
        raise CannotMeasure(f"the last line that COMMAND printed is no number: {last[:80]!r}") from None
    if not math.isfinite(value):
        raise CannotMeasure(f"COMMAND printed {last}")
    return value


def _of_run(out: Path, metric: str) -> float:
    from harness.errors import InputError
    from reports.sides import read_sides

    try:
        sides = list(read_sides(out, [metric]).values())
    except InputError as error:
        raise CannotMeasure(str(error)) from None
    points = [point for side in sides for point in side.points.values()]
    if len(points) != 1:
        raise CannotMeasure(f"COMMAND's run must have one engine and one load point, it has {len(points)}")
    if (repeats := points[0].figures.get(metric)) is None:
        raise CannotMeasure(points[0].missing.get(metric) or points[0].reason or f"{metric} was not measured")
    return sum(repeats.values) / len(repeats)


def _limit(text: str, higher: bool, command: list[str]) -> tuple[str | None, float, str | None]:
    """(metric, share, better) of what --limit says."""
    from harness.errors import InputError
    from harness.metrics import METRICS
    from harness.units import parse_percent
    from reports.limits import parse_limits

    if not command:
        raise InputError("no COMMAND was given", "for example: bench gate bisect v1.0 main -- python measure.py")
    of_run = any("{out}" in word for word in command)
    if ":" in text:
        (limit,) = parse_limits([text])
        if not of_run:
            raise InputError("--limit names a metric, and COMMAND has no {out}", "add: --out {out}")
        return limit.key, limit.share, METRICS[limit.key].better
    if of_run:
        raise InputError("COMMAND has {out}, and --limit names no metric", "write for example --limit 'ttft_p95: 5%'")
    try:
        return None, parse_percent(text), "higher" if higher else "lower"
    except ValueError as error:
        raise InputError(str(error), "write for example --limit 5%") from None


@contextmanager
def _trees(good: str, bad: str) -> Iterator[tuple[Path, Path]]:
    """Two work trees of this repository; taken away again at the end, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="bench-bisect-") as scratch:
        trees = Path(scratch) / "good", Path(scratch) / "step"
        try:
            for tree, commit in zip(trees, (good, bad), strict=True):
                _git("worktree", "add", "--detach", "--quiet", str(tree), commit)
            yield trees
        finally:
            for tree in trees:
                if tree.exists():
                    _git("worktree", "remove", "--force", str(tree))


def _git(*words: str, tree: Path | None = None) -> str:
    """What git prints.

    Raises:
        InputError: git failed; its last line says why.
    """
    from harness.errors import InputError

    try:
        done = subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise InputError(f"git cannot be run: {error.strerror}", "install it") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = said[-1] if said else "failed"
        raise InputError(f"git {words[0]}: {why}", "run it inside the repository, and check the commits")
    return done.stdout.strip()


def main() -> None:
    data: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.exit(step(Plan(**data)))


if __name__ == "__main__":
    main()
