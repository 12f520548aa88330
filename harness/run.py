"""A run: every engine of a scenario started, warmed up, measured at every point and stopped. Ends with records on disk.

Whatever happens, what was measured stays: a failed point is a point with an error, a failed engine an engine with its
log's last lines, and the run goes on with the next one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from harness import calibration, cores, environment
from harness.engines import make_engine
from harness.engines.base import TINY, Engine
from harness.errors import BenchError, EngineError, InputError
from harness.health import verdict
from harness.job import Job, Outcome
from harness.loadgen import Load
from harness.plan import Turn, new_record, turns_of
from harness.records import EngineRun, PointRun, RunRecord
from harness.scenario import SECRET_WORDS, Point, Scenario, Workload
from harness.store import RunFolder
from harness.telemetry.host import HostSource, ProcessFamilySource
from harness.telemetry.nvidia import nvidia_sources
from harness.telemetry.sampler import Sampler
from harness.tinymodels import VOCAB_WORDS
from harness.words import WORDS
from harness.workloads import PromptPlan, fit_plan

KEPT_UP = 0.9  # an open loop whose engine ends less than this share of what falls due is overloaded


class Observer(Protocol):
    """Told what happens, while it happens."""

    def engine(self, name: str, doing: str, share: float | None) -> None: ...
    def point(self, point: PointRun, number: int, of: int) -> None: ...
    def progress(self, point: PointRun, figures: dict[str, float]) -> None: ...
    def ended(self, point: PointRun, outcome: Outcome) -> None: ...
    def warning(self, text: str) -> None: ...


def run(
    scenario: Scenario, folder: RunFolder, observer: Observer, resumed: RunRecord | None = None,
    turns: Iterable[Turn] | None = None,
) -> RunRecord:  # fmt: skip
    """Measure what is still to be measured; the record as it stands on disk.

    `turns`: which repeats of which engine come next, instead of the scenario's own order. They may end early, and may
    look into the folder between two turns; what they never came to is no part of the run.

    Raises:
        InputError: the scenario cannot be run as it is (a missing model file).
        KeyboardInterrupt: after Ctrl-C, once everything is stopped and stored.
    """
    campaign = Campaign(scenario, folder, observer, resumed or new_record(scenario))
    try:
        with campaign.load_processes(), campaign.telemetry():  # in this order: see `Load`
            for name, repeats in turns_of(scenario) if turns is None else turns:
                campaign.measure_engine(name, repeats)
        if turns is not None:
            campaign.end_early()
        campaign.record.status = "failed" if campaign.failed() else "done"
    except KeyboardInterrupt:
        campaign.record.status = "interrupted"
        raise
    except BenchError:
        campaign.record.status = "failed"
        raise
    finally:
        campaign.record.ended_s = campaign.now()
        campaign.save()
        folder.compact()
    return campaign.record


class Campaign:
    """One run under way: its record, its folder, and who is told."""

    def __init__(self, scenario: Scenario, folder: RunFolder, observer: Observer, record: RunRecord) -> None:
        self.scenario = scenario
        self.folder = folder
        self.observer = observer
        self.record = record
        self.origin_s = record.started_monotonic_s
        self.sampler: Sampler
        self.load: Load
        self.workers = 1
        self.chunks_max_s: float | None = None
        self.save()

    def now(self) -> float:
        return time.monotonic() - self.origin_s

    def save(self) -> None:
        self.folder.write_run(self.record)

    def warn(self, text: str) -> None:
        if text not in self.record.warnings:
            self.record.warnings.append(text)
            self.observer.warning(text)

    def pending(self, engine: str) -> list[PointRun]:
        return [p for p in self.record.points if p.engine == engine and p.status == "pending"]

    def end_early(self) -> None:
        """Take out the points that no turn came to; the record then holds as many repeats as were measured."""
        self.record.points = [p for p in self.record.points if p.status != "pending"]
        self.record.scenario["repeats"] = max((p.repeat + 1 for p in self.record.points), default=1)

    def failed(self) -> bool:
        return any(p.status not in ("done", "client-limited") for p in self.record.points)

    # --- what lives as long as the run ---

    @contextmanager
    def telemetry(self) -> Iterator[None]:
        """Samples the host and its GPUs from now on; engines add their own sources."""
        journal = self.folder.telemetry_journal()

        def sink(sample: Any) -> None:
            journal.add(sample)
            if journal.due():
                journal.flush()

        gpus, _ = nvidia_sources()
        self.sampler = Sampler([HostSource(), *gpus], sink, origin_s=self.origin_s, on_warning=self.warn)
        self.sampler.start()
        try:
            yield
        finally:
            self.sampler.stop()
            journal.close()
            self.record.environment["telemetry_cost_ratio"] = self.sampler.cost_ratio

    @contextmanager
    def load_processes(self) -> Iterator[None]:
        """The processes that make the load; where the machine has room, on cores that nothing else of ours uses."""
        usable = cores.available()
        calibrated, why_not = calibration.load(self.record.environment)
        self.chunks_max_s = calibrated.limit_chunks_s if calibrated else None
        ceiling = calibrated.ceiling_chunks_s if calibrated else None
        self.workers = cores.worker_count(self.scenario, len(usable), ceiling / 2 if ceiling else None)
        self.record.environment["client_calibration"] = why_not if calibrated is None else {
            "at": calibrated.at, "ceiling_chunks_s": ceiling, "first": calibrated.first
        }  # fmt: skip
        apart = cores.cores_apart(self.workers, usable)
        self.record.environment |= {"load_processes": self.workers, "load_cores": apart}
        self.load = Load(self.workers, apart)
        try:
            with cores.away_from(apart, usable):
                yield
        finally:
            self.load.compact(self.folder.path)
            self.load.close()

    # --- one engine ---

    def measure_engine(self, name: str, repeats: Iterable[int]) -> None:
        """The pending points of some repeats of one engine, in one start of it. A failure of the engine is recorded,
        and ends this engine only."""
        spec = next(e for e in self.scenario.engines if e.name == name)
        row = next(e for e in self.record.engines if e.name == name)
        todo = [p for p in self.pending(name) if p.repeat in repeats]
        if not todo:
            return
        try:
            self._session(spec, row, todo)
        except EngineError as error:
            row.status, row.error = "failed", _safe(error.message)
            for point in self.pending(spec.name):
                point.status, point.error = "failed", row.error
            self.warn(_engine_text(error))
            self.save()

    def _session(self, spec: Any, row: EngineRun, todo: list[PointRun]) -> None:
        """One start of an engine, the given points, and its end."""
        workload = spec.workload or self.scenario.workload
        with self.running(spec, row) as engine:
            job = self.prepare(spec, row, engine, workload)
            job = self.warm_up(job, engine)
            for number, point in enumerate(todo):
                self.observer.point(point, number + 1, len(todo))
                self.measure_point(job, point, engine)
        row.status = "done"
        self.save()

    @contextmanager
    def running(self, spec: Any, row: EngineRun) -> Iterator[Engine]:
        """A started engine that serves its model; stopped at the end, whatever happens."""
        engine = make_engine(spec)
        log = self.folder.path / f"{spec.name}.log"
        sources: list[Any] = []
        row.status = "starting"
        self.save()
        try:
            self.sampler.set_engine(spec.name)
            self.observer.engine(spec.name, "starting", None)
            began = self.now()
            engine.start(log)
            row.command = [_safe(part) for part in engine.command]
            row.environment = {k: environment.masked(_secretless(k, v)) for k, v in engine.environment.items()}
            row.log = log.name if log.exists() else None
            sources += [ProcessFamilySource(engine.pids)] if engine.command else []
            for source in sources:
                self.sampler.add(source)
            row.phases_s = engine.ready(lambda text, share: self.observer.engine(spec.name, text, share))
            row.phases_s["ready_s"] = self.now() - began
            for source in engine.sources():
                sources.append(source)
                self.sampler.add(source)
            self.identify(row, engine)
            yield engine
        finally:
            for source in sources:
                self.sampler.remove(source)
            self.observer.engine(spec.name, "stopping", None)
            engine.stop()
            self.sampler.set_engine(None)

    def identify(self, row: EngineRun, engine: Engine) -> None:
        """Keep what the engine says of itself. A resumed run must find the engine and model it began with."""
        before = {fact.name: fact.value for fact in row.facts}
        target = engine.target()
        row.base_url, row.dialect = environment.redact(target.url), target.dialect
        facts = engine.facts()
        now = {fact.name: fact.value for fact in facts}
        for name in ("version", "model_digest"):
            if before.get(name) and now.get(name) and before[name] != now[name]:
                raise InputError(
                    f"engine {row.name}: its {name} was {before[name]} when this run began, it is {now[name]} now",
                    "start a new run: figures of two versions must not be mixed",
                )
        row.simulated = row.simulated or str(now.get("version", "")).startswith("simulated")
        row.facts, row.status = facts, "running"
        self.save()

    def prepare(self, spec: Any, row: EngineRun, engine: Engine, workload: Workload) -> Job:
        """Find how many words make the wanted tokens by the server's own count, and whether it serves at all."""
        words = VOCAB_WORDS if spec.model == TINY else WORDS
        counted = workload.api == "completions"
        point = Point("probe", "concurrency", requests=1, concurrency=1)
        plan = PromptPlan(words, seed=self.scenario.seed)
        job = Job(
            spec.name, point, 0, engine.target(), workload, plan, self.origin_s, timeout_s=spec.request_timeout,
            save_text=self.scenario.save_text,
        )  # fmt: skip
        tokens = workload.input_tokens
        counts = self.load.probe(job, [max(1, tokens // 4), max(2, tokens - 8)])
        if isinstance(counts, str):
            fault = engine.fault()
            raise fault or EngineError(
                f"engine {spec.name}: a first request of {tokens} input tokens failed: {counts}",
                "check `model`, `api`, and that input and output tokens fit the context length",
            )
        if len(counts) < 2:
            row.warnings.append("The server does not count prompt tokens: one word is taken as one token.")
            return job
        return dataclasses.replace(job, plan=fit_plan(counts, words, counted, self.scenario.seed))

    def warm_up(self, job: Job, engine: Engine) -> Job:
        """Requests that measure nothing, all records of the phase `warmup`; they tell how long a request takes."""
        requests = self.scenario.warmup.requests
        if requests == 0:
            return job
        self.observer.engine(job.engine, f"warming up with {requests} requests", None)
        slots = min(requests, 8, max(p.concurrency or 8 for p in self.scenario.points()))
        point = Point("warmup", "concurrency", requests=requests, concurrency=slots)
        outcome = self.load.run(
            dataclasses.replace(job, point=point, warmup=True),
            self.journals(1),
            lambda _: engine.fault() is None,
        )
        if outcome.interrupted:
            raise KeyboardInterrupt
        if fault := engine.fault():
            raise fault
        if outcome.ok == 0:
            raise EngineError(
                f"engine {job.engine}: all {outcome.failed} warm-up requests failed: {outcome.first_error}",
                "see the engine's log in the run folder",
            )
        return dataclasses.replace(job, latency_s=outcome.latency_s or job.latency_s)

    # --- one point ---

    def measure_point(self, job: Job, row: PointRun, engine: Engine) -> None:
        """One repeat of one point. Ramps are set by the warm-up alone, so that all repeats are the same measurement."""
        point = Point(**row.load)
        job = dataclasses.replace(job, point=point, repeat=row.repeat)
        row.status = "running"
        self.save()

        def watch(figures: dict[str, float]) -> bool:
            self.observer.progress(row, figures)
            return engine.fault() is None

        outcome = self.load.run(job, self.journals(min(self.workers, point.concurrency or self.workers)), watch)
        row.start_s, row.open_s, row.close_s, row.end_s = (
            outcome.start_s, outcome.open_s, outcome.close_s, outcome.end_s,
        )  # fmt: skip
        row.client = outcome.client
        self.judge(row, point, outcome, engine.fault())
        self.observer.ended(row, outcome)
        self.save()
        if outcome.interrupted:
            raise KeyboardInterrupt
        if fault := engine.fault():
            raise fault

    def judge(self, row: PointRun, point: Point, outcome: Outcome, fault: EngineError | None) -> None:
        """Whether a point counts: done, client-limited, failed or interrupted."""
        if fault is not None:
            row.status, row.error = "failed", _safe(fault.message)
        elif outcome.cancelled:
            row.status, row.error = "interrupted", "interrupted before its end"
        elif outcome.ok == 0:
            row.status, row.error = "failed", _safe(outcome.first_error or "") or "no request ended well"
        elif reasons := verdict(point, outcome.client, outcome.ttft_p50_s, self.chunks_max_s):
            row.status = "client-limited"
            row.warnings += [f"client-limited: {reason}" for reason in reasons]
        else:
            row.status = "done"
        little, most = (outcome.client.get(key) for key in ("little_ratio", "little_limit"))
        if little is not None and most is not None and little > most:
            row.warnings.append(
                f"the figures contradict each other: throughput is {little:.2f} times concurrency / mean latency, "
                "which cannot be over 1; please report this"
            )
        served = outcome.client.get("served_ratio")
        if row.status in ("done", "client-limited") and point.rate_rps and served is not None and served < KEPT_UP:
            row.warnings.append(
                f"overloaded: {served * 100:.0f} % of the requests that fell due were served in time; the queue grows, "
                "and latencies say how long the test lasted"
            )

    def journals(self, count: int) -> list[str]:
        """The paths of new request journals, one for each process that takes part."""
        return [str(self.folder.new_journal("requests")) for _ in range(count)]


def _engine_text(error: BenchError) -> str:
    tail = getattr(error, "log_tail", "")
    lines = [error.message, *([f"last lines of its log:\n{tail}"] if tail else []), f"remedy: {error.remedy}"]
    return _safe("\n".join(lines))


def _safe(text: str) -> str:
    """A text for the run folder: no key, no home path, no user name."""
    return environment.masked(environment.redact(text))


def _secretless(key: str, value: str) -> str:
    """An environment value for the record; what looks like a secret by its name is hidden."""
    hidden = key.upper().endswith(SECRET_WORDS)
    return "***" if hidden else environment.redact(value)
