"""The gate on pairs of run folders: what fails, what passes, and everything that must never pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.records import PointRun
from reports.gate import Check, Verdict, judge
from reports.limits import Rules, parse_limits, scenario_rules
from reports.sides import read_sides
from tests.cli import bench
from tests.gatefolders import MACHINE, run
from tests.runfolders import Built, Speed

LIMITS = ["ttft_p95: 5%", "output_tok_s: 5%"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline of most tests: a folder that nobody changes."""
    return run().write(tmp_path_factory.mktemp("base") / "run").path


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same code as `base`, measured on another day."""
    return run(day=3).write(tmp_path_factory.mktemp("same") / "run").path


def gate(path: Path, base: Built | Path, cand: Built | Path, *limits: str) -> Verdict:
    """The verdict on two runs; those that are no folders yet are written below `path`."""
    rules = Rules(parse_limits(list(limits or LIMITS)))
    named = {"a": base, "b": cand}
    folders = [made.write(path / name).path if isinstance(made, Built) else made for name, made in named.items()]
    before, after = (list(read_sides(folder, rules.keys).values()) for folder in folders)
    return judge([(before[0], after[0])], rules)


def main_checks(verdict: Verdict) -> list[Check]:
    return [check for check in verdict.checks if not check.guard]


def test_identical_code_passes(base: Path, same: Path, tmp_path: Path) -> None:
    verdict = gate(tmp_path, base, same)
    assert verdict.state == "pass"
    assert [check.state for check in verdict.checks] == ["pass"] * len(verdict.checks)
    assert {check.metric for check in verdict.checks if check.guard} == {"error_ratio", "output_tokens_mean"}
    assert any("one after the other" in text for text in verdict.warnings)


def test_a_slower_candidate_fails_and_says_by_how_much(base: Path, tmp_path: Path) -> None:
    verdict = gate(tmp_path, base, run(day=3, slower=1.2))
    assert verdict.state == verdict.outcome == "fail"
    ttft, speed = main_checks(verdict)
    assert ttft.change == pytest.approx(0.2, abs=0.03)
    assert ttft.change_low is not None
    assert ttft.change_low > 0.05
    assert speed.change == pytest.approx(-0.17, abs=0.03)
    assert ttft.repeats == (5, 5)


def test_a_faster_candidate_passes(base: Path, tmp_path: Path) -> None:
    assert gate(tmp_path, base, run(day=3, slower=0.8)).state == "pass"


def test_a_change_as_large_as_its_limit_is_not_decided(base: Path, tmp_path: Path) -> None:
    verdict = gate(tmp_path, base, run(day=3, slower=1.05), "ttft_p95: 5%")
    assert verdict.state == "inconclusive"
    assert main_checks(verdict)[0].reason


def test_a_limit_inside_the_noise_is_warned_of(tmp_path: Path) -> None:
    verdict = gate(tmp_path, run(noise=0.1), run(day=3, noise=0.1), "ttft_p95: 1%")
    assert verdict.state == "inconclusive"
    assert "cannot be told from the noise with 5 repeats" in verdict.warnings[0]
    assert main_checks(verdict)[0].more is None or main_checks(verdict)[0].more > 10  # type: ignore[operator]


def _limited(built: Built, count: int) -> Built:
    for point in built.run.points[:count]:
        point.status = "client-limited"
    return built


def _without_window(built: Built) -> Built:
    built.requests.clear()
    return built


def _other_load(built: Built) -> Built:
    for point in built.run.points:
        point.load["requests"] = 77
    return built


def _other_prompts(built: Built) -> Built:
    built.run.scenario["workload"] = built.run.scenario["workload"] | {"input_tokens": 4096}
    return built


def _other_point(built: Built) -> Built:
    return Built(built.run, [], []).point("vllm", 16, Speed(0.05, 0.01))


def _failed_repeat(built: Built) -> Built:
    load = built.run.points[0].load
    built.run.points.append(PointRun("vllm", "c8", 5, load, "failed", error="the engine died"))
    return built


NEVER: dict[str, tuple[Callable[[], Built], str]] = {
    "one run": (lambda: run(repeats=1, day=3), "one repeat"),
    "other machine": (lambda: run(day=3, environment=MACHINE | {"cpu_model": "Another CPU"}), "Another CPU"),
    "unknown machine": (lambda: run(day=3, environment={}), "unlike machines"),
    "no requests": (lambda: _without_window(run(day=3)), "no request was measured"),
    "no points": (lambda: run(repeats=0, day=3), "did not measure this point"),
    "client-limited": (lambda: _limited(run(day=3), 5), "client"),
    "two of five client-limited": (lambda: _limited(run(day=3), 2), "client-limited: in 2 of 5 repeats"),
    "interrupted": (lambda: run(day=3, status="interrupted"), "not measured to its end"),
    "other load": (lambda: _other_load(run(day=3)), "not the same load: requests"),
    "other prompts": (lambda: _other_prompts(run(day=3)), "input_tokens 32 and 4096"),
    "other point": (lambda: _other_point(run(repeats=0, day=3)), "did not measure this point"),
    "a failed repeat": (lambda: _failed_repeat(run(day=3)), "1 of the candidate's repeats failed"),
}


@pytest.mark.parametrize("what", sorted(NEVER))
def test_nothing_of_this_ever_passes(what: str, base: Path, tmp_path: Path) -> None:
    made, reason = NEVER[what]
    verdict = gate(tmp_path, base, made())
    assert verdict.state == "inconclusive"
    assert any(reason in check.reason for check in verdict.checks), [check.reason for check in verdict.checks]


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    folder = run().write(tmp_path / "a").path
    rules = Rules(parse_limits(LIMITS))
    one, two = (read_sides(folder, rules.keys)["vllm"] for _ in range(2))
    verdict = judge([(one, two)], rules)
    assert verdict.state == "inconclusive"
    assert "compared with itself" in verdict.checks[0].reason


def test_too_few_requests_for_a_percentile_never_pass(tmp_path: Path) -> None:
    verdict = gate(tmp_path, run(window_s=1.0), run(day=3, window_s=1.0), "ttft_p95: 5%")
    assert verdict.state == "inconclusive"
    assert "p95 needs 100 requests" in verdict.checks[0].reason


def test_what_client_limited_repeats_leave_may_fail_but_not_pass(base: Path, tmp_path: Path) -> None:
    assert gate(tmp_path, base, _limited(run(day=3, slower=1.3), 2)).state == "fail"


def test_one_client_limited_repeat_of_five_is_left_out(base: Path, tmp_path: Path) -> None:
    verdict = gate(tmp_path, base, _limited(run(day=3), 1))
    assert verdict.state == "pass"
    assert main_checks(verdict)[0].repeats == (5, 4)


def test_errors_fail_the_gate_without_being_asked_for(base: Path, tmp_path: Path) -> None:
    verdict = gate(tmp_path, base, run(day=3, error_ratio=0.1))
    assert verdict.state == "fail"
    (failed,) = [check for check in verdict.checks if check.state == "fail" and check.metric == "error_ratio"]
    assert failed.guard


def test_no_errors_on_either_side_hold_a_limit_on_errors(base: Path, same: Path, tmp_path: Path) -> None:
    """None of 800 a side: within a point, though not within a tenth of one."""
    assert gate(tmp_path, base, same, "error_ratio: 1%").state == "pass"
    assert gate(tmp_path, base, same, "error_ratio: 0.1%").state == "inconclusive"


def test_a_candidate_that_answers_nothing_fails(base: Path, tmp_path: Path) -> None:
    verdict = gate(tmp_path, base, run(day=3, error_ratio=1.0, status="failed"))
    assert verdict.state == "fail"
    assert [check.metric for check in verdict.of("fail")] == ["error_ratio"]


def test_shorter_answers_fail_the_gate(base: Path, tmp_path: Path) -> None:
    """Fewer tokens make E2E better: a gate on it must not be fooled."""
    verdict = gate(tmp_path, base, run(day=3, tokens=9), "e2e_p95: 5%")
    assert verdict.state == "fail"
    assert [check.metric for check in verdict.of("fail")] == ["output_tokens_mean"]


def test_missing_the_slo_fails_the_gate(tmp_path: Path) -> None:
    """TTFT grows by 10 %, within its limit, but past the SLO's number for most requests."""
    slo = {"ttft_p95": 0.0555}
    verdict = gate(tmp_path, run(slo=slo), run(day=3, slower=1.1, slo=slo), "ttft_p95: 40%")
    assert [check.metric for check in verdict.of("fail")] == ["slo_ratio"]


def test_goodput_can_be_limited(base: Path, same: Path, tmp_path: Path) -> None:
    slo = {"ttft_p95": 0.0555}
    verdict = gate(tmp_path, run(slo=slo), run(day=3, slower=1.1, slo=slo), "goodput_request: 5%")
    assert main_checks(verdict)[0].state == "fail"
    nothing = gate(tmp_path, base, same, "goodput_request: 5%")
    assert nothing.state == "inconclusive"
    assert "no SLO" in nothing.checks[0].reason


def test_holm_corrects_for_many_limits(tmp_path: Path) -> None:
    limits = [f"{name}_{stat}: 5%" for name in ("ttft", "tpot", "e2e", "itl") for stat in ("mean", "p50", "p90", "p95")]
    many = gate(tmp_path / "many", run(noise=0.03), run(day=3, noise=0.03, slower=1.1), *limits)
    one = gate(tmp_path / "one", run(noise=0.03), run(day=3, noise=0.03, slower=1.1), "ttft_p95: 5%")
    wide = next(check for check in many.checks if check.metric == "ttft_p95_s")
    assert wide.change_low is not None
    assert one.checks[0].change_low is not None
    assert wide.change_low < one.checks[0].change_low


def test_what_differs_but_may_be_the_change_is_only_named(base: Path, tmp_path: Path) -> None:
    newer = run(day=3)
    newer.run.engines[0].model = "org/model-9b"
    verdict = gate(tmp_path, base, newer)
    assert verdict.state == "pass"
    assert any("org/model-9b now" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (["ttft_p95"], "not a limit"), (["nix: 5%"], "no metric 'nix'"), (["ttft_p95: 5"], "not a percentage"),
        (["ttft_p95: -5%"], "not negative"), (["ttft_p95: 5%", "ttft_p95_s: 4%"], "limited twice"),
        (["ttft_p96: 5%"], "did you mean ttft_p9"), ([], "no limit says"),
    ],
)  # fmt: skip
def test_a_bad_limit_says_what_would_be_right(limits: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        scenario_rules({}, limits, None)
    assert said in caught.value.message


def test_a_scenario_states_its_own_limits() -> None:
    rules = scenario_rules({"gate": {"limits": {"ttft_p95": 0.05}, "inconclusive": "pass"}}, [], None)
    assert [(limit.key, limit.share) for limit in rules.limits] == [("ttft_p95_s", 0.05)]
    assert rules.inconclusive == "pass"
    assert (
        scenario_rules({"gate": {"limits": {"ttft_p95": 0.05}}}, ["e2e_p50: 1%"], "fail").limits[0].key == "e2e_p50_s"
    )


def test_exit_codes(base: Path, same: Path, tmp_path: Path) -> None:
    slow, lone = run(day=4, slower=1.3).write(tmp_path / "slow").path, run(day=5, repeats=1).write(tmp_path / "l").path
    limit: list[str | Path] = ["--limit", "ttft_p95: 5%"]
    assert bench("gate", "--baseline", base, "--candidate", same, *limit).returncode == 0
    failed = bench("gate", "--baseline", base, "--candidate", slow, *limit, "--format", "json")
    assert failed.returncode == 1
    data: dict[str, Any] = json.loads(failed.stdout)
    assert data["state"] == "fail"
    assert data["schema_version"] == 1
    assert bench("gate", "--baseline", base, "--candidate", lone, *limit).returncode == 3
    assert bench("gate", "--baseline", base, "--candidate", lone, *limit, "--inconclusive", "pass").returncode == 0
    assert bench("gate", "--baseline", base, "--candidate", lone, *limit, "--inconclusive", "fail").returncode == 1
    wrong = bench("gate", "--baseline", base, "--candidate", tmp_path / "nix", *limit)
    assert wrong.returncode == 2
    assert "holds no run" in wrong.stderr
    assert "--baseline FOLDER --candidate FOLDER" in bench("gate", base, same).stderr
    assert bench("gate", "--baseline", base, "--candidate", same).returncode == 2
