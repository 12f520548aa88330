"""The gate's statistics against known answers: published tables, exact cases, and short trials with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reports.decide import Levels, Span, decide, detectable, more_repeats
from reports.effects import Band, Repeats, are_interleaved, compare, session_band
from reports.spending import levels
from reports.student import quantile, upper_tail
from tests.benchmarks.gate_trials import LOOKS, draws, sequential, trials, upper_bound

AT = Levels(0.005, 0.05)


def repeats(*values: float, start: float = 0.0, step: float = 1.0, errors: float = 0.0) -> Repeats:
    return Repeats(list(values), [start + i * step for i in range(len(values))], [errors] * len(values))


@pytest.mark.parametrize(
    ("df", "level", "t"),
    [
        (1, 0.025, 12.706), (2, 0.005, 9.925), (5, 0.01, 3.365), (10, 0.005, 3.169), (21, 0.0005, 3.819),
        (30, 0.025, 2.042), (120, 0.05, 1.658), (math.inf, 0.025, 1.960),
    ],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(df: float, level: float, t: float) -> None:
    assert quantile(level, df) == pytest.approx(t, abs=6e-4)
    assert upper_tail(t, df) == pytest.approx(level, rel=2e-3)
    assert upper_tail(-t, df) == pytest.approx(1 - level, rel=2e-3)


def test_looks_spend_the_budget_and_no_more() -> None:
    """10^5 random walks of normal scores: the share that passes any look's level is the budget."""
    alpha = 0.05
    found = levels(LOOKS, alpha)
    assert all(0 < level < alpha for level in found)
    steps = np.random.default_rng(3).normal(size=(100_000, LOOKS[-1]))
    scores = steps.cumsum(axis=1)[:, np.array(LOOKS) - 1] / np.sqrt(LOOKS)
    bounds = np.array([quantile(level, math.inf) for level in found])
    assert float((scores > bounds).any(axis=1).mean()) == pytest.approx(alpha, rel=0.05)
    assert levels((5,), alpha) == [pytest.approx(alpha)]


def test_repeats_in_turn_are_told_from_repeats_apart() -> None:
    def at(*times: float) -> Repeats:
        return Repeats([1.0] * len(times), list(times), [0.0] * len(times))

    assert are_interleaved(at(0, 3), at(1, 2))
    assert are_interleaved(at(0, 2, 4), at(1, 3, 5))
    assert are_interleaved(at(0, 3, 4, 7), at(1, 2, 5))  # the last of the candidate was left out
    assert not are_interleaved(at(0, 1), at(2, 3))
    assert not are_interleaved(at(0, 1, 4, 5), at(2, 3, 6, 7))
    assert not are_interleaved(at(0, 1, 2), at(0, 1, 2))  # equal times are no order


def test_a_steady_drift_is_taken_out_in_turn_and_looks_like_a_change_apart() -> None:
    def speed(place: int) -> float:
        return math.exp(0.02 * place + 0.001 * (-1) ** (place // 2))

    turn = [0, 3, 4, 7], [1, 2, 5, 6]
    sides = [Repeats([speed(i) for i in places], list(map(float, places)), [0.0] * 4) for places in turn]
    effect = compare(sides[0], sides[1], "ratio")
    assert effect is not None
    assert effect.design == "interleaved"
    assert abs(effect.estimate) < 1e-3
    apart = compare(repeats(*map(speed, range(4))), repeats(*map(speed, range(4, 8)), start=4), "ratio")
    assert apart is not None
    assert apart.design == "apart"
    assert apart.estimate == pytest.approx(0.08, abs=0.01)


def test_welchs_t_is_the_textbooks() -> None:
    effect = compare(repeats(27.5, 21.0, 19.0, 23.6), repeats(17.1, 15.3, 28.0, start=100), "difference")
    assert effect is not None
    assert effect.estimate == pytest.approx(-2.6417, abs=1e-3)
    assert effect.se == pytest.approx(math.sqrt(13.3758 / 4 + 47.29 / 3), rel=1e-3)
    assert effect.df == pytest.approx(2.85, abs=0.01)


def test_one_repeat_has_no_certainty_and_equal_repeats_not_all_of_it() -> None:
    assert compare(repeats(1.0), repeats(1.0, 2.0), "ratio") is None
    exact = compare(repeats(1, 1, 1), repeats(1, 1, 1, start=100), "ratio")
    assert exact is not None
    assert exact.se > 0
    noisy = compare(repeats(1, 1, 1, errors=0.1), repeats(1, 1, 1, start=100, errors=0.1), "ratio")
    assert noisy is not None
    assert noisy.se == pytest.approx(0.1 * math.sqrt(2 / 3))  # what the requests leave open is never believed away


def test_history_widens_the_interval_of_a_stored_baseline() -> None:
    base, cand = repeats(1.00, 1.01, 0.99), repeats(1.10, 1.11, 1.09, start=100)
    alone, band = compare(base, cand, "ratio"), session_band([0.0, 0.1, 0.0, 0.1])
    assert band == Band(pytest.approx(0.1), 3)  # type: ignore[arg-type]
    known = compare(base, cand, "ratio", band)
    assert alone is not None
    assert known is not None
    assert alone.low(0.005) > 0 > known.low(0.005)
    assert session_band([0.1]) is None


@pytest.mark.parametrize(
    ("candidate", "share", "better", "state"),
    [
        (1.20, 0.05, "lower", "fail"), (1.00, 0.05, "lower", "pass"), (0.80, 0.05, "lower", "pass"),
        (1.05, 0.05, "lower", "inconclusive"), (0.80, 0.05, "higher", "fail"), (1.20, 0.05, "higher", "pass"),
        (1.20, 0.05, None, "fail"), (0.80, 0.05, None, "fail"), (1.00, 0.05, None, "pass"),
        (0.0001, 1.0, "higher", "inconclusive"), (1.0, 0.0, "lower", "inconclusive"),
    ],
)  # fmt: skip
def test_only_a_whole_interval_decides(candidate: float, share: float, better: str | None, state: str) -> None:
    shape = (0.99, 1.0, 1.01, 1.0, 0.995)
    base, cand = repeats(*shape), repeats(*(candidate * v for v in shape), start=100)
    effect = compare(base, cand, "ratio")
    assert effect is not None
    expected = "pass" if share == 1.0 else state  # nothing falls by more than all of it
    assert decide(effect, Span.of(share, better, "ratio"), AT, guard=False)[0] == expected


def test_what_more_repeats_would_do() -> None:
    rng = np.random.default_rng(1)
    noise = np.exp(0.03 * rng.normal(size=10))
    base, cand = repeats(*noise[:5]), repeats(*(noise[5:] * 1.08), start=100)
    effect, span = compare(base, cand, "ratio"), Span.of(0.05, "lower", "ratio")
    assert effect is not None
    more = more_repeats(effect, span, AT)
    assert more is not None
    assert 1 <= more <= 195
    at_limit = compare(repeats(0.97, 1.0, 1.03), repeats(1.0185, 1.05, 1.0815, start=100), "ratio")
    assert at_limit is not None
    assert more_repeats(at_limit, span, AT) is None
    least = detectable(effect, span, AT)
    assert least is not None
    assert least > 0.05


@pytest.mark.parametrize("noise", ["real vllm", "drift of 30 %", "random walk", "all of these"])
def test_identical_code_hardly_ever_fails(noise: str) -> None:
    """A short cut of `tests/benchmarks/gate_false_alarms.py`: 25 gates at the hardest limit."""
    states = [sequential(ttft, speed, 0.0, 0.0)[0] for ttft, speed, _ in trials(draws()[noise], 25, seed=11)]
    assert states.count("fail") <= 1


def test_a_slowdown_is_caught() -> None:
    draw = draws()["quiet, CV 2 %"]
    states = [sequential(ttft, speed, 0.01, 0.05, metrics=1)[0] for ttft, speed, _ in trials(draw, 60, seed=11)]
    assert states.count("fail") >= 54
    assert "pass" not in states


def test_the_bound_of_a_rate() -> None:
    assert upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-6)
    assert upper_bound(80, 10_000) == pytest.approx(0.0096, abs=2e-4)
