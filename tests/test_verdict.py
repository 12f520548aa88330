"""What a run is said to show: ratios with their certainty, and what limits them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.store import RunFolder
from reports import text
from reports.barcharts import bars
from reports.html import write_all
from reports.summary import summarize
from reports.verdict import judge
from tests import runfolders
from tests.runfolders import Speed, new, two_engines

FAST, SLOW = Speed(0.1, 0.01), Speed(0.2, 0.02)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return two_engines().write(tmp_path_factory.mktemp("full") / "run")


# -- the verdict ------------------------------------------------------------------------------------------------------


def verdict_of(built: runfolders.Built, path: Path) -> tuple[str, str, list[str]]:
    verdict = judge(summarize(built.write(path / "run")))
    return verdict.headline, verdict.support, verdict.differences


def test_verdict_names_the_ratio_the_memory_and_the_slo(full: RunFolder) -> None:
    verdict = judge(summarize(full))
    assert verdict.kind == "faster"
    assert verdict.point == "c16"
    assert re.search(r"vllm-bf16 writes 2\.\d+ times as many tokens per second as ollama-q4", verdict.headline)
    assert "it starts to answer 2." in verdict.headline
    assert "Peak GPU memory" in verdict.support
    assert "TTFT p95 ≤ 500 ms" in verdict.support
    assert "do not overlap" in verdict.support
    assert any(line.startswith("quantization") for line in verdict.differences)
    assert not re.search(r"\b(best|fastest|superior|winner)\b", verdict.headline + verdict.support)


def test_overlapping_intervals_are_no_difference(tmp_path: Path) -> None:
    built = new(repeats=3).engine("a").engine("b")
    for name, shift in (("a", 0.0), ("b", 0.0004)):
        for repeat in range(3):
            built.point(name, 4, Speed(0.1, 0.01 + shift + 0.002 * repeat), repeat=repeat)
    headline, support, _ = verdict_of(built, tmp_path)
    assert "no difference in tokens per second was seen between" in headline
    assert "overlap" in support


def test_a_large_difference_with_too_few_repeats_is_undecided_and_not_none(tmp_path: Path) -> None:
    built = new(repeats=2).engine("a").engine("b")
    for repeat, factor in enumerate((1.0, 1.6)):
        built.point("a", 4, Speed(0.1 * factor, 0.01 * factor), repeat=repeat)
        built.point("b", 4, Speed(0.3 * factor, 0.02 * factor), repeat=repeat)
    verdict = judge(summarize(built.write(tmp_path / "run")))
    assert verdict.kind == "undecided"
    assert "a and b differ in tokens per second" in verdict.headline
    assert "too few or too unlike" in verdict.headline
    assert "no difference" not in verdict.headline


def test_one_repeat_is_said_to_be_one(tmp_path: Path) -> None:
    built = new().engine("a").engine("b").point("a", 4, FAST).point("b", 4, SLOW)
    assert "one repeat only" in verdict_of(built, tmp_path)[1]


def test_simulated_is_said_first(tmp_path: Path) -> None:
    built = new().engine("a", simulated=True).engine("b", simulated=True).point("a", 4, FAST).point("b", 4, SLOW)
    folder = built.write(tmp_path / "run")
    assert judge(summarize(folder)).headline.startswith("Simulated: With 4 requests at once")
    assert ">Simulated</li>" in write_all(folder)[1].read_text()


def test_a_simulated_engine_beside_a_real_one_is_a_difference(tmp_path: Path) -> None:
    built = new().engine("a", simulated=True).engine("b").point("a", 4, FAST).point("b", 4, SLOW)
    headline, _, differences = verdict_of(built, tmp_path)
    assert headline.startswith("Partly simulated (a)")
    assert differences[0].startswith("some figures are simulated")


def test_unlike_output_lengths_are_named(tmp_path: Path) -> None:
    built = new().engine("a").engine("b").point("a", 4, FAST).point("b", 4, Speed(0.2, 0.02, tokens=8))
    differences = verdict_of(built, tmp_path)[2]
    assert any("output tokens a request at 4 concurrent: a 11.0, b 8.00 (37.5 % apart)" in line for line in differences)


def test_no_common_point(tmp_path: Path) -> None:
    built = new().engine("a").engine("b").point("a", 4, FAST).point("b", 8, SLOW)
    assert "No load point was measured on every engine" in verdict_of(built, tmp_path)[0]


def test_a_client_limited_point_is_marked_and_not_used(tmp_path: Path) -> None:
    built = new().engine("a").engine("b")
    for name, speed in (("a", FAST), ("b", SLOW)):
        built.point(name, 4, speed).point(name, 16, speed, status="client-limited")
    folder = built.write(tmp_path / "run")
    summary, page = write_all(folder)
    assert judge(summary).point == "c4"
    assert summary.row("a", "c16", "output_tok_s").value is not None
    assert [p.client_limited for p in summary.points] == [False, True, False, True]
    assert "Client-limited: 2 of 4 points" in page.read_text()
    assert text.mark(summary.points[1]) == "a *"


def test_a_repeat_that_the_client_limited_is_told_beside_the_others(tmp_path: Path) -> None:
    built = new(repeats=3).engine("a").engine("b")
    for repeat, status in enumerate(("done", "client-limited", "done")):
        built.point("a", 4, FAST, repeat=repeat, status=status).point("b", 4, SLOW, repeat=repeat)
    summary, page = write_all(built.write(tmp_path / "run"))
    assert "1 of 3 repeats of a were limited by the client." in judge(summary).support
    assert "1 of 3 repeats client-limited" in page.read_text()


def test_only_client_limited_points_give_no_verdict(tmp_path: Path) -> None:
    headline, _, _ = verdict_of(new().engine("a").point("a", 4, FAST, status="client-limited"), tmp_path)
    assert headline.startswith("No verdict")


def test_a_lighter_load_with_the_other_engine_ahead_is_named(tmp_path: Path) -> None:
    built = new().engine("a").engine("b")
    built.point("a", 4, SLOW).point("b", 4, FAST).point("a", 16, FAST).point("b", 16, SLOW)
    headline, support, _ = verdict_of(built, tmp_path)
    assert headline.startswith("With 16 requests at once, a writes")
    assert "At 4 concurrent it is the other way round: b writes more." in support


def test_memory_of_a_simulated_engine_is_what_it_states(tmp_path: Path) -> None:
    facts = {"gpu_memory_bytes": (70 * 2**30, "bytes")}
    built = new().engine("a", simulated=True, facts=facts).point("a", 4, FAST)
    built.sample("a", "process", "rss_bytes", [(3.0, 4e7), (4.0, 4e7)])
    assert "GPU memory as stated: a 70.0 GiB" in verdict_of(built, tmp_path)[1]


@pytest.mark.parametrize(
    ("gpus", "said", "note"),
    [
        ((1, 1), "Peak GPU memory: a 10.0 GiB, b 10.0 GiB.", ""),
        ((2, 2), "Peak GPU memory of 2 GPUs: a 20.0 GiB, b 20.0 GiB.", " Added over 2 GPUs."),
        ((1, 2), "Peak GPU memory: a 10.0 GiB, b 20.0 GiB of 2 GPUs.", " Added over GPUs: a 1, b 2."),
    ],
)
def test_memory_says_of_how_many_gpus_it_is(tmp_path: Path, gpus: tuple[int, int], said: str, note: str) -> None:
    built = new()
    for name, count in zip("ab", gpus, strict=True):
        built.engine(name).point(name, 4, FAST, window_s=2.0)
        times = [(built.run.points[-1].open_s or 0.0) + at for at in (0.5, 1.5)]
        for gpu in range(count):
            built.sample(name, f"nvidia:{gpu}", "memory_used_bytes", [(at, 10.0 * 2**30) for at in times])
    summary = summarize(built.write(tmp_path / "run"))
    assert said in judge(summary).support
    assert bars(summary, "gpu_memory_bytes", "used")[0].note.removeprefix("With 95 % intervals.") == note
