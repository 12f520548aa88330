"""Predictions of rows that the constants never saw, by the door that users have: the simulator behind `bench predict`.

A public row is predicted as a burst of ten times its concurrency (`--start burst --requests 10N`), with the lengths,
the tokens a step and the scheduling of its source (see `load_rows`): its TTFT and TPOT are means over such a benchmark.
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

SAMPLE = 4
"""of the public rows: a burst of 2560 long requests takes seconds to simulate"""
THIN = 4
"""of the public rows beside which the constants are fitted anew for each run of ours that is left out"""


def simulated(row: LoadRow, constants: VllmConstants) -> Met | None:
    """What `bench predict` says of a public row; None for a load that does not fit."""
    load, room = row.load, row.policy.context_tokens
    longest = int((load.input_tokens + load.output_tokens) * (1 + row.length_spread)) + 1
    policy = dataclasses.replace(row.policy, context_tokens=max(room, longest))
    offered = Offered(
        load.input_tokens, load.output_tokens, load.concurrency, burst_requests=WAVES * load.concurrency,
        length_spread=row.length_spread,
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
