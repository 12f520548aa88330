"""How often the gate fails identical code, beside the rules that people use, in the same trials.

    python -m tests.benchmarks.gate_false_alarms [--gates 10000] [--only "real vllm"]

Interleaved: a sequence of up to 24 repeats of one and the same engine, dealt out as A B B A ..., two figures gated at
a limit of 0 % (the hardest: any larger limit alarms less often) with sequential stopping. The upper 95 % bound of each
rate must be at most 1 %. `real ...` resamples repeated runs of a real engine (blocks of 8 consecutive repeats, then
the requests within each); the rest is synthetic. Nothing was tuned on `real vllm` and on this script's seed.

Apart: five repeats against a stored baseline of five, from other sessions, limit 5 %: drift between sessions looks like
a regression. Printed for a baseline that knows 1, 3, 6 and 10 sessions of itself.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from reports.gate import judge
from reports.limits import Limit, Rules
from reports.student import upper_tail
from tests.benchmarks.gate_noise import load
from tests.benchmarks.gate_trials import Draw, agree, all_at_once, draws, side, trials, turns, upper_bound

SEED = 20261122
FIXED = 0.05
SESSION_REPEATS = 5
CHECKED = 50  # gates of each kind that the tool's own code decides too, and must decide alike


def naive(ttft: Any, requests: Any) -> dict[str, bool]:
    """Whether each rule that people use would fail this A/A sequence, from its first five repeats a side."""
    b = turns(len(ttft))
    base, cand = np.flatnonzero(~b)[:5], np.flatnonzero(b)[:5]
    x, y = requests[base].ravel(), requests[cand].ravel()
    se = math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))
    resampled = np.log(ttft)[np.stack([_picks(base), _picks(cand)])].mean(axis=2)
    return {
        "one run each, 5 %": bool(ttft[cand[0]] > (1 + FIXED) * ttft[base[0]]),
        "means of five, 5 %": bool(ttft[cand].mean() > (1 + FIXED) * ttft[base].mean()),
        "t-test over requests, p < 0.01": upper_tail((y.mean() - x.mean()) / se, len(x) + len(y) - 2) < 0.01,
        "bootstrap of five, 99 %": bool(np.quantile(resampled[1] - resampled[0], 0.01) > 0),
    }


_INDEX = np.random.default_rng(1).integers(0, 5, size=(200, 5))


def _picks(rows: Any) -> Any:
    return rows[_INDEX if rows[0] == 0 else _INDEX[::-1]]


def interleaved(name: str, draw: Draw, count: int) -> list[str]:
    hits: dict[str, int] = {}
    figures = []
    for ttft, speed, requests in trials(draw, count, SEED):
        figures.append((ttft, speed))
        for rule, failed in naive(ttft, requests).items():
            hits[rule] = hits.get(rule, 0) + failed
    ttft, speed = (np.stack([pair[i] for pair in figures]) for i in (0, 1))
    agree(ttft[:CHECKED], speed[:CHECKED], 0.0, 0.0)
    states, _ = all_at_once(ttft, speed, 0.0, 0.0)
    ours = int((states == "fail").sum())
    bound = upper_bound(ours, count)
    return [
        name, f"{ours / count:.2%}", f"{bound:.2%}", "yes" if bound <= 0.01 else "NO",
        *(f"{hit / count:.1%}" for hit in hits.values()),
    ]  # fmt: skip


def stored(session: Callable[[np.random.Generator], Any], known: int, count: int) -> tuple[float, float]:
    """(false alarms, inconclusive) of five repeats against a baseline that knows `known` sessions of itself."""
    states = []
    for number in range(count):
        dice = np.random.default_rng([SEED, known, number])
        found = [session(dice) for _ in range(known + 1)]
        at = np.arange(SESSION_REPEATS)
        history = [{("c4", "ttft_p95_s"): float(np.mean(values))} for values in found[:-1]]
        base = side("base", {"ttft_p95_s": (found[-2], at)}, history if known > 1 else None)
        cand = side("cand", {"ttft_p95_s": (found[-1], at + 1000)})
        states.append(judge([(base, cand)], Rules([Limit("ttft_p95_s", FIXED)])).state)
    return states.count("fail") / count, states.count("inconclusive") / count


def sessions() -> dict[str, Callable[[np.random.Generator], Any]]:
    """Five repeats of one session: with a level of its own, or of a real engine at some other moment."""

    def drifting(sd: float) -> Callable[[np.random.Generator], Any]:
        return lambda dice: 0.08 * np.exp(sd * dice.normal() + 0.02 * dice.normal(size=SESSION_REPEATS))

    def real(name: str) -> Callable[[np.random.Generator], Any]:
        figures = np.quantile(load(name).ttft_s, 0.95, axis=1)

        def draw(dice: np.random.Generator) -> Any:
            start = int(dice.integers(0, len(figures) - SESSION_REPEATS + 1))
            return figures[start : start + SESSION_REPEATS]

        return draw

    return {
        "no drift, CV 2 %": drifting(0.0), "sessions differ by 3 %": drifting(0.03),
        "sessions differ by 10 %": drifting(0.1), "real ollama": real("ollama"), "real vllm": real("vllm"),
    }  # fmt: skip


def table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, [":--", *("--:" for _ in titles[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--gates", type=int, default=10_000)
    options.add_argument("--only", default="", help="only noise whose name holds this text")
    options.add_argument("--stored", action="store_true", help="only the table of stored baselines")
    given = options.parse_args()
    if not given.stored:
        rows = [interleaved(n, draw, given.gates) for n, draw in draws().items() if given.only in n]
        rules = list(naive(*(lambda x: (x[0], x[2]))(next(trials(draws()["CV 10 %"], 1, 0)))))
        print(table(["noise", "false alarms", "upper 95 %", "at most 1 %", *rules], rows), flush=True)
    known = (1, 3, 6, 10)
    rows = [
        [name, *(f"{fail:.1%} / {open_:.0%}" for fail, open_ in (stored(s, k, given.gates // 5) for k in known))]
        for name, s in sessions().items()
        if given.only in name
    ]
    print("\n" + table(["stored baseline", *(f"{k} session{'s' if k > 1 else ''}" for k in known)], rows))


if __name__ == "__main__":
    main()
