"""Fits the two constants of the server process in front of vLLM to the reference runs, and shows each run left out.

    python -m tests.benchmarks.fit_front [--write] [--each]

They are the only ones that are fitted through the simulator: what a busy process does to latencies has no closed form.
The other constants stay as `fit_speed` found them.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence

import numpy as np

from sizing.constants import VllmConstants, vllm_constants
from tests.benchmarks.fit_speed import write
from tests.benchmarks.fitting import Vector, fit
from tests.benchmarks.reference import ReferenceRow, reference_rows

# A FastAPI request of some hundred token ids: about a millisecond; a token that is detokenized, wrapped in JSON and
# written to its socket: some tens of microseconds.
PRIORS = {"front_request_s": (1.2e-3, 0.3), "front_token_s": (6e-5, 0.3)}
ROUNDS = 6
FITTED = ("output_tok_s", "ttft_p50_s", "tpot_p50_s")


def loaded() -> list[ReferenceRow]:
    """Points where that process is busy: closed loops of many streams, and bursts."""
    return [r for r in reference_rows() if not r.few and r.query.offered.rate_rps is None]


def fit_front(rows: Sequence[ReferenceRow], base: VllmConstants | None = None) -> VllmConstants:
    """The constants with these two fitted."""
    base = base or vllm_constants()
    names = list(PRIORS)

    def residuals(values: Vector) -> Vector:
        constants = dataclasses.replace(base, **dict(zip(names, map(float, values), strict=True)))
        found = []
        for row in rows:
            met = row.simulate(constants)
            for figure in FITTED:
                measured, predicted = row.measured[figure], getattr(met, figure)
                # Whether a loop falls wholly into step is chance, and TTFT hangs on it: half the weight.
                weight = 0.5 if figure == "ttft_p50_s" else 1.0
                found.append(weight * math.log(predicted / measured) if measured else 0.0)
        return np.array(found)

    values = fit(residuals, [p[0] for p in PRIORS.values()], [p[1] for p in PRIORS.values()], ROUNDS, 0.05)
    return dataclasses.replace(base, **dict(zip(names, map(float, values), strict=True)))


def main() -> None:
    rows = loaded()
    whole = fit_front(rows)
    show("none", whole)
    if "--each" in sys.argv:
        for run in sorted({r.run for r in rows}):
            show(run, fit_front([r for r in rows if r.run != run]))
    fitted = dataclasses.asdict(vllm_constants()) | {name: float(f"{getattr(whole, name):.4g}") for name in PRIORS}
    write({"vllm": fitted})


def show(out: str, found: VllmConstants) -> None:
    """One line."""
    print(f"{out} left out: {found.front_request_s * 1e3:.2f} ms a request, {found.front_token_s * 1e6:.1f} us a token")


if __name__ == "__main__":
    main()
