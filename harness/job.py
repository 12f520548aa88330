"""A job of the load generator: what is to be driven, what became of it, and the record of each request in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.answers import Answer
from harness.health import Fared
from harness.protocols import Target
from harness.records import Phase, RequestRecord
from harness.scenario import Point
from harness.stream import Exchange
from harness.workloads import Ask, PromptPlan
from harness.workloadspec import WorkloadBase


@dataclass(frozen=True, slots=True)
class Job:
    """One repeat of one load point. Times in seconds; `origin_s` is the run's start on the monotonic clock.

    `latency_s` is what a request took in the warm-up: starts are staggered over it. A `warmup` job measures nothing.
    This is the share of load process `worker` of `workers`.
    """

    engine: str
    point: Point
    repeat: int
    target: Target
    workload: WorkloadBase
    plan: PromptPlan
    origin_s: float
    journal: str = ""
    latency_s: float = 0.5
    timeout_s: float = 600.0
    warmup: bool = False
    save_text: bool = False
    worker: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a job before its answer: `scheduled_s` is in seconds from the run's start."""

    id: int
    ask: Ask
    phase: Phase
    scheduled_s: float


@dataclass(slots=True)
class Outcome:
    """What became of a job: its window (seconds from the run's start), counts, and how the client fared."""

    start_s: float
    end_s: float
    open_s: float | None = None
    close_s: float | None = None
    ok: int = 0
    failed: int = 0
    measured_ok: int = 0
    output_tokens: int = 0
    """Of all requests, as far as they are known; the display's figure is an estimate while answers are under way."""
    latency_s: float | None = None
    ttft_p50_s: float | None = None
    fared: Fared = field(default_factory=Fared)
    client: dict[str, float | None] = field(default_factory=dict)
    cancelled: bool = False
    interrupted: bool = False
    first_error: str | None = None
    lost: str | None = None
    """Which host was lost in the middle of it, and why."""


def make_record(job: Job, request: Request, x: Exchange, answer: Answer) -> RequestRecord:
    """A record from an exchange and what was read in it; times become seconds from the run's start."""
    origin, ask = job.origin_s, request.ask

    def since(at_s: float | None) -> float | None:
        return None if at_s is None else at_s - origin

    sent, first, last = since(x.sent_s), since(answer.first_token_s), since(answer.last_token_s)
    ttft = e2e = tpot = None
    if sent is not None and first is not None and last is not None:
        ttft, e2e = first - sent, last - sent
        later_tokens = (answer.output_tokens or 0) - (answer.first_chunk_tokens or 1)
        if later_tokens > 0 and answer.chunks > 1:
            tpot = (last - first) / later_tokens
    return RequestRecord(
        engine=job.engine, point=job.point.name, repeat=job.repeat, request_id=request.id,
        phase=request.phase, scheduled_s=request.scheduled_s, sent_s=sent, first_token_s=first, last_token_s=last,
        end_s=since(x.end_s),
        input_tokens=answer.input_tokens, output_tokens=answer.output_tokens,
        token_source=answer.token_source,  # type: ignore[arg-type]
        chunks=answer.chunks, gaps_s=answer.gaps_s, ttft_s=ttft, tpot_s=tpot, e2e_s=e2e,
        status=answer.status,  # type: ignore[arg-type]
        http_status=x.status, error=answer.error, finish_reason=answer.finish_reason,
        asked_input_tokens=ask.input_tokens, asked_output_tokens=ask.output_tokens,
        worker=job.worker, session=ask.session, turn=ask.turn,
        first_chunk_tokens=answer.first_chunk_tokens, first_answer_s=since(answer.first_answer_s),
        server_timings=answer.server_timings, text=answer.text,
    )  # fmt: skip


def merged(point: Point, outcomes: list[Outcome]) -> Outcome:
    """What became of a job that several processes shared; the window is the same (a burst's lasts to its end)."""
    whole = outcomes[0]
    latencies = [(o.latency_s, o.ok) for o in outcomes if o.latency_s is not None]
    ttfts = [(o.ttft_p50_s, o.measured_ok or o.ok) for o in outcomes if o.ttft_p50_s is not None]
    whole.latency_s, whole.ttft_p50_s = _weighted_mean(latencies), _weighted_mean(ttfts)
    for other in outcomes[1:]:
        whole.start_s, whole.end_s = min(whole.start_s, other.start_s), max(whole.end_s, other.end_s)
        whole.open_s = whole.open_s if whole.open_s is not None else other.open_s
        whole.close_s = max((at for at in (whole.close_s, other.close_s) if at is not None), default=None)
        for name in ("ok", "failed", "measured_ok", "output_tokens"):
            setattr(whole, name, getattr(whole, name) + getattr(other, name))
        whole.cancelled |= other.cancelled
        whole.first_error = whole.first_error or other.first_error
        whole.fared.merge(other.fared)
    window_s = whole.close_s - whole.open_s if whole.open_s is not None and whole.close_s is not None else 0.0
    whole.client = whole.fared.figures(point, window_s)
    return whole


def _weighted_mean(pairs: list[tuple[float, int]]) -> float | None:
    weight = sum(count for _, count in pairs)
    return sum(value * count for value, count in pairs) / weight if weight else None
