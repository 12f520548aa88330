"""What differs between runs, engines, models or dates: ratios with intervals, and one of four words for each.

The repeat is the unit, as for a gate (see `effects`); a gate asks whether a limit holds, a comparison what differs.

- improved, regressed: the whole 95 % interval is more than 1 % (one point, for a share) off, also after Holm's
  correction for how many figures are looked at: of a hundred figures alike, five would else seem to differ by chance
- no difference seen: the interval lies within 5 % (points) of none
- inconclusive: everything else, one repeat a side among it, with the reason
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import InputError
from harness.metrics import METRICS
from reports.effects import Effect, Repeats, Scale, compare
from reports.likeness import notes, unlike, unlike_point
from reports.sides import Side, SidePoint

KEYS = ("output_tok_s", "request_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "e2e_p95_s",
        "error_ratio", "energy_per_token_j", "gpu_memory_bytes", "kv_live_bytes")  # fmt: skip
STATES = ("improved", "regressed", "no difference seen", "inconclusive")
THRESHOLD, ALIKE = 0.01, 0.05
LEVEL = 0.025  # one-sided: both ends make 95 %
ONE = "one repeat a side says nothing of the noise"


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one point, candidate against baseline. `change` and its ends are ratios (candidate over baseline),
    or differences in points where the figure is a share itself (`points`)."""

    baseline: str
    candidate: str
    point: str
    label: str
    metric: str
    before: float | None
    after: float | None
    state: str
    reason: str = ""
    change: float | None = None
    low: float | None = None
    high: float | None = None
    repeats: tuple[int, int] = (0, 0)

    @property
    def points(self) -> bool:
        return METRICS[self.metric].unit == "ratio"

    @property
    def title(self) -> str:
        return METRICS[self.metric].title


@dataclass(frozen=True, slots=True)
class Pair:
    """Two engines of a comparison by their names in it, and what is unlike between them besides what is compared."""

    baseline: str
    candidate: str
    unlike: list[str]
    notes: list[str]
    differences: list[Difference]

    def count(self, state: str) -> int:
        return sum(difference.state == state for difference in self.differences)

    def said(self) -> str:
        """`5 figures improved, 2 regressed`."""
        counts = [(state, self.count(state)) for state in STATES]
        words = {"no difference seen": "without a difference"}
        found = [f"{count} {words.get(state, state)}" for state, count in counts if count]
        if found:
            first, _, rest = found[0].partition(" ")
            found[0] = f"{first} {'figure' if first == '1' else 'figures'} {rest}"
        return f"{self.candidate} against {self.baseline}: " + (", ".join(found) if found else "no figure in common")


@dataclass(frozen=True, slots=True)
class _Trial:
    difference: Difference
    effect: Effect | None = None


def pairs(sides: list[tuple[str, str, Side]]) -> list[tuple[tuple[str, Side], tuple[str, Side]]]:
    """Which is compared with which, of (run, name in the comparison, side) in order: every engine of a later run with
    that of the same name in the first run, else with the first run's only one; within a single run, with its first.

    Raises:
        InputError: there is nothing to compare.
    """
    runs = list(dict.fromkeys(run for run, _, _ in sides))
    firsts = [(name, side) for run, name, side in sides if run == runs[0]] if runs else []
    if len(runs) == 1:
        found = [(firsts[0], other) for other in firsts[1:]]
    else:
        by_name = {side.engine: (name, side) for name, side in firsts}
        rest = [(name, side) for run, name, side in sides if run != runs[0]]
        found = [
            (base, (name, side))
            for name, side in rest
            if (base := by_name.get(side.engine) or (firsts[0] if len(firsts) == 1 else None)) is not None
        ]
    if not found and len(runs) == 1:
        raise InputError(f"{runs[0]} holds one engine: there is nothing to compare it with", "name another run, too")
    if not found:
        raise InputError(
            "there is nothing to compare: no engine of a later run has the name of one of the first",
            "name one engine of each run with --engine, or compare runs of one engine",
        )
    return found


def refuse_unlike(found: list[Pair]) -> None:
    """Stop where environments are unlike.

    Raises:
        InputError: they are; names what differs.
    """
    reasons = [f"{pair.candidate} against {pair.baseline}: {why}" for pair in found for why in pair.unlike]
    if reasons:
        raise InputError("; ".join(reasons), "give --force to compare them all the same; the page then says so")


def differences(found: list[tuple[tuple[str, Side], tuple[str, Side]]]) -> list[Pair]:
    """Every figure of every pair, each with its word; one correction over all of them."""
    trials = [[_Trial(*part) for part in _of_pair(base, cand)] for base, cand in found]
    judged = iter(_judged([trial for part in trials for trial in part]))
    return [
        Pair(
            base[0],
            cand[0],
            unlike(base[1], cand[1]),
            [*notes(base[1], cand[1]), *_alone(base, cand)],
            [next(judged) for _ in part],
        )
        for (base, cand), part in zip(found, trials, strict=True)
    ]


def _alone(base: tuple[str, Side], cand: tuple[str, Side]) -> list[str]:
    """Loads that only one of them has: they are in no figure."""
    found = []
    for (name, side), (_, other) in ((base, cand), (cand, base)):
        labels = [point.label for key, point in side.points.items() if key not in other.points]
        if labels:
            found.append(f"only in {name}: {', '.join(labels)}")
    return found


def _of_pair(base: tuple[str, Side], cand: tuple[str, Side]) -> list[tuple[Difference, Effect | None]]:
    rows = []
    for name, point in base[1].points.items():
        other = cand[1].points.get(name)
        if other is None:
            continue
        why = unlike_point(point, other) or ""
        for key in KEYS:
            if key in point.figures or key in other.figures:
                rows.append(_row((base[0], point), (cand[0], other), name, key, why))
    return rows


def _row(
    base: tuple[str, SidePoint], cand: tuple[str, SidePoint], point: str, key: str, why: str
) -> tuple[Difference, Effect | None]:
    pair = [side.figures.get(key) for _, side in (base, cand)]
    before, after = (_mean(repeats) for repeats in pair)
    counts = (len(pair[0] or ()), len(pair[1] or ()))
    found = Difference(base[0], cand[0], point, base[1].label, key, before, after, "inconclusive", why, repeats=counts)
    missing = next((f"{name}: {side.missing.get(key) or side.reason or 'not measured'}"
                    for name, side in (base, cand) if key not in side.figures), "")  # fmt: skip
    if why or missing or pair[0] is None or pair[1] is None:
        return replace(found, reason=why or missing), None
    shares = METRICS[key].unit == "ratio"
    if not shares and min(*pair[0].values, *pair[1].values) <= 0:
        return replace(found, reason="it is 0 in a repeat: there is no ratio"), None
    scale: Scale = "difference" if shares else "ratio"
    effect = compare(pair[0], pair[1], scale)
    if effect is None:
        change = (after or 0.0) - (before or 0.0) if shares else (after or 0.0) / (before or 1.0)
        return replace(found, reason=ONE, change=change), None
    return found, effect


def _mean(repeats: Repeats | None) -> float | None:
    return sum(repeats.values) / len(repeats) if repeats and len(repeats) else None


def _judged(trials: list[_Trial]) -> list[Difference]:
    """Each with its word. Holm: the clearest is tested at 5 % / m, the next at 5 % / (m - 1), until one is unclear."""
    tested = sorted((t for t in trials if t.effect is not None), key=lambda t: _chance(t.effect))
    clear: set[int] = set()
    for place, trial in enumerate(tested):
        if _chance(trial.effect) > 2 * LEVEL / (len(tested) - place):
            break
        clear.add(id(trial))
    return [_word(trial, id(trial) in clear, len(tested)) for trial in trials]


def _chance(effect: Effect | None) -> float:
    """p-value, both ways together, of "it is not more than the threshold off"."""
    assert effect is not None
    up, down = _bounds(effect.scale, THRESHOLD)
    return min(1.0, 2 * min(effect.chance_above(up), effect.chance_below(down)))


def _bounds(scale: Scale, share: float) -> tuple[float, float]:
    return (math.log1p(share), math.log1p(-share)) if scale == "ratio" else (share, -share)


def _word(trial: _Trial, clear: bool, tested: int) -> Difference:
    effect, found = trial.effect, trial.difference
    if effect is None:
        return found
    low, high = effect.low(LEVEL), effect.high(LEVEL)
    ends = [math.exp(min(v, 50.0)) if effect.scale == "ratio" else v for v in (effect.estimate, low, high)]
    known: dict[str, Any] = {"change": ends[0], "low": ends[1], "high": ends[2]}
    up, down = _bounds(effect.scale, THRESHOLD)
    wide_up, wide_down = _bounds(effect.scale, ALIKE)
    better = METRICS[found.metric].better
    if low > up or high < down:
        if not clear:
            reason = f"by itself it differs, but of {tested} figures looked at one may by chance"
            return replace(found, reason=reason, **known)
        if better is None:
            return replace(found, reason="it differs; neither way is better", **known)
        good = (low > up) == (better == "higher")
        return replace(found, state="improved" if good else "regressed", **known)
    if wide_down <= low and high <= wide_up:
        return replace(found, state="no difference seen", **known)
    return replace(found, reason="the interval is too wide to tell", **known)
