"""The text, the Markdown, the command, the plots and the page."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.errors import InputError
from harness.store import RunFolder
from reports import markdown, text
from reports.charts import charts
from reports.html import write_all
from reports.pageparts import figure_cell
from reports.plots import look_of
from reports.requestcharts import lanes
from reports.rows import Row, Summary
from reports.rundata import read
from reports.summary import summarize, summarize_data
from reports.telemetrycharts import thinned
from tests.runfolders import Speed, new, two_engines

FAST, SLOW = Speed(0.1, 0.01), Speed(0.2, 0.02)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return two_engines().write(tmp_path_factory.mktemp("full") / "run")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = two_engines(repeats=1, hostile=True, window_s=2.0).write(tmp_path_factory.mktemp("hostile") / "run")
    return write_all(folder)[1].read_text(encoding="utf-8")


def printed(summary: Summary) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(text.render(summary))
    console.file.close()
    return console.export_text()


def test_the_page_shows_what_the_server_says_beside_the_client(tmp_path: Path) -> None:
    """A server that counts its requests, all throttled: their counters on the page, a mark beside the figures."""
    built = new().engine("a").point("a", 2, FAST, window_s=2.0)
    point = built.run.points[0]
    grown = {"finished_total": len(built.requests), "ttft_sum_s": 0.05 * len(built.requests),
             "ttft_count": len(built.requests)}  # fmt: skip
    for metric, by in grown.items():
        built.sample("a", "vllm", metric, [((point.start_s or 0) - 0.1, 7.0), ((point.end_s or 0) + 0.1, 7.0 + by)])
    times = [(point.open_s or 0) + 0.25 * n for n in range(8)]
    built.sample("a", "nvidia:0", "throttle_reasons", [(t, 4.0) for t in times])
    shown = write_all(built.write(tmp_path / "run"))[1].read_text(encoding="utf-8")
    assert '<h2 id="h-compared">Client against server</h2>' in shown
    assert "<td>TTFT</td><td>100 ms</td><td>50.0 ms</td><td>+50.0 ms (+100.0 %)</td>" in shown
    assert "TTFT: the client saw 100 ms, the server says 50.0 ms" in shown
    assert '<small class="flag">throttled</small>' in shown
    assert "clocks were held down (power cap) at 2 concurrent (100 %)" in shown


# -- text, Markdown, the command --------------------------------------------------------------------------------------


def test_text_fits_80_columns_and_shows_names_as_they_are(tmp_path: Path) -> None:
    built = (
        new().engine("[bold]an-engine-of-a-rather-long-name").point("[bold]an-engine-of-a-rather-long-name", 64, FAST)
    )
    shown = printed(summarize(built.write(tmp_path / "run")))
    assert max(map(len, shown.splitlines())) <= 80
    assert "[bold]" in shown
    assert "64 requests at once" in shown


def test_markdown_has_the_same_figures_and_escapes_names(full: RunFolder) -> None:
    summary = summarize(full)
    document = markdown.render(summary)
    speed = summary.row("vllm-bf16", "c16", "output_tok_s").value
    assert f"| {speed:.0f} |" in document
    assert "q4\\_K\\_M" in document


def test_the_command_writes_prints_and_only_reads_with_text(tmp_path: Path) -> None:
    from bench.report import report

    folder = new().engine("a").point("a", 4, FAST).write(tmp_path / "run")
    for option in ("--text", "--markdown"):
        result = CliRunner().invoke(report, [str(folder.path), option])
        assert result.exit_code == 0
        assert "4 concurrent" in result.output
        assert not (folder.path / "summary.json").exists()
    result = CliRunner().invoke(report, [str(folder.path), "--format", "json"])
    found = json.loads(result.stdout)
    assert found["verdict"]["kind"] == "alone"
    assert Path(found["paths"]["report"]).is_file()
    assert isinstance(CliRunner().invoke(report, [str(folder.path), "--text", "--markdown"]).exception, InputError)
    assert isinstance(CliRunner().invoke(report, [str(tmp_path)]).exception, InputError)


# -- plots and the page -----------------------------------------------------------------------------------------------


def test_plots_hold_no_raw_points_and_only_basic_types(full: RunFolder) -> None:
    data = read(full)
    found = charts(data, summarize_data(data), "c16")
    assert {"throughput-concurrency", "ttft-concurrency", "cdf-ttft", "kv-memory", "errors", "telemetry"} <= {
        chart.key for chart in found
    }
    colours: dict[str, set[str]] = {}
    for chart in found:
        figure = json.loads(chart.figure)
        assert "template" not in figure["layout"]
        assert chart.columns
        assert all(len(row) == len(chart.columns) for row in chart.rows)
        for trace in figure["data"]:
            assert trace["type"] in ("scatter", "bar", "pie")
            assert len(trace["x"]) <= (200 if chart.section == "cdf" else 500)
            if chart.section in ("load", "cdf", "trade"):
                colour = (trace.get("line") or trace["marker"])["color"]
                colours.setdefault(trace["name"].split()[0], set()).add(colour)
    assert {name: len(found) for name, found in colours.items()} == {"vllm-bf16": 1, "ollama-q4": 1}


def test_a_burst_does_not_look_like_the_usual_load(tmp_path: Path) -> None:
    built = new().engine("a").point("a", 4, FAST).point("a", 8, FAST).point("a", 16, FAST)
    built.run.points[-1].load["start"] = "burst"
    data = read(built.write(tmp_path / "run"))
    chart = next(c for c in charts(data, summarize_data(data)) if c.key == "throughput-concurrency")
    usual, burst = json.loads(chart.figure)["data"]
    assert (usual["name"], burst["name"]) == ("a", "a, burst")
    assert set(usual["marker"]["symbol"]).isdisjoint(burst["marker"]["symbol"])


def test_thinning_keeps_the_peaks() -> None:
    values = np.zeros(100_000)
    values[31_415], values[92_653] = 7.0, -3.0
    times, kept = thinned(np.arange(100_000.0), values)
    assert len(kept) <= 500
    assert (kept.max(), kept.min()) == (7.0, -3.0)
    assert (np.diff(times) > 0).all()


def test_intervals_are_shown_with_the_units_they_need() -> None:
    cell = figure_cell(Row("a", "c1", "ttft_p50_s", 0.9, "s", 0.8, 1.1, 10))
    assert (cell.number, cell.unit, cell.interval) == ("900", "ms", "800 ms – 1.10 s")
    assert figure_cell(Row("a", "c1", "error_ratio", 0.01, "ratio", -0.02, 0.04, 10)).interval == "0 – 4.00"
    assert figure_cell(Row("a", "c1", "ttft_p50_s", None, "s", reason="too few")).reason == "too few"


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, ids, headings, scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_from_outside_becomes_markup(page: str) -> None:
    parsed = Page(page)
    scripts = [attrs for tag, attrs in parsed.tags if tag == "script"]
    assert all(attrs.get("type") == "application/json" or not attrs for attrs in scripts)
    assert sum(not attrs for attrs in scripts) == 2
    assert "&lt;script&gt;alert" in page
    assert "<script>alert" not in page


def test_the_page_loads_nothing_and_is_well_formed(page: str) -> None:
    parsed = Page(page)
    assert len(page) < 2_000_000
    assert not [a for tag, a in parsed.tags if a.get("src") or (tag == "link" and a.get("href") != "data:,")]
    assert not [a for _, a in parsed.tags for name in a if name.startswith("on")]
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [str(attrs["href"]) for tag, attrs in parsed.tags if tag == "a"]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in parsed.tags
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    script_rule = str(policy).split("script-src")[1].split(";")[0]
    assert "default-src 'none'" in str(policy)
    assert "unsafe" not in script_rule
    assert script_rule.count("sha256-") == 2


def test_keys_and_home_paths_of_a_folder_reach_no_page(tmp_path: Path) -> None:
    secrets = ["sk-abcdef0123456789abcdef", "hf_AbCdEfGhIjKlMnOpQrSt", "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"]
    homes = ["/home/someone/models", "/Users/someone/x", "C:\\Users\\someone\\y", "/root/.cache"]
    built = new().engine("a", model="/home/someone/model", command=["serve", f"--api-key={secrets[0]}", "/root/x"])
    failing = Speed(0.1, 0.01, error_ratio=0.5, error=f"401: Bearer abcdefgh12345678 {secrets[1]} {homes[0]}")
    built.point("a", 4, failing)
    built.run.warnings += [" ".join([*secrets, *homes])]
    built.run.environment = {"python": "/home/someone/.venv/bin/python"}
    page = write_all(built.write(tmp_path / "run"))[1].read_text()
    for word in [*secrets, "someone", "/root", "abcdefgh12345678"]:
        assert word not in page
    assert "Bearer ***" in page


def test_thirty_six_engines_look_unlike_each_other() -> None:
    assert len({look_of(index) for index in range(36)}) == 36


def test_a_lane_holds_one_request_at_a_time() -> None:
    assert lanes([0.0, 1.0, 2.0, 2.5, 5.0], [3.0, 2.0, 4.0, 9.0, 6.0]) == [1, 2, 2, 3, 1]
