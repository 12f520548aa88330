"""Files for other tools, plots of letters, history and index: from run folders alone."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.app import app
from bench.display import Display
from harness.errors import InputError
from harness.metrics import METRICS
from harness.records import PointRun
from harness.store import RunFolder
from reports import images, text
from reports.advice_text import continued
from reports.charts import charts
from reports.plots import Chart
from reports.rundata import read
from reports.summary import summarize, summarize_data
from reports.termplots import bar, bars, spark
from tests.runfolders import Speed, new

CHROMIUM = Path("/usr/bin/chromium")


def make(path: Path, slow: float, day: int) -> Path:
    built = new("chat", {"ttft_p95": 0.5})
    built.run.started_at = f"2026-01-0{day}T03:04:05Z"
    built.engine("=vllm", model="<script>alert(1)</script>")
    built.point("=vllm", 4, Speed(0.05 * slow, 0.01, 6)).point("=vllm", 16, Speed(0.1 * slow, 0.01, 6))
    return built.write(path).path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for day, slow in enumerate((1.0, 1.2, 0.9), 1):
        make(root / f"run-{day}", slow, day)
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    return root


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.stdout


# -- export -----------------------------------------------------------------------------------------------------------


def test_figures_are_the_same_in_csv_json_and_parquet(results: Path, tmp_path: Path) -> None:
    for kind in ("csv", "json", "parquet"):
        said = run("report", results / "run-1", "--export", kind, "--out", tmp_path)
        assert said.strip() == str(tmp_path / f"figures.{kind}")
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert len(rows) == 2 * len(METRICS)
    assert pq.read_table(tmp_path / "figures.parquet").to_pylist() == rows
    with open(tmp_path / "figures.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) if line["value"] else None for line in lines] == [row["value"] for row in rows]
    assert lines[0]["engine"] == "'=vllm", "a spreadsheet must not run a name"
    assert not (results / "run-1" / "report.html").exists(), "an export writes nothing else"
    summary = summarize(RunFolder.open(results / "run-1"))
    ttft = next(row for row in rows if (row["point"], row["metric"]) == ("c16", "ttft_p50_s"))
    assert ttft["value"] == summary.row("=vllm", "c16", "ttft_p50_s").value


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium")
def test_a_plot_becomes_an_image(results: Path, tmp_path: Path) -> None:
    said = run("report", results / "run-1", "--export", "svg", "--chart", "trade-ttft", "--out", tmp_path)
    drawn = (tmp_path / "trade-ttft.svg").read_text()
    assert said.strip() == str(tmp_path / "trade-ttft.svg")
    assert "Throughput against time to first token" in drawn
    assert "<script" not in drawn
    with pytest.raises(InputError, match="no plot 'nope'"):
        run("report", results / "run-1", "--export", "svg", "--chart", "nope", "--out", tmp_path)


def test_images_say_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chart = Chart("a", "load", "A", "", json.dumps({"data": [], "layout": {}}), [], [], [])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "kaleido", None)
        with pytest.raises(InputError, match="images need kaleido") as missing:
            images.write([chart], "png", tmp_path)
    assert "enginebench[images]" in missing.value.remedy

    class Kaleido:
        """A kaleido that finds no Chrome."""

        PageGenerator = staticmethod(lambda **_: None)
        start_sync_server = stop_sync_server = staticmethod(lambda **_: None)

        @staticmethod
        def calc_fig_sync(*_: object, **__: object) -> bytes:
            raise RuntimeError("Chrome was not found\nand more")

    monkeypatch.setitem(sys.modules, "kaleido", Kaleido)
    with pytest.raises(InputError, match=r"no image could be drawn: Chrome was not found$") as failed:
        images.write([chart], "png", tmp_path)
    assert "apt-get install chromium" in failed.value.remedy


def test_options_that_do_not_go_together(results: Path) -> None:
    for words in (["--text", "--export", "csv"], ["--chart", "x"], ["--export", "csv", "--chart", "x"]):
        with pytest.raises(InputError):
            run("report", results / "run-1", *words)


# -- plots of letters -------------------------------------------------------------------------------------------------


def test_bars_are_in_proportion_and_fit_80_columns(results: Path) -> None:
    summary = summarize(RunFolder.open(results / "run-1"))
    lines = bars(summary)
    assert max(map(len, lines)) <= 80
    lengths = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    begun = lines.index("TTFT p50")
    few, many = (line.count("█") for line in lines[begun + 1 : begun + 3])
    assert few == pytest.approx(many / 2, abs=1)
    assert lengths
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(text.render(summary))
    console.file.close()
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "█" in shown


def test_bars_and_sparks_by_known_answers() -> None:
    assert [bar(share, 4) for share in (0, 0.5, 1, 9, 0.03)] == ["", "██", "████", "████", "▏"]
    assert spark([1.0, None, 2.0, 1.5]) == "▁ █▅"
    assert spark([1.0, None]) == ""
    assert spark([3.0, 3.0]) == "▄▄"


# -- history and index ------------------------------------------------------------------------------------------------


def test_history_shows_a_figure_over_runs(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(run("history", "ttft_p50", results, "--load", "c16", "--format", "json"))
    assert [row["value"] for row in rows] == pytest.approx([0.1, 0.12, 0.09], rel=1e-3)
    assert [row["started_at"][:10] for row in rows] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    shown = run("history", "ttft_p50", results, "--load", "16 concurrent")
    assert "× 1.20" in shown
    assert "× 0.750" in shown
    assert "▃█▁" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "no run below" in run("history", "ttft_p50", results, "--engine", "other")
    monkeypatch.setenv("COLUMNS", "60")  # where it is narrow, names are broken, figures are not
    narrow = run("history", "ttft_p50", results, "--load", "16 concurrent")
    assert "× 1.20" in narrow
    assert max(map(len, narrow.splitlines())) <= 60
    with pytest.raises(InputError, match="did you mean"):
        run("history", "ttft_p51", results)


def test_history_follows_the_records_and_names_what_it_passes_over(results: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "run", 1.0, 1)
    assert json.loads(run("history", "ttft_p50", tmp_path, "--format", "json"))[0]["value"] == pytest.approx(0.05)
    kept = list((tmp_path / ".history").iterdir())
    record = json.loads((path / "run.json").read_text())
    record["points"] = record["points"][1:]
    (path / "run.json").write_text(json.dumps(record))
    after = json.loads(run("history", "ttft_p50", tmp_path, "--format", "json"))
    assert [row["point"] for row in after] == ["c16"]
    assert len(list((tmp_path / ".history").iterdir())) == len(kept) == 1
    done = CliRunner().invoke(app, ["history", "ttft_p50", str(results)])
    assert "broken" in done.stderr


def test_history_of_a_folder_that_may_not_be_written_or_read(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "shared/run", 1.0, 1)
    make(tmp_path / "shared/other", 1.0, 1)
    (tmp_path / "shared/.history").write_text("no folder, so nothing can be kept there")
    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path / "home"))
    words = ["history", "ttft_p50", str(tmp_path / "shared"), "--load", "c16", "--format", "json"]
    assert len(json.loads(run(*words))) == len(list((tmp_path / "home/history").iterdir())) == 2
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "other" and may(path, mode))
    done = CliRunner().invoke(app, ["list", str(tmp_path / "shared")])
    assert "other: the folder may not be read" in done.stderr
    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path / "shared/.history"))
    with pytest.raises(InputError, match=r"no run below .* could be read"):
        run(*words)


def test_history_without_duckdb_says_how_to_get_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InputError, match="history needs DuckDB") as missing:
        run("history", "ttft_p50", results)
    assert "enginebench[history]" in missing.value.remedy


def test_the_index_links_runs_and_draws_trends(results: Path) -> None:
    run("report", results / "run-3")
    assert run("list", results, "--index").splitlines()[-1] == str(results / "index.html")
    page = (results / "index.html").read_text()
    assert 'href="run-3/report.html"' in page
    assert 'href="run-1' not in page
    assert page.count('data-plot="trend-0-') == 4, "nothing failed, so that has no plot"
    assert "<script>alert" not in page
    assert "With 16 requests at once" in page


def test_charts_are_named_once(results: Path) -> None:
    data = read(RunFolder.open(results / "run-1"))
    keys = [chart.key for chart in charts(data, summarize_data(data), "c16")]
    assert len(keys) == len(set(keys))


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_shows_tokens_ttft_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("bench.display.time.monotonic", lambda: next(now))
    display, shown = Display(), []
    monkeypatch.setattr(display._bar, "update", lambda *_, figures, **__: shown.append(figures))
    point = PointRun("vllm", "c4", 0, {"kind": "concurrency", "requests": 200})
    for tokens, done, held in ((0, 0, {}), (400, 20, {"engine_rss_bytes": 3.8 * 2**30}),
                               (1000, 50, {"engine_rss_bytes": 1.0, "gpu_memory_bytes": 73.4 * 2**30})):  # fmt: skip
        display.progress(point, {"tokens": tokens, "measured_done": done, "ttft_s": 0.05, "failed": 0,
                                 "window_is_open": 1.0} | held)  # fmt: skip
    assert shown[0] == "0/200  0 tok/s  TTFT 50.0 ms"
    assert shown[1] == "20/200  200 tok/s  TTFT 50.0 ms  memory 3.80 GiB"
    assert shown[2] == "50/200  300 tok/s  TTFT 50.0 ms  GPU 73.4 GiB"


@pytest.mark.parametrize("forced", [False, True])
def test_a_pipe_gets_plain_text_unless_colour_is_asked_for(
    forced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1") if forced else monkeypatch.delenv("FORCE_COLOR", raising=False)
    with Display() as display:
        display.headline("a[b]c", "results/x", resumed=False)
        display.warning("slow [50 %]")
    said = capsys.readouterr().out
    assert ("\x1b[" in said) is forced
    if not forced:
        assert said == "a[b]c to results/x\nwarning: slow [50 %]\n"


def test_commands_of_advice_can_be_pasted() -> None:
    command = "A=1 B=2 ollama serve --one 1 --two " + "x" * 40 + " && ollama run m"
    shown = continued(command, 40)
    assert max(map(len, shown.splitlines())) == 52, "what cannot be broken stands alone"
    assert " ".join(line.strip().removesuffix(" \\") for line in shown.splitlines()) == command
    assert shown.splitlines()[0] == "A=1 B=2 ollama serve --one 1 \\", "an option and its value stay together"
    quoted = f"printf 'a --b {'c' * 60}' > f"
    assert continued(quoted, 40) == quoted, "never inside quotes"
