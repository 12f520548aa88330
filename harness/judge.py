"""Whether a point counts, and what a reader should know of it: from what became of its job. Pure."""

from __future__ import annotations

from harness.errors import EngineError
from harness.health import verdict
from harness.job import Job, Outcome

KEPT_UP = 0.9  # an open loop whose engine ends less than this share of what falls due is overloaded


def judge(
    job: Job, outcome: Outcome, fault: EngineError | None, chunks_max_s: float | None
) -> tuple[str, str | None, list[str]]:
    """The status of a point (done, client-limited, failed or interrupted), its error, and warnings.

    `fault`: what ended the engine, if it ended; `chunks_max_s`: what one load process can take, where that is known.
    """
    if fault is not None:
        return "failed", fault.message, []
    if outcome.lost is not None and not outcome.interrupted:
        return "failed", outcome.lost, []
    if outcome.cancelled:
        return "interrupted", "interrupted before its end", []
    if outcome.ok == 0:
        return "failed", outcome.first_error or "no request ended well", []
    reasons = verdict(job.point, outcome.client, outcome.ttft_p50_s, chunks_max_s)
    warnings = [f"client-limited: {reason}" for reason in reasons]
    warnings += [text for text in (_contradiction(outcome), _overload(job, outcome)) if text]
    return "client-limited" if reasons else "done", None, warnings


def _contradiction(outcome: Outcome) -> str | None:
    """Little's law: what a closed loop serves is its concurrency over its latency, and no more."""
    little, most = (outcome.client.get(key) for key in ("little_ratio", "little_limit"))
    if little is None or most is None or little <= most:
        return None
    return (
        f"the figures contradict each other: throughput is {little:.2f} times concurrency / mean latency, which cannot "
        "be over 1; please report this"
    )


def _overload(job: Job, outcome: Outcome) -> str | None:
    """Said of an open loop. Not of a sweep, which overloads its engine to learn where that begins, nor of sessions:
    their later turns are still to come when the window closes."""
    served, turns = outcome.client.get("served_ratio"), getattr(job.workload, "turns", 1)
    if not job.point.rate_rps or "sweep" in job.point.shape or turns != 1 or served is None or served >= KEPT_UP:
        return None
    return (
        f"overloaded: {served * 100:.0f} % of the requests that fell due were served in time; the queue grows, and "
        "latencies say how long the test lasted"
    )
