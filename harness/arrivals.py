"""Open-loop load shapes to due times. Pure and seeded: computed before the clock starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.scenario import Point


@dataclass(frozen=True, slots=True)
class Size:
    """How long one request is, where the load itself says it (a trace). `blocks`: ids of its prompt's blocks, equal
    where two prompts share a prefix; empty where that is not told."""

    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """When requests fall due, in seconds from the opening of the measured window, rising.

    Those before 0 ramp up, those in [0, close_s) are measured, later ones keep the load up while the measured ones
    end. `sizes` belong to them one by one, where the load has any.
    """

    due_s: list[float]
    close_s: float
    sizes: list[Size] | None = None


def schedule(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """The due times of an open-loop point: `lead_s` of ramp, its window, and `tail_s` after it."""
    return SHAPES[point.kind](point, lead_s, tail_s, seed)


def poisson(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """A Poisson process: independent exponential gaps of mean 1/rate."""
    rng, rate = random.Random(seed), point.rate_rps or 1.0
    return of_gaps(iter(lambda: rng.expovariate(rate), None), point, lead_s, tail_s)


def constant(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """One request every 1/rate seconds. The seed is not used."""
    gap_s = 1.0 / (point.rate_rps or 1.0)
    count = 0

    def times() -> Iterator[float]:
        nonlocal count
        while True:
            count += 1
            yield count * gap_s - lead_s  # multiplied, so that no rounding adds up

    return of_times(times(), point, tail_s)


def of_gaps(gaps: Iterator[float], point: Point, lead_s: float, tail_s: float) -> Schedule:
    """A schedule from an endless stream of gaps that begins with the ramp."""

    def times() -> Iterator[float]:
        at = -lead_s
        for gap in gaps:
            at += gap
            yield at

    return of_times(times(), point, tail_s)


def of_times(times: Iterator[float], point: Point, tail_s: float) -> Schedule:
    """A schedule from an endless stream of times: the window lasts for the asked duration, or up to the arrival after
    the asked number of requests."""
    due, close_s, measured = [], point.duration_s, 0
    for at in times:
        if close_s is None and at >= 0:
            if measured == point.requests:
                close_s = at
            measured += 1
        if close_s is not None and at >= close_s + tail_s:
            break
        due.append(at)
    assert close_s is not None
    return Schedule(due, close_s)


SHAPES: dict[str, Callable[[Point, float, float, str], Schedule]] = {"poisson": poisson, "constant": constant}
