"""What the parts of a scenario file are made of: strict models, and durations, rates and files as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from harness.units import parse_duration_s, parse_rate_rps

RESOLVED = "resolved"


class Part(BaseModel):
    """The base of every part: unknown keys are refused, nothing is converted (`yes` is no number), values are final.

    A validator is built when it is first used: most parts are only ever read as part of a scenario, whose own has all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


def _duration(value: object, info: ValidationInfo) -> float:
    if info.context == RESOLVED and isinstance(value, int | float):
        return float(value)  # read back from run.json, where every duration is in seconds
    return parse_duration_s(value)


def _file(value: object, info: ValidationInfo) -> str:
    """The file's full path; a relative one is sought beside the scenario file (the context), else where we are.

    The home directory is kept as `~`: run.json names no user.
    """
    if not isinstance(value, str):
        raise ValueError(f"not a file name: {value!r}")
    path = Path(value).expanduser()
    path = (info.context / path if isinstance(info.context, Path) else path).absolute()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


_IN_WORDS: Any = {"type": "string", "examples": ["60s", "500ms"]}  # what a file says, for editors
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0), WithJsonSchema(_IN_WORDS)]
Pause = Annotated[float, BeforeValidator(_duration), Field(ge=0), WithJsonSchema(_IN_WORDS)]
Rate = Annotated[float, BeforeValidator(parse_rate_rps), Field(gt=0), WithJsonSchema({"type": ["number", "string"]})]
ExistingFile = Annotated[str, BeforeValidator(_file)]


def by_kind(union: Any) -> dict[str, type[Part]]:
    """The parts of a union that is told apart by `kind`, by that word."""
    return {
        kind: part for part in get_args(get_args(union)[0]) for kind in get_args(part.model_fields["kind"].annotation)
    }
