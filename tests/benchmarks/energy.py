"""Sampled GPU power against the GPU's own energy counter over one run: the integral of the samples must be near it.

On a host with an NVIDIA GPU and torch:  python -m tests.benchmarks.energy [--seconds 45]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from harness.store import RunFolder

BURN = """
import sys, time, torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    a @ a
    torch.cuda.synchronize()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=45.0, help="how long the GPU is kept busy")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with subprocess.Popen([sys.executable, "-c", BURN, str(seconds)]) as load:
            command = [sys.executable, "-m", "bench", "run", "quickstart", "--no-report", "--out", str(out)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            load.terminate()
        frame = RunFolder.open(out).telemetry().to_pandas()
        cost = RunFolder.open(out).read_run().environment["telemetry_cost_ratio"]
    for source in sorted(name for name in frame.source.unique() if name.startswith("nvidia")):
        rows = frame[frame.source == source]
        power, energy = (rows[rows.metric == metric].sort_values("time_s") for metric in ("power_w", "energy_j"))
        counted = energy.value.iloc[-1] - energy.value.iloc[0]
        sampled = float(np.trapezoid(power.value, power.time_s))
        span_s = energy.time_s.iloc[-1] - energy.time_s.iloc[0]
        print(
            f"{source}: sampled {sampled:,.0f} J, counter {counted:,.0f} J over {span_s:.1f} s: "
            f"{(sampled / counted - 1) * 100:+.2f} %; sampler {cost * 100:.2f} % of a core"
        )


if __name__ == "__main__":
    main()
