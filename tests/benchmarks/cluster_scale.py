"""What 10, 100 and 1,000 load hosts would ask of the host of `bench run`: measured costs of one host, times so many.

Measured here: bytes of a record, CPU and memory of the tool for each host it talks to, a call through Ray, a clock
packet. Simulated: the clock error, when hosts are asked in turn. `python -m tests.benchmarks.cluster_scale`.
"""

from __future__ import annotations

import os
import pickle
import random
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from harness.cluster.agent import Heard
from harness.cluster.board import LEAD_S, Said
from harness.cluster.clock import DRIFT, Clock
from harness.cluster.echo import Asker, Echo
from harness.cluster.load import PINGS, ClusterLoad
from harness.cluster.node import LoadNode
from harness.cluster.whole import SYNC_S, Part, Whole
from harness.job import Job
from harness.journal import Journal
from harness.protocols import Target
from harness.records import RequestRecord
from harness.scenario import Point, Workload
from harness.workloads import PromptPlan
from tests.benchmarks.rig import machine, table

TOKENS = 128
CHUNKS_S_A_HOST = 4 * 40_000.0  # docs/load.md: a load process is given 40,000 chunks/s, a 16-core host has four
LAN_TRIP_S = 150e-6  # a guess at a round trip between two hosts of one rack; loopback is measured beside it
SECONDS = 60.0


class Canned:
    """A host that answers from memory, through pickle as Ray would."""

    def __init__(self, heard: bytes) -> None:
        self.heard = heard

    def ask(self, method: str, *args: Any) -> bytes:
        pickle.dumps(args)
        return self.heard

    def answer(self, asked: bytes, timeout_s: float) -> Any:
        return pickle.loads(asked)

    def end(self) -> None: ...


class Unpinged(LoadNode):
    """Its clock packets are counted apart."""

    def ping(self, count: int) -> None: ...


def record_bytes() -> float:
    """Of a finished request of 128 chunks in a load process's journal, in batches as it writes them."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as work:
        journal = Journal(Path(work) / "requests-0000.arrows", "requests", 0.0, 32)
        count = 3200
        for number in range(count):
            gaps = [0.01 + rng.random() * 1e-3 for _ in range(TOKENS - 1)]
            journal.add(
                RequestRecord(
                    "vllm", "c64", 0, number, "measure", 1.0, 1.0, 1.1, 2.4, 2.4, 512, TOKENS, "server", TOKENS, gaps,
                    0.1, 0.01, 1.4, "ok", 200, None, "length", 512, TOKENS, 1, 1.1,
                )
            )  # fmt: skip
            if number % 32 == 31:
                journal.flush()
        journal.close()
        return (Path(work) / "requests-0000.arrows").stat().st_size / count


def round_cost_s(hosts: int, row_bytes: float) -> float:
    """CPU of the tool a host and round of talk, with the bytes that such a round brings; Ray's part apart."""
    data = bytes(int(row_bytes * CHUNKS_S_A_HOST / TOKENS * SYNC_S))
    said = Said(True, True, 8.0, 100.0, 1.0, 2.0, None, {"done": 1.0, "ttft_s": 0.1})
    with tempfile.TemporaryDirectory() as work:
        parts = []
        for number in range(hosts):
            heard = Heard(time.monotonic(), said, {number: data})
            node = Unpinged(f"load{number}", "", Canned(pickle.dumps(heard)), 4)
            parts.append(Part(node, {number: f"{work}/{number}"}))
        job = Job("v", Point("p", "poisson", rate_rps=1.0), 0, Target("http://h/v1", "openai", "m"), Workload(),
                  PromptPlan(), 0.0)  # fmt: skip
        load = ClusterLoad([part.node for part in parts], 0.0, lambda row: None, lambda text: None)
        whole = Whole(load, job, parts)
        whole._round()
        began = time.process_time()
        for _ in range(10):
            whole._round()
        return (time.process_time() - began) / 10 / hosts


def clock_bytes() -> float:
    """Memory of one host's pings, when there are as many as are kept."""
    tracemalloc.start()
    clock = Clock()
    for number in range(2000):
        clock.add(number * 1.0, number + 0.5, number + 0.7)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return float(held)


def packet_s() -> float:
    """Median round trip of the clock question over loopback."""
    echo = Echo("127.0.0.1")
    asker = Asker(echo.place, echo.secret)
    trips = [back - sent for sent, _, back in (asker.ask() or (0, 0, 9) for _ in range(500))]
    asker.close()
    echo.close()
    return statistics.median(trips)


class Stamp:
    """What a call through Ray is measured with."""

    def sync(self, told: Any) -> Heard:
        return Heard(time.monotonic())


def ray_call_s() -> float | None:
    """CPU of this process a call of an actor, many under way at a time; None without Ray."""
    try:
        import ray
    except ImportError:
        return None
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else it writes a token into the home directory
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actor = ray.remote(Stamp).remote()
    ray.get(actor.sync.remote(Said()))
    began = time.process_time()
    for _ in range(20):
        ray.get([actor.sync.remote(Said()) for _ in range(100)])
    cost = (time.process_time() - began) / 2000
    ray.shutdown()
    return cost


def clock_error_s(hosts: int, trip_s: float) -> float:
    """The error that would be stated for the last host asked, over a point of a minute: asked before the start with all
    others, then once a round. Its clock drifts by half of what is allowed."""
    rng, clock, drift = random.Random(2), Clock(), DRIFT / 2
    round_s = max(SYNC_S, hosts * trip_s)

    def ping(at_s: float) -> None:
        out, back = (trip_s / 2 + rng.expovariate(1 / (trip_s / 4)) for _ in range(2))
        clock.add(at_s, 100.0 + (at_s + out) * (1 + drift), at_s + out + back)

    for number in range(PINGS):
        ping(-hosts * PINGS * trip_s + number * trip_s)  # the first host waits for all after it
    used = clock.at(-(hosts - 1) * PINGS * trip_s)
    at_s = 0.0
    while at_s < SECONDS:
        ping(at_s)
        at_s += round_s
    error = clock.error_of(used.offset_s if used else 0.0, 0.0, SECONDS)
    return error if error is not None else float("nan")


def main() -> None:
    print(machine(), "\n")
    row_bytes, call_s, trip_s, held = record_bytes(), ray_call_s(), packet_s(), clock_bytes()
    own_s = statistics.median(round_cost_s(50, row_bytes) for _ in range(3))
    print(f"a record of {TOKENS} chunks: {row_bytes:,.0f} bytes")
    print(f"the tool's own CPU a host and round: {own_s * 1e6:,.0f} us")
    print(f"CPU of a call through Ray: {'not measured' if call_s is None else f'{call_s * 1e6:,.0f} us'}")
    print(f"a clock packet over loopback: {trip_s * 1e6:,.0f} us; pings of a host: {held / 1e3:,.0f} kB\n")
    rows = []
    for hosts in (10, 100, 300, 1000):
        trip = max(trip_s, LAN_TRIP_S)
        busy_s = hosts * (own_s + (call_s or 0.0) + trip)
        round_s = busy_s + SYNC_S
        chunks = hosts * CHUNKS_S_A_HOST
        rows.append({
            "load hosts": f"{hosts:,}", "chunks/s": f"{chunks / 1e6:,.1f} M", "requests/s": f"{chunks / TOKENS:,.0f}",
            "records, MB/s": f"{chunks / TOKENS * row_bytes / 1e6:,.0f}", "a round of talk, s": f"{round_s:.2f}",
            "tool's core busy": f"{hosts * (own_s + (call_s or 0.0)) / round_s:.0%}",
            "start known in time": "yes" if 2 * round_s < LEAD_S else "**no**",
            "clocks measured in, s": f"{hosts * PINGS * trip:.1f}", "clock error over a minute, ms":
            f"{clock_error_s(hosts, trip) * 1e3:.1f}", "pings held, MB": f"{hosts * held / 1e6:,.0f}",
        })  # fmt: skip
    print(table(rows))


if __name__ == "__main__":
    main()
