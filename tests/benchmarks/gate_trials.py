"""What the gate's trials share: noise of several kinds, and whole gates decided by the tool's own code.

A trial is a sequence of repeats as the machine gave them; every second one is the candidate's (A B B A ...), slowed by
a known factor. Two figures are gated at once, TTFT p95 and output tokens/s, as users do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from reports.effects import RESOLUTION, Repeats
from reports.gate import ALARM, PASS_ERROR, judge
from reports.limits import Limit, Rules
from reports.sides import Side, SidePoint
from reports.spending import levels
from reports.student import quantile
from tests.benchmarks.gate_noise import load

MOST = 12  # repeats a side
LOOKS = tuple(range(4, MOST + 1))
REQUESTS = 100
BLOCK = 8  # consecutive real repeats that are resampled together, so that drift and likeness of neighbours stay
Draw = Callable[[np.random.Generator], tuple[Any, Any, Any]]


def draws() -> dict[str, Draw]:
    """Noise by name: each call gives 2 x MOST repeats of (TTFT p95, tokens/s, TTFT of requests as repeat x request)."""
    kinds: dict[str, Draw] = {f"real {name}": _real(name) for name in ("ollama", "vllm")}
    for name, (cv, rho, drift, outliers, burst) in {
        "quiet, CV 2 %": (0.02, 0.0, 0.0, 0.0, 0.0),
        "CV 10 %": (0.1, 0.0, 0.0, 0.0, 0.0),
        "drift of 30 %": (0.02, 0.0, 0.3, 0.0, 0.0),
        "autocorrelated 0.7": (0.05, 0.7, 0.0, 0.0, 0.0),
        "alternating -0.4": (0.05, -0.4, 0.0, 0.0, 0.0),
        "random walk": (0.03, 1.0, 0.0, 0.0, 0.0),
        "outliers": (0.02, 0.0, 0.0, 0.08, 0.0),
        "bursts of 4": (0.02, 0.0, 0.0, 0.0, 0.05),
        "all of these": (0.05, 0.6, 0.2, 0.05, 0.03),
    }.items():
        kinds[name] = _synthetic(cv, rho, drift, outliers, burst)
    return kinds


def _real(name: str) -> Draw:
    noise = load(name)

    def draw(dice: np.random.Generator) -> tuple[Any, Any, Any]:
        starts = dice.integers(0, len(noise.output_tok_s) - BLOCK + 1, size=math.ceil(2 * MOST / BLOCK))
        rows = (starts[:, None] + np.arange(BLOCK)).ravel()[: 2 * MOST]
        columns = dice.integers(0, noise.ttft_s.shape[1], size=(2 * MOST, REQUESTS))
        requests = noise.ttft_s[rows[:, None], columns]
        return np.quantile(requests, 0.95, axis=1), noise.output_tok_s[rows], requests

    return draw


def _synthetic(cv: float, rho: float, drift: float, outliers: float, burst: float) -> Draw:
    count = 2 * MOST

    def path(dice: np.random.Generator) -> Any:
        steps = dice.normal(size=count)
        if rho:
            scale = math.sqrt(max(1 - rho**2, 0.0)) or 1.0
            for i in range(1, count):
                steps[i] = rho * steps[i - 1] + scale * steps[i]
        y = cv * steps + drift * np.linspace(0, 1, count) ** dice.choice([1.0, 2.0, 0.5])
        y += (dice.random(count) < outliers) * np.abs(dice.normal(size=count)) * 0.3
        for begin in np.flatnonzero(dice.random(count) < burst):
            y[begin : begin + 4] += 0.2
        return y

    def draw(dice: np.random.Generator) -> tuple[Any, Any, Any]:
        common, own = path(dice), path(dice)
        requests = 0.05 * np.exp(common[:, None] + 0.3 * dice.normal(size=(count, REQUESTS)))
        return 0.08 * np.exp(common), 400 * np.exp(-(0.6 * common + 0.8 * own)), requests

    return draw


def turns(count: int = 2 * MOST) -> Any:
    """Which of the repeats are the candidate's: A B B A ..."""
    return np.array([0, 1, 1, 0] * (count // 4 + 1))[:count] == 1


History = list[dict[tuple[str, str], float]]


def side(name: str, figures: dict[str, tuple[Any, Any]], history: History | None = None) -> Side:
    """A side of one point from (values, times) by metric key."""
    found = {
        key: Repeats(list(map(float, v)), list(map(float, at)), [0.0] * len(v)) for key, (v, at) in figures.items()
    }
    count = len(next(iter(found.values())))
    point = SidePoint({"name": "c4", "kind": "concurrency", "concurrency": 4}, count, figures=found)
    return Side(name, name, "sim", "m", "1", False, name, "1", "1", "f", {}, {}, {}, {"c4": point}, None, history or [])


def sequential(ttft: Any, speed: Any, share: float, effect: float, metrics: int = 2) -> tuple[str, int]:
    """One `bench gate run` over a sequence of repeats: (state, repeats a side). The candidate is slower by `effect`."""
    limits = [Limit("ttft_p95_s", share), Limit("output_tok_s", share)][:metrics]
    b = turns(len(ttft))
    at = np.arange(len(ttft))
    ttft = np.where(b, ttft * (1 + effect), ttft)
    speed = np.where(b, speed / (1 + effect), speed)
    for look, n in enumerate(LOOKS):
        a_rows, b_rows = np.flatnonzero(~b)[:n], np.flatnonzero(b)[:n]
        sides = [
            side(name, {"ttft_p95_s": (ttft[rows], at[rows]), "output_tok_s": (speed[rows], at[rows])})
            for name, rows in (("a", a_rows), ("b", b_rows))
        ]
        state = judge([(sides[0], sides[1])], Rules(limits, LOOKS, look)).state
        if state != "inconclusive":
            return state, n
    return "inconclusive", MOST


def all_at_once(ttft: Any, speed: Any, share: float, effect: float, metrics: int = 2) -> tuple[Any, Any]:
    """What `sequential` says of each row, in arrays: (states, repeats a side) of thousands of gates a second.

    The same least squares, levels and quantiles, without the words. `agree` holds it to the tool's own code.
    """
    b = turns(ttft.shape[1])
    figures = [(np.log(np.where(b, ttft * (1 + effect), ttft)), 1.0, math.log1p(share)),
               (np.log(np.where(b, speed / (1 + effect), speed)), -1.0, -math.log1p(-share))][:metrics]  # fmt: skip
    alarm, passing = levels(LOOKS, ALARM / metrics), levels(LOOKS, PASS_ERROR)
    states, repeats = np.full(len(ttft), "inconclusive", dtype=object), np.full(len(ttft), MOST)
    for look, n in enumerate(LOOKS):
        open_ = states == "inconclusive"
        fails, passes = np.zeros(len(ttft), bool), np.ones(len(ttft), bool)
        for log, sign, limit in figures:
            estimate, se = _least_squares(log[:, : 2 * n], b[: 2 * n])
            df = 2 * n - 3
            fails |= sign * estimate - quantile(alarm[look], df) * se > limit
            passes &= sign * estimate + quantile(passing[look], df) * se <= limit
        repeats[open_ & (fails | passes)] = n
        states[open_ & passes] = "pass"
        states[open_ & fails] = "fail"
    return states, repeats


def _least_squares(log: Any, b: Any) -> tuple[Any, Any]:
    """Difference of the sides and its standard error, row by row, with a slope over the sequence taken out."""
    count = log.shape[1]
    columns = np.stack([np.ones(count), np.where(b, 0.5, -0.5), np.arange(count) - (count - 1) / 2], axis=1)
    inverse = np.linalg.inv(columns.T @ columns)
    found = log @ columns @ inverse
    rest = log - found @ columns.T
    se = np.sqrt((rest**2).sum(axis=1) / (count - 3) * inverse[1, 1])
    return found[:, 1], np.maximum(se, RESOLUTION)


def agree(ttft: Any, speed: Any, share: float, effect: float, metrics: int = 2) -> None:
    """Stop if the arrays and the tool's own code say unlike things of any of these gates."""
    states, repeats = all_at_once(ttft, speed, share, effect, metrics)
    for row, (state, n) in enumerate(zip(states, repeats, strict=True)):
        said = sequential(ttft[row], speed[row], share, effect, metrics)
        assert said == (state, n), f"row {row}: the tool says {said}, the arrays {state, n}"


def trials(draw: Draw, count: int, seed: int) -> Iterator[tuple[Any, Any, Any]]:
    """`count` sequences, the same ones for the same seed."""
    for number in range(count):
        yield draw(np.random.default_rng([seed, number]))


def drawn(draw: Draw, count: int, seed: int) -> tuple[Any, Any]:
    """TTFT p95 and tokens/s of `count` sequences, a row each."""
    found = [(ttft, speed) for ttft, speed, _ in trials(draw, count, seed)]
    return np.stack([ttft for ttft, _ in found]), np.stack([speed for _, speed in found])


def upper_bound(hits: int, count: int) -> float:
    """The upper end of the one-sided 95 % interval of a rate, after Clopper and Pearson, by bisection."""
    low, high = hits / count, 1.0
    for _ in range(60):
        p = (low + high) / 2
        low, high = (p, high) if _at_most(hits, count, p) > 0.05 else (low, p)
    return high


def _at_most(hits: int, count: int, p: float) -> float:
    if p <= 0 or p >= 1:
        return 1.0 if p <= 0 else 0.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(p) + (count - k) * math.log1p(-p)
        for k in range(hits + 1)
    ]  # fmt: skip
    return sum(math.exp(value) for value in logs)
