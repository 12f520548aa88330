"""How often a host's true clock offset lies within the stated error, and how large that is.

Two network namespaces with time namespaces of their own (the truth is therefore known exactly), links of uneven delay;
no Ray. As root on Linux: `python -m tests.benchmarks.cluster_clock [--trials 200]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from tests.benchmarks.rig import table
from tests.cluster.rig import Delay, Rig, why_not

ECHO = (
    "import sys, time\nfrom harness.cluster.echo import Echo\n"
    "echo = Echo(sys.argv[1])\nprint(echo.place[1], echo.secret.hex(), flush=True)\ntime.sleep(600)"
)
ASK = """
import sys, json, time
from harness.cluster.echo import Asker
from harness.cluster.clock import Clock
asker = Asker((sys.argv[1], int(sys.argv[2])), bytes.fromhex(sys.argv[3]))
found = []
for _ in range(int(sys.argv[4])):
    clock = Clock()
    for _ in range(60):
        if answer := asker.ask():
            clock.add(*answer)
    offset = clock.at(time.monotonic())
    found.append((offset.offset_s, offset.error_s))
print(json.dumps(found))
"""
CASES = {
    "none": None,
    "0.4 ms one way, 0.3 ms jitter": [Delay(), Delay(0.0004, 0.0, 0.0003)],
    "1 ms out, 0.2 ms back, no jitter": [Delay(0.001, 0.0002, 0.0), Delay()],
    "3 ms out, 0.5 ms back, 1 ms jitter": [Delay(0.003, 0.0005, 0.001), Delay()],
    "20 ms out, 2 ms back, 10 ms jitter": [Delay(0.02, 0.002, 0.01), Delay()],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    if reason := why_not(ray=False):
        sys.exit(reason)
    rows = []
    for title, delays in CASES.items():
        with Rig([200, 900], delays, ray_nodes=0) as rig:
            here, there = rig.hosts
            there.start(sys.executable, "-c", ECHO, there.address)
            while not (said := (there.folder / "out.log").read_text().split()):
                time.sleep(0.05)
            done = here.run(sys.executable, "-c", ASK, there.address, *said, str(trials), timeout_s=600)
        found = json.loads(done.stdout or sys.exit(done.stderr))
        off = [abs(offset - 700) for offset, _ in found]
        covered = sum(o <= error for o, (_, error) in zip(off, found, strict=True))
        errors = sorted(error for _, error in found)
        rows.append({
            "delay": title, "trials": str(len(found)), "truth within the stated error": f"{covered / len(found):.1%}",
            "stated error, ms: median": f"{statistics.median(errors) * 1e3:.3f}", "largest": f"{errors[-1] * 1e3:.3f}",
            "true error, ms: median": f"{statistics.median(off) * 1e3:.3f}", "largest ": f"{max(off) * 1e3:.3f}",
        })  # fmt: skip
    print(table(rows))


if __name__ == "__main__":
    main()
