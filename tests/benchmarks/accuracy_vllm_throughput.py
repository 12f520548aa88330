"""Leave-one-model-out on vllm_throughput.csv: TTFT and TPOT of a model that the constants never saw.

    python -m tests.benchmarks.accuracy_vllm_throughput [--rows] [--all]

Predicted by what `bench predict --start burst --requests 10N` runs, as the row's source ran it (see `left_out`), one
row in four; `--all` takes every one (twenty minutes). `--rows` prints each row.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter

from tests.benchmarks.fit_speed import doubtful, load_rows
from tests.benchmarks.intervals import coverage, leave_out_spread
from tests.benchmarks.left_out import SAMPLE, pairs, public


def main() -> None:
    rows, abstained = load_rows()
    predicted = public(rows, 1 if "--all" in sys.argv else SAMPLE)
    print(
        "| model | kind | rows | TPOT MAPE | TPOT bias | TTFT MAPE | TTFT bias | TTFT with their client |\n"
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |"
    )
    medians: dict[tuple[str, str], list[float]] = {}
    for group, count in Counter(row.group for row, _, _ in predicted).most_common():
        mine = [p for p in predicted if p[0].group == group]
        short = [(r, met, client) for r, met, client in mine if r.ttft_s and not r.unclear_queue]
        columns = {
            "TPOT": [met.tpot_mean_s / r.tpot_s - 1 for r, met, _ in mine if r.tpot_s and met.tpot_mean_s],
            "TTFT": [met.ttft_mean_s / r.ttft_s - 1 for r, met, _ in short if r.ttft_s],
            "TTFT with their client": [
                (met.ttft_mean_s + client) / r.ttft_s - 1 for r, met, client in short if r.ttft_s
            ],
        }
        kind = "MoE" if mine[0][0].row.model.moe else "dense"
        cells = [group, kind, str(count)]
        for name, errors in columns.items():
            if count >= 5 and errors:
                medians.setdefault((kind, name), []).append(statistics.mean(map(abs, errors)))
            cells.append(f"{statistics.mean(map(abs, errors)):.1%}" if errors else "-")
            if name in ("TPOT", "TTFT"):
                cells.append(f"{statistics.mean(errors):+.1%}" if errors else "-")
        print("| " + " | ".join(cells) + " |")
    for (kind, name), values in sorted(medians.items()):
        print(
            f"median over {len(values)} {kind} models with 5 rows or more: {name} MAPE {statistics.median(values):.1%}"
        )
    apart = doubtful(rows)
    print(f"kept out of every fit, as their stated load is beyond the hardware: {', '.join(sorted(apart)) or 'none'}")
    for name, found in pairs(predicted, []).items():
        if found:
            inside, width = coverage(found, leave_out_spread(found))
            print(f"{name}: 80 % intervals hold {inside:.0%} of the rows left out, median width {width:.0%}")
    unclear = sum(r.unclear_queue for r in rows)
    total = len(rows) + len(abstained)
    left = len(abstained) + unclear
    print(f"abstentions: {left} of {total} rows ({left / total:.1%}), {unclear} of them of TTFT alone:")
    print(f"  {unclear} x a queue or none, as the KV cache has 16 or 8 bits, which the row does not state")
    for reason, count in Counter(reason[:110] for _, reason in abstained).most_common():
        print(f"  {count} x {reason}")
    if "--rows" in sys.argv:
        for r, met, _ in predicted:
            raw = r.row.raw
            print(
                f"{r.group} {raw['dtype']} {raw['gpu']} tp{r.devices} {r.load.input_tokens}/{r.load.output_tokens} "
                f"c{r.load.concurrency} run{r.policy.kv_capacity_tokens} "
                f"ttft {r.ttft_s} -> {met.ttft_mean_s:.3f} tpot {r.tpot_s} -> {met.tpot_mean_s or 0:.5f}"
            )


if __name__ == "__main__":
    main()
