"""A run: every engine of a scenario started, warmed up, measured at every point and stopped. Ends with records on disk.

Whatever happens, what was measured stays: a failed point is a point with an error, a failed engine an engine with its
log's last lines, and the run goes on with the next one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from harness import calibration, cores, environment
from harness.engines import make_engine
from harness.engines.base import Engine
from harness.errors import BenchError, EngineError, InputError
from harness.job import Job, Outcome
from harness.judge import judge
from harness.loadgen import Load
from harness.loads import SweepLoad
from harness.order import in_order
from harness.plan import Turn, new_record, sweeps_left
from harness.prepare import first_job, prepare
from harness.private import failure_text, safe, value_shown
from harness.records import EngineRun, Fact, PointRun, RunRecord
from harness.scenario import Point, Scenario
from harness.store import RunFolder
from harness.warming import warm_up
from harness.watch import Watch

if TYPE_CHECKING:
    from harness.cluster.connect import Cluster
    from harness.cluster.load import ClusterLoad

COOLDOWN_S = 1.0


class Observer(Protocol):
    """Told what happens, while it happens."""

    def engine(self, name: str, doing: str, share: float | None) -> None: ...
    def point(self, point: PointRun, number: int, of: int) -> None: ...
    def progress(self, point: PointRun, figures: dict[str, float]) -> None: ...
    def ended(self, point: PointRun, outcome: Outcome) -> None: ...
    def warning(self, text: str) -> None: ...


def run(
    scenario: Scenario, folder: RunFolder, observer: Observer, resumed: RunRecord | None = None,
    turns: Iterable[Turn] | None = None, cluster: Cluster | None = None,
) -> RunRecord:  # fmt: skip
    """Measure what is still to be measured; the record as it stands on disk.

    `turns`: which repeats of which engine come next, instead of the scenario's own order. They may end early, and may
    look into the folder between two turns; what they never came to is no part of the run. `cluster`: where the load is
    to come from other hosts.

    Raises:
        InputError: the scenario cannot be run as it is (a missing model file).
        KeyboardInterrupt: after Ctrl-C, once everything is stopped and stored.
    """
    campaign = Campaign(scenario, folder, observer, resumed or new_record(scenario), cluster)
    try:
        if cluster is not None and scenario.matrix:
            from harness.cluster.spread import spread

            spread(campaign, cluster)
        else:
            _measure_here(campaign, turns)
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


def _measure_here(campaign: Campaign, turns: Iterable[Turn] | None) -> None:
    """All engines, one after the other, from this host."""
    scenario = campaign.scenario
    with campaign.load_processes(), campaign.telemetry():  # in this order: see `Load`
        if turns is not None:
            for name, repeats in turns:
                campaign.measure_engine(next(e for e in scenario.engines if e.name == name), repeats)
            campaign.end_early()
        for spec in scenario.engines if turns is None else ():
            if campaign.pending(spec.name) or sweeps_left(scenario, campaign.record, spec.name):
                campaign.measure_engine(spec)


class Campaign:
    """One run under way: its record, its folder, and who is told."""

    def __init__(
        self, scenario: Scenario, folder: RunFolder, observer: Observer, record: RunRecord,
        cluster: Cluster | None = None,
    ) -> None:  # fmt: skip
        self.scenario = scenario
        self.cluster = cluster
        self.folder = folder
        self.observer = observer
        self.record = record
        self.origin_s = record.started_monotonic_s
        self.watch: Watch
        self.load: Load | ClusterLoad
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
        left = any(sweeps_left(self.scenario, self.record, spec.name) for spec in self.scenario.engines)
        return left or any(p.status not in ("done", "client-limited") for p in self.record.points)

    # --- what lives as long as the run ---

    @contextmanager
    def telemetry(self) -> Iterator[None]:
        """Samples the host and its GPUs from now on; engines add their own sources."""
        also = getattr(self.observer, "sample", None)
        with Watch(self.folder.telemetry_journal(), self.record, self.warn, also) as self.watch:
            yield

    @contextmanager
    def load_processes(self) -> Iterator[None]:
        """The processes that make the load; where the machine has room, on cores that nothing else of ours uses."""
        if self.cluster is not None:
            from harness.cluster.running import load_of

            with load_of(self, self.cluster):
                yield
            return
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

    def measure_engine(self, spec: Any, only: list[int] | None = None) -> None:
        """Every pending point of one engine, or of `only` these repeats. A failure of the engine is recorded, and ends
        this engine only."""
        row = next(e for e in self.record.engines if e.name == spec.name)
        each = [{repeat} for repeat in range(self.scenario.repeats)] if only is None else [set(only)]
        try:
            for repeats in each if self.scenario.restart == "repeat" else [set().union(*each)]:
                todo = [p for p in self.pending(spec.name) if p.repeat in repeats]
                sweeps = [s for s in sweeps_left(self.scenario, self.record, spec.name) if s[1] in repeats]
                if todo or sweeps:
                    self._session(spec, row, todo, sweeps)
        except EngineError as error:
            row.status, row.error = "failed", safe(error.message)
            for point in self.pending(spec.name):
                point.status, point.error = "failed", row.error
            self.warn(failure_text(error))
            self.save()

    def _session(self, spec: Any, row: EngineRun, todo: list[PointRun], sweeps: list[tuple[SweepLoad, int]]) -> None:
        """One start of an engine, the given points, then the sweeps (each with its repeat), and its end."""
        with self.running(spec, row) as engine:
            job = first_job(self.scenario, spec, engine.target(), self.origin_s)
            job = prepare(job, self.load, spec, row, engine)
            self.save()
            job = warm_up(self, job, engine)
            self.save()
            for number, point in enumerate(in_order(self.scenario, todo)):
                self.observer.point(point, number + 1, len(todo))
                self.measure_point(job, point, engine)
            if sweeps:
                from harness.sweeping import run_sweep  # it reads records: this process does without, where it can

                for sweep, repeat in sweeps:
                    run_sweep(self, sweep, repeat, job, engine)
        row.status = "done"
        self.save()

    def cool_down(self, engine: Engine) -> str | None:
        """Let the load before end and the machine come to rest; a warning where the engine is still at work."""
        pause_s = self.scenario.cooldown
        return self.watch.cool_down((0.0 if engine.simulated else COOLDOWN_S) if pause_s is None else pause_s)

    @contextmanager
    def running(self, spec: Any, row: EngineRun) -> Iterator[Engine]:
        """A started engine that serves its model; stopped at the end, whatever happens."""
        engine = self.cluster.engine(spec) if self.cluster else make_engine(spec)
        log = self.folder.path / f"{spec.name}.log"
        row.status = "starting"
        if spec.launched and not spec.simulated:  # what runs already, the idle power behind it; what is simulated, none
            self.watch.idle(lambda: self.observer.engine(spec.name, "measuring the idle power before it starts", None))
        self.save()
        try:
            self.watch.engine_starts(engine, spec.name)
            self.observer.engine(spec.name, "starting", None)
            began = self.now()
            engine.start(log)
            row.command = [safe(part) for part in engine.command]
            row.environment = {k: value_shown(k, v) for k, v in engine.environment.items()}
            row.log = log.name if log.exists() else None
            self.watch.engine_started(engine)
            row.phases_s = engine.ready(lambda text, share: self.observer.engine(spec.name, text, share))
            row.phases_s["ready_s"] = self.now() - began
            self.identify(row, engine, self.watch.engine_ready(engine))
            yield engine
        finally:
            self.watch.engine_stops()
            self.observer.engine(spec.name, "stopping", None)
            engine.stop()
            self.watch.engine_stopped()

    def identify(self, row: EngineRun, engine: Engine, seen: list[Fact]) -> None:
        """Keep what the engine says of itself, and what was seen of its start. A resumed run must find the engine and
        model it began with."""
        before = {fact.name: fact.value for fact in row.facts}
        target = engine.target()
        row.base_url, row.dialect = environment.redact(target.url), target.dialect
        facts = engine.facts() + seen
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

    # --- one point ---

    def measure_point(self, job: Job, row: PointRun, engine: Engine) -> None:
        """One repeat of one point. Ramps are set by the warm-up alone, so that all repeats are the same measurement."""
        point = Point(**row.load)
        job = dataclasses.replace(job, point=point, repeat=row.repeat)
        row.status = "running"
        self.save()

        def follow(figures: dict[str, float]) -> bool:
            self.watch.window(figures.get("open_s"), figures.get("close_s"))
            self.observer.progress(row, figures | self.watch.memory())
            return engine.fault() is None

        busy = self.cool_down(engine)
        began_s = self.watch.refresh()
        outcome = self.load.run(job, self.journals(min(self.workers, point.concurrency or self.workers)), follow)
        self.watch.refresh()
        row.start_s, row.open_s, row.close_s, row.end_s = (
            outcome.start_s, outcome.open_s, outcome.close_s, outcome.end_s,
        )  # fmt: skip
        row.client = outcome.client
        row.status, row.error, warnings = judge(job, outcome, engine.fault(), self.chunks_max_s)
        row.error = row.error and safe(row.error)
        row.warnings += [busy] if busy else []
        row.warnings += warnings + [safe(text) for text in self.watch.strangers(began_s)]
        self.observer.ended(row, outcome)
        self.save()
        if outcome.interrupted:
            raise KeyboardInterrupt
        if fault := engine.fault():
            raise fault

    def journals(self, count: int) -> list[str]:
        """The paths of new request journals, one for each process that takes part."""
        return [str(self.folder.new_journal("requests")) for _ in range(count)]
