"""What a run was made on: host, CPU, memory, GPUs, versions. It says which two runs may be compared.

User and host names never get into it; `masked` and `redact` also serve command lines and logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil

from harness.records import fingerprint as fingerprint
from harness.telemetry import nvidia
from harness.telemetry.cgroup import limits

MASK: Final = "***"
# Names that tell nobody's identity, and whose masking would garble what is said: `ollama serve` run by user ollama.
_COMMON_NAMES: Final = frozenset((
    "root", "localhost", "localdomain", "user", "users", "admin", "guest", "nobody", "runner", "build", "builder",
    "home", "host", "server", "gpu", "cpu", "node", "worker", "ubuntu", "debian", "fedora", "linux", "docker", "test",
    "container", "python", "bench", "enginebench", "ollama", "vllm", "llama", "model", "models",
))  # fmt: skip
_GIT_TIMEOUT_S: Final = 5.0


def describe() -> dict[str, Any]:
    """The environment as JSON-ready values; None: could not be told. All sizes in bytes, power in watts.

    `cores_allowed` counts what affinity and cgroup leave to this process (a quota may be a fraction); `load_1m` is the
    load average now, so that a busy host is seen. `gpu_reason` says why `gpus` is empty.
    """
    gpus, gpu_reason = nvidia.devices()
    found: dict[str, Any] = {
        "tool_version": tool_version(),
        "python": platform.python_version(),
        "os": _os_name(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "virtualisation": _virtualisation(),
        "cpu_model": _cpu_model(),
        "cpu_governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_allowed": cores_allowed(),
        "load_1m": _load_1m(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": _memory_limit_bytes(),
        "gpus": [_gpu(gpu) for gpu in gpus],
        "gpu_reason": gpu_reason,
        "driver": gpus[0].driver if gpus else None,
        "cuda": gpus[0].cuda if gpus else None,
        **_git(),
    }
    return {key: masked(value) if isinstance(value, str) else value for key, value in found.items()}


def tool_version() -> str:
    """The installed version of this tool, `0+unknown` in a bare checkout."""
    try:
        return importlib.metadata.version("enginebench")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def cores_allowed() -> float:
    """Cores that this process may use: the smallest of machine, affinity and cgroup quota."""
    cores = float(psutil.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, float(len(os.sched_getaffinity(0))))
    return min(cores, limits().cpu_cores or cores)


def masked(text: str) -> str:
    """`text` with the home directory as `~`, and this user's and this host's names as `***`.

    Names that identify nobody (root, ubuntu, localhost, one or two letters) are left, and a name counts only as a word
    of its own: user `meta` does not change `meta-llama`.
    """
    for pattern, mask in _private(_homes(), _names()):
        text = pattern.sub(mask, text)
    return text


def redact(text: str) -> str:
    """`text` with the values of API keys, tokens, passwords and authorization headers as `***`.

    Knows options, variables, headers, JSON and URLs by the name before the value, and the common kinds of key by their
    look (`sk-`, `hf_`, `ghp_`, `nvapi-`). Counts are left: `max_tokens=128`, `eos_token: 2`.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


_NAME = r"[\w-]*(?:api[_-]?key|access[_-]?key|secret|passw(?:or)?d|credentials?)"
_TOKEN = r"[\w-]*(?<![a-z0-9])token"
_NO_COUNT = r"(?!(?:-?[\d.,]+(?:[a-z%]{1,3})?|none|null|true|false)(?![\w.-])|[<\[{])"  # what follows `eos_token: `
_VALUE = r"[^\s\"'\\,;&}\])]+"
_BEFORE = r"[\"']?\s*[=:]\s*[\"']?"  # between a name and its value: `=`, `: `, `": "`
_SECRETS: Final = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (rf"(authorization{_BEFORE})(?:(bearer|basic|token)\s+)?{_VALUE}", rf"\1{MASK}"),
        (r"\b(bearer)\s+[\w.~+/=-]{8,}", rf"\1 {MASK}"),
        (rf"(\b{_NAME}{_BEFORE}){_VALUE}", rf"\1{MASK}"),
        (rf"(\b{_TOKEN}{_BEFORE}){_NO_COUNT}{_VALUE}", rf"\1{MASK}"),
        # An option and its value apart, in a command line or in a list of arguments.
        (rf"(--?(?:{_NAME}|{_TOKEN})[\"']?,?\s+[\"']?)(?!-){_VALUE}", rf"\1{MASK}"),
        (r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", rf"\1{MASK}@"),
        (r"\b(?:sk-|hf_|gh[opsu]_|github_pat_|nvapi-|xox[abp]-)[\w-]{8,}", MASK),
    )
]


@functools.lru_cache(maxsize=4)
def _private(homes: frozenset[str], names: frozenset[str]) -> list[tuple[re.Pattern[str], str]]:
    """What to mask and how: homes first, then names, the longer first, so that no name is cut out of another."""
    patterns = [
        (rf"(?:(?<![\w.~/-])|(?<=file://)){re.escape(home)}(?![\w-])", "~")
        for home in sorted(homes, key=len, reverse=True)
    ]
    patterns += [(rf"(?<![\w-]){re.escape(name)}(?![\w-])", MASK) for name in sorted(names, key=len, reverse=True)]
    return [(re.compile(pattern), mask) for pattern, mask in patterns]


def _homes() -> frozenset[str]:
    home = os.path.expanduser("~")
    return frozenset(h.rstrip("/") for h in (home, os.path.realpath(home)) if len(h.rstrip("/")) > 1)


def _names() -> frozenset[str]:
    names = {os.environ.get("USER", ""), socket.gethostname()}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user without an entry in passwd
        names.add(getpass.getuser())
    names |= {name.partition(".")[0] for name in names}
    return frozenset(name for name in names if len(name) > 2 and name.lower() not in _COMMON_NAMES)


def _gpu(gpu: nvidia.GpuDevice) -> dict[str, Any]:
    """One GPU as JSON; of the processes on it only number and memory, as their ids mean nothing later."""
    values = dataclasses.asdict(gpu)
    held = [process.memory_bytes for process in gpu.processes or () if process.memory_bytes is not None]
    values["processes"] = None if gpu.processes is None else len(gpu.processes)
    values["processes_memory_bytes"] = sum(held) if held else None
    return values


def _memory_limit_bytes() -> int | None:
    limit = limits().memory_bytes
    return limit if limit is not None and limit < psutil.virtual_memory().total else None


def _load_1m() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{platform.system()} {platform.release()}"


def _cpu_model() -> str | None:
    """`model name` of x86; Arm kernels give numbers alone, of which lscpu knows the names."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    for line in _said(["lscpu"]).splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _virtualisation() -> str | None:
    """A hint: `container`, `wsl`, `vm`, joined by `+`; None: none was seen."""
    hints = []
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ:
        hints.append("container")
    if "microsoft" in platform.release().lower():
        hints.append("wsl")
    elif _first_line(Path("/sys/hypervisor/type")) or _has_hypervisor_flag():
        hints.append("vm")
    return "+".join(hints) or None


def _has_hypervisor_flag() -> bool:
    with contextlib.suppress(OSError):
        return " hypervisor" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return False


def _git() -> dict[str, Any]:
    """Commit of the current directory, and whether tracked files were changed since."""
    lines = _said(["git", "status", "--porcelain=v2", "--branch", "-uno", "--no-ahead-behind"]).splitlines()
    commit = next((line.partition(" ")[2].partition(" ")[2] for line in lines if line.startswith("# branch.oid ")), "")
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": any(not line.startswith("#") for line in lines)}


def _said(command: list[str]) -> str:
    """What a small command prints, nothing if it fails. English, and without git's lock on the index."""
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            env=environment,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").splitlines()[0].strip() or None
    except (OSError, IndexError, ValueError):
        return None
