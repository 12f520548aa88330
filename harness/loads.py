"""The kinds of load that a scenario may ask for, and the load points that they stand for.

How a kind's requests fall due is in `arrivals`; how a `sweep` chooses its rates in `sweep`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from harness.errors import InputError
from harness.parts import Duration, ExistingFile, Part, Rate
from harness.traces import Row, Trace, detect, read_trace

SLO_KEY = re.compile(r"^(ttft|tpot|itl|e2e)_(mean|p50|p90|p95|p99)\Z")
SLO_NEEDS = {"p90": 50, "p95": 100, "p99": 500}  # requests behind a percentile: five must lie beyond it


def _slo_key(key: str) -> str:
    if not SLO_KEY.match(key):
        raise ValueError(f"unknown target '{key}': write for example ttft_p95, tpot_p95, e2e_p99")
    return key


Slo = dict[Annotated[str, AfterValidator(_slo_key)], Duration]
Randomness = Literal["poisson", "constant"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """One load point: a closed loop of `concurrency` streams, or an open loop of `rate_rps`.

    The rate is the mean, where it varies. `shape` holds what only one kind of load has, such as its burstiness.
    """

    name: str
    kind: str
    requests: int | None = None
    duration_s: float | None = None
    concurrency: int | None = None
    rate_rps: float | None = None
    start: Literal["staggered", "burst"] = "staggered"
    shape: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_rps(self) -> float | None:
        """The highest rate that an open loop asks for on purpose."""
        shape = self.shape
        rates = [self.rate_rps, shape.get("from_rps"), shape.get("to_rps"), *shape.get("rates_rps", ())]
        return max((rate for rate in rates if rate is not None), default=None)


class LoadBase(Part):
    """How much is measured: `requests` or a `duration`, of each repeat; ramp and drain come on top."""

    requests: int | None = Field(None, ge=1)
    duration: Duration | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> LoadBase:
        if (self.requests is None) == (self.duration is None):
            raise ValueError("give either `requests` or `duration`")
        return self


class ConcurrencyLoad(LoadBase):
    """A closed loop: each level holds that many requests in flight."""

    kind: Literal["concurrency"]
    levels: list[Annotated[int, Field(ge=1, le=65536)]] = Field(min_length=1)
    start: Literal["staggered", "burst"] = "staggered"

    def points(self) -> list[Point]:
        suffix = "-burst" if self.start == "burst" else ""
        return [
            Point(f"c{n}{suffix}", "concurrency", self.requests, self.duration, n, None, self.start)
            for n in self.levels
        ]


class RateLoad(LoadBase):
    """An open loop: requests fall due at `rate` a second, whatever the server does."""

    kind: Literal["poisson", "constant"]
    rate: Rate

    def points(self) -> list[Point]:
        name = f"{self.kind}-{self.rate:g}rps"
        return [Point(name, self.kind, self.requests, self.duration, None, self.rate)]


class GammaLoad(LoadBase):
    """An open loop of gamma-distributed gaps. `burstiness` is their shape parameter, as `vllm bench serve` has it:
    1 is a Poisson process, less comes in bursts, more is smoother. The gaps' deviation is mean / sqrt(burstiness)."""

    kind: Literal["gamma"]
    rate: Rate
    burstiness: float = Field(ge=0.01, le=1000)

    def points(self) -> list[Point]:
        name, shape = f"gamma-{self.rate:g}rps-b{self.burstiness:g}", {"burstiness": self.burstiness}
        return [Point(name, "gamma", self.requests, self.duration, None, self.rate, shape=shape)]


class RampLoad(Part):
    """An open loop whose rate changes evenly from one rate to another over the window."""

    kind: Literal["ramp"]
    from_rate: Rate
    to_rate: Rate
    duration: Duration
    arrivals: Randomness = "poisson"

    @model_validator(mode="before")
    @classmethod
    def _of_a_duration(cls, data: Any) -> Any:
        return _without_requests(data, "give its `duration`")

    def points(self) -> list[Point]:
        name = f"ramp-{self.from_rate:g}-{self.to_rate:g}rps{_suffix(self.arrivals)}"
        shape = {"from_rps": self.from_rate, "to_rps": self.to_rate, "arrivals": self.arrivals}
        return [Point(name, "ramp", None, self.duration, None, (self.from_rate + self.to_rate) / 2, shape=shape)]


class StepsLoad(Part):
    """An open loop whose rate changes in steps inside one window, each of them `each` long."""

    kind: Literal["steps"]
    rates: list[Rate] = Field(min_length=1, max_length=100)
    each: Duration
    arrivals: Randomness = "poisson"

    @model_validator(mode="before")
    @classmethod
    def _of_durations(cls, data: Any) -> Any:
        return _without_requests(data, "give `each`, the time of one step")

    def points(self) -> list[Point]:
        name = f"steps-{'-'.join(f'{rate:g}' for rate in self.rates)}rps{_suffix(self.arrivals)}"
        shape = {"rates_rps": self.rates, "each_s": self.each, "arrivals": self.arrivals}
        mean = sum(self.rates) / len(self.rates)
        return [Point(name, "steps", None, self.each * len(self.rates), None, mean, shape=shape)]


class TraceLoad(Part):
    """The requests of a trace file, at their own times and of their own lengths: all of it, or its first `requests`, or
    those of a `duration`. `start` passes over the trace's beginning; `speed` divides its times; `rate` does so up to a
    mean rate. `sha256` is filled in, and pins the file's content where it is given."""

    kind: Literal["trace"]
    file: ExistingFile
    format: Literal["auto", "azure", "mooncake", "csv", "jsonl"] = Field("auto", validate_default=True)
    sha256: str | None = Field(None, validate_default=True, pattern=r"^[0-9a-f]{64}$")
    speed: float = Field(1.0, gt=0, le=1e6)
    rate: Rate | None = None
    start: Duration | None = None
    requests: int | None = Field(None, ge=1)
    duration: Duration | None = None

    @field_validator("format")
    @classmethod
    def _detected(cls, value: str, info: ValidationInfo) -> str:
        return _or_fault(lambda: detect(info.data["file"])) if value == "auto" and "file" in info.data else value

    @field_validator("sha256")
    @classmethod
    def _hashed(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "file" not in info.data or "format" not in info.data:
            return value  # what is wrong with them is said already
        return _or_fault(lambda: read_trace(info.data["file"], info.data["format"], value)).sha256

    @model_validator(mode="after")
    def _fits(self) -> TraceLoad:
        if self.requests is not None and self.duration is not None:
            raise ValueError("give `requests` or `duration`, not both; neither takes the whole trace")
        if self.rate is not None and self.speed != 1.0:
            raise ValueError("give `speed` or `rate`, not both")
        trace, start_s = self._trace(), self.start or 0.0
        last_s = trace.rows[-1].time_s
        if start_s > last_s:
            raise ValueError(f"`start` lies behind the trace's last request, which comes after {last_s:.6g} s")
        if self.rate is not None and trace.mean_rate_rps(start_s) is None:
            raise ValueError("no `rate` can be reached: all requests of the trace come at one moment")
        piece = trace.piece(start_s, self._times_as_fast())
        if self.requests is not None and self.requests > len(piece):
            raise ValueError(f"the trace has {len(piece)} requests, `requests` is {self.requests}")
        if self.duration is not None and self.duration > piece[-1].time_s:
            raise ValueError(f"the trace lasts {piece[-1].time_s:.6g} s at this speed, less than the `duration`")
        if self.duration is not None and piece[0].time_s >= self.duration:
            raise ValueError(f"no request in the `duration`: the first comes after {piece[0].time_s:.6g} s")
        return self

    def _trace(self) -> Trace:
        return _or_fault(lambda: read_trace(self.file, self.format, self.sha256))

    def _times_as_fast(self) -> float:
        """`speed`, or what reaches the mean `rate`."""
        own_rps = self._trace().mean_rate_rps(self.start or 0.0)
        return self.rate / own_rps if self.rate and own_rps else self.speed

    def points(self) -> list[Point]:
        speed, start_s = self._times_as_fast(), self.start or 0.0
        piece = self._trace().piece(start_s, speed)
        count, close_s = trace_window(piece, self.requests, self.duration)
        name = "trace-" + re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(self.file).stem)
        name += f"-{self.rate:g}rps" if self.rate else f"-x{self.speed:g}" if self.speed != 1 else ""
        name += f"-from-{self.start:g}s" if self.start else ""
        shape = {"file": self.file, "format": self.format, "sha256": self.sha256, "start_s": start_s, "speed": speed}
        requests = None if self.duration is not None else count
        return [Point(name, "trace", requests, self.duration, None, count / close_s, shape=shape)]


class SweepLoad(LoadBase):
    """Open loops at rates that are chosen while it runs: it finds where the SLO breaks and where throughput stops
    growing, with at most `probes` of them. `requests` or `duration` is that of one probe."""

    kind: Literal["sweep"]
    slo: Slo | None = None
    min_rate: Rate | None = None
    max_rate: Rate | None = None
    arrivals: Randomness = "poisson"
    probes: int = Field(12, ge=2, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> SweepLoad:
        if self.min_rate and self.max_rate and not self.min_rate < self.max_rate:
            raise ValueError("`min_rate` must be below `max_rate`")
        return self

    @property
    def name(self) -> str:
        return f"sweep{_suffix(self.arrivals)}"

    def points(self) -> list[Point]:
        """None: its points are not known before it runs."""
        return []

    def point(self, rate_rps: float) -> Point:
        """The probe at one rate."""
        name, shape = f"{self.name}-{rate_rps:g}rps", {"sweep": self.name}
        return Point(name, self.arrivals, self.requests, self.duration, None, rate_rps, shape=shape)

    def refuse_too_few(self, slo: dict[str, float]) -> None:
        """A ValueError where no probe could ever judge a target."""
        for key in slo:
            needed = SLO_NEEDS.get(key.partition("_")[2], 10)
            if self.requests is not None and self.requests < needed and not key.startswith("itl"):
                raise ValueError(
                    f"{self.name}: {key} needs {needed} requests, a probe has {self.requests}: raise `requests`"
                )


Load = ConcurrencyLoad | RateLoad | GammaLoad | RampLoad | StepsLoad | TraceLoad | SweepLoad
LoadSpec = Annotated[Load, Field(discriminator="kind")]


def trace_window(piece: list[Row], requests: int | None, duration_s: float | None) -> tuple[int, float]:
    """How many requests of a piece of a trace are measured, and when its window closes (it opens at 0).

    Requests of one moment are never parted: `requests` goes on to the last of them. Where the trace ends first, the
    window closes a mean gap after its last request.
    """
    times = [row.time_s for row in piece]
    if duration_s is not None:
        return sum(at < duration_s for at in times), duration_s
    count = len(times) if requests is None else requests
    while count < len(times) and times[count] == times[count - 1]:
        count += 1
    if count < len(times):
        return count, times[count]
    gaps = [b - a for a, b in pairwise(times)]
    return count, times[-1] + ((sum(gaps) / len(gaps) if gaps else 0.0) or 1.0)


def _or_fault(read: Callable[[], T]) -> T:
    """What `read` returns; what it refuses as a fault of the key that is looked at."""
    try:
        return read()
    except InputError as error:
        raise ValueError(error.message) from None


def _without_requests(data: Any, instead: str) -> Any:
    if isinstance(data, dict) and "requests" in data:
        raise ValueError(f"its rate changes with time, so it cannot be told in `requests`: {instead}")
    return data


def _suffix(arrivals: str) -> str:
    return "" if arrivals == "poisson" else f"-{arrivals}"
