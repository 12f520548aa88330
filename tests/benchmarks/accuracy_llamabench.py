"""Leave-one-GPU-out on llamabench.csv: generation speed of a card that the constants never saw.

    python -m tests.benchmarks.accuracy_llamabench

Beside it, other collections of single-stream speeds, which are predicted with the constants of all fitted rows; peers'
formulas on the same rows are in `accuracy_peers`.
"""

from __future__ import annotations

import statistics

from tests.benchmarks.fit_speed import left_out_llama, llama_rows, llama_tok_s, usable
from tests.benchmarks.intervals import coverage, leave_out_spread
from tests.benchmarks.rows import Row, llamabench

Found = list[tuple[Row, float, float]]


def mape(found: Found) -> float:
    """Mean absolute error over the measured value."""
    return statistics.mean(abs(predicted / measured - 1) for _, predicted, measured in found)


def main() -> None:
    rows = llama_rows()
    found = left_out_llama(rows)
    bench = [(r, p, m) for r, p, m in found if r.raw["test"].startswith("tg")]
    for title, part in (("llama-bench rows (tg*)", bench), ("with the 13-card collection", found)):
        pairs = [(r.hardware.name, p, m) for r, p, m in part]
        inside, width = coverage(pairs, leave_out_spread(pairs))
        cards = len({group for group, _, _ in pairs})
        print(
            f"{title}: {len(part)} rows, {cards} GPUs left out in turn: MAPE {mape(part):.1%}, "
            f"80 % intervals hold {inside:.0%}, median width {width:.0%} of the value"
        )
    print("\n| GPU left out | rows | MAPE | bias |\n| :-- | --: | --: | --: |")
    for name in sorted({r.hardware.name for r, _, _ in found}):
        mine = [f for f in found if f[0].hardware.name == name]
        bias = statistics.mean(p / m - 1 for _, p, m in mine)
        print(f"| {name} | {len(mine)} | {mape(mine):.1%} | {bias:+.1%} |")
    print("\nOther collections, with the constants as they ship:")
    for title, pattern in (
        ("Ollama and llama.cpp on mixed machines", r"^eval_rate$"),
        ("llmfit community", r"^decode_avg"),
    ):
        other = [(r, llama_tok_s(r, c), m) for r, c, m in llamabench(pattern) if usable(r.hardware)]
        known = [f for f in other if f[0].model.known_geometry]
        errors = [abs(p / m - 1) for _, p, m in known]
        print(f"{title}: {len(known)} rows, median error {statistics.median(errors):.1%}, MAPE {mape(known):.1%}")


if __name__ == "__main__":
    main()
