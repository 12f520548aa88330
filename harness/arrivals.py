"""Open-loop load shapes to due times. Pure and seeded: computed before the clock starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, sqrt

from harness.loads import Point, trace_window
from harness.traces import read_trace


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


def gamma(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """Independent gamma-distributed gaps of mean 1/rate, with `burstiness` as their shape: 1 is `poisson`, less comes
    in bursts, more is smoother (what `vllm bench serve --burstiness` draws)."""
    rng, rate, shape = random.Random(seed), point.rate_rps or 1.0, float(point.shape["burstiness"])
    scale_s = 1.0 / (rate * shape)
    return of_gaps(iter(lambda: rng.gammavariate(shape, scale_s), None), point, lead_s, tail_s)


def ramp(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """A rate that changes evenly over the window; before it the first, after it the last."""
    first, last = float(point.shape["from_rps"]), float(point.shape["to_rps"])
    pieces = [(lead_s, first, first), (point.duration_s or 0.0, first, last), (inf, last, last)]
    return of_times(_through(pieces, _counts(point, seed), -lead_s), point, tail_s)


def steps(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """Rates that follow one another inside the window, each as long; before it the first, after it the last."""
    rates, each_s = [float(rate) for rate in point.shape["rates_rps"]], float(point.shape["each_s"])
    pieces = [(lead_s, rates[0], rates[0]), *((each_s, rate, rate) for rate in rates), (inf, rates[-1], rates[-1])]
    return of_times(_through(pieces, _counts(point, seed), -lead_s), point, tail_s)


def trace(point: Point, lead_s: float, tail_s: float, seed: str) -> Schedule:
    """The requests of a trace file at their own times over its speed, order and gaps kept, with their own lengths.

    Its clock starts as the window opens. Nothing comes before: a trace has no steady state to ramp up to. Those behind
    the window follow at their own times. Neither the seed nor `lead_s` is used.
    """
    shape = point.shape
    found = read_trace(shape["file"], shape["format"], shape["sha256"])
    piece = found.piece(shape["start_s"], shape["speed"])
    _, close_s = trace_window(piece, point.requests, point.duration_s)
    sent = [row for row in piece if row.time_s < close_s + tail_s]
    sizes = [Size(row.input_tokens, row.output_tokens, row.blocks) for row in sent]
    return Schedule([row.time_s for row in sent], close_s, sizes)


def _counts(point: Point, seed: str) -> Iterator[float]:
    """How many requests are expected up to each arrival: rising by 1 on average, for a Poisson process at random."""
    rng, even, count = random.Random(seed), point.shape["arrivals"] == "constant", 0.0
    while True:
        count += 1.0 if even else rng.expovariate(1.0)
        yield count


def _through(pieces: list[tuple[float, float, float]], counts: Iterator[float], start_s: float) -> Iterator[float]:
    """The times at which so many requests are expected, under a rate of pieces of (duration, first rate, last rate).

    It changes evenly inside a piece, so the expected number is a parabola, and its inverse is exact. A Poisson process
    sent through it is one of that rate. The last piece has no end.
    """
    left = iter(pieces)
    length_s, first, last = next(left)
    before = 0.0
    for count in counts:
        while count - before > (inside := length_s * (first + last) / 2):
            before, start_s = before + inside, start_s + length_s
            length_s, first, last = next(left)
        slope = (last - first) / length_s
        root = sqrt(max(0.0, first * first + 2 * slope * (count - before)))  # the rate at that time
        yield start_s + 2 * (count - before) / (first + root)


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


SHAPES: dict[str, Callable[[Point, float, float, str], Schedule]] = {
    "poisson": poisson, "constant": constant, "gamma": gamma, "ramp": ramp, "steps": steps, "trace": trace,
}  # fmt: skip
