"""Load shapes: due times follow their law, and the window and the sizes that belong to them."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.arrivals import SHAPES as LAWS
from harness.arrivals import Schedule, Size, schedule
from harness.loads import Point, TraceLoad
from tests.laws import SHAPES, gamma_cdf, ks, made_uniform

LEAD_S, TAIL_S, GAPS = 2.0, 10.0, 1000


def test_kolmogorovs_test() -> None:
    assert ks([0.5])[0] == 0.5
    assert ks((np.arange(1000) + 0.5) / 1000)[1] == 1.0
    assert ks(np.linspace(0, 0.9, 1000))[1] < 1e-6
    # Kolmogorov's 5 % point is 1.358 / sqrt(n) for large n.
    n = 100_000
    shifted = np.clip((np.arange(n) + 0.5) / n + 1.358 / math.sqrt(n), 0, 1)
    assert ks(shifted)[1] == pytest.approx(0.05, abs=0.002)


def test_the_gamma_law() -> None:
    assert gamma_cdf(1.0, 2.0) == pytest.approx(1 - math.exp(-2))
    assert gamma_cdf(0.5, 1.0) == pytest.approx(math.erf(1.0))
    assert gamma_cdf(2.0, 3.0) == pytest.approx(1 - 4 * math.exp(-3))


@pytest.mark.parametrize("name", SHAPES)
def test_p_values_of_due_times_are_uniform(name: str) -> None:
    """Of 40 seeds; `python -m tests.benchmarks.arrival_laws` has 200. Fixed seeds: it cannot fail by chance."""
    values = [ks(made_uniform(SHAPES[name], due(name, seed).due_s[:GAPS], -LEAD_S))[1] for seed in range(40)]
    assert ks(values)[1] > 0.01
    assert min(values) > 1e-4


def due(name: str, seed: int) -> Schedule:
    return schedule(SHAPES[name], LEAD_S, TAIL_S, f"seed-{seed}")


def test_a_wrong_law_is_found() -> None:
    """What the test above would say of a generator that is off by a tenth, or forgets its ramp."""
    of_poisson = due("poisson", 0).due_s[:GAPS]
    assert ks(made_uniform(Point("p", "poisson", 1, rate_rps=22.0), of_poisson, -LEAD_S))[1] < 0.05
    assert ks(made_uniform(SHAPES["ramp"], of_poisson, -LEAD_S))[1] < 1e-6
    assert ks(made_uniform(SHAPES["gamma, burstiness 0.3"], of_poisson, -LEAD_S))[1] < 1e-6


@pytest.mark.parametrize("name", SHAPES)
def test_schedules_are_seeded_and_rise(name: str) -> None:
    first = due(name, 1)
    assert first == due(name, 1)
    assert first != due(name, 2)
    assert first.due_s == sorted(first.due_s)
    assert first.sizes is None
    assert first.due_s[0] > -LEAD_S
    assert first.close_s + TAIL_S > first.due_s[-1] > first.close_s + TAIL_S / 2
    if (wanted := SHAPES[name].requests) is not None:
        assert sum(0 <= at < first.close_s for at in first.due_s) == wanted
    else:
        assert first.close_s == SHAPES[name].duration_s


def test_a_longer_load_begins_like_a_shorter_one() -> None:
    short, long = (schedule(Point("p", "poisson", None, span_s, rate_rps=50.0), 0.0, 0.0, "a") for span_s in (100, 200))
    assert short.due_s == long.due_s[: len(short.due_s)]
    assert len(long.due_s) > 1.5 * len(short.due_s)


def constant(rate_rps: float, span_s: float) -> list[float]:
    """Due times from 0, without ramp and tail."""
    return schedule(Point("p", "constant", duration_s=span_s, rate_rps=rate_rps), 0.0, 0.0, "").due_s


def test_constant_arrivals() -> None:
    assert constant(4.0, 1.0) == [0.25, 0.5, 0.75]
    assert constant(3.0, 1.1) == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert constant(0.1, 5.0) == []


def test_windows_of_open_loops() -> None:
    point = Point("p", "constant", requests=3, rate_rps=1.0)
    plan = schedule(point, 0.5, 1.5, "")
    assert (plan.due_s, plan.close_s) == ([0.5, 1.5, 2.5, 3.5, 4.5], 3.5), "up to the arrival after the third"
    plan = schedule(Point("p", "constant", duration_s=2.0, rate_rps=1.0), 1.5, 0.5, "")
    assert (plan.due_s, plan.close_s) == ([-0.5, 0.5, 1.5], 2.0)


def test_burstiness_is_the_shape_of_the_gaps() -> None:
    for burstiness in (0.25, 1.0, 9.0):
        point = Point("g", "gamma", 20_000, rate_rps=50.0, shape={"burstiness": burstiness})
        gaps = np.diff(schedule(point, 1.0, 0.0, "s").due_s)
        assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_steps_of_constant_gaps() -> None:
    shape = {"rates_rps": [2.0, 8.0, 4.0], "each_s": 5.0, "arrivals": "constant"}
    found = schedule(Point("s", "steps", None, 15.0, rate_rps=14 / 3, shape=shape), 1.0, 2.0, "")
    counts = [sum(5 * k <= at < 5 * k + 5 for at in found.due_s) for k in range(3)]
    assert counts == [10, 40, 20]
    assert [b - a for a, b in pairwise(at for at in found.due_s if at <= 0)] == [0.5]
    after = [at for at in found.due_s if at >= 15]
    assert [b - a for a, b in pairwise(after)] == pytest.approx([0.25] * (len(after) - 1))
    assert found.close_s == 15.0


@pytest.mark.parametrize(("first", "last"), [(2.0, 18.0), (18.0, 2.0), (10.0, 10.0)])
def test_a_ramp_of_constant_gaps(first: float, last: float) -> None:
    shape = {"from_rps": first, "to_rps": last, "arrivals": "constant"}
    found = schedule(Point("r", "ramp", None, 60.0, rate_rps=10.0, shape=shape), 1.0, 5.0, "")
    inside = [at for at in found.due_s if 0 <= at < 60]
    assert len(inside) == pytest.approx(600, abs=1)
    half = sum(at < 30 for at in inside)
    assert half == pytest.approx(30 * first + 30 * (last - first) / 4, abs=1)
    assert found.due_s[-1] - found.due_s[-2] == pytest.approx(1 / last)


# --- traces ---


ROWS = [(0.0, 10, 1), (0.5, 20, 2), (0.5, 30, 3), (2.0, 40, 4), (4.0, 50, 5)]


def trace(folder: Path, **more: object) -> Schedule:
    path = folder / "t.csv"
    path.write_text("timestamp_s,input_tokens,output_tokens\n" + "".join(f"{7 + t},{i},{o}\n" for t, i, o in ROWS))
    (point,) = TraceLoad.model_validate({"kind": "trace", "file": str(path), **more}).points()
    found = schedule(point, LEAD_S, TAIL_S, "any")
    measured = sum(at < found.close_s for at in found.due_s)
    assert point.requests in (measured, None)
    assert point.rate_rps == pytest.approx(measured / found.close_s)
    return found


def test_a_whole_trace(tmp_path: Path) -> None:
    found = trace(tmp_path)
    assert found.due_s == [0.0, 0.5, 0.5, 2.0, 4.0]
    assert found.close_s == 5.0, "a mean gap after its last"
    assert found.sizes == [Size(i, o) for _, i, o in ROWS]


def test_pieces_of_a_trace(tmp_path: Path) -> None:
    assert trace(tmp_path, requests=1).close_s == 0.5
    assert trace(tmp_path, requests=2).close_s == 2.0, "two of one moment are not parted"
    cut = trace(tmp_path, duration="3s")
    assert (len(cut.due_s), cut.close_s) == (5, 3.0), "those behind the window keep the load up"
    late = trace(tmp_path, start="1s")
    assert (late.due_s, late.close_s) == ([1.0, 3.0], 5.0)
    assert late.sizes == [Size(40, 4), Size(50, 5)]


def test_the_speed_of_a_trace(tmp_path: Path) -> None:
    fast = trace(tmp_path, speed=2)
    assert (fast.due_s, fast.close_s) == ([0.0, 0.25, 0.25, 1.0, 2.0], 2.5)
    assert trace(tmp_path, rate="4/s").due_s == [0.0, 0.125, 0.125, 0.5, 1.0]


def test_every_open_loop_has_a_law() -> None:
    assert set(LAWS) == {"poisson", "constant", "gamma", "ramp", "steps", "trace"}


def test_the_peak_of_a_load_is_what_the_client_is_made_for() -> None:
    assert [round(SHAPES[name].peak_rps or 0) for name in ("poisson", "ramp", "steps")] == [20, 30, 40]
    assert Point("c", "concurrency", 1, concurrency=3).peak_rps is None
