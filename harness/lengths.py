"""Lengths of prompts, answers and sessions: one number, or a distribution to draw from.

A distribution is drawn between its `min` and `max` alone: what lies outside is left out, not cut to the edge.
`sampler` makes the function that draws; which numbers come out depends on the random source that it is given alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from random import Random
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from harness.datafiles import read_values
from harness.filepart import FilePart
from harness.parts import Duration, Part

Sampler = Callable[[Random], int]
Tokens = Annotated[int, Field(ge=1)]
_P95 = NormalDist().inv_cdf(0.95)


class Bounded(Part):
    """A distribution with a smallest and a largest value."""

    min: Tokens = 1
    max: Tokens

    @model_validator(mode="after")
    def _in_order(self) -> Bounded:
        if self.max < self.min:
            raise ValueError(f"`max` ({self.max}) is smaller than `min` ({self.min})")
        return self

    def smallest(self) -> int:
        return self.min

    def largest(self) -> int:
        return self.max


class Uniform(Bounded):
    """Every whole number from `min` to `max` alike."""

    kind: Literal["uniform"]

    def typical(self) -> int:
        return (self.min + self.max) // 2

    def sampler(self) -> Sampler:
        low, high = self.min, self.max
        return lambda rng: rng.randint(low, high)


class Normal(Bounded):
    """A normal distribution of that `mean` and `stddev`, before it is bounded."""

    kind: Literal["normal"]
    mean: float = Field(gt=0)
    stddev: float = Field(ge=0)

    @model_validator(mode="after")
    def _reachable(self) -> Normal:
        _refuse_out_of_reach(self.mean, self.min, self.max)
        return self

    def typical(self) -> int:
        return round(self.mean)

    def sampler(self) -> Sampler:
        return _bounded(self.mean, self.stddev, self.min, self.max)


class Lognormal(Bounded):
    """Lengths whose logarithms are normal, as users send: `median` or `mean`, and `sigma` (of the log) or `p95`."""

    kind: Literal["lognormal"]
    median: float | None = Field(None, gt=0)
    mean: float | None = Field(None, gt=0)
    sigma: float | None = Field(None, ge=0)
    p95: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _solvable(self) -> Lognormal:
        if (self.median is None) == (self.mean is None):
            raise ValueError("give either `median` or `mean`")
        if (self.sigma is None) == (self.p95 is None):
            raise ValueError("give either `sigma` or `p95`")
        mu, _ = self.law()
        _refuse_out_of_reach(math.exp(mu), self.min, self.max)
        return self

    def law(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm."""
        if self.median is not None:
            sigma = self.sigma if self.sigma is not None else math.log((self.p95 or 1.0) / self.median) / _P95
            if sigma < 0:
                raise ValueError(f"`p95` ({self.p95:g}) must not be smaller than `median` ({self.median:g})")
            return math.log(self.median), sigma
        mean = self.mean or 1.0
        sigma = self.sigma if self.sigma is not None else _sigma_of(mean, self.p95 or 1.0)
        return math.log(mean) - sigma**2 / 2, sigma

    def typical(self) -> int:
        return max(self.min, min(self.max, round(math.exp(self.law()[0]))))

    def sampler(self) -> Sampler:
        return _bounded(*self.law(), self.min, self.max, logarithmic=True)


class Empirical(FilePart):
    """Measured lengths: `values`, or a `file` of one number a line. Drawn alike, or by `weights`."""

    kind: Literal["empirical"]
    values: list[Tokens] | None = Field(None, min_length=1)
    weights: list[Annotated[float, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _of_one_source(self) -> Empirical:
        if (self.values is None) == (self.file is None):
            raise ValueError("give either `values` or `file`")
        count = len(self.numbers())
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"there are {len(self.weights)} `weights` for {count} values")
        if self.weights is not None and not sum(self.weights) > 0:
            raise ValueError("all `weights` are 0")
        return self

    def numbers(self) -> list[int]:
        return self.values if self.values is not None else read_values(self.path(), self.sha256 or "")

    def smallest(self) -> int:
        return min(self.numbers())

    def largest(self) -> int:
        return max(self.numbers())

    def typical(self) -> int:
        numbers = self.numbers()
        weights = self.weights or [1.0] * len(numbers)
        return max(1, round(sum(n * w for n, w in zip(numbers, weights, strict=True)) / sum(weights)))

    def sampler(self) -> Sampler:
        numbers = self.numbers()
        if self.weights is None:
            return lambda rng: rng.choice(numbers)
        up_to = list(accumulate(self.weights))
        return lambda rng: rng.choices(numbers, cum_weights=up_to)[0]


Distribution = Uniform | Normal | Lognormal | Empirical


def _kind(value: Any) -> Any:
    """Which branch of the union a value belongs to: a bare number, or the kind that a mapping names."""
    if isinstance(value, dict):
        return value.get("kind")
    return getattr(value, "kind", "number")


Lengths = Annotated[
    Annotated[Tokens, Tag("number")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[Lognormal, Tag("lognormal")]
    | Annotated[Empirical, Tag("empirical")],
    Discriminator(_kind),
]


class Exponential(Part):
    """Pauses without memory, of that mean: how people come back to a chat."""

    kind: Literal["exponential"]
    mean: Duration


Pause = Annotated[
    Annotated[Duration, Tag("duration")] | Annotated[Exponential, Tag("exponential")],
    Discriminator(lambda value: "duration" if (kind := _kind(value)) == "number" else kind),
]
DISTRIBUTIONS: dict[str, type[Part]] = {
    "uniform": Uniform, "normal": Normal, "lognormal": Lognormal, "empirical": Empirical,
}  # fmt: skip
PAUSES: dict[str, type[Part]] = {"exponential": Exponential}
TAGS = ("number", "duration")
"""Names of union branches that stand in pydantic's paths but in no file."""


def sampler(lengths: int | Distribution) -> Sampler:
    """The function that draws from them."""
    return (lambda rng: lengths) if isinstance(lengths, int) else lengths.sampler()


def typical(lengths: int | Distribution) -> int:
    """A length in their middle."""
    return lengths if isinstance(lengths, int) else lengths.typical()


def largest(lengths: int | Distribution) -> int:
    """The largest length that can come."""
    return lengths if isinstance(lengths, int) else lengths.largest()


def smallest(lengths: int | Distribution) -> int:
    """The smallest length that can come."""
    return lengths if isinstance(lengths, int) else lengths.smallest()


def pause_s(pause: float | Exponential | None, rng: Random) -> float:
    """One pause in seconds."""
    if isinstance(pause, Exponential):
        return rng.expovariate(1.0 / pause.mean)
    return pause or 0.0


def _refuse_out_of_reach(centre: float, low: int, high: int) -> None:
    if not low <= centre <= high:
        raise ValueError(f"its centre ({centre:g}) must lie between `min` ({low}) and `max` ({high})")


def _sigma_of(mean: float, p95: float) -> float:
    """Of the two log-normal laws with that mean and 95th percentile, the sigma of the narrower one."""
    if not 1 <= p95 / mean <= math.exp(_P95**2 / 2):
        raise ValueError(f"no log-normal law has `p95` {p95:g} and `mean` {mean:g}: their ratio lies in 1 to 3.87")
    return _P95 - math.sqrt(max(0.0, _P95**2 - 2 * math.log(p95 / mean)))


def _bounded(mu: float, sigma: float, low: int, high: int, logarithmic: bool = False) -> Sampler:
    """Draws of a normal law (of the logarithms, where `logarithmic`) between two bounds, by its inverse: one random
    number a draw. The centre lies between the bounds, so that there is always something to draw."""
    if sigma == 0:
        fixed = round(math.exp(mu) if logarithmic else mu)
        return lambda rng: fixed
    law = NormalDist(mu, sigma)
    edges = (low - 0.5, high + 0.5)  # rounding gives the smallest and the largest their whole share
    first, last = (law.cdf(math.log(edge)) if logarithmic else law.cdf(edge) for edge in edges)

    def draw(rng: Random) -> int:
        at = law.inv_cdf(min(max(first + (last - first) * rng.random(), 1e-15), 1 - 1e-15))
        return min(high, max(low, round(math.exp(at) if logarithmic else at)))

    return draw
