"""The table of the client against the server, on figures that are known."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.records import PointRun, RunRecord
from tests.benchmarks.gpu.client_vs_server import Run, client_of, counts, energy, latencies, where

REQUESTS = pd.DataFrame(
    [
        # 512 tokens in, 11 out: first token after 100 ms, then one each 10 ms; the last one was cut off after 3 tokens
        {"status": "ok", "sent_s": 10.0, "first_token_s": 10.1, "last_token_s": 10.2, "output_tokens": 11},
        {"status": "ok", "sent_s": 20.0, "first_token_s": 20.1, "last_token_s": 20.2, "output_tokens": 11},
        {"status": "cancelled", "sent_s": 30.0, "first_token_s": 30.1, "last_token_s": 30.12, "output_tokens": 3},
        {"status": "cancelled", "sent_s": 40.0, "first_token_s": None, "last_token_s": None, "output_tokens": None},
    ]
).assign(engine="vllm", point="c1", repeat=0, first_chunk_tokens=1, asked_input_tokens=512)
POINT = PointRun("vllm", "c1", 0, {}, start_s=9.0, open_s=9.0, close_s=49.0, end_s=50.0)
GROWN = {
    "finished_total": 2, "prompt_tokens_total": 1536, "generation_tokens_total": 25, "preemptions_total": 0,
    "ttft_sum_s": 0.24, "ttft_count": 3, "itl_sum_s": 0.22, "itl_count": 22, "e2e_sum_s": 0.38, "e2e_count": 2,
    "queue_sum_s": 0.02, "queue_count": 2, "prefill_sum_s": 0.1, "prefill_count": 2, "decode_sum_s": 0.2,
    "decode_count": 2,
}  # fmt: skip


def run() -> Run:
    rows = [("vllm", metric, t, 100.0 + (by if t > 9 else 0)) for metric, by in GROWN.items() for t in (8.9, 50.1)]
    rows += [("nvidia:0", "power_w", 0.5 * n, 300.0) for n in range(120)]
    rows += [("nvidia:0", "energy_j", 0.5 * n, 1000.0 + 150.0 * n / 0.98) for n in range(120)]
    samples = pd.DataFrame(rows, columns=["source", "metric", "time_s", "value"])
    return Run(RunRecord("x", {}, "", "", 0.0, "", points=[POINT]), REQUESTS, samples)


def test_the_client_counts_all_that_began() -> None:
    mine = client_of(REQUESTS)
    assert (mine.finished, mine.prompt_tokens, mine.output_tokens, mine.cut_off) == (2, 1536, 25, 2)
    assert (mine.ttft_ms, mine.gap_ms, mine.e2e_ms) == (
        pytest.approx(100.0), pytest.approx(10.0), pytest.approx(200.0),
    )  # fmt: skip


def test_both_sides_of_a_point() -> None:
    assert counts(run(), POINT) == ["c1", "2", "2", "1,536", "1,536", "25", "25", "2", "0", ""]
    assert latencies(run(), POINT) == [
        "c1", "100.00", "80.00", "+25.0 %", "10.00", "10.00", "-0.0 %", "200.00", "190.00", "+5.3 %",
    ]  # fmt: skip
    assert where(run(), POINT) == ["c1", "10.0", "50.0", "100.0", "30.0", "10.0"]


def test_energy_sampled_and_counted() -> None:
    lines = energy(run(), [POINT])
    assert "| nvidia:0 | c1 | 41.0 | 12,300 | 12,551 | -2.00 % |" in lines
    assert energy(run(), []) == []
