"""`bench` whose `gate run` measures nothing: each turn leaves the records of a known speed, its engine's `time_scale`.

What stands before and after the measuring (scenario, turns, looks, verdict, files, exit code) is the tool's own.
`python -m tests.measuredgate ARGS`
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.app import main
from harness import run as measuring
from harness.plan import Turn, new_record
from harness.records import RunRecord
from harness.scenario import Scenario
from harness.store import RunFolder
from tests.runfolders import Built, Speed


def run(scenario: Scenario, folder: RunFolder, observer: Any, *, turns: Iterable[Turn]) -> RunRecord:
    """In place of `harness.run.run`."""
    record = new_record(scenario)
    record.points = []
    scales = {engine.name: dict(engine.args)["time_scale"] for engine in scenario.engines}
    clock_s = 1.0
    for name, repeats in turns:
        built = Built(record, clock_s=clock_s)
        for repeat in repeats:
            luck = scales[name] * (1 + 0.01 * repeat)
            built.point(name, 4, Speed(0.05 * luck, 0.01 * luck, jitter=0.1), repeat=repeat, window_s=0.5)
        built.append(folder)
        clock_s = built.clock_s
    record.status = "done"
    folder.write_run(record)
    return record


if __name__ == "__main__":
    measuring.run = run  # type: ignore[assignment]
    main()
