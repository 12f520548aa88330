"""The gate: does a candidate hold its limits against a baseline? Pass, fail or inconclusive, and why.

Fail only when the whole interval of a figure's change is past its limit, pass only when all of it is within. The chance
of a false alarm is held over all figures of a gate together (Holm's step-down) and over all looks at growing data (see
`spending`): `ALARM` for the limits, `GUARD_ALARM` for what is watched besides. The interval's other end, which lets a
change pass, errs at most once in twenty. What cannot be judged is inconclusive, never a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from harness.metrics import METRICS
from harness.records import SCHEMA_VERSION
from reports.decide import Levels, Span, decide, detectable, more_repeats
from reports.effects import Effect, Repeats, Scale, compare
from reports.likeness import no_pass, notes, unlike, unlike_point
from reports.limits import Limit, Rules
from reports.sides import Side, SidePoint
from reports.spending import levels

ALARM = 0.0055
GUARD_ALARM = 0.002
PASS_ERROR = 0.05
ONE_RUN = "one repeat a side says nothing of the noise: measure at least 3"


@dataclass(frozen=True, slots=True)
class Check:
    """One limit at one point. `change` and its interval are shares of the baseline (points, where the metric is a
    share itself), up is positive; `state`: pass | fail | inconclusive, with the `reason`.

    `noise`: standard deviation of one repeat. `more`: about how many more repeats a side would decide, None where none
    would. `detectable`: the change for the worse that would be caught 19 times of 20 with the repeats at hand."""

    engine: str
    point: str
    label: str
    metric: str
    limit: float
    guard: bool
    state: str
    reason: str
    baseline: float | None = None
    candidate: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    repeats: tuple[int, int] = (0, 0)
    design: str | None = None
    noise: float | None = None
    more: int | None = None
    detectable: float | None = None

    @property
    def title(self) -> str:
        return METRICS[self.metric].title

    @property
    def unit(self) -> str:
        return METRICS[self.metric].unit


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says. `state` is what it found, `outcome` what it exits as (see `Rules.inconclusive`)."""

    state: str
    outcome: str
    checks: list[Check]
    notes: list[str]
    warnings: list[str]
    baseline: str
    candidate: str
    simulated: bool

    def of(self, state: str) -> list[Check]:
        return [check for check in self.checks if check.state == state]

    def to_dict(self) -> dict[str, Any]:
        """What `--format json` prints."""
        checks = [
            {"engine": c.engine, "point": c.point, "metric": c.metric, "unit": c.unit, "limit": c.limit,
             "guard": c.guard, "state": c.state, "reason": c.reason, "baseline": c.baseline, "candidate": c.candidate,
             "change": c.change, "change_low": c.change_low, "change_high": c.change_high, "repeats": list(c.repeats),
             "design": c.design, "noise": c.noise, "more_repeats": c.more, "detectable": c.detectable}
            for c in self.checks
        ]  # fmt: skip
        return {
            "schema_version": SCHEMA_VERSION, "state": self.state, "outcome": self.outcome,
            "baseline": self.baseline, "candidate": self.candidate, "simulated": self.simulated,
            "checks": checks, "notes": self.notes, "warnings": self.warnings,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """A check before its verdict: the effect, on the scale of its limit, or the reason why there is none."""

    check: Check
    limit: Limit
    effect: Effect | None = None
    span: Span | None = None
    no_pass: str | None = None  # why it may not pass, whatever its interval says


def judge(pairs: list[tuple[Side, Side]], rules: Rules) -> Verdict:
    """The verdict over pairs of (baseline, candidate), one an engine."""
    trials = [trial for base, cand in pairs for trial in _trials(base, cand, rules)]
    main = _judged([trial for trial in trials if not trial.limit.guard], ALARM, rules)
    guards = _judged([trial for trial in trials if trial.limit.guard], GUARD_ALARM, rules)
    checks = main + guards
    failed = any(check.state == "fail" for check in checks)
    decided = bool(main) and all(check.state == "pass" for check in checks)
    state = "fail" if failed else "pass" if decided else "inconclusive"
    found = list(dict.fromkeys(note for base, cand in pairs for note in notes(base, cand)))
    return Verdict(
        state, rules.inconclusive if state == "inconclusive" else state, checks, found, _warnings(main),
        ", ".join(dict.fromkeys(base.source for base, _ in pairs)),
        ", ".join(dict.fromkeys(cand.source for _, cand in pairs)),
        any(side.simulated for pair in pairs for side in pair),
    )  # fmt: skip


def _trials(base: Side, cand: Side, rules: Rules) -> list[Trial]:
    """Every limit and guard at every point that the baseline has; one that only the candidate has is no part of it."""
    blocked = unlike(base, cand)
    if not base.points and not cand.points:
        blocked.append("nothing was measured")
    found = []
    for name in list(base.points or cand.points) or [""]:
        points = base.points.get(name), cand.points.get(name)
        why = blocked[0] if blocked else unlike_point(*points)
        limited = {limit.key for limit in rules.limits}
        guards = [g for g in rules.guards() if g.key not in limited and not why and _watched(g, (base, cand), points)]
        for limit in [*rules.limits, *guards]:
            found.append(_trial((base, cand), name, points, limit, why))
    return found


def _watched(guard: Limit, sides: tuple[Side, Side], points: tuple[SidePoint | None, SidePoint | None]) -> bool:
    """A guard watches what the baseline has; the share within the SLO only against the same SLO."""
    repeats = points[0].figures.get(guard.key) if points[0] else None
    if repeats is None or (guard.key == "slo_ratio" and sides[0].slo != sides[1].slo):
        return False
    return METRICS[guard.key].unit == "ratio" or min(repeats.values) > 0


def _trial(
    sides: tuple[Side, Side], name: str, points: tuple[SidePoint | None, SidePoint | None], limit: Limit,
    why: str | None,
) -> Trial:  # fmt: skip
    label = next((point.label for point in points if point), name)
    check = Check(sides[1].engine, name, label, limit.key, limit.share, limit.guard, "inconclusive", why or "")
    pair = [point.figures.get(limit.key) if point else None for point in points]
    means = [_mean(repeats) for repeats in pair]
    counts = (len(pair[0] or ()), len(pair[1] or ()))
    check = replace(check, baseline=means[0], candidate=means[1], repeats=counts)
    why = why or _missing(points, limit.key)
    base, cand = pair
    if why or base is None or cand is None:
        return Trial(replace(check, reason=why or "not measured"), limit)
    scale, base, cand, why = _scaled(base, cand, limit)
    if why:
        return Trial(replace(check, reason=why), limit)
    band = sides[0].band(name, limit.key, scale == "ratio")
    effect = compare(base, cand, scale, band)
    if effect is None:
        return Trial(replace(check, reason=ONE_RUN), limit)
    cap = no_pass(points[0], points[1]) if points[0] and points[1] and not limit.guard else None
    return Trial(check, limit, effect, Span.of(limit.share, METRICS[limit.key].better, scale), cap)


def _mean(repeats: Repeats | None) -> float | None:
    return sum(repeats.values) / len(repeats) if repeats and len(repeats) else None


def _missing(points: tuple[SidePoint | None, SidePoint | None], key: str) -> str | None:
    """Why a metric cannot be judged at a point, if so."""
    for name, point in zip(("baseline", "candidate"), points, strict=True):
        if point is None or key in point.figures:
            continue
        return f"{name}: {point.missing.get(key) or point.reason or 'not measured'}"
    return None


def _scaled(base: Repeats, cand: Repeats, limit: Limit) -> tuple[Scale, Repeats, Repeats, str | None]:
    """The figures on the scale of the limit: logarithms where all are above 0, differences for shares; where a figure
    is 0 in some repeats, differences in shares of the baseline's mean."""
    if METRICS[limit.key].unit == "ratio":
        return "difference", base, cand, None
    if min(base.values) > 0 and min(cand.values) > 0:
        return "ratio", base, cand, None
    mean = _mean(base) or 0.0
    if mean <= 0:
        return "ratio", base, cand, "it is 0 in the baseline: no change can be told as a share of it"
    a, b = (Repeats([v / mean for v in r.values], r.at_s, [e / mean for e in r.errors]) for r in (base, cand))
    return "difference", a, b, None


def _judged(trials: list[Trial], alarm: float, rules: Rules) -> list[Check]:
    """Holm: the clearest case is tested at alarm / m, the next at alarm / (m - 1), until the first that holds."""
    tested = [trial for trial in trials if trial.effect is not None and trial.span is not None]
    order = sorted(tested, key=lambda trial: _p_value(trial))
    checks = {id(trial): trial.check for trial in trials}
    left = len(tested)
    for trial in order:
        effect, span = trial.effect, trial.span
        assert effect is not None
        assert span is not None
        at = Levels(_level(alarm / left, rules), _level(PASS_ERROR, rules))
        state, reason, low, high = decide(effect, span, at, trial.limit.guard)
        if state == "pass" and trial.no_pass:
            state, reason = "inconclusive", trial.no_pass
        checks[id(trial)] = replace(
            trial.check, state=state, reason=reason, change=_share(effect.estimate, effect.scale),
            change_low=_share(low, effect.scale), change_high=_share(high, effect.scale), design=effect.design,
            noise=effect.scatter, more=more_repeats(effect, span, at) if state == "inconclusive" else 0,
            detectable=detectable(effect, span, at),
        )  # fmt: skip
        if state == "fail":
            left -= 1
    return list(checks.values())


def _p_value(trial: Trial) -> float:
    effect, span = trial.effect, trial.span
    assert effect is not None
    assert span is not None
    up = effect.chance_above(span.up) if span.up is not None else 1.0
    down = effect.chance_below(span.down) if span.down is not None else 1.0
    return min(up, down) * (2 if span.both else 1)


def _level(alpha: float, rules: Rules) -> float:
    return levels(rules.looks, alpha)[rules.look] if rules.looks else alpha


def _share(value: float, scale: Scale) -> float:
    return math.expm1(min(value, 50.0)) if scale == "ratio" else value


def _warnings(checks: list[Check]) -> list[str]:
    """Limits that the noise hides, and sides that were not measured in turn."""
    found = []
    for check in checks:
        if check.detectable is None or check.state == "fail" or check.change is None:
            continue
        if check.state == "inconclusive" and check.detectable > 2 * check.limit:
            found.append(
                f"{check.title} at {check.label}: a limit of {check.limit * 100:g} % cannot be told from the noise "
                f"with {min(check.repeats)} repeats a side: {check.detectable * 100:.1f} % is the least change that "
                "would be caught 19 times of 20" + (f"; measure about {check.more} more a side" if check.more else "")
            )
    if any(check.design == "apart" for check in checks):
        found.append(
            "the sides were measured one after the other: a machine that grew slower in between looks like a "
            "regression; `bench gate run` measures them in turn"
        )
    return found
