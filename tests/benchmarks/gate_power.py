"""How often the gate catches a true slowdown of 5 % at a coefficient of variation of 2 %, by its limit.

    python -m tests.benchmarks.gate_power [--gates 2000]

Sequential stopping, from 4 to 12 repeats a side; the same gates without a slowdown beside it. A limit of 1 % must catch
at least 95 %. A limit equal to the effect catches almost none, and that is right: the change is not past it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import numpy as np

from tests.benchmarks.gate_false_alarms import naive, table
from tests.benchmarks.gate_trials import Draw, agree, all_at_once, drawn, draws, trials, turns, upper_bound

SEED = 71
SLOWER = 0.05
CHECKED = 10  # gates of each kind that the tool's own code decides too, and must decide alike


def gates(figures: tuple[Any, Any], share: float, effect: float, metrics: int) -> tuple[Counter[str], float]:
    """(states, mean repeats a side)."""
    ttft, speed = figures
    agree(ttft[:CHECKED], speed[:CHECKED], share, effect, metrics)
    states, repeats = all_at_once(ttft, speed, share, effect, metrics)
    return Counter(states.tolist()), float(repeats.mean())


def row(figures: tuple[Any, Any], share: float, metrics: int) -> list[str]:
    count = len(figures[0])
    slow, repeats = gates(figures, share, SLOWER, metrics)
    same, fewer = gates(figures, share, 0.0, metrics)
    return [
        f"{share:.0%}", str(metrics), f"{slow['fail'] / count:.1%}", f"{slow['inconclusive'] / count:.1%}",
        f"{slow['pass'] / count:.1%}", f"{repeats:.1f}", f"{same['fail'] / count:.2%}",
        f"{upper_bound(same['fail'], count):.2%}", f"{same['pass'] / count:.1%}", f"{fewer:.1f}",
    ]  # fmt: skip


def peers(draw: Draw, count: int) -> list[list[str]]:
    """The rules that people use, on the same sequences: what they catch, and what they cry."""
    hits: dict[str, list[int]] = {}
    for ttft, _, requests in trials(draw, count, SEED):
        slowed = np.where(turns(len(ttft)), 1 + SLOWER, 1.0)
        slow, same = naive(ttft * slowed, requests * slowed[:, None]), naive(ttft, requests)
        for rule in same:
            found = hits.setdefault(rule, [0, 0])
            found[0] += slow[rule]
            found[1] += same[rule]
    return [[rule, f"{caught / count:.1%}", f"{alarms / count:.1%}"] for rule, (caught, alarms) in hits.items()]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--gates", type=int, default=2000)
    count = options.parse_args().gates
    draw = draws()["quiet, CV 2 %"]
    titles = [
        "limit", "figures", "caught", "unsure", "missed", "repeats a side", "false alarms", "upper 95 %",
        "identical: passed", "repeats a side",
    ]  # fmt: skip
    figures = drawn(draw, count, SEED)
    rows = [row(figures, share, metrics) for metrics in (1, 2) for share in (0.0, 0.01, 0.02, 0.05)]
    print(table(titles, rows))
    print("\n" + table(["rule", "caught", "false alarms"], peers(draw, count)))


if __name__ == "__main__":
    main()
