"""What it takes to turn a run's journal into Parquet files.

    python -m tests.benchmarks.compaction [--requests 100000] [--chunks 32] [--rows 32] [--repeats 5]
    PYTHONPATH=OTHER_CHECKOUT python tests/benchmarks/compaction.py

The journal is made by the load generator's own writer. `--rows`: of a batch, 32 where many requests end at once, fewer
at a low rate. Only `harness.tables.compact` is timed: once to warm up, then on a copy each time. The second form times
another version; take turns.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

import harness
from harness.records import RequestRecord
from harness.sender import FLUSH_ROWS, FLUSH_S, Journal
from harness.tables import REQUEST_SCHEMA, compact


def record(number: int, chunks: int, dice: random.Random) -> RequestRecord:
    """A request as a run has it: every gap another."""
    sent, ttft = number / 1000, dice.lognormvariate(-2, 0.4)
    gaps = array("d", [dice.lognormvariate(-4.5, 0.5) for _ in range(chunks - 1)])
    total = ttft + sum(gaps)
    return RequestRecord(
        engine="vllm", point="c64", repeat=0, request_id=number, phase="measure", scheduled_s=sent, sent_s=sent + 1e-4,
        first_token_s=sent + ttft, last_token_s=sent + total, end_s=sent + total, input_tokens=256,
        output_tokens=chunks, token_source="server", chunks=chunks, gaps_s=gaps, ttft_s=ttft,
        tpot_s=(total - ttft) / (chunks - 1), e2e_s=total, status="ok", http_status=200, error=None,
        finish_reason="length", asked_input_tokens=256, asked_output_tokens=chunks, first_chunk_tokens=1,
        first_answer_s=sent + ttft,
    )  # fmt: skip


def write(folder: Path, requests: int, chunks: int, rows: int) -> None:
    """The journal of a run, in the folder."""
    (folder / "journal").mkdir(parents=True)
    dice = random.Random(1)
    table: Any = "requests" if Path(harness.__file__).with_name("journal.py").exists() else REQUEST_SCHEMA  # before it
    journal = Journal(folder / "journal" / "requests-0.arrows", table, FLUSH_S, rows)
    for number in range(requests):
        journal.add(record(number, chunks, dice))
        if journal.due():
            journal.flush()
    journal.close()


def timed(folder: Path) -> tuple[float, float, int]:
    """(CPU seconds, wall seconds, bytes of the Parquet file)."""
    cpu, wall = time.process_time(), time.perf_counter()
    compact(folder)
    return time.process_time() - cpu, time.perf_counter() - wall, (folder / "requests.parquet").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("requests", 100_000), ("chunks", 32), ("rows", FLUSH_ROWS), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enginebench-compaction-") as made:
        write(Path(made) / "made", given.requests, given.chunks, given.rows)
        found = []
        for number in range(given.repeats + 1):
            copy = Path(made) / str(number)
            shutil.copytree(Path(made) / "made", copy)
            found.append(timed(copy))
            shutil.rmtree(copy)
    cpu, wall = ([times[which] for times in found[1:]] for which in (0, 1))
    print(
        f"{Path(harness.__file__).parents[1]}: {given.requests:,} requests of {given.chunks} chunks, "
        f"batches of {given.rows}, {given.repeats} times: CPU {statistics.median(cpu):.2f} s (least {min(cpu):.2f}), "
        f"wall {statistics.median(wall):.2f} s (least {min(wall):.2f}), file {found[0][2] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
