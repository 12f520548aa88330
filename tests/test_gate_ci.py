"""The ready workflows: parsed, and their commands really run; `pip` and `gh` only note what they were told, and `bench`
takes the engines' speeds as given, so that each gate has one right outcome (test_gate_run.py measures)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from harness.scenariofile import load_scenario

CI = Path(__file__).parents[1] / "docs/ci"
SLOWER = "quantization: bf16, args: {time_scale: 0.2}}\nworkload"
NOTES = """#!/bin/sh
echo "$(basename "$0") $*" >> notes
"""


def workflow() -> Any:
    return yaml.safe_load((CI / "github-workflow.yml").read_text())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository as the comments in the files say, with commands to call."""
    (tmp_path / "bench").mkdir()
    shutil.copy(CI / "gate.yaml", tmp_path / "bench/gate.yaml")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bench").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m tests.measuredgate "$@"\n')
    for name in ("pip", "gh"):
        (tmp_path / "bin" / name).write_text(NOTES)
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    return tmp_path


def step(project: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As the runner does: `bash -e`, in the repository."""
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    env["PYTHONPATH"] = str(CI.parents[1])
    return subprocess.run(
        ["bash", "-e", "-c", command], cwd=project, capture_output=True, text=True, timeout=110,
        env={**os.environ, "PATH": path, **env},
    )  # fmt: skip


def test_the_scenario_of_the_workflows_is_valid() -> None:
    scenario = load_scenario(CI / "gate.yaml")
    assert [engine.name for engine in scenario.engines] == ["current", "proposed"]
    assert scenario.gate is not None


def test_the_github_workflow_runs(project: Path) -> None:
    found = workflow()
    assert "pull_request" in found[True]  # YAML 1.1 reads the key `on` as true
    assert found["permissions"] == {"contents": "read", "pull-requests": "write"}
    (job,) = found["jobs"].values()
    steps = {s["name"]: s["run"] for s in job["steps"] if "run" in s}
    assert list(steps) == ["Install", "Gate", "Comment"]
    assert step(project, steps["Install"]).returncode == 0
    summary = project / "summary.md"
    gate = step(project, steps["Gate"], GITHUB_STEP_SUMMARY=str(summary))
    assert gate.returncode == 0, gate.stdout + gate.stderr
    assert "::notice title=bench gate::Simulated: Pass" in gate.stdout
    assert all(line.startswith("::") for line in gate.stdout.splitlines())
    assert summary.read_text() == (project / "results/gate/gate.md").read_text()
    assert step(project, steps["Comment"], PULL_REQUEST="7").returncode == 0
    assert (project / "notes").read_text().splitlines()[-1].startswith("gh pr comment 7 ")


@pytest.mark.parametrize(("code", "becomes"), [(1, 1), (3, 0)])
def test_what_is_not_decided_blocks_nothing_on_github(code: int, becomes: int, project: Path) -> None:
    (project / "bin/bench").write_text(f"#!/bin/sh\nexit {code}\n")
    (gate,) = [s["run"] for s in workflow()["jobs"]["gate"]["steps"] if s.get("name") == "Gate"]
    assert step(project, gate).returncode == becomes


def test_the_gitlab_job_runs_and_fails_on_a_slower_engine(project: Path) -> None:
    scenario = project / "bench/gate.yaml"
    text = scenario.read_text()
    assert SLOWER in text
    scenario.write_text(text.replace(SLOWER, SLOWER.replace("0.2", "1.0")))
    job = yaml.safe_load((CI / "gitlab-ci.yml").read_text())["bench-gate"]
    assert job["allow_failure"] == {"exit_codes": 3}
    *before, last = job["script"]
    assert all(step(project, command).returncode == 0 for command in before)
    done = step(project, last)
    assert done.returncode == 1, done.stdout + done.stderr
    reports = job["artifacts"]["reports"]
    assert ElementTree.parse(project / reports["junit"]).getroot().get("failures") != "0"
    assert json.loads((project / reports["codequality"]).read_text())
    assert (project / "results/gate/gate.html").is_file()
