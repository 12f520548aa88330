"""Predictions made before any calibration beside the measured runs under results/reference/.

    python -m tests.benchmarks.accuracy_reference

Each run is predicted by constants that were fitted without it (and on the public rows, which know nothing of it); no
receipt of this machine goes in.
"""

from __future__ import annotations

import statistics

from sizing.engine import memory_plan
from tests.benchmarks.left_out import ours
from tests.benchmarks.reference import FIGURES, kv_tokens


def main() -> None:
    errors: dict[str, list[float]] = {}
    print("| run | point | figure | predicted | measured | error |\n| :-- | :-- | :-- | --: | --: | --: |")
    seen = set()
    for row, met in ours():
        if row.run not in seen:
            seen.add(row.run)
            q = row.query
            plan = memory_plan(q.hardware, q.model, q.quantization, q.setup)
            show(errors, row.run, "start", "kv_capacity_tokens", plan.kv_capacity_tokens, kv_tokens(row.run))
        for figure in FIGURES:
            show(errors, row.run, row.point, figure, getattr(met, figure), row.measured[figure])
    for figure, values in errors.items():
        mean, middle = statistics.mean(map(abs, values)), statistics.median(map(abs, values))
        bias = statistics.mean(values)
        print(f"{figure}: {len(values)} points, MAPE {mean:.1%}, median {middle:.1%}, bias {bias:+.1%}")


def show(
    errors: dict[str, list[float]], run: str, point: str, figure: str, predicted: float | None, measured: float | None
) -> None:
    """One line, and its error kept."""
    if measured is None:
        return
    if predicted is None:
        print(f"| {run} | {point} | {figure} | – | {measured:.4g} | – |")
        return
    errors.setdefault(figure, []).append(predicted / measured - 1)
    print(f"| {run} | {point} | {figure} | {predicted:.4g} | {measured:.4g} | {predicted / measured - 1:+.1%} |")


if __name__ == "__main__":
    main()
