"""How long `bench gate` takes over five runs of 20,000 requests a side, as a process, from its start to its exit code.

    python -m tests.benchmarks.gate_speed [--requests 20000] [--tokens 32] [--times 5]

At most 3 s are allowed (the best of `--times`, as other work on the machine only ever adds).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.records import EngineRun, PointRun, RunRecord
from harness.store import RunFolder
from harness.tables import REQUEST_SCHEMA

LIMIT_S = 3.0
REPEATS, STREAMS = 5, 64
GATE = ["--limit", "ttft_p95: 5%", "--limit", "tpot_p95: 5%", "--limit", "output_tok_s: 3%"]


def write(path: Path, started_at: str, requests: int, tokens: int) -> None:
    """A run folder of five repeats of one point, as the tool leaves it."""
    load = {"name": "c64", "kind": "concurrency", "requests": requests, "concurrency": STREAMS}
    scenario = {"name": "speed", "engines": [{"name": "e", "kind": "vllm", "model": "m"}], "repeats": REPEATS}
    run = RunRecord("speed", scenario, "0" * 16, started_at, 0.0, "0.1.0", "done", environment={"cpu_model": "X"})
    run.engines.append(EngineRun("e", "vllm", "m", status="done"))
    folder = RunFolder.create(path)
    dice = np.random.default_rng(abs(hash(started_at)) % 2**32)
    tables, clock = [], 0.0
    for repeat in range(REPEATS):
        table, clock_end = _repeat(dice, repeat, clock, (requests, tokens))
        run.points.append(PointRun("e", "c64", repeat, load, "done", clock, clock, clock_end, clock_end))
        tables.append(table)
        clock = clock_end + 5
    folder.write_run(run)
    pq.write_table(pa.concat_tables(tables), path / "requests.parquet", compression="zstd")
    folder.compact()


def _repeat(dice: np.random.Generator, repeat: int, clock: float, size: tuple[int, int]) -> tuple[pa.Table, float]:
    requests, tokens = size
    luck = np.exp(0.01 * dice.normal())
    ttft = 0.05 * luck * np.exp(0.3 * dice.normal(size=requests))
    gaps = 0.01 * luck * np.exp(0.1 * dice.normal(size=(requests, tokens - 1)))
    decode = gaps.sum(axis=1)
    sent = clock + np.cumsum(ttft + decode) / STREAMS
    columns: dict[str, object] = {
        "engine": ["e"] * requests, "point": ["c64"] * requests, "repeat": [repeat] * requests,
        "request_id": np.arange(requests), "phase": ["measure"] * requests, "scheduled_s": sent, "sent_s": sent,
        "first_token_s": sent + ttft, "last_token_s": sent + ttft + decode, "end_s": sent + ttft + decode,
        "input_tokens": [64] * requests, "output_tokens": [tokens] * requests, "token_source": ["server"] * requests,
        "chunks": [tokens] * requests, "ttft_s": ttft, "tpot_s": decode / (tokens - 1), "e2e_s": ttft + decode,
        "status": ["ok"] * requests, "http_status": [200] * requests, "first_chunk_tokens": [1] * requests,
        "gaps_s": pa.ListArray.from_arrays(
            pa.array(np.arange(requests + 1, dtype=np.int32) * (tokens - 1)), pa.array(gaps.ravel().astype(np.float32))
        ),
    }  # fmt: skip
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(requests, f.type) for f in REQUEST_SCHEMA
    ]
    return pa.table(arrays, schema=REQUEST_SCHEMA), float(sent[-1])


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--times", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("a", "b")]
        for folder, day in zip(folders, ("2026-01-02", "2026-01-03"), strict=True):
            write(folder, f"{day}T03:04:05+00:00", given.requests, given.tokens)
        command = [sys.executable, "-m", "bench", "gate", "--baseline", str(folders[0]), "--candidate", str(folders[1])]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # an installed tool
        seconds = []
        for _ in range(given.times):
            began = time.perf_counter()
            done = subprocess.run([*command, *GATE], capture_output=True, text=True, check=False, env=environment)
            seconds.append(time.perf_counter() - began)
            assert done.returncode in (0, 1, 3), done.stderr
        print(done.stdout)
    size = f"{REPEATS} runs of {given.requests:,} requests of {given.tokens} tokens a side"
    print(f"{size}: best {min(seconds):.2f} s, median {sorted(seconds)[len(seconds) // 2]:.2f} s, limit {LIMIT_S:g} s")
    sys.exit(min(seconds) > LIMIT_S)


if __name__ == "__main__":
    main()
