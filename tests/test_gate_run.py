"""`bench gate run` on simulated engines, and `bench gate bisect` on a small repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.plan import in_turn
from harness.scenariofile import load_scenario
from tests.cli import bench, scenario

SIM = """name: gated
engines:
  - {name: old, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, quantization: bf16, args: {time_scale: 0.2}}
  - {name: slow, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, quantization: bf16, args: {time_scale: 1.0}}
  - {name: gone, kind: ollama, model: x, binary: /nonexistent/ollama}
workload: {kind: synthetic, input_tokens: 32, output_tokens: 8}
load:
  - {kind: concurrency, levels: [4], requests: 24}
warmup: {requests: 2}
gate:
  limits: {tpot_p50: 30%}
  min_repeats: 3
  max_repeats: 5
"""


def test_engines_take_turns() -> None:
    turns = list(in_turn("a", "b", 4, lambda repeats: repeats == 3))
    assert turns == [("a", [0]), ("b", [0]), ("b", [1]), ("a", [1]), ("a", [2]), ("b", [2])]


def test_a_slower_engine_fails_as_soon_as_it_is_decided(tmp_path: Path) -> None:
    file, out = scenario(tmp_path, text=SIM), tmp_path / "run"
    done = bench("gate", "run", file, "--baseline", "old", "--candidate", "slow", "--out", out, "--format", "json")
    limited = "client-limited" in done.stdout  # by another's work on this machine: then it may be undecided
    assert done.returncode in ((1, 3) if limited else (1,)), done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert verdict == json.loads((out / "gate.json").read_text())
    assert verdict["checks"][0]["design"] in (("interleaved", None) if limited else ("interleaved",))
    assert verdict["simulated"]
    run = json.loads((out / "run.json").read_text())
    points = sorted((p for p in run["points"]), key=lambda p: p["start_s"])
    assert [p["engine"] for p in points][:6] == ["old", "slow", "slow", "old", "old", "slow"]
    ends = [p["end_s"] for p in points]
    assert all(later["start_s"] > end for later, end in zip(points[1:], ends, strict=False))  # never together
    assert all(p["status"] in ("done", "client-limited") for p in points)
    assert run["status"] == "done"
    assert run["scenario"]["repeats"] == len(points) // 2


def test_an_engine_that_does_not_start_is_never_a_pass(tmp_path: Path) -> None:
    file = scenario(tmp_path, text=SIM)
    done = bench("gate", "run", file, "--baseline", "old", "--candidate", "gone", "--out", tmp_path / "run")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Inconclusive" in done.stdout
    assert len(json.loads((tmp_path / "run/run.json").read_text())["points"]) <= 6


@pytest.mark.parametrize(
    ("engines", "said"), [(("old", "nix"), "no engine 'nix'"), (("old", "old"), "are the same engine")]
)
def test_wrong_usage(engines: tuple[str, str], said: str, tmp_path: Path) -> None:
    file = scenario(tmp_path, text=SIM)
    done = bench("gate", "run", file, "--baseline", engines[0], "--candidate", engines[1], "--out", tmp_path / "run")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("limits: {ttft_p96: 5%}", "no metric 'ttft_p96'"), ("limits: {ttft_p95: 5}", "not a percentage"),
        ("limits: {ttft_p95: 5%}\n  most: 3", "unknown key 'most'"),
        ("limits: {ttft_p95: 5%}\n  min_repeats: 9\n  max_repeats: 3", "must not be above"),
    ],
)  # fmt: skip
def test_a_fault_in_the_gate_part_is_named(part: str, said: str, tmp_path: Path) -> None:
    text = SIM.replace("limits: {tpot_p50: 30%}\n  min_repeats: 3\n  max_repeats: 5", part)
    done = bench("scenario", "check", scenario(tmp_path, text=text))
    assert done.returncode == 2
    assert said in done.stderr, done.stderr


def test_what_gates_a_scenario_is_no_part_of_its_identity(tmp_path: Path) -> None:
    one = load_scenario(scenario(tmp_path, name="one", text=SIM))
    two = load_scenario(scenario(tmp_path, name="two", text=SIM.replace("30%", "10%")))
    assert one.hash() == two.hash()


PYTHON = [sys.executable, "-I", "-S"]  # starts at once
MEASURE = """import random
print("some other line")
print(float(open("speed.txt").read()) * random.gauss(1, 0.01))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Eight commits; from `change 6` on everything takes 20 % longer. Its own `bench` package must not be imported."""
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "measure.py").write_text(MEASURE)
    (path / "bench").mkdir()
    (path / "bench/__init__.py").write_text("raise SystemExit('the wrong bench')\n")
    for number in range(1, 9):
        (path / "speed.txt").write_text("1.0" if number < 6 else "1.2")
        (path / "number.txt").write_text(str(number))
        git(path, "add", "-A")
        git(path, "commit", "-qm", f"change {number}")
    return path


def git(path: Path, *words: str) -> str:
    who = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    done = subprocess.run(
        ["git", *words], cwd=path, capture_output=True, text=True, check=True, env={**os.environ, **who}
    )
    return done.stdout.strip()


def test_bisect_finds_the_commit_and_leaves_the_work_tree_alone(repository: Path) -> None:
    command = [sys.executable, "-P", "-m", "bench", "gate", "bisect", "main~7", "main", "--limit", "5%", "--"]
    done = subprocess.run(
        [*command, *PYTHON, "measure.py"], cwd=repository, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "change 6" in done.stdout.split("the first commit past the limit:")[1]
    assert git(repository, "status", "--porcelain") == ""
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert git(repository, "rev-parse", "--abbrev-ref", "HEAD") == "main"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["main~1", "main", "--", *PYTHON, "measure.py"], 3, "holds the limit"),
        (["main~7", "main", "--", "false"], 3, "COMMAND exited with 1"),
        (["nix", "main", "--", "true"], 2, "git rev-parse"),
        (["main", "main~7", "--", "true"], 2, "no ancestor"),
        (["main~7", "main", "--limit", "ttft_p95: 5%", "--", "true"], 2, "has no {out}"),
    ],
)
def test_bisect_says_why_it_cannot(
    words: list[str], code: int, said: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    done = bench("gate", "bisect", *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert len(git(repository, "worktree", "list").splitlines()) == 1
