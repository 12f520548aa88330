"""The `gate:` part of a scenario: what `bench gate` holds a candidate to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from harness.parts import RESOLVED, Part
from harness.units import parse_percent

_IN_WORDS: Any = {"type": "string", "examples": ["5%"]}


def _percent(value: object, info: ValidationInfo) -> float:
    return float(value) if info.context == RESOLVED and isinstance(value, int | float) else parse_percent(value)


def _metric(name: str) -> str:
    from harness.metrics import metric_key  # it brings numpy, which no other part of a scenario needs

    metric_key(name)
    return name


Percent = Annotated[float, BeforeValidator(_percent), WithJsonSchema(_IN_WORDS)]


class Gate(Part):
    """What `bench gate` holds a candidate to: the largest change for the worse of each metric, as a share."""

    limits: dict[Annotated[str, AfterValidator(_metric)], Percent] = Field(min_length=1)
    min_repeats: int = Field(4, ge=2, le=100, description="of each engine, before `gate run` looks for the first time")
    max_repeats: int = Field(12, ge=2, le=100, description="of each engine; `gate run` stops there, decided or not")
    inconclusive: Literal["inconclusive", "pass", "fail"] = "inconclusive"

    @model_validator(mode="after")
    def _min_below_max(self) -> Gate:
        if self.min_repeats > self.max_repeats:
            raise ValueError("`min_repeats` must not be above `max_repeats`")
        return self
