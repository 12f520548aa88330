"""How much one core can take: our client's peak beside that of a plain C client, against the same server.

    python -m tests.benchmarks.ceiling

Streams at a gap of 10 ms (97 chunks/s each) are added until the mean TTFT is off by more than 5 %. The peak is the most
chunks/s of a trial that counts: TTFT within 5 %, the server on time, not client-limited. The C client does nothing but
stamp, count and ask again: it is the physical limit of the core. The client has one core; the server has two where
there are four, so that it is not the first to give in. Where the server is late first, its peak is a lower
bound of that limit; CPU time a chunk compares the two clients all the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.benchmarks import rig

TTFT_MS, GAP_MS, TOKENS, ERROR_MAX = 50, 10, 128, 0.05
LATENCY_S = (TTFT_MS + (TOKENS - 1) * GAP_MS) / 1e3


SERVER_CORES = 2 if len(rig.CORES) >= 4 else 1


def ours(streams: int, seconds: float) -> dict[str, Any]:
    with rig.Server(TTFT_MS, GAP_MS, TOKENS, SERVER_CORES) as server:
        found = rig.run_ours(server, f"{{kind: concurrency, levels: [{streams}], duration: {seconds:g}s}}", TOKENS)
    cpu = found["client"].get("cpu_ratio") or 0.0
    return found | {"cpu_ratio": cpu, "cpu_us_per_chunk": cpu / found["chunks_per_s"] * 1e6}


def plain_c(streams: int, seconds: float) -> dict[str, Any]:
    with rig.Server(TTFT_MS, GAP_MS, TOKENS, SERVER_CORES) as server:
        return rig.run_c_client(server, streams, seconds, LATENCY_S) | {"status": "done"}


CLIENTS = {"enginebench": ours, "client.c": plain_c}


def climb(client: str, streams: list[int], seconds: float) -> list[dict[str, Any]]:
    """Trials of more and more streams, until two in a row do not count."""
    trials: list[dict[str, Any]] = []
    for count in streams:
        trials.append({"client_name": client, "streams": count, **CLIENTS[client](count, seconds)})
        if len(trials) > 1 and not any(counts(t) for t in trials[-2:]):
            break
    return trials


def counts(trial: dict[str, Any]) -> bool:
    error = trial["ttft_error"]
    return not trial["void"] and trial["status"] == "done" and error is not None and abs(error) <= ERROR_MAX


def row(trial: dict[str, Any]) -> dict[str, str]:
    return {
        "client": trial["client_name"], "streams": str(trial["streams"]), "chunks/s": f"{trial['chunks_per_s']:,.0f}",
        "mean TTFT error": rig.percent(trial["ttft_error"]), "client CPU": f"{trial['cpu_ratio']:.0%}",
        "CPU us a chunk": f"{trial['cpu_us_per_chunk']:.2f}", "server CPU": f"{trial['server']['cpu_ratio']:.0%}",
        "server late p99, ms": rig.ms(trial["server"]["late_p99_s"]),
        "counts": "yes" if counts(trial) else "void" if trial["void"] else trial["status"].replace("done", "no"),
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.ceiling", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--streams", type=rig.numbers, default=[512, 640, 768, 896, 960, 1024, 1152, 1280, 1408, 1536])
    options.add_argument("--seconds", type=float, default=10.0, help="of each window")
    options.add_argument("--json", type=Path, default=Path("results/benchmarks/ceiling.json"))
    given = options.parse_args()
    machine = rig.machine()
    trials = [trial for client in CLIENTS for trial in climb(client, given.streams, given.seconds)]
    print(machine, rig.table([row(trial) for trial in trials]), sep="\n\n")
    peak, cost = {}, {}
    for client in CLIENTS:
        counted = [t for t in trials if t["client_name"] == client and counts(t)]
        peak[client] = max((t["chunks_per_s"] for t in counted), default=0.0)
        cost[client] = min((t["cpu_us_per_chunk"] for t in counted), default=0.0)
        print(f"\n{client}: peak {peak[client]:,.0f} chunks/s, at best {cost[client]:.2f} us of CPU a chunk.")
    if all(peak.values()):
        ratio, of_cost = peak["enginebench"] / peak["client.c"], cost["enginebench"] / cost["client.c"]
        print(
            f"\nOurs reaches {ratio:.0%} of the plain C client's peak, and takes {of_cost:.1f} times its CPU a chunk."
        )
    rig.save(given.json, {"machine": machine, "trials": trials, "peak": peak})


if __name__ == "__main__":
    main()
