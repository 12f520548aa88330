"""What a prediction is multiplied by at the ends of its 80 % interval, from the errors of groups left out.

python -m tests.benchmarks.fit_intervals [--write]
"""

from __future__ import annotations

from tests.benchmarks.fit_speed import left_out_llama, llama_rows, load_rows, write
from tests.benchmarks.intervals import coverage, leave_out_spread, spread
from tests.benchmarks.left_out import ours, pairs, public


def main() -> None:
    llama = [(row.hardware.name, 1 / p, 1 / m) for row, p, m in left_out_llama(llama_rows())]
    found = pairs(public(load_rows()[0]), ours()) | {"llama_tpot": llama}  # seconds a token: all factors are of times
    for kind, mine in found.items():
        inside, width = coverage(mine, leave_out_spread(mine))
        print(f"{kind}: {len(mine)} rows, intervals of the other groups hold {inside:.0%}, median width {width:.0%}")
    write({"intervals": {kind: [round(v, 3) for v in spread(mine)] for kind, mine in found.items()}})


if __name__ == "__main__":
    main()
