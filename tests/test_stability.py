"""Order of points, warm-up until it settles, and the pause between two loads."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import run as running
from harness import warming
from harness import watch as watching
from harness.errors import EngineError
from harness.job import Outcome
from harness.order import in_order, seeded
from harness.plan import new_record, resume
from harness.records import EngineRun, PointRun, RunRecord
from harness.run import Campaign
from harness.scenario import Scenario
from harness.scenariofile import load_scenario
from harness.store import RunFolder
from harness.warming import Round, gain, settled
from tests.cli import scenario

LEVELS = ["c1", "c4", "c16", "c64", "c256"]


# --- order ---


@pytest.mark.parametrize("seed", range(8))
def test_the_order_is_drawn_from_the_seed_and_never_that_of_the_file(seed: int) -> None:
    orders = [seeded(LEVELS, seed, repeat) for repeat in range(4)]
    assert all(sorted(order) == sorted(LEVELS) for order in orders)
    assert orders[0] != LEVELS
    assert orders[1] == orders[0][::-1]
    assert orders[3] == orders[2][::-1]
    assert orders == [seeded(LEVELS, seed, repeat) for repeat in range(4)]


def test_orders_differ_by_seed_and_repeat_and_a_lone_point_has_one() -> None:
    assert len({tuple(seeded(LEVELS, seed, 0)) for seed in range(20)}) > 10
    assert seeded(LEVELS, 1, 0) != seeded(LEVELS, 1, 2)
    assert seeded(["c1", "c2"], 7, 0) == ["c2", "c1"]
    assert seeded(["c1"], 7, 0) == seeded(["c1"], 7, 1) == ["c1"]


def _plain(folder: Path, more: str = "") -> Scenario:
    text = (
        "name: s\nengines: [{name: a, kind: sim, model: m}]\nrepeats: 2\n"
        f"load: [{{kind: concurrency, levels: [1, 4, 16], requests: 5}}]\n{more}"
    )
    return load_scenario(scenario(folder, text=text))


def _campaign(folder: Path, plan: Scenario) -> Campaign:
    return Campaign(plan, RunFolder.create(folder / "run"), SimpleNamespace(), new_record(plan))  # type: ignore[arg-type]


def test_a_session_measures_in_the_drawn_order_also_what_is_left_of_it(tmp_path: Path) -> None:
    plan = _plain(tmp_path)
    campaign = _campaign(tmp_path, plan)
    whole = [(p.point, p.repeat) for p in in_order(plan, campaign.record.points)]
    drawn = seeded(["c1", "c4", "c16"], plan.seed, 0)
    assert whole == [(name, 0) for name in drawn] + [(name, 1) for name in drawn[::-1]]
    assert [p.point for p in campaign.record.points[:3]] == ["c1", "c4", "c16"]  # reports keep the file's order
    campaign.record.points[1].status = "done"
    probe = PointRun("a", "sweep-3rps", 0, {"shape": {"sweep": "sweep"}})
    left = in_order(plan, [*campaign.pending("a"), probe])
    assert [(p.point, p.repeat) for p in left if p is not probe] == [each for each in whole if each != ("c4", 0)]
    assert left[2] is probe


def test_the_order_of_the_file_can_be_asked_for(tmp_path: Path) -> None:
    plan = _plain(tmp_path, "order: file\ncooldown: 0s\n")
    campaign = _campaign(tmp_path, plan)
    assert in_order(plan, campaign.record.points) == campaign.record.points
    assert campaign.scenario.cooldown == 0.0
    stored = RunFolder.open(tmp_path / "run").read_run()
    for point in stored.points:
        point.status = "pending"
    again, _ = resume(RunFolder.open(tmp_path / "run"))
    assert (again.order, again.cooldown, again.warmup.requests) == ("file", 0.0, "auto")


# --- warm-up ---


@pytest.mark.parametrize(
    ("rounds", "done"),
    [
        ([(1.0, 1.0)], False),
        ([(1.0, 1.0), (0.95, 0.95)], True),
        ([(1.0, 1.0), (0.8, 1.0)], False),  # TTFT still falls
        ([(1.0, 1.0), (1.0, 0.8)], False),  # the rest does
        ([(1.0, 1.0), (2.0, 3.0)], True),  # slower: a busy machine, which more rounds do not mend
        ([(1.0, 1.0), (0.5, 0.5), (0.49, 0.49)], True),
        ([(0.5, 0.5), (1.0, 1.0), (0.6, 0.6)], True),  # no better than the best before
        ([(0.0, 1.0), (0.0, 1.0)], True),
    ],
)
def test_it_has_settled_when_nothing_gets_faster(rounds: list[tuple[float, float]], done: bool) -> None:
    assert settled([Round(*each) for each in rounds]) == done


def test_the_gain_of_a_round_is_over_the_best_before() -> None:
    assert gain([Round(1.0, 1.0), Round(0.5, 2.0), Round(0.4, 1.5)]) == pytest.approx(0.2)


class _Warmed:
    """A campaign whose load answers each round with what it is told, and takes a second of the run for each."""

    def __init__(self, requests: Any, answers: list[tuple[float, float]], limit_s: float = 30.0, **more: Any) -> None:
        self.scenario = SimpleNamespace(
            warmup=SimpleNamespace(requests=requests, limit=limit_s),
            points=lambda: [SimpleNamespace(concurrency=c) for c in (1, 32)],
        )
        self.row = EngineRun("a", "vllm", "m", **more)
        self.record = SimpleNamespace(engines=[self.row])
        self.observer = SimpleNamespace(engine=lambda *_: None)
        self.answers, self.rounds = iter(answers), list[Any]()
        self.load = SimpleNamespace(run=self._run)
        self.clock_s = 0.0
        self.done_at_once = 1.0

    def now(self) -> float:
        return self.clock_s

    def journals(self, count: int) -> list[str]:
        return ["x"] * count

    def _run(self, job: Any, journals: list[str], go_on: Any) -> Outcome:
        self.rounds.append((job.repeat, job.point.requests, job.point.concurrency))
        ttft_s, e2e_s = next(self.answers)
        self.clock_s += 1.0
        cancelled = not go_on({"done": self.done_at_once})
        return Outcome(0.0, 1.0, ok=job.point.requests, latency_s=e2e_s, ttft_p50_s=ttft_s, cancelled=cancelled)


def _warm(campaign: _Warmed) -> Any:
    from harness.job import Job

    job = Job("a", None, 0, None, None, None, 0.0)  # type: ignore[arg-type]
    return warming.warm_up(campaign, job, SimpleNamespace(fault=lambda: None))  # type: ignore[arg-type]


def test_rounds_of_all_streams_go_on_until_they_settle() -> None:
    campaign = _Warmed("auto", [(0.9, 2.0), (0.8, 1.8), (0.4, 1.0), (0.39, 0.98)])
    job = _warm(campaign)
    # 8 to begin with, then at least twice as many requests as the largest load has streams
    assert campaign.rounds == [(0, 8, 8), (1, 32, 32), (2, 32, 32), (3, 32, 32)]
    assert job.latency_s == 2.0  # ramps are set by the first round, as they always were
    assert {f.name: f.value for f in campaign.row.facts} == {"warmup_requests": 104}
    assert (campaign.row.phases_s["warmup_s"], campaign.row.warnings) == (4.0, [])


def test_a_number_of_requests_is_just_that_and_a_simulated_engine_needs_no_more() -> None:
    counted = _Warmed(4, [(0.9, 2.0)])
    _warm(counted)
    assert counted.rounds == [(0, 4, 4)]
    simulated = _Warmed("auto", [(0.9, 2.0)], simulated=True)
    _warm(simulated)
    assert simulated.rounds == [(0, 8, 8)]
    none = _Warmed(0, [])
    assert _warm(none).latency_s == 0.5
    assert none.rounds == []


def test_what_did_not_settle_in_time_is_said() -> None:
    falling = _Warmed("auto", [(1.0 / 2**n, 2.0 / 2**n) for n in range(9)], limit_s=3.5)
    _warm(falling)
    assert len(falling.rounds) == 5
    assert falling.row.warnings[0].startswith(
        "the warm-up did not settle within 3.5 s (its last round was 50 % faster than those before)"
    )
    slow = _Warmed("auto", [(1.0, 2.0), (1.0, 2.0)], limit_s=0.5)
    _warm(slow)
    assert "not even one round was finished" in slow.row.warnings[0]
    patient = _Warmed("auto", [(1.0, 2.0), (1.0, 2.0), (1.0, 2.0)], limit_s=0.5)
    patient.done_at_once = 0.0  # no answer has ended yet: the time is not up before one has
    _warm(patient)
    assert patient.row.warnings == []


def test_an_engine_that_answers_nothing_fails_and_one_that_fails_under_load_is_told() -> None:
    campaign = _Warmed("auto", [])
    campaign.load.run = lambda *_: Outcome(0.0, 1.0, failed=8, first_error="HTTP 500")
    with pytest.raises(EngineError, match="all 8 warm-up requests failed: HTTP 500"):
        _warm(campaign)
    answers = iter([Outcome(0, 1, ok=8, latency_s=1.0, ttft_p50_s=0.5), Outcome(0, 1, failed=32, first_error="busy")])
    campaign.load.run = lambda *_: next(answers)
    _warm(campaign)
    assert "failed (busy)" in campaign.row.warnings[0]


# --- between two loads ---


class _Engine:
    """A source whose `running` falls by one at each read."""

    name, period_s = "vllm", 60.0

    def __init__(self, running_: float) -> None:
        self.left = running_ + 1

    def read(self) -> dict[str, float]:
        self.left = max(self.left - 1, 0)
        return {"running": self.left, "waiting": 0.0}


def _watch(engine: Any, monkeypatch: pytest.MonkeyPatch) -> watching.Watch:
    monkeypatch.setattr(watching, "LOOK_S", 0.001)
    journal = SimpleNamespace(add=lambda sample: None, due=lambda: False, close=lambda: None)
    watch = watching.Watch(journal, RunRecord("x", {}, "", "", time.monotonic(), ""), print)  # type: ignore[arg-type]
    watch.engine_starts(SimpleNamespace(pids=list), "a")  # type: ignore[arg-type]
    watch.engine_ready(SimpleNamespace(sources=lambda: [engine], pids=list))  # type: ignore[arg-type]
    return watch


def test_the_next_load_begins_when_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _Engine(5)
    pauses: list[float] = []
    with _watch(engine, monkeypatch) as watch:
        monkeypatch.setattr(watching.time, "sleep", lambda s: pauses.append(s) if s == 0.25 else None)
        assert watch.cool_down(0.25) is None
        assert engine.left == 0
        assert pauses == []  # the first load of an engine has none before it
        assert watch.cool_down(0.25) is None
        assert pauses == [0.25]
        monkeypatch.undo()


def test_an_engine_that_stays_busy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_MAX_S", 0.02)
    with _watch(_Engine(1e6), monkeypatch) as watch:
        assert "were still under way after 0.02 s" in str(watch.cool_down(0.0))


def test_a_pause_between_points_is_not_for_the_simulator(tmp_path: Path) -> None:
    campaign = _campaign(tmp_path, _plain(tmp_path))
    asked: list[float] = []
    campaign.watch = SimpleNamespace(cool_down=asked.append)  # type: ignore[assignment]
    for simulated in (True, False):
        campaign.cool_down(SimpleNamespace(simulated=simulated))  # type: ignore[arg-type]
    assert asked == [0.0, running.COOLDOWN_S]
