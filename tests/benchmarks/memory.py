"""What the tool itself takes: memory at much load, memory over many requests, time outside the load.

    python -m tests.benchmarks.memory

First 1,024 streams and 400,000 chunks, a gap of 20 ms: under 200 MB. Then 100,000 and 1,000,000 requests of 4 tokens
(TTFT 1 ms, no gap): the peak within 20 %. Each in under 1 s outside the load: wall time less engine start, warm-up, and
the load's ramp, window and drain. Peaks are of RSS: the load process, the tool's own, and all together (shared pages
count in each); and all together by PSS, where a shared page counts once, looked at once a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.benchmarks import rig


def trial(streams: int, requests: int, tokens: int, ttft_ms: float, gap_ms: float) -> dict[str, Any]:
    with rig.Server(ttft_ms, gap_ms, tokens) as server:
        load = f"{{kind: concurrency, levels: [{streams}], requests: {requests}}}"
        found = rig.run_ours(server, load, tokens, timeout_s=3600)
    return {"streams": streams, "asked": requests, "tokens": tokens, **found}


def row(trial: dict[str, Any]) -> dict[str, str]:
    chunks = trial["asked"] * trial["tokens"]
    return {
        "streams": str(trial["streams"]), "requests": f"{trial['asked']:,}", "chunks": f"{chunks:,}",
        "load process, MB": f"{trial['peak_load_mb']:.0f}", "tool, MB": f"{trial['peak_main_mb']:.0f}",
        "together, MB": f"{trial['peak_mb']:.0f}", "shared pages once, MB": f"{trial['pss_mb']:.0f}",
        "wall, s": f"{trial['wall_s']:.1f}",
        "s outside": f"{trial['outside_s']:.2f}", "requests/s": f"{trial['requests'] / trial['window_s']:,.0f}",
        "failed": str(trial["failed"]), "status": trial["status"],
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.memory", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--streams", type=int, default=1024, help="of the first trial")
    options.add_argument("--chunks", type=int, default=400_000, help="of the first trial")
    options.add_argument("--requests", type=rig.numbers, default=[100_000, 1_000_000], help="of the others")
    options.add_argument("--json", type=Path, default=Path("results/benchmarks/memory.json"))
    given = options.parse_args()
    machine = rig.machine()
    trials = [trial(given.streams, given.chunks // 128, 128, 50, 20)]
    trials += [trial(64, requests, 4, 1, 0) for requests in given.requests]
    print(machine, rig.table([row(t) for t in trials]), sep="\n\n")
    if len(trials) > 2:
        for key in ("peak_load_mb", "peak_main_mb", "peak_mb"):
            growth = trials[-1][key] / trials[1][key] - 1
            print(f"\n{key}: {rig.percent(growth)} from {trials[1]['asked']:,} to {trials[-1]['asked']:,} requests.")
    rig.save(given.json, {"machine": machine, "trials": trials})


if __name__ == "__main__":
    main()
