"""How `bench gate run` measures: two engines in turn, with a look after each round, until the gate is decided."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.scenario import Scenario
    from harness.store import RunFolder
    from reports.gate import Verdict
    from reports.limits import Rules

MIN_REPEATS, MAX_REPEATS = 4, 12


def measure(file: str, engines: tuple[str, str], limits: Sequence[str], out: Path | None, quiet: bool) -> Verdict:
    """Run the scenario and judge it. `quiet` keeps stdout free for the verdict.

    Raises:
        InputError: the scenario, the engines or the limits are not what they should be.
        SystemExit: 130 after Ctrl-C; what was measured is kept.
    """
    from bench.display import Display
    from bench.run import default_folder, interrupt, write_report_of
    from harness.plan import in_turn
    from harness.run import run
    from harness.store import RunFolder
    from reports.gatefiles import write

    signal.signal(signal.SIGTERM, interrupt)
    scenario, rules = _planned(file, engines, limits)
    folder = RunFolder.create(out or default_folder(scenario.name))
    folder.lock()
    with Display(stderr=quiet) as display:
        display.headline(scenario.name, str(folder.path), resumed=False)

        def enough(repeats: int) -> bool:
            if any(engine.status == "failed" for engine in folder.read_run().engines):
                return True
            verdict = _verdict(folder, engines, rules, repeats)
            if verdict is not None and repeats >= rules.looks[0]:
                display.note(f"{repeats} repeats a side: {verdict.state}")
            return verdict is not None and verdict.state != "inconclusive"

        try:
            run(scenario, folder, display, turns=in_turn(*engines, rules.looks[-1], enough))
        except KeyboardInterrupt:
            display.note(f"interrupted; what was measured is kept in {folder.path}")
            raise SystemExit(130) from None
        if not quiet:
            write_report_of(folder, display)
    verdict = _verdict(folder, engines, rules, _measured(folder, engines)) or _undecided(folder, engines, rules)
    for name in ("gate.json", "gate.html"):
        write(verdict, folder.path / name)
    return verdict


def _planned(file: str, engines: tuple[str, str], limits: Sequence[str]) -> tuple[Scenario, Rules]:
    """The scenario with just these two engines, and as many repeats as the gate may take."""
    from bench.run import find_scenario
    from harness.errors import InputError
    from harness.scenariofile import load_scenario
    from reports.limits import scenario_rules

    scenario = load_scenario(find_scenario(file))
    known = {engine.name: engine for engine in scenario.engines}
    if unknown := [name for name in engines if name not in known]:
        raise InputError(f"no engine '{unknown[0]}' in the scenario", f"it has: {', '.join(known)}")
    if engines[0] == engines[1]:
        raise InputError("baseline and candidate are the same engine", f"name two of: {', '.join(known)}")
    if not scenario.points() or any(load.kind == "sweep" for load in scenario.load):
        raise InputError("a sweep finds its own load points: two engines would not share them", "name fixed loads")
    rules = scenario_rules(scenario.resolved(), limits, None)
    least, most = MIN_REPEATS, MAX_REPEATS
    if scenario.gate is not None:
        least, most = scenario.gate.min_repeats, scenario.gate.max_repeats
    changes = {"engines": [known[name] for name in engines], "repeats": most, "restart": "repeat"}
    return scenario.model_copy(update=changes), replace(rules, looks=tuple(range(least, most + 1)))


def _verdict(folder: RunFolder, engines: tuple[str, str], rules: Rules, repeats: int) -> Verdict | None:
    """The verdict of this look; None before the first. An engine that failed ends the looking."""
    if repeats < rules.looks[0]:
        return None
    return _judge(folder, engines, replace(rules, look=min(repeats, rules.looks[-1]) - rules.looks[0]))


def _undecided(folder: RunFolder, engines: tuple[str, str], rules: Rules) -> Verdict:
    """Of a run that ended before its first look: nothing of it may pass or fail but what is judged as one look."""
    return _judge(folder, engines, replace(rules, look=0))


def _judge(folder: RunFolder, engines: tuple[str, str], rules: Rules) -> Verdict:
    from reports.gate import judge
    from reports.sides import read_sides

    sides = read_sides(folder.path, rules.keys)
    return judge([(sides[engines[0]], sides[engines[1]])], rules)


def _measured(folder: RunFolder, engines: tuple[str, str]) -> int:
    """How many repeats both engines have come to."""
    points = folder.read_run().points
    return min(max((p.repeat + 1 for p in points if p.engine == name), default=0) for name in engines)
