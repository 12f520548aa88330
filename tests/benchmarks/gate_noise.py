"""Real noise for the gate's trials: a run folder of many repeats of one engine, cut down to what the trials resample.

    python -m tests.benchmarks.gate_noise results/noise-run results/reference/gate-noise/ollama.parquet

One row a measured request: `repeat`, `start_s` (of its repeat), `ttft_s`, `tpot_s`, and the repeat's `output_tok_s`.
How the files there were made: `results/reference/gate-noise/README.md`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics import METRICS
from harness.store import RunFolder
from reports.rundata import read

FOLDER = Path(__file__).parents[2] / "results/reference/gate-noise"


@dataclass(frozen=True)
class Noise:
    """Real repeats in the order of measuring: `ttft_s` is repeat x request, `output_tok_s` one figure a repeat."""

    name: str
    ttft_s: Any
    output_tok_s: Any


def load(name: str) -> Noise:
    """A stored set, by the stem of its file."""
    frame = pd.read_parquet(FOLDER / f"{name}.parquet")
    groups = [group for _, group in frame.groupby("repeat")]
    ttft = np.stack([group["ttft_s"].to_numpy(dtype=float) for group in groups])
    return Noise(name, ttft, np.array([group["output_tok_s"].iloc[0] for group in groups], dtype=float))


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    data = read(RunFolder.open(source))
    (parts,) = data.measured.values()
    frames = []
    for run, part in parts:
        ok = part.ok
        frames.append(
            pd.DataFrame(
                {
                    "repeat": np.int16(run.repeat),
                    "start_s": np.float32(run.start_s or 0.0),
                    "ttft_s": (part.requests["first"] - part.requests["sent"])[ok].astype(np.float32),
                    "tpot_s": part.requests["tpot"][ok].astype(np.float32),
                    "output_tok_s": np.float32(METRICS["output_tok_s"].formula(part).value or np.nan),
                }
            )
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_parquet(target, compression="zstd", index=False)
    print(f"{target}: {len(frames)} repeats, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
