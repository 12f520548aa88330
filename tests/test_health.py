"""Client health: what is counted while load runs, and what it says of the client, by known answers."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from harness.health import Fared, Health, Histogram
from harness.scenario import Point


def request(sent_s: float, end_s: float, status: str = "ok") -> Any:
    return SimpleNamespace(
        sent_s=sent_s, scheduled_s=sent_s - 0.001, end_s=end_s, phase="measure", status=status, chunks=2
    )  # fmt: skip


def test_load_is_judged_by_what_fell_due() -> None:
    """A Poisson window with fewer arrivals than rate x time is no fault of the client."""
    point = Point("p", "poisson", duration_s=10.0, rate_rps=8.0)
    for close_s, delivered in ((10.0, 1.0), (3.0, 31 / 60)):
        health = Health()
        health.window(0.0, close_s)
        for number in range(60):
            health.add(request(number / 10, number / 10 + 0.5, "error"), 1)
        assert health.result(10.0).figures(point, close_s)["load_delivered_ratio"] == pytest.approx(delivered)
    assert health.fared.figures(point, 0.0)["load_delivered_ratio"] is None


def test_occupied_streams_are_counted_inside_the_window() -> None:
    health, point = Health(), Point("c2", "concurrency", duration_s=2.0, concurrency=2)
    health.occupy(0.5, 1)
    health.window(1.0, None)
    health.occupy(1.5, 1)
    health.window(1.0, 3.0)
    health.occupy(4.0, -1)
    fared = health.result(5.0)
    assert fared.held_s == pytest.approx(0.5 + 2 * 1.5)
    assert fared.figures(point, 2.0)["in_flight_mean"] == pytest.approx(1.75)
    other = Fared(held_s=0.5)
    fared.merge(other)
    assert fared.figures(point, 2.0)["load_delivered_ratio"] == pytest.approx(1.0)
    assert fared.figures(point, 2.0)["workers"] == 2


def test_a_closed_loop_cannot_have_more_throughput_than_streams_over_latency() -> None:
    health, point = Health(), Point("c1", "concurrency", duration_s=10.0, concurrency=1)
    health.window(0.0, 10.0)
    for number in range(10):
        health.add(request(number, number + 1.0), 1)
    figures = health.result(10.0).figures(point, 10.0)
    assert figures["little_ratio"] == pytest.approx(0.9), "the last one ended with the window, not in it"
    assert figures["little_limit"] == pytest.approx(1.12)


def test_a_stall_of_the_loop_weighs_what_it_lasts() -> None:
    async def main() -> dict[str, float | None]:
        health = Health()
        watch = asyncio.ensure_future(health.watch())
        await asyncio.sleep(0.05)
        time.sleep(0.4)  # a client that is kept from its core
        await asyncio.sleep(0.05)
        watch.cancel()
        return health.result(1.0).figures(Point("c1", "concurrency", 1, concurrency=1), 0.0)

    figures = uvloop.run(main())
    assert figures["loop_lag_p50_s"] is not None
    assert figures["loop_lag_p50_s"] > 0.05, "most of the time it was late"


def test_histograms_are_exact_to_two_percent() -> None:
    histogram = Histogram()
    for value in range(1, 101):
        histogram.add(value / 1000)
    for q, value in ((0.0, 0.001), (0.5, 0.05), (0.99, 0.099), (1.0, 0.1)):
        assert histogram.quantile(q) == pytest.approx(value, rel=0.02)
    other = Histogram()
    other.add(0.0)
    histogram.merge(other)
    assert (histogram.quantile(0.0), histogram.max_s) == (1e-6, 0.1)
    assert Histogram().quantile(0.5) is None


def test_what_was_served_counts_good_answers_that_ended_inside_the_window() -> None:
    health = Health()
    health.window(1.0, 2.0)
    for end_s, status in ((1.5, "ok"), (1.9, "error"), (2.5, "ok"), (1.0, "ok")):
        health.add(request(1.0, end_s, status), 1)
    point = Point("p", "constant", duration_s=1.0, rate_rps=4.0)
    assert health.fared.figures(point, 1.0)["served_ratio"] == 0.5
    assert health.fared.figures(point, 0.0)["served_ratio"] is None
