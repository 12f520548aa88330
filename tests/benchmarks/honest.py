"""Who is slow: a client slowed on purpose is found out, a slow server is not blamed on the client, a stall shows.

    python -m tests.benchmarks.honest

Four runs of `bench run` with everything on, against the reference server. `slowed client`: a thread that only counts
runs in the load process, and takes the interpreter from it for 5 ms at a time. `slow server`: TTFT 800 ms, gap 100 ms.
`stalled server`: nothing is sent for 2 s in mid-window; in the due clock the requests that fall due meanwhile wait
up to 2 s, though each is sent on time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.store import RunFolder
from tests.benchmarks import rig
from tests.rawserver import reference_server

SLOWED = """
import os, threading
def count():
    number = 0
    while True:
        number += 1
os.register_at_fork(after_in_child=lambda: threading.Thread(target=count, daemon=True).start())
"""
CLOSED = "{kind: concurrency, levels: [16], duration: 5s}"
OPEN = "{kind: constant, rate: 40/s, duration: 8s}"
CASES: dict[str, tuple[list[str], str, bool]] = {
    "ordinary": ([], CLOSED, False),
    "slowed client": ([], CLOSED, True),
    "slow server": (["--ttft", "800ms", "--gap", "100ms"], CLOSED, False),
    "stalled server": (["--stall-at", "6s", "--stall-for", "2s"], OPEN, False),
}
WANTED = {"ordinary": "done", "slowed client": "client-limited", "slow server": "done", "stalled server": "done"}


def run(case: str) -> dict[str, Any]:
    options, load, slowed = CASES[case]
    with reference_server(*options) as url, tempfile.TemporaryDirectory(prefix="enginebench-") as work:
        scenario, out = Path(work) / "scenario.yaml", Path(work) / "run"
        scenario.write_text(
            "name: honest\n"
            f"engines: [{{name: ref, kind: openai, model: reference, flavor: vllm, base_url: '{url}/v1'}}]\n"
            f"workload: {{input_tokens: 32, output_tokens: 16}}\nload: [{load}]\nwarmup: {{requests: 2}}\n"
        )
        (Path(work) / "sitecustomize.py").write_text(SLOWED if slowed else "")
        env = {**os.environ, "PYTHONPATH": f"{work}{os.pathsep}{Path.cwd()}"}
        command = [sys.executable, "-m", "bench", "run", str(scenario), "--out", str(out), "--no-report"]
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=False, timeout=120)
        folder = RunFolder.open(out)
        point = folder.read_run().points[0]
        frame = folder.requests().to_pandas()
    rows = frame[(frame.phase == "measure") & (frame.status == "ok")]
    due = rows.first_token_s - rows.scheduled_s
    return {
        "case": case, "status": point.status, "warnings": point.warnings, "requests": len(rows),
        "ttft_p50_s": float(rows.ttft_s.median()), "due_max_s": float(due.max()),
        "send_delay_max_s": float((rows.sent_s - rows.scheduled_s).max()), "client": point.client,
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.honest", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--json", type=Path, default=Path("results/benchmarks/honest.json"))
    given = options.parse_args()
    machine, found = rig.machine(), [run(case) for case in CASES]
    rows = [
        {
            "case": f["case"], "status": f["status"], "as wanted": "yes" if f["status"] == WANTED[f["case"]] else "NO",
            "TTFT p50, ms": rig.ms(f["ttft_p50_s"]), "TTFT from due, longest, ms": rig.ms(f["due_max_s"], 0),
            "sent late by at most, ms": rig.ms(f["send_delay_max_s"]),
            "loop lag p99, ms": rig.ms(f["client"]["loop_lag_p99_s"]), "requests": str(f["requests"]),
            "why": "; ".join(f["warnings"]) or "-",
        }
        for f in found
    ]  # fmt: skip
    print(machine, rig.table(rows), sep="\n\n")
    rig.save(given.json, {"machine": machine, "cases": found})


if __name__ == "__main__":
    main()
