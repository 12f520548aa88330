"""How often a 95 % interval of the change holds the truth, by method and number of repeats a side.

    python -m tests.benchmarks.gate_coverage [--trials 4000]

Why the gate uses Student's t and not a bootstrap: with few repeats a percentile bootstrap is too narrow, and resampling
the requests inside each repeat adds their noise a second time where repeats scatter by it, without mending the rest.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from reports.effects import Repeats, compare
from tests.benchmarks.gate_false_alarms import table
from tests.benchmarks.gate_trials import MOST, Draw, draws, trials, turns

SEED = 5
DRAWS = 400


def covered(ttft: Any, requests: Any, n: int, dice: np.random.Generator) -> list[bool]:
    """Whether each method's interval holds the true change, none, of n repeats a side dealt out in turn."""
    b = turns(len(ttft))
    rows = [np.flatnonzero(~b)[:n], np.flatnonzero(b)[:n]]
    p95 = np.quantile(requests, 0.95, axis=1)
    log = np.log(p95)
    over_repeats = [log[r][dice.integers(0, n, size=(DRAWS, n))].mean(axis=1) for r in rows]
    both = [_two_levels(requests[r], dice) for r in rows]
    sides = [Repeats(p95[r].tolist(), r.tolist(), [0.0] * n) for r in rows]
    apart = [Repeats(side.values, [i + 1000.0 * k for i in range(n)], side.errors) for k, side in enumerate(sides)]
    found = [_holds(a, b) for a, b in (over_repeats, both)]
    for pair in (apart, sides):
        effect = compare(pair[0], pair[1], "ratio")
        assert effect is not None
        found.append(effect.low(0.025) <= 0 <= effect.high(0.025))
    return found


def _two_levels(requests: Any, dice: np.random.Generator) -> Any:
    """Mean log p95 of resampled repeats, each of resampled requests."""
    n, count = requests.shape
    picked = dice.integers(0, n, size=(DRAWS, n))
    columns = dice.integers(0, count, size=(DRAWS, n, count))
    return np.log(np.quantile(requests[picked[:, :, None], columns], 0.95, axis=2)).mean(axis=1)


def _holds(base: Any, cand: Any) -> bool:
    low, high = np.quantile(cand - base, [0.025, 0.975])
    return bool(low <= 0 <= high)


def rates(draw: Draw, n: int, count: int) -> list[float]:
    dice = np.random.default_rng(SEED)
    found = [covered(ttft, requests, n, dice) for ttft, _, requests in trials(draw, count, SEED)]
    return [float(value) for value in np.mean(found, axis=0)]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--trials", type=int, default=4000)
    count = options.parse_args().trials
    rows = []
    for name in ("quiet, CV 2 %", "outliers", "real ollama", "real vllm"):
        for n in (3, 5, 8, MOST):
            rows.append([name, str(n), *(f"{rate:.1%}" for rate in rates(draws()[name], n, count))])
    print(table(["noise", "repeats", "bootstrap over repeats", "over repeats, then requests", "t, apart",
                 "t, in turn"], rows))  # fmt: skip


if __name__ == "__main__":
    main()
