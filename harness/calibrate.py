"""`bench calibrate client`: the load generator drives the reference server with more and more streams, until one of the
two gives in. Each has a core of its own where the machine has two."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import cores, environment
from harness.calibration import Calibration, Level, conclude
from harness.errors import RunError
from harness.http import get_json, post_json
from harness.job import Job
from harness.loadgen import Load
from harness.protocols import Target
from harness.records import PointRun
from harness.scenario import Point, Workload
from harness.workloads import PromptPlan

TTFT_S, GAP_S, TOKENS = 0.05, 0.01, 64
LATENCY_S = TTFT_S + (TOKENS - 1) * GAP_S
WINDOW_S = 2.0
STREAMS = (16, 64, 128, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
BUDGET_S = 50.0
Say = Callable[[Level], None]


def calibrate_client(say: Say, streams: tuple[int, ...] = STREAMS, window_s: float = WINDOW_S) -> Calibration:
    """Find what one load process can take here; `say` is told of each level as it ends. Takes under a minute.

    Raises:
        RunError: the reference server does not start, or the load process fails.
    """
    env = environment.describe()
    usable = cores.available()
    of_load = [usable[-1]] if len(usable) > 1 else None
    began = time.monotonic()
    levels: list[Level] = []
    load = Load(1, of_load)
    try:
        with cores.away_from(of_load, usable), _reference_server() as url, tempfile.TemporaryDirectory() as work:
            for count in streams:
                levels.append(_level(load, url, count, window_s, Path(work)))
                say(levels[-1])
                if _enough(levels) or time.monotonic() - began > BUDGET_S:
                    break
    finally:
        load.close()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return conclude(levels, at, environment.fingerprint(env), environment.tool_version())


def _enough(levels: list[Level]) -> bool:
    """Two levels in a row that the client did not take (one may be chance), or a server that can make no more."""
    return (len(levels) > 1 and not any(level.good for level in levels[-2:])) or levels[-1].server_beaten


@contextmanager
def _reference_server() -> Iterator[str]:
    """Its address; it ends with the block."""
    command = [sys.executable, "-m", "harness.refserver", "--ttft", f"{TTFT_S}s", "--gap", f"{GAP_S}s"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = re.fullmatch(r"ready on (http://\S+)\n", process.stdout.readline())
        if not ready:
            assert process.stderr is not None
            said = process.stderr.read().strip().splitlines()
            raise RunError(f"the reference server does not start: {said[-1] if said else 'it said nothing'}", "")
        yield ready[1]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.communicate()


def _level(load: Load, url: str, streams: int, window_s: float, work: Path) -> Level:
    from harness import tables
    from harness.measured import measured
    from harness.metrics import METRICS

    point = Point(f"c{streams}", "concurrency", duration_s=window_s, concurrency=streams)
    job = Job(
        "reference", point, 0, Target(f"{url}/v1", "openai", "reference", exact_length=True),
        Workload(input_tokens=64, output_tokens=TOKENS), PromptPlan(), time.monotonic(), latency_s=LATENCY_S,
    )  # fmt: skip
    journal = work / f"requests-{streams}.arrows"
    _stats(url, reset=True)
    outcome = load.run(job, [str(journal)], lambda _: True)
    if outcome.interrupted:
        raise KeyboardInterrupt
    server = _stats(url)
    if not journal.exists() or outcome.open_s is None or outcome.close_s is None:
        raise RunError(f"no request of {streams} streams ended well: {outcome.first_error}", "please report this")
    table = tables.as_table(journal)
    row = PointRun("reference", point.name, 0, {"kind": "concurrency", "concurrency": streams})
    row.open_s, row.close_s = outcome.open_s, outcome.close_s
    found = measured(table, row, tables.TELEMETRY_SCHEMA.empty_table(), [], {})
    ttft_s, tpot_s = (METRICS[key].formula(found).value for key in ("ttft_mean_s", "tpot_mean_s"))
    return Level(
        streams=streams,
        chunks_s=found.window_tokens / found.window_s,
        ttft_mean_s=ttft_s,
        server_ttft_mean_s=server["ttft_mean_s"],
        ttft_error=_over(ttft_s, server["ttft_mean_s"]),
        tpot_error=_over(tpot_s, server["tpot_mean_s"]),
        cpu_ratio=outcome.client["cpu_ratio"],
        loop_lag_p99_s=outcome.client["loop_lag_p99_s"],
        server_cpu_ratio=server["cpu_ratio"],
        server_late_p99_s=server["lateness_p99_s"],
    )


def _over(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs - 1 if ours is not None and theirs else None


def _stats(url: str, reset: bool = False) -> dict[str, Any]:
    """The reference server's figures of itself since the last reset; seconds."""
    figures: dict[str, Any] = post_json(f"{url}/stats", {}, 10) if reset else get_json(f"{url}/stats", 10)
    return figures
