"""Between which ends the latencies of a closed loop of equal requests lie.

Requests that were prefilled in one step end in one step and come back together, so cohorts merge and never part. Those
that started one long step apart (of a prompt) end one short step apart (of decodes), come through the server's front
together and meet in the next prompts' step. How far a loop gets within its window hangs on when its streams start
against the steps, which no prediction knows to the millisecond: the same model at 64 streams was seen at 0.07 of the
way (results/reference, h200-8b) and at 0.67 (h200-8b-tp2). So both ends are simulated: streams spread over what a
loaded request takes, and all sent at once.
"""

from __future__ import annotations

import dataclasses

from sizing.estimate import Estimate
from sizing.loads import Met, Offered, meet
from sizing.policy import Policy
from sizing.speed import StepTime

LATENCIES = ("ttft_p50_s", "ttft_p95_s", "ttft_mean_s", "tpot_p50_s", "tpot_p95_s")
STREAMS_MIN = 8
"""fewer are not told to be in step by `in_step_ratio` either"""
WAVES = 4


def may_fall_into_step(offered: Offered) -> bool:
    """A closed loop of equal lengths; a burst is in step because it was asked to be."""
    closed = offered.rate_rps is None and offered.burst_requests is None
    return closed and not offered.length_spread and not offered.drawn and offered.concurrency >= STREAMS_MIN


def ends(times: StepTime, policy: Policy, offered: Offered, met: Met) -> tuple[Met, Met]:
    """(streams evenly apart, all in step) of a load of which `met` was simulated as it starts."""
    apart = meet(times, policy, dataclasses.replace(offered, ramp_s=met.request_s))
    together = dataclasses.replace(offered, duration_s=None, burst_requests=WAVES * offered.concurrency)
    return apart, meet(times, policy, together)


def reaching(figures: dict[str, Estimate], apart: Met, together: Met) -> dict[str, Estimate]:
    """The same figures; the intervals of latencies reach from one end to the other, each with its own doubt."""
    return {key: _wider(figure, apart, together, key) for key, figure in figures.items()}


def _wider(figure: Estimate, apart: Met, together: Met, key: str) -> Estimate:
    if key not in LATENCIES or figure.value is None or figure.low is None or figure.high is None:
        return figure
    found = [each for each in (getattr(apart, key), getattr(together, key)) if each is not None]
    low, high = min(figure.value, *found) / figure.value, max(figure.value, *found) / figure.value
    return dataclasses.replace(figure, low=figure.low * low, high=figure.high * high)


def note(apart: Met, together: Met) -> str:
    """Why the intervals are so wide."""
    first, last = apart.ttft_p50_s * 1e3, together.ttft_p50_s * 1e3
    return (
        "requests of equal length may fall into step: the intervals of latencies reach from streams evenly apart (TTFT "
        f"p50 {first:.0f} ms) to all in step ({last:.0f} ms); lengths that vary keep them apart"
    )
