"""A sweep on a run's record: probes read from their records, findings, going on after an interruption, reports."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from harness.columns import batch
from harness.errors import InputError
from harness.journal import Journal
from harness.loads import SweepLoad
from harness.measured import measured
from harness.plan import new_record, resume, sweeps_left
from harness.records import Finding, PointRun, RequestRecord, RunRecord
from harness.scenario import Scenario
from harness.store import RunFolder
from harness.sweeping import judge, kept_up, read_probe, run_sweep, sweep_of
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA
from reports.findings import sentences
from reports.html import write_all
from reports.markdown import render as markdown
from reports.rows import load_label
from reports.summary import summarize
from reports.verdict import judge as judge_run
from tests import runfolders
from tests.cli import bench, scenario
from tests.runfolders import Speed, one

SERVICE_S, SLOTS = 0.5, 4  # the server below: 8 requests a second at most
SLO = {"e2e_p90": 1.5}


def served(point: PointRun, open_s: float) -> list[RequestRecord]:
    """What a server with `SLOTS` slots, first come first served, answers to a point's arrivals."""
    rng, rate = random.Random(point.point), float(point.load["rate_rps"])
    free = [0.0] * SLOTS
    rows: list[RequestRecord] = []
    at, measured_count = open_s - 2.0, 0
    while measured_count < point.load["requests"] or at < open_s:
        at += rng.expovariate(rate)
        start = max(at, heapq.heappop(free))
        heapq.heappush(free, start + SERVICE_S)
        row = one(point.engine, point.point, point.repeat, len(rows), start, Speed(0.1, SERVICE_S * 0.8 / 10), rng)
        measured_count += at >= open_s
        rows.append(replace(row, scheduled_s=at, phase="measure" if at >= open_s else "warmup"))
    return rows


class FakeCampaign:
    """What a sweep needs of a campaign: a record, a folder, and points that are measured by the server above."""

    def __init__(self, plan: Scenario, folder: RunFolder, record: RunRecord, probes: int | None = None) -> None:
        self.scenario, self.folder, self.record, self.probes = plan, folder, record, probes
        self.observer = SimpleNamespace(point=lambda *_: None)
        self.save()

    def measure_point(self, job: Any, row: PointRun, engine: Any) -> None:
        if self.probes == 0:
            row.status = "interrupted"
            raise KeyboardInterrupt
        self.probes = None if self.probes is None else self.probes - 1
        begun_s = max([p.end_s or 0.0 for p in self.record.points], default=0.0)
        open_s = begun_s + 3.0
        rows = served(row, open_s)
        journal = Journal(self.folder.new_journal("requests"), "requests")
        for made in rows:
            journal.add(made)
        journal.close()
        row.start_s, row.open_s, row.close_s, row.end_s, row.status = (
            begun_s, open_s, rows[-1].scheduled_s + 1e-6, max(made.end_s or 0.0 for made in rows), "done",
        )  # fmt: skip
        held_s = sum(max(0.0, min(made.end_s or 0.0, row.close_s) - max(made.scheduled_s, open_s)) for made in rows)
        row.client = {"in_flight_mean": held_s / (row.close_s - open_s)}

    def save(self) -> None:
        self.folder.write_run(self.record)


def plan(**more: Any) -> Scenario:
    load = {"kind": "sweep", "requests": 400, **more.pop("load", {})}
    data = {"name": "s", "engines": [{"name": "a", "kind": "sim", "model": "m"}], "load": [load], **more}
    return Scenario.model_validate({"slo": {"e2e_p90": "1500ms"}, **data})


def sweep(campaign: FakeCampaign, repeat: int = 0) -> None:
    job: Any = SimpleNamespace(engine="a", latency_s=SERVICE_S)
    run_sweep(campaign, campaign.scenario.sweeps()[0], repeat, job, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> FakeCampaign:
    wanted = plan()
    campaign = FakeCampaign(wanted, RunFolder.create(tmp_path_factory.mktemp("runs") / "run"), new_record(wanted))
    campaign.record.engines[0].status = "done"
    sweep(campaign)
    campaign.record.status = "done"
    campaign.save()
    return campaign


def test_both_rates_are_found(swept: FakeCampaign) -> None:
    slo, saturation = swept.record.findings
    assert (slo.what, saturation.what, slo.probes) == ("slo", "saturation", len(swept.record.points))
    assert len(swept.record.points) <= 12
    assert saturation.low_rps is not None
    assert saturation.high_rps is not None
    assert saturation.low_rps * 0.98 <= SLOTS / SERVICE_S <= saturation.high_rps * 1.02
    assert saturation.estimate_rps == pytest.approx(SLOTS / SERVICE_S, rel=0.05)
    assert slo.estimate_rps is not None
    assert 5.5 < slo.estimate_rps < 8.2
    assert sweeps_left(swept.scenario, swept.record, "a") == []


def test_findings_are_kept_in_run_json(swept: FakeCampaign) -> None:
    assert swept.folder.read_run().findings == swept.record.findings


def test_reports_say_what_was_found(swept: FakeCampaign) -> None:
    summary = summarize(swept.folder)
    (said,) = sentences(summary)
    assert said.startswith("a keeps the SLO up to ")
    assert "; throughput stops growing at " in said
    verdict = judge_run(summary)
    assert verdict.kind == "swept"
    assert said in verdict.headline
    assert "Targets (E2E p90 ≤ 1.50 s)" in verdict.support
    assert markdown(summary).count("keeps the SLO up to") == 1
    rates = [state.load["rate_rps"] for state in summary.points]
    assert rates == sorted(rates)


def test_an_interrupted_sweep_goes_on(tmp_path: Path, swept: FakeCampaign) -> None:
    wanted = plan()
    folder = RunFolder.create(tmp_path / "run")
    campaign = FakeCampaign(wanted, folder, new_record(wanted), probes=3)
    with pytest.raises(KeyboardInterrupt):
        sweep(campaign)
    campaign.save()
    assert campaign.record.findings == []
    again, record = resume(folder)
    assert [point.status for point in record.points] == ["done"] * 3 + ["pending"]
    other = FakeCampaign(again, folder, record)
    other.measure_point(None, record.points[3], None)  # a run measures first what is pending
    sweep(other)
    assert [point.point for point in record.points] == [point.point for point in swept.record.points]
    found = [(f.what, f.low_rps, f.high_rps) for f in record.findings]
    assert found == [(f.what, f.low_rps, f.high_rps) for f in swept.record.findings]
    other.save()
    with pytest.raises(InputError, match="is complete"):
        resume(folder)
    record.points[1].status = "failed"
    other.save()
    assert resume(folder)[1].findings == [], "what was found rests on every probe"


def test_client_limited_probes_are_no_evidence(swept: FakeCampaign) -> None:
    row = replace(swept.record.points[0], status="client-limited")
    assert not read_probe(swept.folder, row, SLO).usable
    assert read_probe(swept.folder, swept.record.points[0], SLO).usable
    nothing = PointRun("a", "x", 0, {"rate_rps": 3.0}, "failed")
    assert (read_probe(swept.folder, nothing, SLO).kept_up, read_probe(swept.folder, nothing, SLO).served_rps) == (
        False, 0.0
    )  # fmt: skip


def figures(speed: Speed, rate_rps: float = 10.0, window_s: float = 20.0) -> Any:
    built = runfolders.new().rate("a", rate_rps, speed, window_s=window_s)
    point = built.run.points[0]
    rows = [[getattr(row, name) for name in REQUEST_SCHEMA.names] for row in built.requests]
    table = pa.Table.from_batches([batch(rows, REQUEST_SCHEMA)])
    return measured(table, point, TELEMETRY_SCHEMA.empty_table(), [], SLO)


def test_a_target_is_judged_with_its_interval() -> None:
    steady = figures(Speed(0.1, 0.02, jitter=0.05))
    assert judge(steady, {"ttft_p90": 1.0})[:2] == (True, True)
    assert judge(steady, {"ttft_p90": 0.05})[:2] == (False, True)
    within, sure, slack, _ = judge(steady, {"ttft_p90": float(sorted(steady.latency("ttft"))[180])})
    assert not sure, within
    assert slack == pytest.approx(1.0, abs=0.02)
    assert judge(steady, {"ttft_p90": 1.0, "e2e_p90": 0.01})[0] is False
    assert judge(steady, {})[0] is None


def test_a_target_that_cannot_be_told_is_not_met() -> None:
    within, _, _, note = judge(figures(Speed(0.1, 0.02)), {"ttft_p99": 1.0})
    assert within is None
    assert note == "ttft_p99: p99 needs 500 requests, there are 200"


def test_failures_miss_the_slo() -> None:
    assert judge(figures(Speed(0.1, 0.02, error_ratio=0.1)), {"ttft_p90": 10.0})[:2] == (False, True)


def test_keeping_up() -> None:
    good = figures(Speed(0.1, 0.02))
    assert kept_up(good, 3.0)
    assert not kept_up(replace(good, window_finished=150), 28.0)
    assert kept_up(replace(good, window_finished=188), 20.0), "a few under way at the end are no queue"
    assert not kept_up(replace(good, window_finished=0), 100.0)


def test_too_few_requests_for_the_target_are_refused() -> None:
    with pytest.raises(ValueError, match="ttft_p99 needs 500 requests, a probe has 400"):
        plan(slo={"ttft_p99": "1s"})
    assert plan(slo={"ttft_p99": "1s"}, load={"slo": {"ttft_p90": "1s"}}).sweeps()[0].slo == {"ttft_p90": 1.0}


# --- sentences ---


def finding(what: str = "slo", estimate: float | None = 7.4, low: float | None = 7.1, high: float | None = 7.8,
            repeat: int = 0, reason: str | None = None, engine: str = "a") -> Finding:  # fmt: skip
    return Finding(engine, "sweep", repeat, what, estimate, low, high, 9, reason)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([finding(), finding("saturation", 9.0, 8.5, 9.5)],
         "a keeps the SLO up to 7.40 requests/s (7.10 to 7.80); throughput stops growing at 9.00 requests/s "
         "(8.50 to 9.50); 9 probes."),
        ([finding(estimate=None, low=None, high=0.4, reason="it is missed even at 0.4/s"), finding("saturation")],
         "a keeps the SLO at no rate that was tried (it is missed even at 0.4/s); throughput"),
        ([finding(estimate=None, low=20.0, high=None, reason="it holds at all"), finding("saturation")],
         "a keeps the SLO at least up to 20.0 requests/s (it holds at all);"),
        ([finding(estimate=None, low=None, high=None, reason="p95 needs 100 requests")],
         "a where its SLO breaks cannot be said (p95 needs 100 requests)"),
        ([finding("saturation", None, 50.0, None, reason="the client")],
         "a throughput grows at least up to 50.0 requests/s (the client); 9 probes."),
        ([finding(), finding(repeat=1, estimate=7.8, low=7.5, high=8.2), finding("saturation"),
          finding("saturation", repeat=1)],
         "a keeps the SLO up to 7.60 requests/s (7.10 to 8.20); throughput stops growing at 7.40 requests/s "
         "(7.10 to 7.80); 18 probes in 2 repeats."),
        ([finding(), finding(repeat=1, reason="odd")], "(7.10 to 7.80) (in 1 of 2 repeats odd)"),
    ],
)  # fmt: skip
def test_sentences(found: list[Finding], said: str) -> None:
    summary: Any = SimpleNamespace(findings=found)
    assert said in sentences(summary)[0]


def test_labels_of_load_shapes() -> None:
    shapes: dict[str, tuple[dict[str, Any], str]] = {
        "gamma": ({"burstiness": 0.5}, "8/s gamma, burstiness 0.5"),
        "ramp": ({"from_rps": 2.0, "to_rps": 14.0}, "2 to 14/s ramp"),
        "steps": ({"rates_rps": [4.0, 12.0]}, "4, 12/s steps"),
        "trace": ({"file": "~/traces/conv.csv", "speed": 2.0}, "trace conv, 2 times as fast"),
        "poisson": ({"sweep": "sweep"}, "8/s poisson"),
    }
    for kind, (shape, label) in shapes.items():
        assert load_label({"kind": kind, "rate_rps": 8.0, "shape": shape}, "name") == label
    assert load_label({"kind": "trace", "rate_rps": 8.0, "shape": {"file": "a/b.csv", "speed": 1.0}}, "") == "trace b"
    assert load_label({"kind": "odd"}, "name") == "name"


def test_the_page_says_what_was_found(swept: FakeCampaign) -> None:
    page = write_all(swept.folder)[1].read_text()
    assert page.count("throughput stops growing at") == 1
    assert "Requests due per second" in page


@pytest.mark.parametrize("name", ["sweep", "trace"])
def test_a_scenario_like_a_shipped_one_is_good_elsewhere(tmp_path: Path, name: str) -> None:
    assert bench("scenario", "new", tmp_path / "mine.yaml", "--like", name).returncode == 0
    done = bench("scenario", "check", tmp_path / "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert {"sweep": "2 engines x 1 sweep x 1", "trace": "point  trace-mooncake-16-x0.1: 16 requests"}[
        name
    ] in done.stdout


def test_a_sweep_has_a_name_and_points_of_that_name() -> None:
    load = SweepLoad.model_validate({"kind": "sweep", "requests": 5, "arrivals": "constant"})
    assert load.points() == []
    point = load.point(7.5)
    assert (point.name, point.kind, point.rate_rps) == ("sweep-constant-7.5rps", "constant", 7.5)
    assert sweep_of(PointRun("a", point.name, 0, {"shape": point.shape})) == load.name


# --- the command ---


def test_bench_run_sweeps(tmp_path: Path) -> None:
    text = """\
name: test
engines: [{name: a, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, args: {time_scale: 0.2, max_num_seqs: 2}}]
workload: {input_tokens: 16, output_tokens: 8}
load: [{kind: sweep, duration: 500ms, max_rate: 40/s, probes: 3}]
slo: {e2e_p50: 10s}
warmup: {requests: 2}
"""
    done = bench("run", scenario(tmp_path, text=text), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    record = RunFolder.open(tmp_path / "run").read_run()
    assert 1 <= len(record.points) <= 3
    assert {finding.what for finding in record.findings} == {"slo", "saturation"}
    assert "probes." in " ".join(done.stdout.split())
