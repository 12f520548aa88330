"""Closed loops of equal lengths: windows that hold parts of waves, and intervals from evenly apart to in step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.predicted import queries_of
from harness.scenario import from_resolved
from harness.store import RunFolder
from sizing.engine import memory_plan, policy, step_time
from sizing.loads import Offered, meet, stagger_s
from sizing.predict import Query, predict
from sizing.rhythm import may_fall_into_step
from tests.test_virtual import RULES, TIMES

REFERENCE = Path("results/reference")


def asked(run: str, point: str) -> Query:
    """What was asked of a run on two H200 at one point; no receipt of this machine goes in."""
    record = RunFolder.open(REFERENCE / run).read_run()
    found = {name: query for _, name, query in queries_of(from_resolved(record.scenario), "H200 SXM", None)}
    query = found[point]
    assert isinstance(query, Query)
    return dataclasses.replace(query, scale=1.0, scale_sources=())


@pytest.mark.parametrize(("point", "tok_s"), [("c256", 2538.0), ("c64", 1342.0)])
def test_a_window_that_holds_a_part_of_a_wave_is_predicted_as_it_is_measured(point: str, tok_s: float) -> None:
    """results/reference/h200-70b-tp2: 12 s of waves of 21 and 7 s; 1,562 and 1,206 tokens/s by the requests' time."""
    found = predict(dataclasses.replace(asked("h200-70b-tp2", point), rhythm=False))
    assert found.speed["output_tok_s"].value == pytest.approx(tok_s, rel=0.03)


def test_intervals_of_equal_lengths_reach_from_evenly_apart_to_in_step() -> None:
    """results/reference/h200-8b-tp2 at 64 streams: 358 ms, in step; the streams evenly apart would see 50 to 60."""
    query = asked("h200-8b-tp2", "c64")
    found, narrow = predict(query), predict(dataclasses.replace(query, rhythm=False))
    told, before = found.speed["ttft_p50_s"], narrow.speed["ttft_p50_s"]
    assert told.value == before.value
    assert told.low is not None
    assert told.high is not None
    assert before.high is not None
    assert before.high < 0.358 < told.high
    assert told.low < 0.06
    assert any("fall into step" in note for note in found.notes)
    mean = found.speed["ttft_mean_s"]
    assert mean.high is not None
    assert mean.high > before.high
    assert found.speed["output_tok_s"] == narrow.speed["output_tok_s"]


@pytest.mark.parametrize(
    ("run", "point"), [("h200-8b-tp2-varied", "c16"), ("h200-8b-tp2", "c64-burst"), ("h200-8b-tp2", "c1")]
)
def test_what_cannot_fall_into_step_keeps_its_intervals(run: str, point: str) -> None:
    query = asked(run, point)
    assert not may_fall_into_step(query.offered)
    assert predict(query).speed == predict(dataclasses.replace(query, rhythm=False)).speed


def test_starts_are_spread_over_what_a_request_of_the_warm_up_takes() -> None:
    """The warm-up sends eight at once: of varied lengths they took 0.637 s on an H200 (h200-8b-varied), as spread."""
    eight = meet(TIMES, RULES, Offered(512, 128, 8, burst_requests=8))
    assert stagger_s(TIMES, RULES, Offered(512, 128, 256)) == pytest.approx(eight.request_s)
    assert stagger_s(TIMES, RULES, Offered(512, 128, 256, ramp_s=3.0)) == 3.0
    q = asked("h200-8b-varied", "c16")
    plan = memory_plan(q.hardware, q.model, q.quantization, q.setup)
    times, rules = step_time(q.hardware, q.model, q.quantization, q.setup, plan), policy(q.hardware, plan, q.setup)
    assert stagger_s(times, rules, q.offered) == pytest.approx(0.637, rel=0.1)
