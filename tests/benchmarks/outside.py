"""The time that `bench run` takes outside the load, of short runs one after the other.

    python -m tests.benchmarks.outside [RUNS]

In two checkouts in turn it compares two versions.
"""

from __future__ import annotations

import sys

from tests.benchmarks import rig


def main() -> None:
    with rig.Server(50, 20, 32) as server:
        for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
            found = rig.run_ours(server, "{kind: concurrency, levels: [64], requests: 256}", 32)
            print(f"{found['outside_s']:.2f} s outside the load, {found['cpu_s']:.2f} s of CPU, {found['status']}")


if __name__ == "__main__":
    main()
