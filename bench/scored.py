"""A finished run's measurements beside what would have been predicted of it, and what that teaches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.records import EngineRun, RunRecord
    from harness.store import RunFolder
    from reports.foretold import Foretold
    from reports.rows import Summary
    from sizing.predict import Prediction, Query

FIGURES = ("output_tok_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s")
Answer = tuple[str, str, "Query", "Prediction"]
"""engine, point, what was asked of `sizing` and its answer"""


@dataclass(frozen=True, slots=True)
class Scored:
    """One figure of one point: predicted before any calibration, and measured."""

    engine: str
    point: str
    figure: str
    predicted: float | None
    measured: float
    query: Query


def answers(record: RunRecord, hardware: str | None = None) -> list[Answer]:
    """What is predicted of every point of the run's real engines, in the version that ran. `hardware` replaces the GPU
    that run.json names.

    Raises:
        InputError: the machine is not known.
    """
    from bench.predicted import queries_of
    from harness.scenario import from_resolved
    from sizing.predict import predict

    real = _real(record)
    if not real:
        return []
    versions = {name: str(value) for name, engine in real.items() if (value := _fact(engine, "version"))}
    queries = queries_of(from_resolved(record.scenario), hardware or _gpu(record), None, versions)
    return [(e, p, query, predict(query)) for e, p, query in queries if e in real and not isinstance(query, str)]


def foretell(folder: RunFolder, record: RunRecord) -> list[Answer]:
    """Predict the run and keep that with it, before it teaches anything. Nothing here fails a run."""
    from reports.foretold import save

    try:
        found = answers(record)
        if found:
            save(folder, list(_foretold(record, found)))
    except (InputError, OSError):
        return []
    return found


def _foretold(record: RunRecord, found: Sequence[Answer]) -> Iterator[Foretold]:
    from reports.foretold import Foretold

    started: set[str] = set()
    for engine, point, _, answer in found:
        wanted = [(point, figure, answer.speed[figure]) for figure in FIGURES]
        if engine not in started and _kv_tokens(_real(record)[engine]) is not None:
            started.add(engine)
            wanted.insert(0, ("", "kv_capacity_tokens", answer.memory["kv_capacity_tokens"]))
        for at, figure, x in wanted:
            if x.value is not None and x.low is not None and x.high is not None:
                yield Foretold(engine, at, figure, float(x.value), float(x.low), float(x.high), x.label)


def score(
    folder: Path, hardware: str | None = None, summary: Summary | None = None, found: Sequence[Answer] | None = None
) -> list[Scored]:
    """Every figure of every real engine. `summary` and `found` save computing them.

    Raises:
        InputError: the folder holds no run, or its machine is not known.
    """
    from harness.store import RunFolder
    from reports.summary import summarize

    run = RunFolder.open(folder)
    record = run.read_run()
    real = _real(record)
    found = answers(record, hardware) if found is None else found
    if not found:
        return []
    summary = summary or summarize(run)
    scored: list[Scored] = []
    for engine, point, query, answer in found:
        if (start := _kv_tokens(real[engine])) is not None:
            predicted = _number(answer.memory["kv_capacity_tokens"].value)
            scored.append(Scored(engine, point, "kv_capacity_tokens", predicted, start, query))
        for figure in FIGURES:
            value = summary.row(engine, point, figure).value
            if value is not None:
                scored.append(Scored(engine, point, figure, _number(answer.speed[figure].value), value, query))
    return scored


def _real(record: RunRecord) -> dict[str, EngineRun]:
    """Engines whose figures are evidence: `sim` runs on the code that predicts."""
    return {engine.name: engine for engine in record.engines if not engine.simulated and engine.kind != "openai"}


def _number(value: float | bool | None) -> float | None:
    return None if value is None else float(value)


def _gpu(record: RunRecord) -> str:
    gpus: list[dict[str, Any]] = record.environment.get("gpus") or []
    return str(gpus[0]["name"]) if gpus and gpus[0].get("name") else "auto"


def _fact(engine: EngineRun, name: str) -> Any:
    return next((fact.value for fact in engine.facts if fact.name == name), None)


def _kv_tokens(engine: EngineRun) -> float | None:
    value = _fact(engine, "kv_capacity_tokens") if engine.kind == "vllm" else None
    return float(value) if isinstance(value, int | float) else None


def keep(scored: list[Scored]) -> Path | None:
    """Write what the figures teach as receipts; None when they teach nothing.

    Raises:
        InputError: the folder of the receipts cannot be written.
    """
    from harness.receipts import add

    path: Path | None = None
    try:
        for kind, values in _lessons(scored):
            path = add(kind, values)
    except OSError as error:
        raise InputError(f"receipts cannot be written: {error}", "set ENGINEBENCH_HOME to a folder of yours") from None
    return path


def _lessons(scored: list[Scored]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each is told against the bare formulas: what earlier receipts had added to them is put back in."""
    from sizing.engine import memory_plan

    starts: set[str] = set()
    for item in scored:
        query = item.query
        known = {"hardware": query.hardware.name, "engine": query.setup.engine, "version": query.setup.version}
        if item.figure == "tpot_p50_s" and item.predicted:
            ratio = item.measured / item.predicted * query.scale
            yield "speed", known | {"quantization": query.quantization.name, "measured_over_predicted": ratio}
        if item.figure == "kv_capacity_tokens" and item.engine not in starts:
            starts.add(item.engine)
            with contextlib.suppress(ValueError):  # a machine whose memory size nobody stated
                plan = memory_plan(query.hardware, query.model, query.quantization, query.setup)
                # What the log has less of than the formula is overhead that the formula lacks, and the other way round.
                each = item.measured / query.replicas
                extra = int((plan.kv_capacity_tokens - each) * plan.kv_bytes_per_token)
                extra += query.setup.overhead_extra_bytes or 0
                what = {"model": query.model.name, "devices": query.setup.devices, "extra_bytes": extra}
                yield "vllm_start", known | what
