"""How long a report of a million requests takes, and how large its page is.

Run: python -m tests.benchmarks.report_million [--requests 1000000] [--gaps 31] [--keep DIR]

Makes a run folder of two engines at four loads with two repeats, 32 tokens a request (31 gaps), and times the whole
command `bench report` as a user has it, imports included. Exits 1 where it took over 15 s of a core or the page has
over 5 MB; the wall time is printed too, and means something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.tables import PARQUET, REQUEST_SCHEMA
from tests.runfolders import two_engines

LIMIT_S, LIMIT_BYTES = 15.0, 5e6
WINDOW_S = 600.0


def make(path: Path, requests: int, gaps: int) -> None:
    """A folder of so many requests: its points follow each other, as those of a real run do."""
    two_engines(repeats=2).write(path)
    run = json.loads((path / "run.json").read_text())
    dice, begin, each = np.random.default_rng(1), 0.0, requests // len(run["points"])
    with pq.ParquetWriter(path / "requests.parquet", REQUEST_SCHEMA, **PARQUET) as writer:
        for number, point in enumerate(run["points"]):
            count = each if number else requests - each * (len(run["points"]) - 1)
            point |= {"start_s": begin, "open_s": begin + 5, "close_s": begin + 5 + WINDOW_S, "end_s": begin + 610.0}
            writer.write_table(point_table(point, count, gaps, dice), row_group_size=20_000)
            begin = point["end_s"] + 2
    (path / "run.json").write_text(json.dumps(run))


def point_table(point: dict[str, Any], count: int, gaps: int, dice: np.random.Generator) -> pa.Table:
    due = np.sort(dice.uniform(point["start_s"], point["close_s"], count))
    ok = dice.random(count) > 0.002
    between = dice.lognormal(-4.5, 0.5, (count, gaps)).astype(np.float32)
    ttft, total = dice.lognormal(-2, 0.4, count), between.sum(1, dtype=np.float64)
    first, last = due + ttft, due + ttft + total

    def known(values: Any) -> pa.Array:
        return pa.array(values, mask=~ok)

    offsets = pa.array(np.concatenate([[0], np.cumsum(np.where(ok, gaps, 0))]), pa.int32())
    columns: dict[str, Any] = {
        "engine": [point["engine"]] * count, "point": [point["point"]] * count,
        "repeat": np.full(count, point["repeat"]), "request_id": np.arange(count),
        "phase": np.where(due < point["open_s"], "warmup", "measure").astype(object), "scheduled_s": due,
        "sent_s": due + 1e-4, "first_token_s": known(first), "last_token_s": known(last),
        "end_s": np.where(ok, last, due + 0.05), "input_tokens": known(np.full(count, 256)),
        "output_tokens": known(np.full(count, gaps + 1)), "token_source": np.where(ok, "server", None),
        "chunks": np.where(ok, gaps + 1, 0), "gaps_s": pa.ListArray.from_arrays(offsets, pa.array(between[ok].ravel())),
        "ttft_s": known(ttft), "tpot_s": known(total / gaps), "e2e_s": known(ttft + total),
        "status": np.where(ok, "ok", "error").astype(object), "http_status": np.where(ok, 200, 503),
        "error": np.where(ok, None, "queue full"), "finish_reason": np.where(ok, "length", None),
        "asked_input_tokens": np.full(count, 256), "asked_output_tokens": np.full(count, gaps + 1),
        "first_chunk_tokens": np.ones(count, np.int32), "first_answer_s": known(first), "worker": np.zeros(count, int),
    }  # fmt: skip
    arrays = []
    for field in REQUEST_SCHEMA:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(count, field.type))
        else:
            arrays.append(values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type))
    return pa.table(arrays, schema=REQUEST_SCHEMA)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--gaps", type=int, default=31)
    parser.add_argument("--keep", type=Path, help="make the folder here, and leave it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "run"
        if not (folder / "requests.parquet").exists():
            make(folder, given.requests, given.gaps)
        before, begun = os.times(), time.monotonic()
        subprocess.run([sys.executable, "-m", "bench", "report", str(folder)], check=True, stdout=subprocess.DEVNULL)
        after, wall_s = os.times(), time.monotonic() - begun
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        size = (folder / "report.html").stat().st_size
    print(f"{given.requests:,} requests of {given.gaps + 1} tokens: {cpu_s:.1f} s of a core, {wall_s:.1f} s, "
          f"page {size / 1e6:.2f} MB, load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    return 0 if cpu_s < LIMIT_S and size < LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
