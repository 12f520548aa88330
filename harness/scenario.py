"""A scenario: which engines, which prompts, which load, which targets. Read from strict YAML.

Everything that a file leaves out has its default here, and the resolved scenario goes whole into run.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from harness.enginespec import EngineSpec, Name
from harness.errors import InputError
from harness.filepart import without_places
from harness.gatepart import Gate as Gate
from harness.loads import LoadSpec, Slo, SweepLoad
from harness.loads import Point as Point  # a part of a scenario, to all who read one
from harness.matrix import expanded
from harness.parts import RESOLVED, Duration, Part, Pause
from harness.pricepart import Price as Price
from harness.workloadspec import AnyWorkload
from harness.workloadspec import Sampling as Sampling
from harness.workloadspec import Workload as Workload

HIDDEN = "***"
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class Warmup(Part):
    """Requests sent before the first point of each engine; their records carry the phase `warmup`. `auto`: until an
    engine gets no faster, but not longer than `limit`; a number: so many."""

    requests: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    limit: Duration = 30.0


class Client(Part):
    """The load generator itself. `workers`: its processes; `auto` takes as many as the asked load needs."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"


class Scenario(Part):
    """The whole file, with every default filled in."""

    name: Name
    engines: list[EngineSpec] = Field(min_length=1)
    matrix: dict[str, list[Any]] = {}
    workload: AnyWorkload = Workload()
    load: list[LoadSpec] = Field(min_length=1)
    slo: Slo = {}
    warmup: Warmup = Warmup()
    client: Client = Client()
    repeats: int = Field(1, ge=1, le=1000)
    restart: Literal["once", "repeat"] = "once"
    order: Literal["seeded", "file"] = "seeded"
    cooldown: Pause | None = None
    seed: int = Field(42, ge=0)
    save_text: bool = False
    gate: Gate | None = None
    price: Price | None = None

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, data: Any, info: ValidationInfo) -> Any:
        """Engines of a file are multiplied by its matrix; those that run.json holds have been."""
        if not isinstance(data, dict) or not data.get("matrix") or info.context == RESOLVED:
            return data
        engines, matrix = data.get("engines"), data["matrix"]
        if not (isinstance(engines, list) and all(isinstance(e, dict) for e in engines) and isinstance(matrix, dict)):
            return data  # the fault is found below
        return {**data, "engines": expanded(engines, matrix)}

    @field_validator("engines")
    @classmethod
    def _unique_engines(cls, value: list[EngineSpec]) -> list[EngineSpec]:
        _refuse_twice("engine", [engine.name for engine in value])
        return value

    @field_validator("load")
    @classmethod
    def _unique_points(cls, value: list[LoadSpec]) -> list[LoadSpec]:
        _refuse_twice("load", [point.name for load in value for point in load.points()])
        _refuse_twice("load", [load.name for load in value if isinstance(load, SweepLoad)])
        return value

    @model_validator(mode="after")
    def _judged(self) -> Scenario:
        for sweep in self.sweeps():
            sweep.refuse_too_few(self.slo_of(sweep))
        return self

    def points(self) -> list[Point]:
        """The load points of one repeat on one engine, in the order of the file."""
        return [point for load in self.load for point in load.points()]

    def sweeps(self) -> list[SweepLoad]:
        """The loads whose points are chosen while they run."""
        return [load for load in self.load if isinstance(load, SweepLoad)]

    def slo_of(self, sweep: SweepLoad) -> dict[str, float]:
        """The targets that a sweep looks for: its own, else those of the scenario."""
        return sweep.slo if sweep.slo is not None else self.slo

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default, as run.json keeps them."""
        return self.model_dump(mode="json")

    def stored(self) -> dict[str, Any]:
        """`resolved` without secrets: header values and secret-looking environment values that are not `${NAMES}`."""
        data = self.resolved()
        for engine in data["engines"]:
            for table in ("headers", "env"):
                for key, value in engine.get(table, {}).items():
                    secret = table == "headers" or key.upper().endswith(SECRET_WORDS)
                    if secret and not re.fullmatch(r"[^$]*\$\{\w+\}[^$]*", str(value)):
                        engine[table][key] = HIDDEN
        return data

    def hash(self) -> str:
        """Identifies what is measured: equal for two files that resolve to the same scenario, whatever gates or prices
        them."""
        data = {key: value for key, value in without_places(self.resolved()).items() if key not in ("gate", "price")}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_twice(what: str, names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the {what} '{twice[0]}' is there twice")


def hidden_keys(data: dict[str, Any]) -> list[str]:
    """The engines' keys whose values a stored scenario does not hold."""
    return [
        f"{engine['name']}.{table}.{key}"
        for engine in data.get("engines", [])
        for table in ("headers", "env")
        for key, value in engine.get(table, {}).items()
        if value == HIDDEN
    ]


def from_resolved(data: dict[str, Any]) -> Scenario:
    """The scenario that a run.json holds.

    Raises:
        InputError: it is none, or one of another version of this tool.
    """
    try:
        return Scenario.model_validate(data, context=RESOLVED)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"the scenario in run.json cannot be read: {where}: {first['msg']}", "start a new run"
        ) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file, so that editors complete and check it."""
    return Scenario.model_json_schema()
