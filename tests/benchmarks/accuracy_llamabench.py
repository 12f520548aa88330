"""Leave-one-GPU-out on llamabench.csv: generation speed of a card that the constants never saw.

    python -m tests.benchmarks.accuracy_llamabench

Beside it, other collections of single-stream speeds, which are predicted with the constants of all fitted rows, and the
published formulas of peers on the same rows.
"""

from __future__ import annotations

import statistics

from tests.benchmarks.fit_speed import left_out_llama, llama_rows, llama_tok_s, usable
from tests.benchmarks.intervals import coverage, leave_out_spread
from tests.benchmarks.peers_formulas import PEERS, tok_s
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
    print("\n| formula | rows | MAPE (tg*) | MAPE (all fitted rows) |\n| :-- | --: | --: | --: |")
    print(f"| this tool, GPU left out | {len(found)} | {mape(bench):.1%} | {mape(found):.1%} |")
    for peer in PEERS:
        guessed = [(r, tok_s(peer, r), m) for r, _, m in found]
        tested = [(r, tok_s(peer, r), m) for r, _, m in bench]
        print(f"| {peer} | {len(guessed)} | {mape(tested):.1%} | {mape(guessed):.1%} |")
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
