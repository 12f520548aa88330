"""Reports from synthetic run folders whose answers are known."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from harness.errors import InputError
from harness.metrics import METRICS, evaluate
from harness.store import RunFolder
from reports import text
from reports.html import write_all
from reports.pageparts import facts
from reports.recordcharts import readable
from reports.rows import Summary
from reports.rundata import read
from reports.summary import summarize, summarize_data
from reports.verdict import judge
from tests.runfolders import Speed, new, two_engines

FAST, SLOW = Speed(0.1, 0.01), Speed(0.2, 0.02)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = two_engines().write(tmp_path_factory.mktemp("full") / "run")
    write_all(folder)
    return folder


def printed(summary: Summary) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(text.render(summary))
    console.file.close()
    return console.export_text()


# -- known answers ----------------------------------------------------------------------------------------------------


def test_latencies_and_throughput_are_those_of_the_records(tmp_path: Path) -> None:
    built = new().engine("a").rate("a", 20.0, Speed(0.1, 0.02, tokens=6))
    summary = summarize(built.write(tmp_path / "run"))
    row = {key: summary.row("a", "constant-20rps", key) for key in METRICS}
    assert row["ttft_p50_s"].value == pytest.approx(0.1)
    assert row["tpot_p95_s"].value == pytest.approx(0.02)
    assert row["e2e_mean_s"].value == pytest.approx(0.2)
    assert row["itl_p50_s"].value == pytest.approx(0.02)
    assert row["error_ratio"].value == 0
    # 200 requests of 6 tokens; those of the last 0.2 s end after the window.
    inside = sum(0.1 + 0.02 * token + due < 10.0 for due in np.arange(200) / 20 for token in range(6))
    assert row["output_tok_s"].value == pytest.approx(inside / 10.0, abs=0.11)
    assert row["ttft_p99_s"].value is None
    assert row["ttft_p99_s"].reason == "p99 needs 500 requests, there are 200"
    assert row["gpu_power_w"].value is None
    assert "no nvidia power_w" in str(row["gpu_power_w"].reason)


def test_an_open_loop_counts_the_queue_in_front_of_the_server(tmp_path: Path) -> None:
    summary = summarize(new().engine("a").rate("a", 20.0, FAST, queue_s=0.3).write(tmp_path / "run"))
    assert summary.row("a", "constant-20rps", "ttft_p50_s").value == pytest.approx(0.4)
    assert summary.row("a", "constant-20rps", "ttft_sent_p50_s").value == pytest.approx(0.1)


def test_intervals_come_from_the_repeats(tmp_path: Path) -> None:
    built = new(repeats=3).engine("a")
    for repeat, ttft in enumerate((0.1, 0.2, 0.3)):
        built.point("a", 4, Speed(ttft, 0.01), repeat=repeat)
    data = read(built.write(tmp_path / "run"))
    summary = summarize_data(data)
    row = summary.row("a", "c4", "ttft_mean_s")
    half = 4.303 * 0.1 / 3**0.5
    assert row.ci_low == 0.0 > row.value - half  # type: ignore[operator]  # no time is negative
    assert row.ci_high == pytest.approx(row.value + half, rel=1e-3)  # type: ignore[operator]
    alone = [r.value for r in summary.repeats if r.metric == "ttft_mean_s"]
    assert alone == pytest.approx([0.1, 0.2, 0.3])
    # The summary pools once a point; that must say the same as the definition.
    parts = [part for _, part in data.measured["a", "c4"]]
    for key, metric in METRICS.items():
        stat, row = evaluate(metric, parts), summary.row("a", "c4", key)
        assert (row.value, row.ci_low, row.ci_high, row.n) == (stat.value, stat.ci_low, stat.ci_high, stat.n)


def test_every_engine_point_and_metric_has_a_row(full: RunFolder) -> None:
    given = json.loads((full.path / "summary.json").read_text())
    assert len(given["rows"]) == 2 * 4 * len(METRICS)
    assert all((row["value"] is None) == (row["reason"] is not None) for row in given["rows"])
    assert {"engine", "point", "metric", "value", "unit", "ci_low", "ci_high", "n", "reason"} == set(given["rows"][0])


def test_slo_targets(tmp_path: Path) -> None:
    built = new(slo={"ttft_p95": 0.15, "tpot_p99": 0.05}).engine("a").engine("b")
    built.point("a", 8, FAST).point("b", 8, SLOW, status="client-limited").point("b", 16, SLOW)
    targets = {(t.engine, t.point, t.target): t for t in summarize(built.write(tmp_path / "run")).targets}
    assert targets["a", "c8", "ttft_p95"].met is True
    assert targets["b", "c16", "ttft_p95"].met is False
    assert targets["b", "c8", "ttft_p95"].met is None
    assert "client-limited" in str(targets["b", "c8", "ttft_p95"].reason)
    assert targets["a", "c16", "ttft_p95"].met is None


# -- runs that did not end well ---------------------------------------------------------------------------------------


def test_a_killed_run_shows_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    built = new(status="running").engine("a", status="running").engine("b", status="pending")
    built.point("a", 4, FAST).point("a", 8, FAST, status="running")
    built.run.points[-1].close_s = None
    folder = built.write(tmp_path / "run", compact=False, torn=True)
    whole = sum(1 for r in built.requests)
    assert 0 < folder.requests().num_rows < whole
    summary, page = write_all(folder)
    assert summary.row("a", "c4", "ttft_p50_s").value == pytest.approx(0.1)
    reason = str(summary.row("a", "c8", "ttft_p50_s").reason)
    assert "had not closed" in reason
    assert "requests were recorded" in reason
    assert "not reached" in str(summary.row("b", "c4", "output_tok_s").reason)
    html = page.read_text()
    assert "Unfinished" in html
    assert "not reached" in html
    assert judge(summary).kind == "alone"
    assert (folder.path / "journal").is_dir()


def test_of_an_interrupted_run_no_engine_runs_any_more() -> None:
    for status, said in (("interrupted", ["interrupted", "not reached"]), ("running", ["running", "not reached"])):
        built = new(status=status).engine("a", status="running").engine("b", status="pending")
        row = next(row for row in facts(built.run) if row["title"] == "status")
        assert [cell.text for cell in row["cells"]] == said


def test_a_failed_engine_says_why(tmp_path: Path) -> None:
    built = new(status="failed").engine("a", status="failed", error="out of GPU memory").engine("b")
    built.point("b", 4, FAST)
    summary = summarize(built.write(tmp_path / "run"))
    assert summary.row("a", "c4", "output_tok_s").reason == "failed: out of GPU memory"
    assert any("out of GPU memory" in warning for warning in summary.warnings)
    assert judge(summary).headline.startswith("With 4 requests at once, b writes")


@pytest.mark.parametrize("with_point", [False, True])
def test_no_request_at_all(tmp_path: Path, with_point: bool) -> None:
    built = new().engine("a")
    if with_point:
        built.point("a", 4, FAST)
        built.requests.clear()
    folder = built.write(tmp_path / "run")
    summary, page = write_all(folder)
    assert judge(summary).headline == "Nothing was measured."
    assert all(row.value is None and row.reason for row in summary.rows.values())
    assert len(summary.rows) == (len(METRICS) if with_point else 0)
    assert "Nothing was measured." in page.read_text()
    assert "Nothing was measured." in printed(summary)


def test_a_damaged_or_missing_run_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is a file"):
        RunFolder.open(tmp_path / "run.json")
    with pytest.raises(InputError, match="damaged"):
        summarize(RunFolder.open(tmp_path))


def test_a_hundred_thousand_requests_are_summed_up_in_seconds(tmp_path: Path) -> None:
    built = new().engine("a")
    built.point("a", 4, FAST)
    folder = built.write(tmp_path / "run")
    table = folder.requests()
    many = 100_000 // table.num_rows + 1
    big = pa.concat_tables([table] * many)
    big = big.set_column(3, "request_id", pa.array(np.arange(big.num_rows)))
    pq.write_table(big, folder.path / "requests.parquet")
    begun = time.process_time()
    summary = summarize(folder)
    assert summary.points[0].recorded >= 100_000
    assert time.process_time() - begun < 6


def test_a_balancers_error_page_is_told_in_its_words() -> None:
    page = (
        "HTTP 502: <html>\n<head><title>502 Bad Gateway</title></head>\n<body><h1>502 Bad Gateway</h1><hr>nginx/1.22.1"
    )
    assert readable(page) == "HTTP 502: 502 Bad Gateway nginx/1.22.1"
    assert readable("HTTP 400: a <b> of a model") == "HTTP 400: a <b> of a model"
