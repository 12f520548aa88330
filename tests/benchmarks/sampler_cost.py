"""What each telemetry source costs on this host: CPU time of a read at a run's pace (with cold caches), and of all.

python -m tests.benchmarks.sampler_cost [--seconds 30] [--processes 8]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness.records import TelemetrySample
from harness.store import RunFolder
from harness.telemetry import nvidia, nvidia_detail
from harness.telemetry.family import FamilyDetailSource, ProcessFamilySource
from harness.telemetry.host import CoresSource, HostSource
from harness.telemetry.ollama import OllamaSource
from harness.telemetry.sampler import Sampler
from harness.telemetry.slot import Source, label
from harness.telemetry.vllm import NAMES, vllm_source

GAP_S = 0.1
PAGE_BYTES = 53_000  # a page of vLLM 0.24
HELD = "import time; x = bytearray(64 << 20); time.sleep(600)"


class _Page(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"models": []}' if self.path == "/api/ps" else self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def page() -> bytes:
    lines = [f'{names[0]}{{engine="0",model_name="m"}} 1.0' for names in NAMES.values()]
    bucket = 'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 69.0'
    lines += [bucket] * ((PAGE_BYTES - sum(map(len, lines))) // (len(bucket) + 1))
    return "\n".join(lines).encode()


@contextlib.contextmanager
def server() -> Iterator[str]:
    _Page.body = page()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@contextlib.contextmanager
def family(count: int) -> Iterator[list[int]]:
    children = [subprocess.Popen([sys.executable, "-c", HELD]) for _ in range(count)]
    try:
        time.sleep(1)
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def sources(url: str, pids: list[int]) -> tuple[list[Source], str | None]:
    watch = nvidia_detail.GpuWatch()
    watch.engine(lambda: pids)
    gpus, reason = nvidia.nvidia_sources(
        make=lambda nvml, gpu: [
            nvidia.NvidiaSource(nvml, gpu), nvidia.NvidiaEnergySource(nvml, gpu),
            nvidia_detail.NvidiaDetailSource(nvml, gpu, watch), nvidia_detail.NvidiaPcieSource(nvml, gpu),
        ]
    )  # fmt: skip
    found = ProcessFamilySource(lambda: pids)
    return [HostSource(), CoresSource(), found, FamilyDetailSource(found.members), *gpus,
            vllm_source(f"{url}/metrics"), OllamaSource(url, "m")], reason  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU time of this thread, and wall time."""
    wall_s, cpu_s = time.perf_counter(), time.thread_time()
    call()
    return time.thread_time() - cpu_s, time.perf_counter() - wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the sampler itself is watched")
    parser.add_argument("--processes", type=int, default=8, help="of the engine's family")
    options = parser.parse_args()
    with server() as url, family(options.processes) as pids, tempfile.TemporaryDirectory() as folder:
        each, reason = sources(url, pids)
        print(f"{os.cpu_count()} cores; {reason or 'with a GPU'}\n")
        print("| source | every s | CPU ms a read | wall ms | % of a core |\n| --- | --- | --- | --- | --- |")
        spent: dict[str, list[tuple[float, float]]] = {}
        for _ in range(12):
            for source in each:
                time.sleep(GAP_S)
                spent.setdefault(label(source), []).append(timed(source.read))
        for source in each:
            cpu_s, wall_s = (statistics.median(pair[n] for pair in spent[label(source)][2:]) for n in (0, 1))
            share = 100 * cpu_s / source.period_s
            print(f"| {label(source)} | {source.period_s:g} | {1e3 * cpu_s:.2f} | {1e3 * wall_s:.2f} | {share:.2f} |")
        for source in each:
            for call in getattr(source, "_calls", ()):
                pairs = []
                for _ in range(8):
                    time.sleep(GAP_S)
                    pairs.append(timed(call))
                cpu_s, wall_s = (statistics.median(pair[n] for pair in pairs) for n in (0, 1))
                keys = ", ".join(call())
                print(f"| {label(source)}: {keys} | | {1e3 * cpu_s:.2f} | {1e3 * wall_s:.2f} | |")
        watch_sampler(each, Path(folder) / "run", options.seconds)


def watch_sampler(each: list[Source], path: Path, seconds: float) -> None:
    """The sampler with all of them, its samples written as a run writes them."""
    journal = RunFolder.create(path).telemetry_journal()
    count = 0

    def sink(sample: TelemetrySample) -> None:
        nonlocal count
        count += 1
        journal.add(sample)
        if journal.due():
            journal.flush()

    sampler = Sampler(each, sink, on_warning=lambda text: print(f"\nsaid: {text}"))
    sampler.start()
    time.sleep(seconds)
    sampler.stop()
    journal.close()
    print(f"\nsampler: {sampler.cost_ratio * 100:.2f} % of a core, {count / seconds:.0f} samples/s, "
          f"{sampler.missed} deadlines missed in {seconds:g} s")  # fmt: skip
    print({name: pace["period_s"] for name, pace in sampler.paces.items()})


if __name__ == "__main__":
    main()
