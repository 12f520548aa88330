"""One side of a gate: an engine as it was measured, in a run folder or a baseline file, as figures of each repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from harness.errors import InputError
from harness.metrics import METRICS, Measured, evaluate
from harness.records import EngineRun, PointRun, fingerprint
from harness.store import RunFolder
from reports.effects import Band, Repeats, session_band
from reports.rows import load_label
from reports.rundata import RunData, read

Z95 = 1.96
LIVE = {"kv_live_bytes", "kv_efficiency_ratio"}  # what takes a second pass over every chunk
MACHINE = (
    "cpu_model", "arch", "cores_logical", "cores_allowed", "memory_bytes", "memory_limit_bytes", "driver", "gpus",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SidePoint:
    """One load point. `figures` by metric key; `missing` says why a metric is not among them. Repeats are counted by
    what became of them: only those in `counted` gave figures."""

    load: dict[str, Any]
    counted: int = 0
    limited: int = 0
    failed: int = 0
    reason: str | None = None
    figures: dict[str, Repeats] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return load_label(self.load, str(self.load.get("name", "")))


@dataclass(frozen=True, slots=True)
class Side:
    """An engine of one session. `machine` and `fingerprint` say on what it ran, `workload` and `slo` what it was sent
    and asked for. `history`: for each earlier session of a baseline, the means of its figures by (point, metric)."""

    source: str
    engine: str
    kind: str
    model: str
    version: str | None
    simulated: bool
    started_at: str
    tool_version: str
    scenario_hash: str
    fingerprint: str | None
    machine: dict[str, Any]
    workload: dict[str, Any]
    slo: dict[str, float]
    points: dict[str, SidePoint]
    error: str | None = None
    history: list[dict[tuple[str, str], float]] = field(default_factory=list)

    def band(self, point: str, metric: str, ratio: bool) -> Band | None:
        """The scatter between sessions of this baseline; None where its history is one session only."""
        means = [means[point, metric] for means in self.history if (point, metric) in means]
        if ratio and any(mean <= 0 for mean in means):
            return None
        return session_band([math.log(mean) if ratio else mean for mean in means])


def read_sides(path: Path, keys: list[str]) -> dict[str, Side]:
    """Every engine of a run folder, by name.

    Raises:
        InputError: the folder holds no readable run.
    """
    folder = RunFolder.open(path)
    return sides_of(read(folder, live=bool(LIVE & set(keys))), keys, str(path))


def sides_of(data: RunData, keys: list[str], source: str) -> dict[str, Side]:
    """Every engine of a run that was read already. `keys`: the metrics that are wanted, and computed."""
    run = data.run
    specs = {spec.get("name"): spec for spec in run.scenario.get("engines") or []}
    slo = {str(key): float(limit) for key, limit in (run.scenario.get("slo") or {}).items()}
    found = {}
    for engine in run.engines:
        workload = (specs.get(engine.name) or {}).get("workload") or run.scenario.get("workload") or {}
        names = list(dict.fromkeys(p.point for p in run.points if p.engine == engine.name))
        found[engine.name] = Side(
            source=source, engine=engine.name, kind=engine.kind, model=engine.model, version=_version(engine),
            simulated=engine.simulated, started_at=run.started_at, tool_version=run.tool_version,
            scenario_hash=run.scenario_hash,
            fingerprint=fingerprint(run.environment) if run.environment else None,
            machine={key: run.environment.get(key) for key in MACHINE}, workload=dict(workload), slo=slo,
            points={name: _point(data, engine, name, keys) for name in names}, error=engine.error,
        )  # fmt: skip
    return found


def _version(engine: EngineRun) -> str | None:
    return next((str(fact.value) for fact in engine.facts if fact.name == "version" and fact.value is not None), None)


def _point(data: RunData, engine: EngineRun, name: str, keys: list[str]) -> SidePoint:
    """Only repeats that the client did not limit give figures; failed ones count for the error ratio alone."""
    runs = [p for p in data.run.points if (p.engine, p.point) == (engine.name, name)]
    parts = data.measured.get((engine.name, name), [])
    usable = [(run, part) for run, part in parts if run.status == "done"]
    began = _utc_s(data.run.started_at)
    at_s = [began + (run.start_s or 0.0) for run, _ in usable]
    figures, missing = {}, {}
    for key in keys:
        repeats, why = _repeats(key, [part for _, part in usable], at_s)
        if repeats is not None:
            figures[key] = repeats
        elif why is not None:
            missing[key] = why
    failed = [run for run in runs if run.status == "failed"]
    if "error_ratio" in keys and failed:
        figures |= _with_failed(data, figures.get("error_ratio"), failed, began)
    reason = None if usable else _why_none(engine, runs, len(parts))
    limited = sum(run.status == "client-limited" for run in runs)
    return SidePoint(runs[0].load, len(usable), limited, len(failed), reason, figures, missing)


def _repeats(key: str, parts: list[Measured], at_s: list[float]) -> tuple[Repeats | None, str | None]:
    """One metric of all usable repeats; none of it if one repeat lacks it, as which ones do is not chance."""
    metric = METRICS[key]
    values, errors, counts = [], [], []
    for part in parts:
        stat = evaluate(metric, [part])
        if stat.value is None or not math.isfinite(stat.value):
            return None, stat.reason or "the figure is not finite"
        values.append(float(stat.value))
        counts.append(stat.n)
        known = stat.ci_low is not None and stat.ci_high is not None
        errors.append((float(stat.ci_high or 0.0) - float(stat.ci_low or 0.0)) / (2 * Z95) if known else 0.0)
    if metric.unit == "ratio":
        errors = _share_errors(values, counts)
    return (Repeats(values, at_s, errors), None) if values else (None, None)


def _share_errors(shares: list[float], counts: list[int]) -> list[float]:
    """Standard errors of shares of so many requests, never 0: of the common share, with one more of each kind (after
    Agresti and Coull)."""
    total = sum(counts)
    hits = sum(share * n for share, n in zip(shares, counts, strict=True))
    common = (hits + 1) / (total + 2)
    return [math.sqrt(common * (1 - common) / max(n, 1)) for n in counts]


def _with_failed(data: RunData, known: Repeats | None, failed: list[PointRun], began: float) -> dict[str, Repeats]:
    """The error ratio with the repeats in which no request ended well: there it is 1. A repeat whose engine died
    midway is left out: how many requests it would have failed is not known."""
    rows = list(zip(known.at_s, known.values, known.errors, strict=True)) if known else []
    for run in failed:
        mine = data.requests.filter(
            (pc.field("engine") == run.engine) & (pc.field("point") == run.point) & (pc.field("repeat") == run.repeat)
        )
        if mine.num_rows and "ok" not in mine["status"].to_pylist():
            rows.append((began + (run.start_s or 0.0), 1.0, _share_errors([1.0], [mine.num_rows])[0]))
    if not rows:
        return {}
    at_s, values, errors = (list(column) for column in zip(*sorted(rows), strict=True))
    return {"error_ratio": Repeats(values, at_s, errors)}


def _why_none(engine: EngineRun, runs: list[PointRun], counted: int) -> str:
    statuses = {run.status for run in runs}
    error = next((run.error for run in runs if run.error), None) or engine.error
    if counted and "client-limited" in statuses:
        return "client-limited: the client, not the server, was measured"
    if error:
        return f"failed: {error.splitlines()[0][:160]}"
    return "no request was measured" if statuses <= {"done", "client-limited"} else "it was not measured to its end"


def _utc_s(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def chosen(sides: dict[str, Side], name: str | None, source: str) -> Side:
    """The engine of that name, or the only one.

    Raises:
        InputError: there is none of that name, or there are several and none was named.
    """
    known = ", ".join(sides)
    if name is None and len(sides) == 1:
        return next(iter(sides.values()))
    if name is None:
        raise InputError(f"{source} holds {len(sides)} engines ({known})", "name one: --engine NAME")
    if name not in sides:
        raise InputError(f"{source} holds no engine '{name}'", f"it has: {known or 'none'}")
    return sides[name]
