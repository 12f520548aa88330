"""What the benchmarks of this folder share: the C programs built, the server and a tool pinned to a core each, tables.

Two cores are needed: the server has the first that this process may use, everything that is measured the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.measured import measured
from harness.store import RunFolder

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache/enginebench"
LATE_MAX_S = 1e-3  # a trial whose server was later than this in one of a hundred chunks is void
MEMORY_MAX_BYTES = 6e9  # a tool that takes more is ended
INPUT_TOKENS = 64


def _whole_cores() -> list[int]:
    """The cores that this process may use, those first that share no physical core with an earlier one."""
    usable, seen = sorted(os.sched_getaffinity(0)), set[str]()
    first, second = [], []
    for core in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        siblings = path.read_text() if path.exists() else str(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return first + second


CORES = _whole_cores()


def built(name: str) -> Path:
    """The C program of that name, compiled if its source is newer."""
    source, program = HERE / f"{name}.c", CACHE / "benchmarks" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


def server_cores(count: int = 1) -> list[int]:
    return CORES[:count]


def client_cores(servers: int = 1, count: int = 1) -> list[int]:
    if len(CORES) < servers + count:
        sys.exit(f"{servers + count} cores are needed: {servers} for the server, {count} for the client")
    return CORES[servers : servers + count]


class Server:
    """The C server, each of its processes on a core of its own, for the length of a `with`."""

    def __init__(self, ttft_ms: float, gap_ms: float, tokens: int = 128, cores: int = 1) -> None:
        command = [built("server"), "--ttft-ms", ttft_ms, "--gap-ms", gap_ms, "--tokens", tokens]
        self.cores = cores
        self._processes: list[subprocess.Popen[str]] = []
        self._own: list[int] = []
        self.port = 0
        for core in server_cores(cores):
            process = subprocess.Popen(
                [str(part) for part in (*command, "--port", self.port)],
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=_on_cores([core], first=True),
            )
            self._processes.append(process)
            assert process.stdout is not None
            self.port, own = map(int, re.findall(r":(\d+)\b", process.stdout.readline()))
            self._own.append(own)
        self._waited_s = 0.0
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _get(self, path: str) -> list[bytes]:
        """The answer of each process."""
        answers = []
        for port in self._own:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path)
            answers.append(connection.getresponse().read())
        return answers

    def stats(self, reset: bool = False) -> dict[str, Any]:
        """The server's own figures, of the requests that ended since the last reset. Of several processes: counts
        added, means weighted, and the worst of each p99, maximum and CPU."""
        parts = [json.loads(page) for page in self._get("/stats?reset=1" if reset else "/stats")]
        figures: dict[str, Any] = {}
        requests = sum(part["requests"] for part in parts)
        for key in parts[0]:
            values = [part[key] for part in parts]
            if key.endswith("mean_s"):
                weights = [part["requests"] / requests if requests else 1 / len(parts) for part in parts]
                figures[key] = sum(value * weight for value, weight in zip(values, weights, strict=True))
            elif key.endswith(("p99_s", "max_s", "seconds", "ratio")):
                figures[key] = max(values)
            else:
                figures[key] = sum(values)
        waited = [Path(f"/proc/{p.pid}/schedstat").read_text().split()[1] for p in self._processes]
        waited_s = sum(map(int, waited)) / 1e9
        figures["waited_for_core_s"], self._waited_s = waited_s - self._waited_s, waited_s if reset else self._waited_s
        return figures

    def requests(self) -> dict[str, Any]:
        """The server's own stamps of each of those requests: arrays of seconds on the monotonic clock, and tokens."""
        rows = np.frombuffer(b"".join(self._get("/requests")), dtype="<i8").reshape(-1, 4)
        return {
            "arrived": rows[:, 0] / 1e9, "ttft": (rows[:, 1] - rows[:, 0]) / 1e9, "last": rows[:, 2] / 1e9,
            "tpot": (rows[:, 2] - rows[:, 1]) / 1e9 / np.maximum(rows[:, 3] - 1, 1), "tokens": rows[:, 3],
        }  # fmt: skip


@dataclass(slots=True)
class Finished:
    """A command that ran to its end on the client's core.

    Memory in bytes, looked at five times a second: `peaks` the peak RSS of each process, the command's first;
    `peak_bytes` the largest sum of those of the processes that lived together (pages that they share count in each);
    `pss_bytes` the largest sum of their proportional sizes (a shared page counts once), looked at once a second.
    """

    code: int
    wall_s: float
    cpu_s: float
    peaks: list[int]
    peak_bytes: int
    pss_bytes: int
    output: str


def run_pinned(
    command: Iterable[object], timeout_s: float = 900, env: dict[str, str] | None = None, cores: list[int] | None = None
) -> Finished:
    """Run a command and its family on the client's core, or the given ones, and watch its memory.

    The watching is of the idle class: it takes no time that the measured client wants. A command that takes too
    long, or too much memory, is killed.
    """
    cores = cores or client_cores()
    os.sched_setaffinity(0, {CORES[-1]} if len(CORES) > 4 else set(cores))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    began, peaks, together, proportional, looks = time.monotonic(), dict[int, int](), 0, 0, 0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})}, start_new_session=True, preexec_fn=_on_cores(cores),
        )  # fmt: skip
        usage, ended = None, select.poll()
        ended.register(watched := os.pidfd_open(process.pid), select.POLLIN)
        while usage is None:
            alive = {pid: _peak_bytes(pid) for pid in _family(process.pid)}
            peaks |= {pid: peak for pid, peak in alive.items() if peak}
            together = max(together, sum(alive.values()))
            if looks % 5 == 4:
                proportional = max(proportional, sum(map(_pss_bytes, alive)))
            looks += 1
            ended.poll(200)  # ms; returns at once when the command ends: waiting longer would count as its time
            done, status, used = os.wait4(process.pid, os.WNOHANG)
            if done:
                usage = used
            elif time.monotonic() - began > timeout_s or together > MEMORY_MAX_BYTES:
                os.killpg(process.pid, signal.SIGKILL)
        os.close(watched)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return Finished(code, time.monotonic() - began, usage.ru_utime + usage.ru_stime, [*peaks.values()],
                    together, proportional, text)  # fmt: skip


def _on_cores(cores: list[int], first: bool = False) -> Any:
    """What a child does first: goes to its cores, and leaves the idle class that its parent may be of. With `first` it
    comes before all else there, where it may: then a busy machine does not make the server late."""

    def pin() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent
        os.sched_setaffinity(0, set(cores))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if first:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    return pin


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = [
            int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(child))]


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


# --- our own tool against the server ---


@functools.cache
def compiled() -> None:
    """Bytecode of the tool's own modules, as an installed tool has it: in a checkout, where PYTHONDONTWRITEBYTECODE is
    set or a file is new, each start would compile them again."""
    folders = [str(HERE.parents[1] / name) for name in ("bench", "harness", "reports", "scenarios", "sizing")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], check=True)


def run_ours(server: Server, load: str, tokens: int = 128, timeout_s: float = 900, workers: int = 1) -> dict[str, Any]:
    """`bench run` of one point with everything on, and its figures beside the server's own stamps. With several workers
    all cores but the server's are the tool's to deal out.

    Both sides are of the same requests: the client's of phase `measure`, the server's that arrived in the window, whose
    bounds are on the clock that both read.
    """
    compiled()
    with tempfile.TemporaryDirectory(prefix="enginebench-") as work:
        scenario = Path(work) / "scenario.yaml"
        scenario.write_text(
            "name: benchmark\n"
            f"engines: [{{name: c, kind: openai, model: reference, flavor: vllm, base_url: '{server.base_url}'}}]\n"
            f"workload: {{input_tokens: {INPUT_TOKENS}, output_tokens: {tokens}}}\n"
            f"load: [{load}]\nclient: {{workers: {workers}}}\n"
        )
        out = Path(work) / "run"
        server.stats(reset=True)
        command = [sys.executable, "-m", "bench", "run", scenario, "--out", out, "--no-report"]
        cores = client_cores(server.cores) if workers == 1 else CORES[server.cores :]
        done = run_pinned(command, timeout_s, {"ENGINEBENCH_HOME": work}, cores)
        if not (out / "run.json").exists():
            sys.exit(f"bench run failed:\n{done.output}")
        return _figures(RunFolder.open(out), server, done)


def _figures(folder: RunFolder, server: Server, done: Finished) -> dict[str, Any]:
    record, table = folder.read_run(), folder.requests()
    point, engine = record.points[0], record.engines[0]
    if point.open_s is None or point.close_s is None:
        why = (
            point.error or engine.error or f"exit {done.code} after {done.wall_s:.0f} s, {done.peak_bytes / 1e6:.0f} MB"
        )
        sys.exit(f"bench run measured nothing: {why}\n{done.output}")
    rows = table.select(["point", "phase", "status", "sent_s", "ttft_s", "tpot_s", "end_s"]).to_pandas()
    ours = rows[(rows.phase == "measure") & (rows.status == "ok")]
    origin = record.started_monotonic_s
    served, stats = server.requests(), server.stats()
    inside = (served["arrived"] >= origin + point.open_s) & (served["arrived"] < origin + point.close_s)
    warm_up = rows[rows.point == "warmup"]
    loaded_s = (point.end_s or 0) - (point.start_s or 0) + (engine.phases_s.get("ready_s") or 0)
    loaded_s += warm_up.end_s.max() - warm_up.sent_s.min() if len(warm_up) else 0
    of_point = measured(table.filter([p == point.point for p in table["point"].to_pylist()]), point,
                        folder.telemetry().slice(0, 0), [], {})  # fmt: skip
    main, *others = done.peaks
    return {
        "exit": done.code, "status": point.status, "warnings": point.warnings,
        "requests": len(ours), "server_requests": int(inside.sum()),
        "failed": int(((rows.phase == "measure") & (rows.status != "ok")).sum()),
        **compared(ours.ttft_s, ours.tpot_s, served["ttft"][inside], served["tpot"][inside]),
        "chunks_per_s": of_point.window_tokens / of_point.window_s, "window_s": of_point.window_s,
        "client": point.client, "server": stats, "void": stats["late_p99_s"] > LATE_MAX_S,
        "peak_mb": done.peak_bytes / 1e6, "pss_mb": done.pss_bytes / 1e6,
        "peak_main_mb": main / 1e6, "peak_load_mb": max(others, default=0) / 1e6,
        "wall_s": done.wall_s, "cpu_s": done.cpu_s, "outside_s": done.wall_s - loaded_s,
    }  # fmt: skip


def compared(ttft_s: Any, tpot_s: Any, true_ttft_s: Any, true_tpot_s: Any) -> dict[str, float | None]:
    """The client's means and p99 beside the server's, and how far off they are (ratio - 1)."""
    if len(ttft_s) == 0 or len(true_ttft_s) == 0:
        return dict.fromkeys(("ttft_error", "ttft_p99_error", "tpot_error"))
    figures = {
        "ttft_mean": (np.mean(ttft_s), np.mean(true_ttft_s)),
        "ttft_p99": (np.quantile(ttft_s, 0.99), np.quantile(true_ttft_s, 0.99)),
        "tpot_mean": (np.nanmean(tpot_s), np.mean(true_tpot_s)),
    }
    values: dict[str, float | None] = {}
    for name, (client, server) in figures.items():
        values |= {f"{name}_s": float(client), f"server_{name}_s": float(server)}
        values[f"{name.removesuffix('_mean')}_error"] = float(client / server - 1) if server else None
    return values


# --- the plain C client ---


def request_bytes(tokens: int = 128) -> bytes:
    """One request as our client sends it."""
    from harness.pool import Pool
    from harness.protocols import Target, path_and_body
    from harness.scenario import Sampling
    from harness.workloads import PromptPlan

    target = Target("http://127.0.0.1:8000/v1", "openai", "reference", {}, None, True, True, True)
    path, body = path_and_body(target, "completions", PromptPlan().prompt("c", 0, INPUT_TOKENS), tokens, Sampling())
    pool = Pool(target)
    head = f"POST {pool.prefix}{path}".encode() + pool.head + b"Content-Length: %d\r\n\r\n" % len(body)
    return head + body


def run_c_client(server: Server, streams: int, seconds: float, ramp_s: float) -> dict[str, Any]:
    """The plain C client on the client's core; its figures."""
    with tempfile.NamedTemporaryFile() as request:
        request.write(request_bytes())
        request.flush()
        server.stats(reset=True)
        command = [built("client"), "--port", server.port, "--streams", streams, "--seconds", seconds]
        cores = client_cores(server.cores)
        done = run_pinned([*command, "--ramp-ms", ramp_s * 1e3, "--request", request.name], cores=cores)
    if done.code:
        sys.exit(f"client.c failed: {done.output}")
    stats = server.stats()
    figures: dict[str, Any] = json.loads(done.output)
    figures |= {"server": stats, "void": stats["late_p99_s"] > LATE_MAX_S}
    figures["ttft_error"] = figures["ttft_mean_s"] / stats["ttft_mean_s"] - 1 if stats["requests"] else None
    return figures


# --- output ---


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ms(seconds: float | None, digits: int = 2) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.{digits}f}"


def percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio * 100:+.2f} %"


def numbers(text: str) -> list[int]:
    """An option's list: `1,64,256`."""
    return [int(part) for part in text.split(",")]


def machine() -> str:
    """What stands above a table: machine, load, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release}, load {load:.1f} when this began."


def save(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"\n{path}", file=sys.stderr)
