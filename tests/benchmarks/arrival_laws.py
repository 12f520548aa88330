"""Due times against their law over many seeds, and times of sending against due times at a rate.

    python -m tests.benchmarks.arrival_laws                  # both, with 1 and 2 load processes
    python -m tests.benchmarks.arrival_laws --rate 0         # the due times alone, anywhere, in seconds

If due times follow their law, Kolmogorov's test of them gives p-values that are uniform over seeds, and the test of
those against the uniform law gives a p that is not small. The times of sending are those of one `bench run` against the
C server, with everything on; their distance from the law stands beside that of the same requests' due times. The server
has one core, the load all others: run it on a host that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness.arrivals import schedule
from harness.loads import Point
from harness.store import RunFolder
from tests.benchmarks import rig
from tests.laws import SHAPES, ks, made_uniform

LEAD_S, TAIL_S, GAPS = 2.0, 10.0, 1000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=200)
    options.add_argument("--rate", type=float, default=200.0, help="requests/s; 0: due times alone")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--workers", type=rig.numbers, default=[1, 2])
    options.add_argument("--repeats", type=int, default=1)
    given = options.parse_args()
    print(rig.machine())
    print(f"\nDue times, {given.seeds} seeds of {GAPS} gaps each:\n")
    print(rig.table([due_row(name, point, given.seeds) for name, point in SHAPES.items()]))
    if given.rate:
        print(f"\nSent times, {given.rate:g}/s poisson for {given.seconds:g} s:\n")
        rows = [
            row
            for workers in given.workers
            for _ in range(given.repeats)
            for row in sent_rows(given.rate, given.seconds, workers)
        ]
        print(rig.table(rows))


def due_row(name: str, point: Point, seeds: int) -> dict[str, str]:
    """The p-values of one law over the seeds: their own test, and how many are small."""
    tests = [
        ks(made_uniform(point, schedule(point, LEAD_S, TAIL_S, f"{name}/{seed}").due_s[:GAPS], -LEAD_S))
        for seed in range(seeds)
    ]
    distances, p = np.array([d for d, _ in tests]), np.array([p for _, p in tests])
    distance, chance = ks(p)
    return {
        "law": name, "KS distance, median": f"{np.median(distances):.4f}", "p below 0.05": f"{(p < 0.05).mean():.3f}",
        "p below 0.5": f"{(p < 0.5).mean():.3f}", "KS distance of the p-values": f"{distance:.4f}",
        "its p": f"{chance:.3f}",
    }  # fmt: skip


def sent_rows(rate: float, seconds: float, workers: int) -> list[dict[str, str]]:
    """One run: the union of its load processes, and each of them where there are several."""
    with rig.Server(50.0, 10.0, tokens=8) as server, tempfile.TemporaryDirectory(prefix="enginebench-") as work:
        folder = run_ours(server, Path(work), rate, seconds, workers)
        point = folder.read_run().points[0]
        frame = folder.requests().select(["point", "phase", "scheduled_s", "sent_s", "worker"]).to_pandas()
    rows = frame[(frame.point == point.point) & (frame.phase == "measure")].sort_values("scheduled_s")
    title = f"{workers} of {workers}" if workers > 1 else "1"
    found = [sent_row(title, rows, rate, point.status)]
    if workers > 1:
        # Due times are dealt out in turn: of the Poisson process each has gaps that are gamma of shape `workers`.
        law = Point("share", "gamma", rate_rps=rate / workers, shape={"burstiness": float(workers)})
        found += [sent_row(f"number {n}", part, rate / workers, "", law) for n, part in rows.groupby("worker")]
    return found


def sent_row(title: str, rows: Any, rate: float, status: str, law: Point | None = None) -> dict[str, str]:
    law = law or Point("p", "poisson", rate_rps=rate)
    due, sent = rows.scheduled_s.to_numpy(), np.sort(rows.sent_s.to_numpy())
    late = rows.sent_s - rows.scheduled_s
    values = {"due": ks(made_uniform(law, due[1:], due[0])), "sent": ks(made_uniform(law, sent[1:], sent[0]))}
    return {
        "load processes": title, "requests": f"{len(rows):,}", "status": status,
        **{f"KS distance, {name}": f"{distance:.4f} (p {p:.2f})" for name, (distance, p) in values.items()},
        "send delay p50, ms": rig.ms(late.quantile(0.5), 3), "p99, ms": rig.ms(late.quantile(0.99), 3),
        "largest, ms": rig.ms(late.max(), 3),
    }  # fmt: skip


def run_ours(server: rig.Server, work: Path, rate: float, seconds: float, workers: int) -> RunFolder:
    """`bench run` of one Poisson point, on every core but the server's."""
    scenario = work / "scenario.yaml"
    scenario.write_text(
        "name: benchmark\n"
        f"engines: [{{name: c, kind: openai, model: reference, flavor: vllm, base_url: '{server.base_url}'}}]\n"
        f"workload: {{input_tokens: {rig.INPUT_TOKENS}, output_tokens: 8}}\n"
        f"client: {{workers: {workers}}}\n"
        f"load: [{{kind: poisson, rate: {rate:g}, duration: {seconds:g}s}}]\n"
    )
    others = set(rig.CORES) - {rig.server_cores()[0]}
    if not others:
        sys.exit("two cores are needed: one for the server, one for the client")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", str(scenario), "--out", str(work / "run"), "--no-report"],
        capture_output=True, text=True, timeout=seconds + 300, check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, others),
    )  # fmt: skip
    if not (work / "run/run.json").exists() or done.returncode:
        sys.exit(f"bench run failed:\n{done.stdout}{done.stderr}")
    return RunFolder.open(work / "run")


if __name__ == "__main__":
    main()
