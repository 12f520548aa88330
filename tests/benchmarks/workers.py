"""Two load processes against one, under the same load: what they take, and how true they stay.

    python -m tests.benchmarks.workers --streams 1024,2048 --server-cores 3

For a machine of 8 cores or more: the C server (TTFT 50 ms, gap 10 ms, 128 tokens a request) has cores of its own, each
load process too, and the tool's own process the rest. Errors are against the server's stamps of the same requests.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks import rig

TTFT_MS, GAP_MS, TOKENS = 50, 10, 128


def trial(streams: int, workers: int, server_cores: int, seconds: float) -> dict[str, Any]:
    with rig.Server(TTFT_MS, GAP_MS, TOKENS, server_cores) as server:
        load = f"{{kind: concurrency, levels: [{streams}], duration: {seconds:g}s}}"
        return {"streams": streams, "workers": workers, **rig.run_ours(server, load, TOKENS, workers=workers)}


def row(found: dict[str, Any]) -> dict[str, str]:
    return {
        "streams": str(found["streams"]), "load processes": str(found["workers"]),
        "chunks/s": f"{found['chunks_per_s']:,.0f}", "mean TTFT error": rig.percent(found["ttft_error"]),
        "p99 TTFT error": rig.percent(found["ttft_p99_error"]), "mean TPOT error": rig.percent(found["tpot_error"]),
        "CPU of the busiest": f"{found['client'].get('cpu_ratio') or 0:.0%}", "requests": str(found["requests"]),
        "server's": str(found["server_requests"]), "server late p99, ms": rig.ms(found["server"]["late_p99_s"]),
        "counts": "void" if found["void"] else found["status"],
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.workers", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--streams", type=rig.numbers, default=[1024, 2048])
    options.add_argument("--workers", type=rig.numbers, default=[1, 2])
    options.add_argument("--server-cores", type=int, default=3)
    options.add_argument("--seconds", type=float, default=8.0, help="of each window")
    options.add_argument("--json", type=Path, default=Path("results/benchmarks/workers.json"))
    given = options.parse_args()
    if len(rig.CORES) < 8:
        sys.exit(f"8 cores are needed, for the server, the load and the rest; there are {len(rig.CORES)}")
    machine = rig.machine()
    trials = [
        trial(streams, workers, given.server_cores, given.seconds)
        for streams in given.streams
        for workers in given.workers
    ]
    print(machine, rig.table([row(t) for t in trials]), sep="\n\n")
    rig.save(given.json, {"machine": machine, "trials": trials})


if __name__ == "__main__":
    main()
