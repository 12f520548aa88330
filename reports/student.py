"""Student's t and the normal distribution in plain Python: what intervals and tests are made of.

The t distribution is taken from the incomplete beta function, by its continued fraction (Numerical Recipes 6.4,
Lentz's method). Tests compare it with published tables.
"""

from __future__ import annotations

import math
from functools import lru_cache

LARGEST = 1e6  # no quantile is looked for beyond it
TINY = 1e-300


def upper_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with `df` degrees of freedom; of the normal distribution for df = inf."""
    if math.isinf(df):
        return 0.5 * math.erfc(t / math.sqrt(2))
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    half = 0.5 * _beta_share(df / (df + t * t), df / 2, 0.5)
    return half if t > 0 else 1 - half


def quantile(level: float, df: float) -> float:
    """The t that is passed with the probability `level` (one-sided, below one half).

    Degrees of freedom are rounded down to a tenth, so that quantiles can be kept: the interval gets no narrower.
    """
    return _quantile(level, df if math.isinf(df) else max(1.0, math.floor(df * 10 + 1e-9) / 10))


@lru_cache(maxsize=65536)
def _quantile(level: float, df: float) -> float:
    """By Newton's method from 0: the tail is convex there, so that no step goes past the quantile."""
    t, step = 0.0, 1.0
    while step > 1e-13 * t and t < LARGEST and (slope := _density(t, df)) > 0:
        step = (upper_tail(t, df) - level) / slope
        t += step
    return min(t, LARGEST)


def _density(t: float, df: float) -> float:
    if math.isinf(df):
        return math.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
    log_front = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi * df)
    return math.exp(log_front - (df + 1) / 2 * math.log1p(t * t / df))


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(x, a, b) / a
    return 1 - math.exp(log_front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / _off_zero(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _off_zero(1 + term * d)
            c = _off_zero(1 + term / c)
            result *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return result


def _off_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
