"""A finished run's measurements beside what would have been predicted of it, and what that teaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.records import EngineRun, RunRecord
    from reports.rows import Summary
    from sizing.predict import Query

FIGURES = ("output_tok_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s")


@dataclass(frozen=True, slots=True)
class Scored:
    """One figure of one point: predicted before any calibration, and measured."""

    engine: str
    point: str
    figure: str
    predicted: float | None
    measured: float
    query: Query


def score(folder: Path, hardware: str | None = None, summary: Summary | None = None) -> list[Scored]:
    """Every figure of every real engine. `hardware` replaces the GPU that run.json names; `summary` saves computing it.

    Raises:
        InputError: the folder holds no run, or its machine is not known.
    """
    from bench.predicted import queries_of
    from harness.scenario import from_resolved
    from harness.store import RunFolder
    from reports.summary import summarize
    from sizing.predict import predict

    run = RunFolder.open(folder)
    record = run.read_run()
    real = {engine.name: engine for engine in record.engines if not engine.simulated and engine.kind != "openai"}
    if not real:
        return []
    summary = summary or summarize(run)
    found: list[Scored] = []
    for engine, point, query in queries_of(from_resolved(record.scenario), hardware or _gpu(record), None):
        if engine not in real or isinstance(query, str):
            continue
        answer = predict(query)
        if (start := _kv_tokens(real[engine])) is not None:
            predicted = _number(answer.memory["kv_capacity_tokens"].value)
            found.append(Scored(engine, point, "kv_capacity_tokens", predicted, start, query))
        for figure in FIGURES:
            value = summary.row(engine, point, figure).value
            if value is not None:
                found.append(Scored(engine, point, figure, _number(answer.speed[figure].value), value, query))
    return found


def _number(value: float | bool | None) -> float | None:
    return None if value is None else float(value)


def _gpu(record: RunRecord) -> str:
    gpus: list[dict[str, Any]] = record.environment.get("gpus") or []
    return str(gpus[0]["name"]) if gpus and gpus[0].get("name") else "auto"


def _kv_tokens(engine: EngineRun) -> float | None:
    if engine.kind != "vllm":
        return None
    values = [fact.value for fact in engine.facts if fact.name == "kv_capacity_tokens"]
    return float(values[0]) if values and isinstance(values[0], int | float) else None


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
    from sizing.engine import memory_plan

    starts: set[str] = set()
    for item in scored:
        query = item.query
        known = {"hardware": query.hardware.name, "engine": query.setup.engine, "version": query.setup.version}
        if item.figure == "tpot_p50_s" and item.predicted:
            ratio = item.measured / item.predicted
            yield "speed", known | {"quantization": query.quantization.name, "measured_over_predicted": ratio}
        if item.figure == "kv_capacity_tokens" and item.engine not in starts:
            starts.add(item.engine)
            plan = memory_plan(query.hardware, query.model, query.quantization, query.setup)
            # What the log has less of than the formula is overhead that the formula lacks, and the other way round.
            extra = int((plan.kv_capacity_tokens - item.measured) * plan.kv_bytes_per_token)
            yield "vllm_start", known | {"model": query.model.name, "extra_bytes": extra}
