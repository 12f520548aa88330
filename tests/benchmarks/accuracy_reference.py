"""Predictions made before any calibration beside the measured runs under results/reference/.

    python -m tests.benchmarks.accuracy_reference [FOLDER]

Receipts are ignored: ENGINEBENCH_HOME points at an empty folder while this runs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from bench.scored import score
from harness.errors import BenchError


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "results/reference")
    runs = sorted(path.parent for path in root.glob("**/run.json"))
    if not runs:
        print(f"no runs under {root}: none were measured yet")
        return
    errors: dict[str, list[float]] = {}
    print(
        "| run | engine | point | figure | predicted | measured | error |\n| :-- | :-- | :-- | :-- | --: | --: | --: |"
    )
    with tempfile.TemporaryDirectory() as empty:
        os.environ["ENGINEBENCH_HOME"] = empty
        for run in runs:
            try:
                scored = score(run)
            except BenchError as error:
                print(f"| {run.name} | – | – | {error} | – | – | – |")
                continue
            for item in scored:
                if item.predicted is None:
                    print(
                        f"| {run.name} | {item.engine} | {item.point} | {item.figure} | – | {item.measured:.4g} | – |"
                    )
                    continue
                error_share = item.predicted / item.measured - 1
                errors.setdefault(item.figure, []).append(abs(error_share))
                print(
                    f"| {run.name} | {item.engine} | {item.point} | {item.figure} | {item.predicted:.4g} "
                    f"| {item.measured:.4g} | {error_share:+.1%} |"
                )
    for figure, values in sorted(errors.items()):
        mean, middle = statistics.mean(values), statistics.median(values)
        print(f"{figure}: {len(values)} points, MAPE {mean:.1%}, median {middle:.1%}")


if __name__ == "__main__":
    main()
