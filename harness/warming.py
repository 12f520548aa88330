"""The warm-up of an engine: requests that measure nothing, until the engine is as fast as it gets.

The first round tells whether it serves at all and how long a request takes, which sets every ramp. Then, unless the
scenario asks for so many requests and no more, rounds of as many requests as the largest load has streams go on until
neither the time to the first token nor the rest of a request gets shorter: compiled graphs, clocks, caches and memory
pools are then what they will be. A simulated engine has none of these.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import EngineError
from harness.job import Job, Outcome
from harness.records import Fact
from harness.scenario import Point

if TYPE_CHECKING:
    from harness.engines.base import Engine
    from harness.run import Campaign

FIRST_REQUESTS = 8
SETTLED_RATIO = 0.1  # a round that is not faster than the best before by more than this brings nothing any more
ROUNDS_MIN = 2  # of the largest load's streams each
STREAMS_MAX = 256  # at once: the answers of a round end together, and those of a thousand streams take 300 MB of ours


@dataclass(frozen=True, slots=True)
class Round:
    """What a round of requests took: median time to the first token, and the mean of all that followed it."""

    ttft_s: float
    rest_s: float


def gain(rounds: list[Round]) -> float:
    """How much faster the last round was than the best before it, as a share of that; 1 where there is none before."""
    if len(rounds) < 2:
        return 1.0
    before, last = rounds[:-1], rounds[-1]
    pairs = [(min(r.ttft_s for r in before), last.ttft_s), (min(r.rest_s for r in before), last.rest_s)]
    return max(((best - now) / best for best, now in pairs if best > 0), default=0.0)


def settled(rounds: list[Round]) -> bool:
    """Whether further rounds would bring nothing. Slower is settled, too: what only wavers gets no better."""
    return len(rounds) >= ROUNDS_MIN and gain(rounds) <= SETTLED_RATIO


def warm_up(campaign: Campaign, job: Job, engine: Engine) -> Job:
    """Warm an engine up; the job with what a request takes.

    Raises:
        EngineError: not one request succeeded, or the engine ended.
        KeyboardInterrupt: after Ctrl-C.
    """
    asked = campaign.scenario.warmup.requests
    first = FIRST_REQUESTS if asked == "auto" else asked
    row = next(e for e in campaign.record.engines if e.name == job.engine)
    if first == 0:
        return job
    streams = max((p.concurrency or FIRST_REQUESTS for p in campaign.scenario.points()), default=FIRST_REQUESTS)
    began_s = campaign.now()
    campaign.observer.engine(job.engine, f"warming up with {first} requests", None)
    outcome = _round(campaign, job, engine, 0, Portion(first, min(first, FIRST_REQUESTS, streams)))
    if outcome.ok == 0:
        raise EngineError(
            f"engine {job.engine}: all {outcome.failed} warm-up requests failed: {outcome.first_error}",
            "see the engine's log in the run folder",
        )
    sent = outcome.ok + outcome.failed
    if asked == "auto" and not row.simulated:
        more, said = _settle(campaign, job, engine, streams)
        sent += more
        row.warnings += [said] if said else []
    row.facts = [fact for fact in row.facts if fact.name != "warmup_requests"]
    row.facts.append(Fact("warmup_requests", sent, "requests", "measured", "warm-up"))
    row.phases_s["warmup_s"] = campaign.now() - began_s
    return dataclasses.replace(job, latency_s=outcome.latency_s or job.latency_s)


@dataclass(frozen=True, slots=True)
class Portion:
    """One round: so many requests over so many streams, ended at `until_s` of the run if it is given."""

    requests: int
    streams: int
    until_s: float | None = None


def _settle(campaign: Campaign, job: Job, engine: Engine, streams: int) -> tuple[int, str | None]:
    """Rounds until they settle; the requests that took, and what is to be said where they did not."""
    limit_s = campaign.scenario.warmup.limit
    load = Portion(max(streams, FIRST_REQUESTS), min(streams, STREAMS_MAX), campaign.now() + limit_s)
    rounds: list[Round] = []
    sent = 0
    while not settled(rounds):
        number = len(rounds) + 1
        campaign.observer.engine(job.engine, f"warming up until it settles, round {number}", None)
        outcome = _round(campaign, job, engine, number, load)
        sent += outcome.ok + outcome.failed
        if outcome.cancelled or outcome.ttft_p50_s is None or outcome.latency_s is None:
            return sent, _unsettled(rounds, limit_s, outcome)
        rounds.append(Round(outcome.ttft_p50_s, outcome.latency_s - outcome.ttft_p50_s))
    return sent, None


def _unsettled(rounds: list[Round], limit_s: float, outcome: Outcome) -> str:
    if not outcome.cancelled:
        why = outcome.first_error or "no answer of a round ended well"
        return (
            f"the warm-up at the largest load failed ({why}): the first points may be slow ones; look at the engine's "
            "log, or warm up with few requests (`warmup: {requests: 8}`)"
        )
    last = f"its last round was {gain(rounds) * 100:.0f} % faster than those before" if len(rounds) > 1 else (
        f"{'one round was' if rounds else 'not even one round was'} finished")  # fmt: skip
    return (
        f"the warm-up did not settle within {limit_s:g} s ({last}): points measured first may be slower than later "
        "ones; give it more time (`warmup: {limit: 120s}`) or compare repeats"
    )


def _round(campaign: Campaign, job: Job, engine: Engine, number: int, load: Portion) -> Outcome:
    """One round; its number keeps its prompts apart from those of the others. One that is over its time is cut off, but
    not before an answer has ended: of a slow engine the first request may take longer than all of the time."""

    def go_on(figures: dict[str, float]) -> bool:
        late = load.until_s is not None and campaign.now() > load.until_s and figures["done"] > 0
        return engine.fault() is None and not late

    point = Point("warmup", "concurrency", requests=load.requests, concurrency=load.streams)
    outcome = campaign.load.run(
        dataclasses.replace(job, point=point, repeat=number, warmup=True), campaign.journals(1), go_on
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    if fault := engine.fault():
        raise fault
    return outcome
