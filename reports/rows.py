"""What a summary consists of: figures, points, engines and SLO targets, as plain rows. No file is read here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from harness.metrics import METRICS
from harness.records import SCHEMA_VERSION, Finding
from reports.foretold import Foretold


@dataclass(frozen=True, slots=True)
class Row:
    """One figure over all counted repeats of a point, in the base unit of its metric, with its 95 % interval."""

    engine: str
    point: str
    metric: str
    value: float | None
    unit: str
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RepeatRow:
    """The same figure of one repeat alone: what gates and comparisons take their intervals from."""

    engine: str
    point: str
    repeat: int
    metric: str
    value: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Target:
    """Whether one SLO target (`ttft_p95`) held at one point. `met` is None where that cannot be said: see `reason`."""

    engine: str
    point: str
    target: str
    limit_s: float
    value_s: float | None
    met: bool | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PointState:
    """What became of one point on one engine. `repeats` of `planned` have figures; `requests` counts the measured
    requests by status, `recorded` all records of any phase. `reason` says why there is no figure."""

    engine: str
    point: str
    load: dict[str, Any]
    status: str
    repeats: int
    planned: int
    limited_repeats: int
    requests: dict[str, int]
    recorded: int
    reason: str | None = None

    @property
    def client_limited(self) -> bool:
        """Every repeat measured the client rather than the server: no verdict uses this point."""
        return self.repeats > 0 and self.limited_repeats == self.repeats

    @property
    def label(self) -> str:
        return load_label(self.load, self.point)

    @property
    def sweep(self) -> str | None:
        """The sweep that this point is a probe of."""
        return sweep_of(self.load)


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine as a comparison sees it: what ran, what it said (`facts`: name to value) and what it was sent."""

    name: str
    kind: str
    model: str
    simulated: bool
    status: str
    error: str | None
    facts: dict[str, str | float | int | bool | None]
    workload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """One quantity on both sides: seconds, or a count. None: that side does not tell."""

    what: str
    unit: str
    client: float | None
    server: float | None

    @property
    def apart(self) -> float | None:
        """Client minus server."""
        return None if self.client is None or self.server is None else self.client - self.server


@dataclass(frozen=True, slots=True)
class Compared:
    """One engine at one load, all its repeats together. `parts_s`: where the mean finished request's time went."""

    engine: str
    point: str
    label: str
    source: str
    pairs: list[Pair]
    parts_s: dict[str, float | None]
    cut_off: int
    extra: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of a run. `rows` are keyed by (engine, point, metric); engines and points keep the run's order."""

    name: str
    status: str
    started_at: str
    scenario_hash: str
    tool_version: str
    engines: list[EngineState]
    points: list[PointState]
    rows: dict[tuple[str, str, str], Row]
    repeats: list[RepeatRow]
    targets: list[Target]
    warnings: list[str]
    findings: list[Finding] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    foretold: list[Foretold] = field(default_factory=list)

    @property
    def simulated(self) -> bool:
        return any(engine.simulated for engine in self.engines)

    def row(self, engine: str, point: str, metric: str) -> Row:
        """One figure; a combination that was never planned is a missing one."""
        found = self.rows.get((engine, point, metric))
        return found or Row(engine, point, metric, None, METRICS[metric].unit, reason="not part of this run")

    def point_names(self) -> list[str]:
        return in_order({state.point: state.load for state in self.points})

    def missing(self, columns: Iterable[tuple[str, str]]) -> list[str]:
        """Why figures of these (metric, title) columns are missing: each reason once, with what it explains."""
        titles: dict[tuple[str, str], list[str]] = {}
        for state in self.points:
            for key, title in columns:
                row = self.row(state.engine, state.point, key)
                if row.value is None:
                    why = (row.reason or "not measured", f"{state.engine} at {state.label}")
                    titles.setdefault(why, []).append("" if state.reason else title)
        places: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for (reason, place), found in titles.items():
            # Reasons that differ only in how many samples there were are one reason.
            base, _, count = reason.partition(", there are ")
            what = ", ".join(filter(None, found))
            places.setdefault((base, what), []).append((place, int(count) if count.isdecimal() else -1))
        return [_why(base, what, found) for (base, what), found in places.items()]

    def to_dict(self) -> dict[str, Any]:
        """What summary.json holds."""
        points = [asdict(p) | {"client_limited": p.client_limited, "label": p.label} for p in self.points]
        return {
            "schema_version": SCHEMA_VERSION, "name": self.name, "status": self.status, "started_at": self.started_at,
            "scenario_hash": self.scenario_hash, "tool_version": self.tool_version, "simulated": self.simulated,
            "engines": [asdict(e) for e in self.engines], "points": points,
            "rows": [asdict(r) for r in self.rows.values()], "repeats": [asdict(r) for r in self.repeats],
            "targets": [asdict(t) for t in self.targets], "warnings": self.warnings,
            "findings": [asdict(f) for f in self.findings], "compared": [asdict(c) for c in self.compared],
            "foretold": [asdict(f) for f in self.foretold],
        }  # fmt: skip


def sweep_of(load: dict[str, Any]) -> str | None:
    """The sweep that a load point is a probe of."""
    name: str | None = (load.get("shape") or {}).get("sweep")
    return name


def in_order(loads: dict[str, dict[str, Any]]) -> list[str]:
    """Points (names to loads) in their order, but those of a sweep together and by their rate."""
    names = list(loads)
    first = {sweep_of(load): names.index(name) for name, load in reversed(loads.items()) if sweep_of(load)}

    def place(name: str) -> tuple[int, float]:
        sweep = sweep_of(loads[name])
        return (first[sweep], loads[name].get("rate_rps") or 0.0) if sweep else (names.index(name), 0.0)

    return sorted(names, key=place)


def load_label(load: dict[str, Any], name: str) -> str:
    """A load point as people say it: `64 concurrent`, `8/s poisson`."""
    if load.get("kind") == "concurrency" and load.get("concurrency"):
        burst = ", burst" if load.get("start") == "burst" else ""
        return f"{load['concurrency']} concurrent{burst}"
    rate, kind, shape = load.get("rate_rps"), str(load.get("kind") or ""), load.get("shape") or {}
    if kind in SHAPES and shape:
        return SHAPES[kind](shape, rate)
    return f"{rate:g}/s {kind}".strip() if rate else name


def _trace_label(shape: dict[str, Any], rate: Any) -> str:
    speed = shape.get("speed") or 1.0
    return f"trace {PurePath(str(shape.get('file'))).stem}" + ("" if speed == 1 else f", {speed:.3g} times as fast")


SHAPES: dict[str, Callable[[dict[str, Any], Any], str]] = {
    "gamma": lambda shape, rate: f"{rate:g}/s gamma, burstiness {shape['burstiness']:g}",
    "ramp": lambda shape, _: f"{shape['from_rps']:g} to {shape['to_rps']:g}/s ramp",
    "steps": lambda shape, _: f"{', '.join(f'{rate:g}' for rate in shape['rates_rps'])}/s steps",
    "trace": _trace_label,
}


def _why(reason: str, what: str, places: list[tuple[str, int]]) -> str:
    """One line: what is missing, where, why, and how many samples there were."""
    names = [name for name, _ in places]
    where = "; ".join(names) if len(names) <= 3 else f"{len(names)} points, from {names[0]} to {names[-1]}"
    counts = [count for _, count in places if count >= 0]
    least, most = min(counts, default=0), max(counts, default=0)
    there = "" if not counts else f", there are {least}" + (f" to {most}" if most > least else "")
    return f"{what + ' of ' if what else ''}{where}: {reason}{there}"
