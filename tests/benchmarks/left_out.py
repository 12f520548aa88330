"""Predictions of rows that the constants never saw, by the door that users have: the simulator behind `bench predict`.

A public row is predicted as a burst of ten times its concurrency whose lengths vary by a tenth (`--start burst
--requests 10N --length-spread 0.1`): its TTFT and TPOT are means over such a benchmark, as far as its source says. The
rows of InferenceMAX have lengths of 0.8 to 1 times what they state: 0.9 times that is predicted, give or take a ninth.
A run of ours is predicted as its scenario states it. Each by constants that were fitted without its model, or its run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from sizing.constants import VllmConstants
from sizing.loads import Met, Offered, meet
from tests.benchmarks.fit_front import fit_front, loaded
from tests.benchmarks.fit_speed import WAVES, LoadRow, doubtful, fit_vllm, left_out_vllm, load_rows
from tests.benchmarks.intervals import Pair
from tests.benchmarks.reference import ReferenceRow, reference_rows

LENGTH_SPREAD = 0.1
"""of the other collections, which do not say how their lengths vary, if they do"""
INFERENCEMAX_SPREAD = 1 / 9
SAMPLE = 4
"""of the public rows: a burst of 2560 long requests takes seconds to simulate"""
THIN = 4
"""of the public rows beside which the constants are fitted anew for each run of ours that is left out"""


def simulated(row: LoadRow, constants: VllmConstants) -> Met | None:
    """What `bench predict` says of a public row; None for a load that does not fit."""
    load, room = row.load, row.policy.context_tokens
    spread = INFERENCEMAX_SPREAD if row.varied_lengths else LENGTH_SPREAD
    longest = int((load.input_tokens + load.output_tokens) * (1 + spread)) + 1
    policy = dataclasses.replace(row.policy, context_tokens=max(room, longest))
    offered = Offered(
        load.input_tokens, load.output_tokens, load.concurrency, burst_requests=WAVES * load.concurrency,
        length_spread=spread,
    )  # fmt: skip
    try:
        return meet(row.times(constants), policy, offered)
    except ValueError:
        return None


def public(rows: Sequence[LoadRow], every: int = SAMPLE) -> list[tuple[LoadRow, Met, float]]:
    """One in so many rows, its model left out, and what its client adds to TTFT as the other models' rows have it."""
    fitted = left_out_vllm(rows)
    chosen = [row for row in rows if row.ttft_s or row.tpot_s][::every]
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(simulated, chosen, [fitted[r.group][0] for r in chosen], chunksize=4))
    return [(row, met, fitted[row.group][1]) for row, met in zip(chosen, found, strict=True) if met is not None]


def ours() -> list[tuple[ReferenceRow, Met]]:
    """Every point of the reference runs, its run left out."""
    rows, found = load_rows()[0][::THIN], []
    for run in sorted({r.run for r in reference_rows()}):
        others = [r for r in reference_rows() if r.run != run]
        constants = fit_front([r for r in loaded() if r.run != run], fit_vllm(rows, others)[0])
        for row in reference_rows():
            if row.run == run:
                found.append((row, row.simulate(constants)))
    return found


def pairs(
    theirs: Sequence[tuple[LoadRow, Met, float]], mine: Sequence[tuple[ReferenceRow, Met]]
) -> dict[str, list[Pair]]:
    """(group, predicted, measured) by quantity, of the rows whose load is to be believed."""
    apart = doubtful([r for r, _, _ in theirs])
    good = [p for p in theirs if p[0].group not in apart]
    found: dict[str, list[Pair]] = {
        "vllm_ttft": [(r.group, m.ttft_mean_s, r.ttft_s) for r, m, _ in good if r.ttft_s and not r.unclear_queue],
        "vllm_tpot": [(r.group, m.tpot_mean_s, r.tpot_s) for r, m, _ in good if r.tpot_s and m.tpot_mean_s],
        "vllm_ttft_p95": [], "vllm_tpot_p95": [], "vllm_token": [],
    }  # fmt: skip
    named = {
        "vllm_ttft": "ttft_p50_s", "vllm_tpot": "tpot_p50_s", "vllm_ttft_p95": "ttft_p95_s",
        "vllm_tpot_p95": "tpot_p95_s",
    }  # fmt: skip
    for row, met in mine:
        for kind, figure in named.items():
            predicted, measured = getattr(met, figure), row.measured[figure]
            if predicted and measured:
                found[kind].append((row.group, predicted, measured))
        if row.measured["output_tok_s"] and row.query.offered.rate_rps is None:
            found["vllm_token"].append((row.group, 1 / met.output_tok_s, 1 / row.measured["output_tok_s"]))
    return found
