"""Replicas of one engine behind a balancer that deals requests out in turn: each serves its share of the load."""

from __future__ import annotations

import dataclasses
import math

from sizing.estimate import Estimate
from sizing.loads import Offered

OF_ALL = ("weights_bytes", "kv_capacity_bytes", "kv_capacity_tokens", "overhead_bytes", "max_concurrency")
"""of a start: what all of them together have, as `bench run` states it"""


def share_of(offered: Offered, replicas: int) -> tuple[Offered, float]:
    """What one replica gets of a load, and how many times as much all of them get. Fewer streams than replicas keep as
    many replicas busy."""
    if offered.rate_rps is not None:
        return dataclasses.replace(offered, rate_rps=offered.rate_rps / replicas), float(replicas)
    each = math.ceil(offered.concurrency / min(replicas, offered.concurrency))
    times = offered.concurrency / each
    burst, measured = (None if x is None else math.ceil(x / times) for x in (offered.burst_requests, offered.measured))
    return dataclasses.replace(offered, concurrency=each, burst_requests=burst, measured=measured), times


def multiplied(figures: dict[str, Estimate], names: tuple[str, ...], times: float) -> dict[str, Estimate]:
    """These figures so many times as large; what is not known stays so."""
    return {name: _times(value, times) if name in names else value for name, value in figures.items()}


def _times(figure: Estimate, times: float) -> Estimate:
    if figure.value is None or figure.low is None or figure.high is None:
        return figure
    value, low, high = (float(x) * times for x in (figure.value, figure.low, figure.high))
    return dataclasses.replace(figure, value=value, low=low, high=high)
