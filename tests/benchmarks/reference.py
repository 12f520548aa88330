"""The runs on GPUs under results/reference as rows: what was asked at each point, and what was measured.

Points of up to 16 streams speak of the steps (and go into the fit of the constants beside the public rows), those of
more of the server process in front (`fit_front`). A run is left out as a whole.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.predicted import queries_of
from harness.scenario import from_resolved
from harness.store import RunFolder
from reports.summary import summarize
from sizing.constants import VllmConstants
from sizing.engine import memory_plan, policy, works_ahead
from sizing.loads import Met, meet
from sizing.policy import Policy
from sizing.predict import Query
from sizing.speed import StepTime
from sizing.speed_vllm import vllm_step_time
from sizing.steady import Load, steady_state

FOLDER = Path("results/reference")
FIGURES = ("output_tok_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s")
FEW_STREAMS = 32
# Kept back: predicted before they were made (tests/benchmarks/gpu/predictions-h200.json), and in no fit since.
HELD_OUT = "h200-"


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One point of one run."""

    run: str
    point: str
    query: Query
    measured: dict[str, float | None]

    @property
    def group(self) -> str:
        """The run, for leaving one out."""
        return f"reference/{self.run}"

    @property
    def key(self) -> tuple[object, ...]:
        """Rows of one key are one measurement."""
        return self.run, self.point

    @property
    def ttft_s(self) -> float | None:
        """Median."""
        return self.measured["ttft_p50_s"]

    @property
    def tpot_s(self) -> float | None:
        """Median."""
        return self.measured["tpot_p50_s"]

    @property
    def few(self) -> bool:
        """Whether it is a closed loop whose means tell of the steps: of few streams, or of lengths that vary, so that
        it does not fall into step."""
        offered = self.query.offered
        closed = offered.rate_rps is None and offered.burst_requests is None
        return closed and (offered.concurrency <= FEW_STREAMS or bool(offered.drawn))

    def times(self, constants: VllmConstants | None = None) -> StepTime:
        """The step-time model that a set of constants gives."""
        q = self.query
        return vllm_step_time(
            q.hardware, q.model, q.quantization, q.setup.devices, 2.0, constants, works_ahead(q.setup)
        )

    def predict(self, constants: VllmConstants | None = None) -> tuple[float, float]:
        """(TTFT, TPOT) of the closed form, in seconds."""
        offered = self.query.offered
        load = Load(offered.input_tokens, offered.output_tokens, offered.concurrency)
        state = steady_state(self.times(constants), load, _policy(self.query))
        return state.ttft_s, state.tpot_s

    def simulate(self, constants: VllmConstants | None = None) -> Met:
        """What the simulator makes of the point. Raises ValueError for a rate that cannot be served."""
        return meet(self.times(constants), _policy(self.query), self.query.offered)


@cache
def _policy(query: Query) -> Policy:
    plan = memory_plan(query.hardware, query.model, query.quantization, query.setup)
    return policy(query.hardware, plan, query.setup)


@cache
def reference_rows() -> tuple[ReferenceRow, ...]:
    """Every point of every run that is not held out; no receipt of this machine goes in."""
    found = []
    for path in sorted(FOLDER.glob("*/run.json")):
        if path.parent.name.startswith(HELD_OUT):
            continue
        run = RunFolder.open(path.parent)
        record = run.read_run()
        gpus = record.environment.get("gpus")
        if not gpus:
            continue  # gate-noise: simulated
        summary = summarize(run)
        for engine, point, query in queries_of(from_resolved(record.scenario), gpus[0]["name"], None):
            if isinstance(query, str) or query.replicas > 1:
                continue  # what the balancer adds is not of the step's time
            setup = dataclasses.replace(query.setup, overhead_extra_bytes=None)
            query = dataclasses.replace(query, setup=setup, scale=1.0, scale_sources=())
            measured = {figure: summary.row(engine, point, figure).value for figure in FIGURES}
            name = point if len(record.engines) == 1 else f"{engine} {point}"
            found.append(ReferenceRow(path.parent.name, name, query, measured))
    return tuple(found)


def kv_tokens(run: str) -> float | None:
    """KV tokens as vLLM logged them at the run's start."""
    record = RunFolder.open(FOLDER / run).read_run()
    facts = [fact.value for fact in record.engines[0].facts if fact.name == "kv_capacity_tokens"]
    return float(facts[0]) if facts and isinstance(facts[0], int | float) else None
