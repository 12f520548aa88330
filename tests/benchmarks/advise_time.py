"""How long `bench advise` computes over the whole catalogue, on this machine: CPU seconds, and the wall clock.

    python -m tests.benchmarks.advise_time

Whole: a fresh process, the interpreter and the imports with it. Work: the advice alone, the tables already read.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from sizing.advise import advise
from sizing.candidates import Want, catalogue
from sizing.catalog import hardware
from sizing.predict import simulated

REPEATS = 5
GPUS = ("RTX 4090", "H100 SXM 80GB")
USERS = (4, 64, 256)


def main() -> None:
    catalogue()
    print("| hardware | users | ways screened, ranked | whole process, CPU | wall | work alone, CPU |")
    print("| :-- | --: | --: | --: | --: | --: |")
    for name in GPUS:
        for users in USERS:
            print(_row(name, users))


def _row(name: str, users: int) -> str:
    want, work_s = Want(users=users, ttft_p95_s=1.0, tpot_p95_s=0.05), []
    for _ in range(REPEATS):
        simulated.cache_clear()
        started_s = time.process_time()
        found = advise(hardware(name), 1, catalogue(), want)
        work_s.append(time.process_time() - started_s)
    whole = [_whole_s(name, users) for _ in range(REPEATS)]
    cpu, wall = (_shown([each[at] for each in whole]) for at in (0, 1))
    return f"| {name} | {users} | {found.screened}, {len(found.ranked)} | {cpu} | {wall} | {_shown(work_s)} |"


def _whole_s(name: str, users: int) -> tuple[float, float]:
    """(CPU, wall clock) of one command."""
    words = [sys.executable, "-m", "bench", "advise", "--hardware", name, "--users", str(users), "--format", "json"]
    words += ["--slo", "ttft_p95=1s,tpot_p95=50ms"]
    before, started_s = os.times(), time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    after = os.times()
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    return used_s, time.perf_counter() - started_s


def _shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f})"


if __name__ == "__main__":
    main()
