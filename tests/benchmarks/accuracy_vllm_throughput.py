"""Leave-one-model-out on vllm_throughput.csv: TTFT and TPOT of a model that the constants never saw.

    python -m tests.benchmarks.accuracy_vllm_throughput [--rows]

The rows are means of runs that start all their requests at once; they are predicted as such (ten waves). `--rows`
prints each row.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter

from tests.benchmarks.fit_speed import doubtful, left_out_vllm, load_rows, pairs_of
from tests.benchmarks.intervals import coverage, leave_out_spread


def main() -> None:
    rows, abstained = load_rows()
    predicted = left_out_vllm(rows)
    print(
        "| model | kind | rows | TPOT MAPE | TPOT bias | TTFT MAPE | TTFT bias |\n"
        "| :-- | :-- | --: | --: | --: | --: | --: |"
    )
    medians: dict[tuple[str, str], list[float]] = {}
    for group, count in Counter(row.group for row in rows).most_common():
        mine = [(r, ttft, tpot) for r, ttft, tpot in predicted if r.group == group]
        tpot_errors = [tpot / r.tpot_s - 1 for r, _, tpot in mine if r.tpot_s]
        ttft_errors = [ttft / r.ttft_s - 1 for r, ttft, _ in mine if r.ttft_s and not r.unclear_queue]
        kind = "MoE" if mine[0][0].row.model.moe else "dense"
        cells = [group, kind, str(count)]
        for name, errors in (("TPOT", tpot_errors), ("TTFT", ttft_errors)):
            if not errors:
                cells += ["-", "-"]
                continue
            mape = statistics.mean(map(abs, errors))
            cells += [f"{mape:.1%}", f"{statistics.mean(errors):+.1%}"]
            if count >= 5:
                medians.setdefault((kind, name), []).append(mape)
        print("| " + " | ".join(cells) + " |")
    for (kind, name), values in sorted(medians.items()):
        print(
            f"median over {len(values)} {kind} models with 5 rows or more: {name} MAPE {statistics.median(values):.1%}"
        )
    apart = doubtful(rows)
    print(f"kept out of every fit, as their stated load is beyond the hardware: {', '.join(sorted(apart)) or 'none'}")
    for name, pairs in zip(("TTFT", "TPOT"), pairs_of(predicted), strict=True):
        spread = leave_out_spread(pairs)
        inside, width = coverage(pairs, spread)
        print(f"{name}: 80 % intervals hold {inside:.0%} of the rows left out, median width {width:.0%} of the value")
    unclear = sum(r.unclear_queue for r in rows)
    total = len(rows) + len(abstained)
    left = len(abstained) + unclear
    print(f"abstentions: {left} of {total} rows ({left / total:.1%}), {unclear} of them of TTFT alone:")
    print(f"  {unclear} x a queue or none, as the KV cache has 16 or 8 bits, which the row does not state")
    for reason, count in Counter(reason[:110] for _, reason in abstained).most_common():
        print(f"  {count} x {reason}")
    if "--rows" in sys.argv:
        for r, ttft, tpot in predicted:
            raw = r.row.raw
            print(
                f"{r.group} {raw['dtype']} {raw['gpu']} tp{r.devices} {r.load.input_tokens}/{r.load.output_tokens} "
                f"c{r.load.concurrency} run{r.policy.kv_capacity_tokens} "
                f"ttft {r.ttft_s} -> {ttft:.3f} tpot {r.tpot_s} -> {tpot:.5f}"
            )


if __name__ == "__main__":
    main()
