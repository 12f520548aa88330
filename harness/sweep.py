"""Which rate a sweep tries next, and what its probes say: pure, so that it can be tried on servers that do not exist.

Two rates are sought: the highest that keeps the SLO, and the one from which on throughput does not grow. Rates lie on a
grid of 40 steps a decade (5.9 % apart, the R40 series of preferred numbers), so that engines and repeats share them.
First the rate doubles until the server falls behind, or is halved until it keeps up; then the bracket of the SLO is
halved in log rate down to one step. A server that falls behind tells its throughput by what it served, so that two
probes near it are enough: one a little above, one a little below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STEPS = 40  # to a decade
DOUBLE = 12  # steps to about twice the rate
NEAR = 3  # steps to about 1.2 times the rate
START_STREAMS = 4.0  # a first rate that keeps about so many requests in flight, by the warm-up's latency
ALONE_STREAMS = 0.2  # below that a request meets no other: a lower rate changes nothing
MAX_RPS = 1e5

Labels = list[tuple[int, bool]]


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured at one rate.

    `kept_up`: the server served what fell due. `served_rps` has a 95 % interval of plus and minus `served_error` times
    itself. `within`: every target was met; None where that cannot be said, or none is stated. `sure`: no target's
    interval reaches over its limit. `slack`: the largest of the targets' values over their limits. `usable`: the client
    did not set these figures. `note`: why something cannot be said.
    """

    rate_rps: float
    kept_up: bool
    within: bool | None
    served_rps: float
    served_error: float = 0.0
    sure: bool = True
    slack: float | None = None
    usable: bool = True
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A rate: at least `low_rps` (it held there), below `high_rps` (it did not), probably `estimate_rps`; None where no
    probe says so. `reason` says what is missing."""

    estimate_rps: float | None
    low_rps: float | None
    high_rps: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """The rules of one sweep. `latency_s`: of a request on an idle engine. `judged`: there is an SLO."""

    latency_s: float
    judged: bool
    min_rps: float | None = None
    max_rps: float | None = None
    probes: int = 12

    @property
    def lowest(self) -> int:
        return math.ceil(STEPS * math.log10(self.min_rps or ALONE_STREAMS / self.latency_s) - 1e-6)

    @property
    def highest(self) -> int:
        return max(self.lowest, math.floor(STEPS * math.log10(self.max_rps or MAX_RPS) + 1e-6))

    def next_rate(self, probes: list[Probe]) -> float | None:
        """The rate to measure next; None where nothing is left to learn, or all probes are spent."""
        if len(probes) >= self.probes:
            return None
        seen = {step_of(probe.rate_rps) for probe in probes}
        usable = [probe for probe in probes if probe.usable]
        top = max((step_of(probe.rate_rps) for probe in usable), default=self.lowest - 1)
        # Where the client was the limit above all else, that is the end; elsewhere it was a hiccup.
        limited = min((step for step in seen if step > top), default=None)
        highest = self.highest if limited is None else min(self.highest, limited - 1)
        for step in self._wanted(usable, seen, limited):
            if step is not None and self.lowest <= step <= highest and step not in seen:
                return rate_of(step)
        return None

    def _wanted(self, probes: list[Probe], seen: set[int], limited: int | None) -> list[int | None]:
        """What would be worth a probe, most wanted first; what was tried already or lies outside is passed over.
        `limited`: the lowest step at which the client was the limit."""
        steps = [step_of(probe.rate_rps) for probe in probes]
        if not probes:
            start = step_of(START_STREAMS / self.latency_s) if limited is None else limited - DOUBLE
            return [max(self.lowest, min(start, self.highest))]
        kept, within = keeping_up(probes), holding(probes)
        wanted: list[int | None] = []
        if all(held for _, held in kept):
            wanted += [self._up(max(steps), limited)]
        if not any(held for _, held in kept):
            wanted += [self._down(probes, steps)]
        if self.judged and within:
            wanted += [max(min(steps) - DOUBLE, self.lowest)] if not any(held for _, held in within) else []
            wanted += [_middle(within, seen)]
        return [*wanted, *self._near_capacity(probes, kept), *(self._surer(probes, seen) if within else [])]

    def _up(self, top: int, limited: int | None) -> int | None:
        """About twice the rate; below one where the client was the limit, halfway there, but not for a small gain."""
        if limited is None or top + DOUBLE < limited:
            return min(top + DOUBLE, self.highest)
        return (top + limited) // 2 if limited - top > DOUBLE // 4 else None

    def _down(self, probes: list[Probe], steps: list[int]) -> int:
        """From a rate that was too high to one that what was served says to be low enough, but not by too little."""
        served = max(probe.served_rps for probe in probes)
        guess = step_of(0.8 * served) if served > 0 else min(steps) - DOUBLE
        return max(self.lowest, min(guess, min(steps) - DOUBLE // 4))

    def _near_capacity(self, probes: list[Probe], kept: Labels) -> list[int | None]:
        """A little above and a little below what an overloaded server served, where nothing near was measured: far
        above it may serve less than it can."""
        capacity = _capacity(probes)
        if not capacity or not capacity.served_rps > 0:
            return []
        step = step_of(capacity.served_rps)
        above = any(not held and step < at <= step + 2 * NEAR for at, held in kept)
        below = any(held and step - 2 * NEAR <= at for at, held in kept)
        return [None if above else step + NEAR, None if below else step - NEAR]

    def _surer(self, probes: list[Probe], seen: set[int]) -> list[int | None]:
        """Where the SLO's interval is wide because figures near the limit decide nothing: a step halfway to one that
        does, on either side."""
        low, high = threshold(holding(probes))
        sure_low, sure_high = (None if rate is None else step_of(rate) for rate in _slo_bounds(probes))
        wanted = []
        for one, other in ((sure_low, low), (high, sure_high)):
            far = one is not None and other is not None and other - one > NEAR
            wanted.append(_between(one or 0, other or 0, seen) if far else None)
        return wanted


def rate_of(step: int) -> float:
    """The rate of a step of the grid, to three digits."""
    return float(f"{10 ** (step / STEPS):.3g}")


def step_of(rate_rps: float) -> int:
    """The nearest step of the grid."""
    return round(STEPS * math.log10(rate_rps))


def keeping_up(probes: list[Probe]) -> Labels:
    """Which steps the server kept up with."""
    return [(step_of(probe.rate_rps), probe.kept_up) for probe in probes if probe.usable]


def holding(probes: list[Probe]) -> Labels:
    """Which steps held the SLO: within every target, and without a queue that would break them in a longer test."""
    return [
        (step_of(probe.rate_rps), bool(probe.within) and probe.kept_up)
        for probe in probes
        if probe.usable and (probe.within is not None or not probe.kept_up)
    ]


def threshold(labels: Labels) -> tuple[int | None, int | None]:
    """Between which two measured steps it changes from holding to not, with the fewest contradictions (noise); of
    equally good places the lowest. None on a side where nothing was measured."""
    place, steps = _places(labels)[0], [step for step, _ in labels]
    return max((s for s in steps if s < place), default=None), min((s for s in steps if s >= place), default=None)


def _places(labels: Labels) -> list[int]:
    """The steps from which on it does not hold, so that the fewest probes contradict that; rising."""
    steps = sorted({step for step, _ in labels})
    places = [*steps, (steps[-1] + 1 if steps else 0)]
    wrong = [sum(held != (step < place) for step, held in labels) for place in places]
    return [place for place, count in zip(places, wrong, strict=True) if count == min(wrong)]


def _middle(labels: Labels, seen: set[int]) -> int | None:
    """The step halfway across the bracket. Where contradictions leave several places for it, one between those, to
    decide."""
    places = _places(labels)
    low, high = threshold(labels) if len(places) == 1 else (places[0], places[-1])
    return None if low is None or high is None else _between(low, high, seen)


def _between(low: int, high: int, seen: set[int]) -> int | None:
    """The step halfway between two, or the nearest to it that was not tried; None where none is left."""
    inside = [step for step in range(low + 1, high) if step not in seen]
    return min(inside, key=lambda step: abs(2 * step - low - high), default=None)


def _capacity(probes: list[Probe]) -> Probe | None:
    """A probe that tells what the server can serve: of the (at most three) lowest rates at which it fell behind, the
    one that served the median."""
    behind = [p for p in probes if p.usable and not p.kept_up]
    behind = [p for p in behind if p.served_rps > 0] or behind  # one that stalled says nothing of its throughput
    behind = sorted(behind, key=lambda p: p.rate_rps)[:3]
    return sorted(behind, key=lambda p: p.served_rps)[(len(behind) - 1) // 2] if behind else None


def saturation(probes: list[Probe], search: Search) -> Found:
    """The rate from which on throughput does not grow: what the server served where it fell behind, with the interval
    of that; widened up to the most that it served at any rate, where that lies above."""
    usable = [probe for probe in probes if probe.usable]
    kept = [probe for probe in usable if probe.kept_up]
    capacity = _capacity(usable)
    if capacity is None:
        top = max((probe.rate_rps for probe in kept), default=None)
        return Found(None, top, None, _unbroken("the server kept up with", probes, search))
    served, most = capacity.served_rps, max((probe.served_rps for probe in kept), default=0.0)
    if not served > 0:
        return Found(None, None, capacity.rate_rps, "nothing was served in time, at any rate")
    low, high = served * (1 - capacity.served_error), served * (1 + capacity.served_error)
    reason = None if kept else "the server fell behind at every rate"
    estimate = math.sqrt(served * most) if most > served else served
    return Found(estimate, max(0.0, low), max(high, most), reason)


def slo_limit(probes: list[Probe], search: Search) -> Found:
    """The highest rate that keeps the SLO. A probe whose figure's interval reaches over the limit decides no bound."""
    usable = [probe for probe in probes if probe.usable]
    labels = holding(usable)
    low, high = _slo_bounds(usable)
    if not labels:
        note = next((probe.note for probe in usable if probe.note), None)
        return Found(None, None, None, note or _unbroken("nothing is known of", probes, search))
    if not any(held for _, held in labels):
        lowest = rate_of(min(step for step, _ in labels))
        alone = "" if search.min_rps else ", where requests are almost alone"
        enough = min(step for step, _ in labels) <= search.lowest
        return Found(None, None, high or lowest, f"it is missed even at {lowest:g}/s{alone if enough else ''}")
    if all(held for _, held in labels):
        return Found(None, low, None, _unbroken("it holds at", probes, search))
    return Found(_crossing(usable, labels), low, high, _contradicted(labels))


def _slo_bounds(probes: list[Probe]) -> tuple[float | None, float | None]:
    """The highest rate that surely held, below all that did not, and the lowest that surely did not, above all that
    held. Results that contradict each other lie between the two, and so widen it."""
    labels = holding(probes)
    sure = [label for probe in probes for label in holding([probe]) if probe.sure or not probe.kept_up]
    missed, held = [s for s, good in labels if not good], [s for s, good in labels if good]
    low = max((s for s, good in sure if good and s < min(missed, default=s + 1)), default=None)
    high = min((s for s, good in sure if not good and s > max(held, default=s - 1)), default=None)
    return None if low is None else rate_of(low), None if high is None else rate_of(high)


def _crossing(probes: list[Probe], labels: Labels) -> float:
    """Where the worst target crosses its limit, between the two nearest probes, on a straight line in log and log; the
    middle where the figures do not tell."""
    low, high = threshold(labels)
    if low is None or high is None:  # the fewest contradictions are at an end
        return rate_of(low if low is not None else high or 0)
    slack = {step_of(probe.rate_rps): probe.slack for probe in probes}
    below, above = slack.get(low), slack.get(high)
    share = 0.5
    if below and above and below <= 1 < above:
        share = math.log(1 / below) / math.log(above / below)
    return float(10 ** ((low + share * (high - low)) / STEPS))


def _contradicted(labels: Labels) -> str | None:
    missed, held = [s for s, good in labels if not good], [s for s, good in labels if good]
    if not missed or not held or max(held) < min(missed):
        return None
    return f"the probes contradict each other: {rate_of(min(missed)):g}/s did not hold, {rate_of(max(held)):g}/s did"


def _unbroken(what: str, probes: list[Probe], search: Search) -> str:
    """Why there is no upper end."""
    top = max((probe.rate_rps for probe in probes if probe.usable), default=None)
    limited = [probe.rate_rps for probe in probes if not probe.usable]
    said = f"{what} every rate that was tried, up to {top:g}/s" if top else "no rate could be measured"
    if limited:
        return f"{said}; from {min(limited):g}/s on the client, not the server, is the limit"
    if top and step_of(top) >= search.highest:
        return f"{said}, the highest that is allowed"
    return f"{said}; all {search.probes} probes are spent" if len(probes) >= search.probes else said
