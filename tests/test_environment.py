"""The environment, what is masked of it, where engines are looked for, and the HTTP helper's errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from harness import environment, http, locate
from harness.environment import describe, fingerprint, masked, redact
from harness.telemetry import nvidia
from harness.telemetry.nvidia import GpuDevice, GpuProcess
from tests.rawserver import served


@pytest.fixture
def alice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    for variable in ("LOGNAME", "USER"):
        monkeypatch.setenv(variable, "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: "wonder-box.corp.example")


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/models/a.gguf", "~/models/a.gguf"),
        ("--dir=/home/alice", "--dir=~"),
        ("file:///home/alice/x", "file://~/x"),
        ("/mnt/home/alice/x", "/mnt/home/***/x"),
        ("/home/alice2/x", "/home/alice2/x"),
        ("alice@wonder-box: ok", "***@***: ok"),
        ("at wonder-box.corp.example now", "at *** now"),
        ("malice and alice-3b stay", "malice and alice-3b stay"),
        ("", ""),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_masked_leaves_names_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ollama")
    monkeypatch.setenv("USER", "root")
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(socket, "gethostname", lambda: "vm")
    assert masked("/usr/bin/ollama serve as root in a vm") == "/usr/bin/ollama serve as root in a vm"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer HIDE-me.now",
        "{'Authorization': 'Bearer HIDE'}",
        "authorization: Basic HIDE==",
        "--api-key HIDE --port 80",
        "--api-key=HIDE",
        "--hf-token=HIDE --model x",
        "['--hf-token', 'HIDE', '--model']",
        "OPENAI_API_KEY=HIDE",
        "HF_TOKEN=HIDE",
        '{"api_key": "HIDE", "max_tokens": 128}',
        '{"token": "HIDE"}',
        "https://user:HIDE@host/v1?access_key=HIDE&n=1",
        "password: HIDE",
        "using key sk-HIDEHIDEHIDE here",
        "found hf_HIDEHIDEHIDE",
        "sent Bearer HIDEHIDE",
    ],
)
def test_redact_hides_secrets(text: str) -> None:
    hidden = redact(text)
    assert "HIDE" not in hidden
    assert "***" in hidden
    assert redact(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=128 eos_token: 2 pad_token=None bos_token='<s>'",
        "--max-num-batched-tokens 2048 --tokenizer x/y",
        "kv_bytes_per_token=131072, first token: 50.1 ms",
        "HF_TOKEN is not set",
        "http://127.0.0.1:8000/v1/completions",
        "--hf-token --model x",
    ],
)
def test_redact_leaves_the_rest(text: str) -> None:
    assert redact(text) == text


def test_describe_is_plain_json_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "wonder-box")
    monkeypatch.setattr(os, "uname", os.uname)
    env = describe()
    assert json.loads(json.dumps(env, allow_nan=False)) == env
    assert {
        "tool_version",
        "cpu_model",
        "gpus",
        "git_commit",
        "git_dirty",
        "driver",
        "memory_limit_bytes",
    } <= env.keys()
    assert 0 < env["cores_allowed"] <= env["cores_logical"]
    assert env["memory_bytes"] > 0
    assert "wonder-box" not in json.dumps(env)
    assert bool(env["gpus"]) == (env["gpu_reason"] is None)


def test_describe_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._git() == {"git_commit": None, "git_dirty": None}
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], [*identity, "commit", "-qm", "x", "--no-verify"]):
        subprocess.run(["git", *arguments], check=True)
    clean = environment._git()
    assert len(clean["git_commit"]) == 40
    assert clean["git_dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment._git() == {**clean, "git_dirty": True}


def test_describe_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GpuDevice(0, "H100", 80 * 2**30, "580.1", "13.0", 700.0, False, (GpuProcess(7, 100), GpuProcess(8, None)))
    monkeypatch.setattr(nvidia, "devices", lambda: ([gpu], None))
    env = describe()
    assert (env["driver"], env["cuda"], env["gpu_reason"]) == ("580.1", "13.0", None)
    assert (env["gpus"][0]["processes"], env["gpus"][0]["processes_memory_bytes"]) == (2, 100)


def test_fingerprint_knows_what_matters() -> None:
    gpu = {"name": "H100", "memory_bytes": 1, "power_limit_w": 700.0, "mig": False, "processes": 0}
    env = {"cpu_model": "x", "cores_allowed": 8.0, "memory_bytes": 64 * 2**30, "gpus": [gpu], "load_1m": 0.1}
    same = [env | {"load_1m": 9.0, "git_commit": "abc", "python": "3.12"}, env | {"gpus": [gpu | {"processes": 3}]}]
    other = [
        env | {"cpu_model": "y"}, env | {"cores_allowed": 4.0}, env | {"gpus": []}, env | {"gpus": [gpu, gpu]},
        env | {"memory_limit_bytes": 8 * 2**30}, env | {"gpus": [gpu | {"power_limit_w": 350.0}]},
    ]  # fmt: skip
    assert {fingerprint(e) for e in same} == {fingerprint(env)}
    assert len({fingerprint(e) for e in [env, *other]}) == len(other) + 1
    assert fingerprint(json.loads(json.dumps(env))) == fingerprint(env)


def _binary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("ENGINEBENCH_ENGINES", str(tmp_path / "engines"))
    monkeypatch.delenv("ENGINEBENCH_VLLM_PYTHON", raising=False)
    assert locate.ollama_binary(None) is None
    installed = _binary(tmp_path / "engines/ollama/bin/ollama")
    assert locate.ollama_binary() == installed
    assert locate.llama_server(installed) is None
    server = _binary(tmp_path / "engines/ollama/lib/ollama/llama-server")
    assert locate.llama_server(installed) == server
    on_path = _binary(tmp_path / "path/ollama")
    assert locate.ollama_binary() == on_path
    assert locate.ollama_binary(str(installed)) == installed
    assert locate.ollama_binary(str(tmp_path / "nothing")) is None

    python = _binary(tmp_path / "engines/vllm/bin/python")
    assert locate.vllm_python() == python
    monkeypatch.setenv("ENGINEBENCH_VLLM_PYTHON", str(tmp_path / "nothing"))
    assert locate.vllm_python() is None
    assert locate.vllm_python(sys.executable) == Path(sys.executable)


def test_engines_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINEBENCH_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert locate.engines_folder() == Path("/c/enginebench/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert locate.engines_folder() == Path("/h/.cache/enginebench/engines")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/json": (200, b'{"a": 1}'), "/text": (200, "grüß".encode()), "/bytes": (200, b"\xff\xfe"),
            "/refused": (503, b'{"error": "overloaded"}'),
        }  # fmt: skip
        status, body = answers[self.path.partition("?")[0]] if self.path != "/short" else (200, b"abc")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (self.path == "/short")))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = b"" if self.path == "/empty" else json.dumps([json.loads(body), self.headers["X-Key"]]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with served(_Handler) as address:
        yield address


def test_http_answers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked for what is on the loopback
    assert http.get_json(f"{server}/json", 5.0) == {"a": 1}
    assert http.get_text(f"{server}/text", 5.0) == "grüß"
    assert http.post_json(f"{server}/x", {"b": 2}, 5.0, {"X-Key": "k"}) == [{"b": 2}, "k"]
    assert http.post_json(f"{server}/empty", {}, 5.0) is None


def test_http_errors_are_of_one_kind(server: str, tmp_path: Path) -> None:
    with pytest.raises(http.HttpError, match="overloaded") as refused:
        http.get_json(f"{server}/refused?api_key=HIDE", 5.0)
    assert refused.value.status == 503
    assert "HIDE" not in str(refused.value)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(http.HttpError, match=r"no answer within 0\.05 s"):
            http.get_text(hanging, 0.05)
    with pytest.raises(http.HttpError, match="connection refused") as gone:
        http.get_text(hanging, 5.0)
    assert gone.value.status is None
    for bad in (
        f"{server}/text",
        f"{server}/bytes",
        f"{server}/short",
        f"file://{tmp_path}",
        "http://",
        "x",
        "http://[/",
    ):
        with pytest.raises(http.HttpError):
            http.get_json(bad, 5.0)


def test_http_dribbling_server_is_left() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def dribble() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    stopped.wait(0.01)
            except OSError:
                pass

    stopped = threading.Event()
    thread = threading.Thread(target=dribble)
    thread.start()
    with listener, pytest.raises(http.HttpError, match=r"did not end in time|no answer within"):
        http.get_text(f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.1)
    thread.join(10)
    assert not thread.is_alive()
