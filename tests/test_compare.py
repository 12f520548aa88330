"""`bench compare`: known differences get their word, noise gets none, unlike runs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.app import app
from harness.errors import InputError
from reports.compare import KEYS, STATES, Difference, differences
from reports.comparepage import Comparison
from reports.comparepage import render as render_page_of
from reports.comparetext import render
from reports.effects import Repeats
from reports.merge import run_labels
from reports.requestcharts import request_timelines
from reports.rundata import read
from reports.sides import Side, SidePoint
from tests.runfolders import Speed, new

ENV = {"cpu_model": "x", "cores_allowed": 8, "memory_bytes": 2**36, "gpus": []}


def make(path: Path, slow: float, repeats: int = 4, **environment: Any) -> Path:
    """One engine at two levels whose TTFT is `slow` times 50 ms, with some noise between repeats."""
    built = new(repeats=repeats).engine("vllm")
    built.run.environment = ENV | environment
    for repeat in range(repeats):
        for level in (4, 16):
            gap = 0.008 * (1 + 0.003 * ((repeat * 7 + level) % 5))
            built.point("vllm", level, Speed(0.05 * slow, gap, 12, 0.2), repeat=repeat, window_s=4.0)
    return built.write(path).path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compared")
    return {
        "before": make(root / "before", 1.0), "slow": make(root / "slow", 1.4), "quick": make(root / "quick", 0.7),
        "once": make(root / "once", 1.4, repeats=1), "elsewhere": make(root / "elsewhere", 1.0, 4, cores_allowed=64),
    }  # fmt: skip


def compared(*paths: Path, **more: Any) -> Comparison:
    from harness.store import RunFolder

    return Comparison([(path, read(RunFolder.open(path))) for path in paths], **more)


def found(comparison: Comparison, candidate: str, metric: str, point: str = "c16") -> Difference:
    return next(
        d
        for pair in comparison.pairs
        for d in pair.differences
        if (d.candidate, d.metric, d.point) == (candidate, metric, point)
    )


def test_each_known_difference_gets_its_word(folders: dict[str, Path]) -> None:
    comparison = compared(folders["before"], folders["slow"], folders["quick"])
    slow, quick = (found(comparison, name, "ttft_p50_s") for name in ("slow", "quick"))
    assert (slow.state, quick.state) == ("regressed", "improved")
    assert slow.low is not None
    assert slow.high is not None
    assert slow.low < 1.4 < slow.high
    assert slow.high - slow.low < 0.2
    assert found(comparison, "slow", "output_tok_s").state == "regressed"
    assert found(comparison, "slow", "tpot_p50_s").state == "no difference seen"
    assert found(comparison, "slow", "error_ratio").points
    assert [pair.baseline for pair in comparison.pairs] == ["before", "before"]
    assert "regressed" in comparison.pairs[0].said()


def test_one_repeat_a_side_decides_nothing(folders: dict[str, Path]) -> None:
    comparison = compared(folders["once"], folders["quick"])
    rows = comparison.pairs[0].differences
    assert comparison.headline.startswith("As far as one repeat a side can say, with 16 requests at once")
    assert {row.state for row in rows} == {"inconclusive"}
    assert all(row.reason for row in rows)


def test_noise_alone_is_called_a_difference_in_few_comparisons() -> None:
    """Identical engines, 18 figures a comparison, 4 repeats with a scatter of 3 %: the words hold 95 % together."""
    dice = np.random.default_rng(7)

    def side(name: str, begin: float) -> tuple[str, Side]:
        points = {}
        for level in (1, 4, 16):
            at = [begin + repeat for repeat in range(4)]
            figures = {key: Repeats((1 + 0.03 * dice.standard_normal(4)).tolist(), at, [0.0] * 4)
                       for key in KEYS if key not in ("error_ratio", "kv_live_bytes")}  # fmt: skip
            points[f"c{level}"] = SidePoint({"kind": "concurrency", "concurrency": level}, 4, figures=figures)
        return name, Side("", name, "vllm", "m", None, False, "", "", "", "f", {}, {}, {}, points)

    trials, alarms = 120, 0
    for _ in range(trials):
        pair = differences([(side("a", 0.0), side("b", 100.0))])[0]
        alarms += any(row.state in STATES[:2] for row in pair.differences)
    assert alarms <= 12  # 5 % is 6; 12 has a chance below 2 % if that is the truth


def test_unlike_machines_are_refused_and_forced_with_a_word(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["compare", str(folders["before"]), str(folders["elsewhere"]), "--out", str(out)]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, InputError)
    assert "unlike machines (cores 8 and 64)" in str(refused.exception)
    assert not out.exists()
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
    page = out.read_text()
    assert "Compared by force although unlike" in page
    assert "cores 8 and 64" in page


def test_the_command_prints_json_markdown_and_80_columns(folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["compare", str(folders["before"]), str(folders["slow"])]
    out = tmp_path / "page.html"
    answer = json.loads(CliRunner().invoke(app, [*words, "--format", "json", "--out", str(out)]).stdout)
    assert answer["page"] == str(out)
    assert "Differences" in out.read_text()
    assert {row["state"] for row in answer["differences"]} <= set(STATES)
    assert "| regressed |" in CliRunner().invoke(app, [*words, "--markdown"]).stdout.replace("▼ ", "")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    comparison = compared(folders["before"], folders["slow"])
    console.print(render(comparison.pairs, comparison.headline))
    console.file.close()
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("TTFT p50") and line.rstrip().endswith("regressed") for line in lines)


def test_every_run_keeps_its_own_clock(folders: dict[str, Path]) -> None:
    """The requests of each run are found, though all began at second 0."""
    comparison = compared(folders["before"], folders["slow"])
    found = request_timelines(comparison.data, comparison.summary, "c16")
    assert [chart.title.partition(":")[0] for chart in found] == ["before", "slow"]
    for chart in found:
        bars = [trace for trace in json.loads(chart.figure)["data"] if trace["type"] == "bar" and trace["visible"]]
        assert all(len(trace["x"]) >= 16 for trace in bars)


def test_what_only_one_run_was_told_is_named(tmp_path: Path) -> None:
    """A quantization that one of two engines was given is a difference; a load of one run is none of the other."""
    plain = new(repeats=1).engine("vllm").point("vllm", 4, Speed(0.05, 0.008, 12, 0.2), window_s=4.0)
    other = new(repeats=1).engine("vllm", facts={"quantization": ("fp8", "")})
    other.point("vllm", 4, Speed(0.05, 0.008, 12, 0.2), window_s=4.0)
    other.point("vllm", 8, Speed(0.05, 0.008, 12, 0.2), window_s=4.0)
    sides = [built.write(tmp_path / name).path for name, built in (("plain", plain), ("fp8", other))]
    comparison = compared(*sides)
    assert "quantization: plain not stated, fp8 fp8" in comparison.verdict.differences
    assert "not in this run" in render_page_of(comparison)
    assert [note for pair in comparison.pairs for note in pair.notes if "only" in note] == ["only in fp8: 8 concurrent"]


def test_each_runs_telemetry_stands_on_its_own_clock(tmp_path: Path) -> None:
    sides = []
    for name in ("a", "b"):
        built = new(repeats=1).engine("vllm").point("vllm", 4, Speed(0.05, 0.008, 12, 0.2), window_s=4.0)
        built.sample("vllm", "process", "cpu_cores", [(0.1 * i, 1.5) for i in range(60)])
        sides.append(built.write(tmp_path / name).path)
    page = render_page_of(compared(*sides))
    for key in ("telemetry-0", "telemetry-1", "engine_cpu_cores"):
        assert f'data-plot="{key}"' in page


def test_the_engines_of_one_run_and_wrong_names(folders: dict[str, Path], tmp_path: Path) -> None:
    built = new(repeats=2).engine("a").engine("b")
    for repeat in range(2):
        built.point("a", 4, Speed(0.1, 0.01), repeat=repeat).point("b", 4, Speed(0.2, 0.02), repeat=repeat)
    path = built.write(tmp_path / "both").path
    assert [(pair.baseline, pair.candidate) for pair in compared(path).pairs] == [("a", "b")]
    with pytest.raises(InputError, match="holds one engine: there is nothing to compare it with"):
        compared(folders["before"])
    with pytest.raises(InputError, match="no run holds an engine 'x'"):
        compared(path, engines=["x"])


def test_runs_are_told_apart_by_name() -> None:
    assert run_labels([Path("/r/a"), Path("/r/b")]) == ["a", "b"]
    assert run_labels([Path("/r/a"), Path("/s/a")]) == ["r/a", "s/a"]
    assert run_labels([Path("/r/a"), Path("/r/a")]) == ["r/a", "r/a (2)"]
