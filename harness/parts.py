"""The base of every part of a scenario, and the kinds of values that parts share: durations, rates, addresses, names."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from harness.units import parse_duration_s, parse_rate_rps

RESOLVED = "resolved"
"""The validation context of what a run.json holds. Of a file it is the folder that the file is in."""


def _duration(value: object, info: ValidationInfo) -> float:
    if info.context == RESOLVED and isinstance(value, int | float):
        return float(value)  # read back from run.json, where every duration is in seconds
    return parse_duration_s(value)


def _http_url(value: str) -> str:
    if not re.match(r"^https?://[^/\s]+", value):
        raise ValueError("must start with http:// or https://")
    if "@" in value.split("/")[2]:
        raise ValueError("holds a password: put it into `headers`, as ${NAME} of the environment")
    return value


_IN_WORDS: Any = {"type": "string", "examples": ["60s", "500ms"]}  # what a file says, for editors
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0), WithJsonSchema(_IN_WORDS)]
Rate = Annotated[float, BeforeValidator(parse_rate_rps), Field(gt=0), WithJsonSchema({"type": ["number", "string"]})]
Url = Annotated[str, AfterValidator(_http_url)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scalar = str | int | float | bool


class Part(BaseModel):
    """The base of every part: unknown keys are refused, nothing is converted (`yes` is no number), values are final."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
