"""Times of sending from three hosts of a Ray cluster beside those of one, against the law that was asked for.

Namespaces on one machine, so that all hosts share its cores: what is compared is three against one, not either against
a quiet machine. As root on Linux: `python -m tests.benchmarks.cluster_arrivals [--rate 100] [--seconds 30]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness.store import RunFolder
from tests.benchmarks.arrival_laws import sent_row
from tests.benchmarks.rig import table
from tests.cluster.rig import Rig, why_not

SCENARIO = """
name: sent
engines: [{{name: ref, kind: openai, model: reference, base_url: "http://{server}:8000/v1"}}]
workload: {{kind: synthetic, input_tokens: 16, output_tokens: 8}}
load: [{{kind: poisson, rate: {rate}, duration: {seconds}s}}]
warmup: {{requests: 4}}
client: {{workers: 1}}
seed: {seed}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    rows = []
    with Rig([1000, 5000, 300, 70]) as rig, tempfile.TemporaryDirectory() as work:
        server = rig.hosts[3]
        server.start(sys.executable, "-m", "harness.refserver", "--host", server.address, "--port", "8000")
        for repeat in range(given.repeats):
            path = Path(work) / f"{repeat}.yaml"
            path.write_text(
                SCENARIO.format(server=server.address, rate=given.rate, seconds=given.seconds, seed=repeat + 1)
            )
            for title, more in (("one host", []), ("three hosts", ["--cluster", rig.address])):
                out = Path(work) / f"{repeat}-{len(more)}"
                words = ["run", path, "--out", out, "--no-report", *more]
                done = rig.hosts[0].run(sys.executable, "-m", "bench", *words, timeout_s=300)
                if not (out / "run.json").exists():
                    sys.exit(done.stdout + done.stderr)
                folder = RunFolder.open(out)
                point = folder.read_run().points[0]
                frame = folder.requests().select(["point", "phase", "scheduled_s", "sent_s", "worker"]).to_pandas()
                mine = frame[(frame.point == point.point) & (frame.phase == "measure")].sort_values("scheduled_s")
                row = sent_row(title, mine, given.rate, point.status)
                error = point.client.get("clock_error_s")
                rows.append(row | {"clock error, ms": "-" if error is None else f"{error * 1e3:.3f}"})
    print(table(rows))


if __name__ == "__main__":
    main()
