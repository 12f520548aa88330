"""What a run is to measure: everything, in a new one; what is left, in one that is gone on with."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from harness import environment
from harness.errors import InputError
from harness.loads import SweepLoad
from harness.records import EngineRun, PointRun, RunRecord
from harness.scenario import Scenario, from_resolved, hidden_keys
from harness.store import RunFolder

Turn = tuple[str, list[int]]  # an engine, and the repeats that are measured in one start of it


def in_turn(first: str, second: str, most: int, enough: Callable[[int], bool]) -> Iterator[Turn]:
    """A B B A ...: two engines, a repeat each, until `enough` (told how many each has) or `most`. What the machine does
    to one it does to the other a moment later, and neither is always the first."""
    for repeat in range(most):
        yield from ((name, [repeat]) for name in ((first, second) if repeat % 2 == 0 else (second, first)))
        if enough(repeat + 1):
            return


def new_record(scenario: Scenario) -> RunRecord:
    """A run's record before anything is measured: every point of every repeat on every engine, pending."""
    record = RunRecord(
        name=scenario.name,
        scenario=scenario.stored(),
        scenario_hash=scenario.hash(),
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        started_monotonic_s=time.monotonic(),
        tool_version=environment.tool_version(),
        environment=environment.describe(),
    )
    for spec in scenario.engines:
        record.engines.append(EngineRun(spec.name, spec.kind, spec.model, simulated=spec.simulated))
        for repeat in range(scenario.repeats):
            record.points += [
                PointRun(spec.name, point.name, repeat, dataclasses.asdict(point)) for point in scenario.points()
            ]
    return record


def sweeps_left(scenario: Scenario, record: RunRecord, engine: str) -> list[tuple[SweepLoad, int]]:
    """The sweeps, each with its repeat, that have found nothing yet on that engine."""
    found = {(finding.sweep, finding.repeat) for finding in record.findings if finding.engine == engine}
    return [
        (sweep, repeat)
        for repeat in range(scenario.repeats)
        for sweep in scenario.sweeps()
        if (sweep.name, repeat) not in found
    ]


def resume(folder: RunFolder, cluster: bool = False) -> tuple[Scenario, RunRecord]:
    """What a run folder still has to measure: finished points stay, interrupted ones are measured again.

    The clock goes on from the run's start by the wall clock, so that new times come after the old ones.

    Raises:
        InputError: the folder is damaged, the run is complete, or the machine is another one (or the load came from a
            cluster, and now does not).
    """
    record = folder.read_run()
    here = environment.describe()
    if environment.fingerprint(here) != environment.fingerprint(record.environment):
        raise InputError(
            f"{folder.path} was measured on another machine or with other software",
            "start a new run there; `bench compare` sets the two side by side",
        )
    if bool(record.cluster) != cluster:
        raise InputError(
            f"{folder.path} was measured {'from the hosts of a cluster' if record.cluster else 'without a cluster'}",
            "go on the same way: bench run --resume DIR" + (" --cluster ADDRESS" if record.cluster else ""),
        )
    if hidden := hidden_keys(record.scenario):
        raise InputError(
            f"{folder.path} does not hold the value of {', '.join(hidden)}: secrets are not stored",
            "start a new run, and write such values as ${NAME}: they are then read from the environment",
        )
    for point in record.points:
        if point.status not in ("done", "client-limited"):
            folder.set_aside(point.engine, point.point, point.repeat)
            blank = PointRun(point.engine, point.point, point.repeat, point.load)
            for name in ("status", "start_s", "open_s", "close_s", "end_s", "client", "warnings", "error"):
                setattr(point, name, getattr(blank, name))
            # What a sweep found rests on all of its points.
            probed = (point.engine, point.load.get("shape", {}).get("sweep"), point.repeat)
            record.findings = [f for f in record.findings if (f.engine, f.sweep, f.repeat) != probed]
    scenario = from_resolved(record.scenario)
    left = [engine.name for engine in record.engines if sweeps_left(scenario, record, engine.name)]
    if not left and not any(point.status == "pending" for point in record.points):
        raise InputError(f"{folder.path} is complete", "nothing is left to measure; see `bench report`")
    elapsed_s = (datetime.now(UTC) - datetime.fromisoformat(record.started_at)).total_seconds()
    record.started_monotonic_s = time.monotonic() - elapsed_s
    record.resumes.append(elapsed_s)
    record.status = "running"
    return scenario, record
