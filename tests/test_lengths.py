"""Distributions of lengths: their laws, their bounds, and that equal seeds give equal draws."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from harness.lengths import Exponential, Lengths, Pause, largest, pause_s, sampler, smallest, typical
from harness.parts import RESOLVED

LENGTHS: TypeAdapter[Any] = TypeAdapter(Lengths)
PAUSES: TypeAdapter[Any] = TypeAdapter(Pause)


def draws(value: Any, count: int = 4000, seed: str = "s") -> list[int]:
    draw, rng = sampler(LENGTHS.validate_python(value)), Random(seed)
    return [draw(rng) for _ in range(count)]


def test_a_number_is_that_number() -> None:
    assert set(draws(7)) == {7}
    assert (typical(7), smallest(7), largest(7)) == (7, 7, 7)


def test_uniform_draws_reach_both_ends_alike() -> None:
    found = draws({"kind": "uniform", "min": 3, "max": 6})
    for value in (3, 4, 5, 6):
        assert abs(found.count(value) / 4000 - 0.25) < 0.035  # 5 standard errors
    assert set(found) == {3, 4, 5, 6}


def test_normal_draws_have_their_mean_and_spread() -> None:
    found = draws({"kind": "normal", "mean": 500, "stddev": 50, "max": 10_000})
    assert abs(statistics.mean(found) - 500) < 5 * 50 / math.sqrt(4000)
    assert abs(statistics.stdev(found) - 50) < 5 * 50 / math.sqrt(8000)


def test_what_lies_outside_is_left_out_and_not_cut_to_the_edge() -> None:
    found = draws({"kind": "normal", "mean": 100, "stddev": 100, "min": 50, "max": 150})
    assert min(found) >= 50
    assert max(found) <= 150
    assert found.count(50) + found.count(150) < 100, "the edges are no more likely than what is beside them"


@pytest.mark.parametrize(
    ("law", "median", "p95"),
    [
        ({"median": 300, "p95": 1500}, 300, 1500),
        ({"median": 300, "sigma": 0.5}, 300, 300 * math.exp(0.5 * 1.6449)),
        ({"mean": 400, "sigma": 0.8}, 400 * math.exp(-0.32), 400 * math.exp(-0.32 + 0.8 * 1.6449)),
        ({"mean": 400, "p95": 1000}, None, 1000),
        ({"mean": 400, "sigma": 0}, 400, 400),
    ],
)
def test_lognormal_draws_follow_either_way_of_saying_it(law: Any, median: float | None, p95: float) -> None:
    found = sorted(draws({"kind": "lognormal", "max": 1_000_000} | law))
    assert found[3800] == pytest.approx(p95, rel=0.12)
    if median is not None:
        assert found[2000] == pytest.approx(median, rel=0.08)
    if "mean" in law:
        assert statistics.mean(found) == pytest.approx(law["mean"], rel=0.08)


def test_empirical_draws_follow_their_weights(tmp_path: Path) -> None:
    found = draws({"kind": "empirical", "values": [5, 50, 500], "weights": [3, 1, 0]})
    assert set(found) == {5, 50}
    assert found.count(5) / 4000 == pytest.approx(0.75, abs=0.035)
    path = tmp_path / "lengths.txt"
    path.write_text("# measured\n7\n\n9\n")
    made = LENGTHS.validate_python({"kind": "empirical", "file": "lengths.txt"}, context=tmp_path)
    assert made.numbers() == [7, 9]
    assert (smallest(made), typical(made), largest(made)) == (7, 8, 9)
    kept = made.model_dump(mode="json")
    assert LENGTHS.validate_python(kept, context=RESOLVED) == made
    path.write_text("7\n9\n11\n")
    with pytest.raises(ValidationError, match="holds something else than was asked for"):
        LENGTHS.validate_python(kept, context=RESOLVED)


def test_equal_seeds_draw_alike() -> None:
    law = {"kind": "lognormal", "median": 300, "p95": 1500, "max": 4000}
    assert draws(law, 50, "a") == draws(law, 50, "a")
    assert draws(law, 50, "a") != draws(law, 50, "b")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"kind": "uniform", "min": 9, "max": 3}, "`max` (3) is smaller than `min` (9)"),
        ({"kind": "normal", "mean": 900, "stddev": 1, "max": 300}, "its centre (900) must lie between"),
        ({"kind": "lognormal", "sigma": 1, "max": 9}, "give either `median` or `mean`"),
        ({"kind": "lognormal", "median": 5, "max": 9}, "give either `sigma` or `p95`"),
        ({"kind": "lognormal", "median": 5, "p95": 3, "max": 9}, "must not be smaller than `median`"),
        ({"kind": "lognormal", "mean": 5, "p95": 50, "max": 99}, "no log-normal law has"),
        ({"kind": "empirical", "values": [1, 2], "weights": [1]}, "1 `weights` for 2 values"),
        ({"kind": "empirical", "values": [1, 2], "weights": [0, 0]}, "all `weights` are 0"),
        ({"kind": "empirical"}, "give either `values` or `file`"),
    ],
)
def test_laws_that_cannot_be(value: Any, fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LENGTHS.validate_python(value)
    assert fault in str(caught.value)


def test_pauses() -> None:
    rng = Random("p")
    assert pause_s(None, rng) == 0.0
    assert pause_s(PAUSES.validate_python("2s"), rng) == 2.0
    law = PAUSES.validate_python({"kind": "exponential", "mean": "2s"})
    assert isinstance(law, Exponential)
    found = [pause_s(law, rng) for _ in range(4000)]
    assert statistics.mean(found) == pytest.approx(2.0, abs=5 * 2 / math.sqrt(4000))
