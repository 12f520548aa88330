"""Open-loop load shapes to due times. Pure and seeded: computed before the clock starts."""

from __future__ import annotations

import random


def poisson(rate_rps: float, span_s: float, seed: str) -> list[float]:
    """Due times in [0, span) of a Poisson process: independent exponential gaps of mean 1/rate."""
    rng, at, due = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(rate_rps)) < span_s:
        due.append(at)
    return due


def constant(rate_rps: float, span_s: float, seed: str) -> list[float]:
    """Due times every 1/rate seconds, from 1/rate on. The seed is not used."""
    return [k / rate_rps for k in range(1, int(span_s * rate_rps - 1e-9) + 1) if k / rate_rps < span_s]


ARRIVALS = {"poisson": poisson, "constant": constant}
