"""One figure against its limit: pass, fail or undecided, how many more repeats would decide, what could be caught."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.effects import Effect, Scale
from reports.student import quantile

MOST_REPEATS = 200  # no one is told to measure more than this
UNDECIDED = ("the change is past the limit, but its interval is not", "the interval reaches over the limit")
MISS = 0.05  # of how many regressions may be missed when it is said which ones would be caught


@dataclass(frozen=True, slots=True)
class Span:
    """The changes that are let pass, on the scale of the effect: from `down` to `up`, None where that way is not for
    the worse."""

    down: float | None
    up: float | None

    @classmethod
    def of(cls, share: float, better: str | None, scale: Scale) -> Span:
        """Of a limit as a share; a metric of which neither way is better is held both ways."""
        up = math.log1p(share) if scale == "ratio" else share
        down = (math.log1p(-share) if share < 1 else -math.inf) if scale == "ratio" else -share
        return cls(down if better != "lower" else None, up if better != "higher" else None)

    @property
    def both(self) -> bool:
        return self.down is not None and self.up is not None


@dataclass(frozen=True, slots=True)
class Levels:
    """One-sided error levels: of calling a change past the limit, and of calling it within."""

    fail: float
    passing: float

    def failing(self, span: Span) -> float:
        """Held both ways, either end may raise the alarm: each has half."""
        return self.fail / 2 if span.both else self.fail


def decide(effect: Effect, span: Span, at: Levels, guard: bool) -> tuple[str, str, float, float]:
    """(state, reason, low, high). A guard is let pass unless its estimate is past the limit: nobody asked for proof."""
    strict = at.failing(span)
    low = effect.low(strict if span.up is not None else at.passing)
    high = effect.high(strict if span.down is not None else at.passing)
    if (span.up is not None and low > span.up) or (span.down is not None and high < span.down):
        return "fail", "the whole interval is past the limit", low, high
    if _within(effect.low(at.passing), effect.high(at.passing), span):
        return "pass", "the whole interval is within the limit", low, high
    past = not _within(effect.estimate, effect.estimate, span)
    if guard and not past:
        return "pass", "no change past the limit was seen", low, high
    if past:
        return "inconclusive", UNDECIDED[0], low, high
    return "inconclusive", UNDECIDED[1], low, high


def _within(low: float, high: float, span: Span) -> bool:
    return (span.up is None or high <= span.up) and (span.down is None or low >= span.down)


def more_repeats(effect: Effect, span: Span, at: Levels) -> int | None:
    """About how many more repeats a side would decide, if the effect is what it seems; None: no number would."""
    least = min(effect.repeats)
    if not _decided(effect, span, at, MOST_REPEATS):
        return None
    low, high = least, MOST_REPEATS
    while high - low > 1:  # an interval only narrows with more repeats
        middle = (low + high) // 2
        low, high = (low, middle) if _decided(effect, span, at, middle) else (middle, high)
    return high - least


def _decided(effect: Effect, span: Span, at: Levels, n: int) -> bool:
    """Whether `n` repeats a side would decide on an effect of this size and scatter."""
    within = math.sqrt(max(effect.se**2 - effect.band**2, 0.0))
    unit = within / math.sqrt(1 / effect.repeats[0] + 1 / effect.repeats[1])
    se, df = math.hypot(unit * math.sqrt(2 / n), effect.band), effect.df if effect.band else 2 * n - 3
    wide, narrow = quantile(at.failing(span), df) * se, quantile(at.passing, df) * se
    fails = (span.up is not None and effect.estimate - wide > span.up) or (
        span.down is not None and effect.estimate + wide < span.down
    )
    return fails or _within(effect.estimate - narrow, effect.estimate + narrow, span)


def detectable(effect: Effect, span: Span, at: Levels) -> float | None:
    """The change for the worse, as a share, that these repeats would call a failure 19 times of 20."""
    reach = (quantile(at.failing(span), effect.df) + quantile(MISS, effect.df)) * effect.se
    if span.up is not None:
        return math.expm1(min(span.up + reach, 50.0)) if effect.scale == "ratio" else span.up + reach
    assert span.down is not None
    return -math.expm1(span.down - reach) if effect.scale == "ratio" else reach - span.down
