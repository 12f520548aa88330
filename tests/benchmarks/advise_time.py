"""How long `bench advise` computes: the whole catalogue, warm and cold, on this machine.

    python -m tests.benchmarks.advise_time

Cold: a fresh process, the interpreter and the imports with it. Warm: the work alone, the tables already read.
"""

from __future__ import annotations

import subprocess
import sys
import time

from sizing.advise import advise
from sizing.candidates import Want, catalogue
from sizing.catalog import hardware

REPEATS = 5


def main() -> None:
    device, want = hardware("RTX 4090"), Want(users=4, ttft_p95_s=1.0, tpot_p95_s=0.05)
    warm = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = advise(device, 1, catalogue(), want)
        warm.append(time.perf_counter() - started)
    words = [sys.executable, "-m", "bench", "advise", "--hardware", "RTX 4090", "--users", "4", "--format", "json"]
    words += ["--slo", "ttft_p95=1s,tpot_p95=50ms"]
    cold = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        cold.append(time.perf_counter() - started)
    print(f"{found.screened} ways screened, {len(found.ranked)} ranked")
    print(f"warm: best {min(warm):.2f} s, median {sorted(warm)[REPEATS // 2]:.2f} s")
    print(f"cold, whole process: best {min(cold):.2f} s, median {sorted(cold)[REPEATS // 2]:.2f} s")


if __name__ == "__main__":
    main()
