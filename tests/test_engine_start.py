"""`bench calibrate hardware`: which engine it starts, what a start teaches, what is said without one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bench import engine_start
from harness.errors import InputError
from harness.receipts import step_scale
from tests.cli import bench, family, started, until


def test_the_engine_is_the_one_asked_for_or_the_first_there_is() -> None:
    assert engine_start.choose(None, ["ollama", "vllm"]) == "ollama"
    assert engine_start.choose("vllm", ["ollama", "vllm"]) == "vllm"
    assert engine_start.choose(None, []) is None
    with pytest.raises(InputError) as refused:
        engine_start.choose("vllm", ["ollama"])
    assert "install-engines vllm" in str(refused.value.remedy)
    for kind in engine_start.REMEDIES:
        assert [(e.name, e.model) for e in engine_start.scenario_of(kind).engines] == [(kind, "builtin:tiny")]


def test_what_is_said_of_a_start() -> None:
    found = {"engine": "ollama", "version": "0.1", "hardware": "cpu", "ready_s": 1.5, "least_tpot_s": 0.001,
             "overhead_bytes": None}  # fmt: skip
    said = "\n".join(engine_start.lines(found))
    assert "ready after: 1.5" in said
    assert "memory beside weights and KV: not told by this engine" in said
    failed = engine_start.lines({"engine": "vllm", "error": "no port", "log": "/tmp/vllm.log"})
    assert failed[:2] == ["vllm did not run: no port", "its log: /tmp/vllm.log"]
    assert "install-engines vllm" in failed[2]


def test_without_an_engine_the_host_is_measured_alone(tmp_path: Path) -> None:
    env = {"ENGINEBENCH_HOME": str(tmp_path), "ENGINEBENCH_ENGINES": str(tmp_path), "PATH": "/nowhere",
           "ENGINEBENCH_VLLM_PYTHON": "/nowhere/python"}  # fmt: skip
    done = bench("calibrate", "hardware", "--seconds", "0.5", env=env)
    assert done.returncode == 0, done.stderr
    assert "no engine is installed" in done.stdout
    assert "install-engines ollama" in done.stdout
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "receipts.jsonl").read_text().splitlines()]
    assert kinds == ["host"]
    refused = bench("calibrate", "hardware", "--engine", "ollama", env=env)
    assert refused.returncode == 2
    assert "ollama is not installed" in refused.stderr
    assert bench("calibrate", "hardware", "--engine", "ollama", "--no-engine", env=env).returncode == 2


def test_an_engine_that_fails_to_start_is_exit_1_with_its_log_and_a_remedy(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "ollama"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'listen tcp: cannot bind' >&2\nexit 3\n")
    binary.chmod(0o755)
    env = {"ENGINEBENCH_HOME": str(tmp_path), "PATH": f"{binary.parent}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = bench("calibrate", "hardware", "--engine", "ollama", "--seconds", "0.5", env=env)
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert any("ollama did not run" in line and "exit code 3" in line for line in said)
    log = next(line.removeprefix("its log: ") for line in said if line.startswith("its log: "))
    assert "cannot bind" in Path(log).read_text()
    assert any(line.startswith("remedy: ") and "install-engines ollama" in line for line in said)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "receipts.jsonl").read_text().splitlines()]
    assert kinds == ["host"], "a start that failed teaches nothing"


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_a_real_ollama_teaches_overhead_and_nothing_of_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path))
    words = ("calibrate", "hardware", "--engine", "ollama", "--seconds", "0.5", "--format", "json")
    done = bench(*words, timeout_s=200)
    assert done.returncode == 0, done.stderr
    taught = json.loads(done.stdout)["engine"]
    assert taught["ready_s"] > 0
    assert 0 < taught["least_tpot_s"] < 1
    assert taught["overhead_bytes"] > 0
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "receipts.jsonl").read_text().splitlines()]
    assert kinds == ["host", "engine_start"]
    assert step_scale(taught["hardware"], "ollama", "f16") == (1.0, ())

    with started(*words) as process:
        assert until(lambda: any("ollama" in child.name() for child in family(process.pid)), 60)
        below = family(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert until(lambda: not any(child.is_running() for child in below))
