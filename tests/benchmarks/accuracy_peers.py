"""Published formulas of peers beside this tool on the same llama-bench rows, all errors side by side.

    python -m tests.benchmarks.accuracy_peers

This tool's figures are those of constants fitted without the row's GPU; the peers' are as published.
"""

from __future__ import annotations

import statistics

from tests.benchmarks.accuracy_llamabench import Found, mape
from tests.benchmarks.fit_speed import left_out_llama, llama_rows, llama_tok_s, usable
from tests.benchmarks.peers_formulas import PEERS
from tests.benchmarks.rows import llamabench


def main() -> None:
    rows = llama_rows()
    contexts = {id(row): context for row, context, _ in rows}
    mine = left_out_llama(rows)
    unseen = [
        (row, context, speed)
        for row, context, speed in llamabench(r"^decode_avg|^eval_rate")
        if usable(row.hardware) and row.model.known_geometry
    ]
    answers: dict[str, tuple[Found, Found]] = {
        "this tool": (mine, [(row, llama_tok_s(row, context), speed) for row, context, speed in unseen])
    }
    for name, formula in PEERS.items():
        answers[name] = (
            [(row, formula(row, contexts[id(row)]), speed) for row, _, speed in mine],
            [(row, formula(row, context), speed) for row, context, speed in unseen],
        )
    print("| formula | tg rows, MAPE | all fitted rows, MAPE | other collections, median error |")
    print("| :-- | --: | --: | --: |")
    for name, (found, other) in answers.items():
        bench = [f for f in found if f[0].raw["test"].startswith("tg")]
        middle = statistics.median(abs(predicted / measured - 1) for _, predicted, measured in other)
        cells = (
            f"{mape(bench):.1%} ({len(bench)})",
            f"{mape(found):.1%} ({len(found)})",
            f"{middle:.1%} ({len(other)})",
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
