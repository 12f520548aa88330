"""Whether the streams of a closed loop fell into step."""

from __future__ import annotations

import numpy as np
import pytest

from harness.instep import in_step
from reports.instep import short_windows, warnings
from reports.rows import PointState, Row

LATENCY_S = 2.0


def sendings(offsets_s: np.ndarray, waves: int = 6) -> np.ndarray:
    """Each stream sends at its own offset, and again each time it was answered."""
    return np.concatenate([offsets_s + LATENCY_S * wave for wave in range(waves)])


def test_all_at_once_is_one_and_evenly_spread_is_nothing() -> None:
    assert in_step(sendings(np.full(64, 0.3)), LATENCY_S, 64) == pytest.approx(1.0, abs=0.1)
    assert in_step(sendings(np.arange(64) * LATENCY_S / 64), LATENCY_S, 64) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_next_to_nothing(seed: int) -> None:
    sent = np.random.default_rng(seed).uniform(0, 6 * LATENCY_S, 6 * 64)
    found = in_step(sent, LATENCY_S, 64)
    assert found is not None
    assert found < 0.02


def test_half_of_the_streams_in_step_is_between() -> None:
    mixed = np.concatenate([np.full(32, 0.3), np.arange(32) * LATENCY_S / 32])
    found = in_step(sendings(mixed), LATENCY_S, 64)
    assert found is not None
    assert 0.1 < found < 0.5


def test_the_pause_between_two_repeats_is_no_rhythm() -> None:
    even = sendings(np.arange(64) * LATENCY_S / 64)
    assert in_step(np.concatenate([even, even + 1000.0]), LATENCY_S, 64) == 0.0


def test_few_streams_or_a_short_window_say_nothing() -> None:
    assert in_step(sendings(np.full(4, 0.3)), LATENCY_S, 4) is None
    assert in_step(np.arange(64) * LATENCY_S / 64, LATENCY_S, 64) is None
    assert in_step(sendings(np.full(64, 0.3)), 0.0, 64) is None
    assert in_step(np.array([]), LATENCY_S, 64) is None


def point(name: str, **load: object) -> PointState:
    return PointState("vllm", name, {"kind": "concurrency", "concurrency": 64, **load}, "done", 1, 1, 0, {"ok": 9}, 9)


def row(name: str, value: float | None) -> Row:
    return Row("vllm", name, "in_step_ratio", value, "ratio", None, None, 9, None)


def test_the_worst_point_is_told_and_a_burst_is_not() -> None:
    states = [point("c64"), point("c256"), point("c16"), point("b64", start="burst"), point("c1")]
    rows = [row("c64", 0.3), row("c256", 0.6), row("c16", 0.1), row("b64", 0.9), row("c1", None)]
    (text,) = warnings(states, {(r.engine, r.point, r.metric): r for r in rows})
    assert "vllm" in text
    assert "(and 1 more)" in text
    assert "0.600 of 1" in text
    assert not warnings(states[2:], {(r.engine, r.point, r.metric): r for r in rows[2:]})


def test_a_window_shorter_than_a_wave_is_told_with_what_lasts() -> None:
    """256 streams of 128 tokens that take 21 s each: 1,560 tokens/s in the long run, whatever 12 s of them showed."""

    def figures(name: str, tok_s: float, e2e_s: float) -> list[Row]:
        found = {"output_tok_s": tok_s, "e2e_mean_s": e2e_s, "output_tokens_mean": 128.0}
        return [Row("vllm", name, metric, value, "", None, None, 9, None) for metric, value in found.items()]

    states = [point(name, concurrency=256, duration_s=12.0) for name in ("c256", "near", "long")]
    rows = figures("c256", 2538.0, 21.0) + figures("near", 1600.0, 21.0) + figures("long", 15000.0, 2.9)
    by_key = {(r.engine, r.point, r.metric): r for r in rows}
    (text,) = short_windows(states, by_key)
    assert "0.571 times" in text
    assert "1,560" in text
    assert not short_windows(states[1:], by_key)
    assert not short_windows([point("c256", concurrency=256, duration_s=12.0, start="burst")], by_key)
    failed = Row("vllm", "c256", "error_ratio", 0.2, "ratio", None, None, 9, None)
    assert not short_windows(states, by_key | {("vllm", "c256", "error_ratio"): failed})
