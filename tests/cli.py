"""Runs the `bench` command as a user does: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.forked import server

BENCH = [sys.executable, "-m", "bench"]
SIM = """\
name: {name}
engines:
  - {{name: fast, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, quantization: bf16, args: {{time_scale: 0.2}}}}
  - {{name: slots, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, quantization: Q4_K_M, policy: ollama,
     args: {{time_scale: 0.2, num_parallel: 4}}}}
workload: {{kind: synthetic, input_tokens: 32, output_tokens: 16}}
load:
  - {{kind: concurrency, levels: [2, 4], requests: {requests}}}
slo: {{ttft_p95: 500ms, tpot_p95: 50ms}}
warmup: {{requests: 2}}
repeats: {repeats}
"""


def scenario(folder: Path, requests: int = 20, repeats: int = 1, name: str = "test", text: str | None = None) -> Path:
    """A scenario file on two simulated engines, or of the given text."""
    path = folder / f"{name}.yaml"
    path.write_text(text if text is not None else SIM.format(name=name, requests=requests, repeats=repeats))
    return path


def bench(
    *args: str | Path, env: dict[str, str] | None = None, timeout_s: float = 90
) -> subprocess.CompletedProcess[str]:
    """Run `bench ARGS` to its end; stdout and stderr as text."""
    return server().run([*map(str, args)], {**os.environ, **(env or {})}, timeout_s)


@contextmanager
def started(*args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`bench ARGS` under way; killed at the end if it still is."""
    process = subprocess.Popen(
        [*BENCH, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def family(pid: int) -> list[psutil.Process]:
    """All processes below one."""
    return psutil.Process(pid).children(recursive=True)


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
