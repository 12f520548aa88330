"""A scenario: which engines, which prompts, which load, which targets. Read from strict YAML.

Everything that a file leaves out has its default here, and the resolved scenario goes whole into run.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from harness.errors import InputError
from harness.units import parse_duration_s, parse_percent, parse_rate_rps


def _duration(value: object, info: ValidationInfo) -> float:
    if info.context == RESOLVED and isinstance(value, int | float):
        return float(value)  # read back from run.json, where every duration is in seconds
    return parse_duration_s(value)


def _percent(value: object, info: ValidationInfo) -> float:
    return float(value) if info.context == RESOLVED and isinstance(value, int | float) else parse_percent(value)


def _metric(name: str) -> str:
    from harness.metrics import metric_key  # it brings numpy, which no other part of a scenario needs

    metric_key(name)
    return name


def _slo_key(key: str) -> str:
    if not SLO_KEY.match(key):
        raise ValueError(f"unknown target '{key}': write for example ttft_p95, tpot_p95, e2e_p99")
    return key


def _http_url(value: str) -> str:
    if not re.match(r"^https?://[^/\s]+", value):
        raise ValueError("must start with http:// or https://")
    if "@" in value.split("/")[2]:
        raise ValueError("holds a password: put it into `headers`, as ${NAME} of the environment")
    return value


RESOLVED = "resolved"
HIDDEN = "***"
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_IN_WORDS: Any = {"type": "string", "examples": ["60s", "500ms"]}  # what a file says, for editors
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0), WithJsonSchema(_IN_WORDS)]
Rate = Annotated[float, BeforeValidator(parse_rate_rps), Field(gt=0), WithJsonSchema({"type": ["number", "string"]})]
Percent = Annotated[float, BeforeValidator(_percent), WithJsonSchema({"type": "string", "examples": ["5%"]})]
Url = Annotated[str, AfterValidator(_http_url)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scalar = str | int | float | bool
SLO_KEY = re.compile(r"^(ttft|tpot|itl|e2e)_(mean|p50|p90|p95|p99)\Z")


class Part(BaseModel):
    """The base of every part: unknown keys are refused, nothing is converted (`yes` is no number), values are final."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sampling(Part):
    """How the model picks tokens; set explicitly on every engine, so that none uses its own default."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: no limit")
    seed: int | None = None
    stop: list[str] = []


class Workload(Part):
    """The prompts: `synthetic` ones of an exact token length that never share a prefix."""

    kind: Literal["synthetic"] = "synthetic"
    input_tokens: int = Field(512, ge=1)
    output_tokens: int = Field(128, ge=1)
    api: Literal["completions", "chat"] = "completions"
    prompt: Literal["auto", "text", "token_ids"] = "auto"
    sampling: Sampling = Sampling()


class Warmup(Part):
    """Requests sent before the first point of each engine; their records carry the phase `warmup`."""

    requests: int = Field(8, ge=0)


class Client(Part):
    """The load generator itself. `workers`: its processes; `auto` takes as many as the asked load needs."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"


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


class EngineBase(Part):
    name: Name
    model: str
    workload: Workload | None = None
    env: dict[str, Scalar] = {}
    ready_timeout: Duration = 600.0
    request_timeout: Duration = 600.0


class LaunchedBase(EngineBase):
    """An engine that the tool starts. `command` replaces how: a list, never a shell, e.g. [docker, run, ...]."""

    command: list[str] | None = None
    stop_command: list[str] | None = None
    ready_url: Url | None = None
    port: int | None = Field(None, ge=1, le=65535)


class VllmSpec(LaunchedBase):
    """`python -m vllm.entrypoints.openai.api_server` in an interpreter of its own."""

    kind: Literal["vllm"]
    python: str | None = None
    args: dict[str, Scalar | list[Scalar] | dict[str, Any] | None] = {}


class OllamaSpec(LaunchedBase):
    """`ollama serve` with a model that is pulled, or created from `gguf`; with `base_url`, a running daemon."""

    kind: Literal["ollama"]
    binary: str | None = None
    base_url: Url | None = None
    gguf: str | None = None
    options: dict[str, Scalar] = {}


class OpenAISpec(EngineBase):
    """Any running endpoint that speaks OpenAI's API. The key is read from the environment and never stored."""

    kind: Literal["openai"]
    base_url: Url
    flavor: Literal["vllm", "ollama", "other"] = "other"
    metrics_url: Url | None = None
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str | None = None
    headers: dict[str, str] = {}

    @field_validator("base_url")
    @classmethod
    def _ends_in_v1(cls, value: str) -> str:
        value = value.rstrip("/")
        if not value.endswith("/v1"):
            raise ValueError(f"must end in /v1: {value}/v1")
        return value


class SimSpec(LaunchedBase):
    """The embedded engine: a real server at the speed that `sizing` predicts for a named hardware."""

    kind: Literal["sim"]
    hardware: str = "H100 SXM 80GB"
    quantization: str = "bf16"
    policy: Literal["vllm", "ollama"] = "vllm"
    args: dict[str, Scalar] = {}


EngineSpec = Annotated[VllmSpec | OllamaSpec | OpenAISpec | SimSpec, Field(discriminator="kind")]


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


LoadSpec = Annotated[ConcurrencyLoad | RateLoad, Field(discriminator="kind")]


class Scenario(Part):
    """The whole file, with every default filled in."""

    name: Name
    engines: list[EngineSpec] = Field(min_length=1)
    workload: Workload = Workload()
    load: list[LoadSpec] = Field(min_length=1)
    slo: dict[Annotated[str, AfterValidator(_slo_key)], Duration] = {}
    warmup: Warmup = Warmup()
    client: Client = Client()
    repeats: int = Field(1, ge=1, le=1000)
    restart: Literal["once", "repeat"] = "once"
    seed: int = Field(42, ge=0)
    save_text: bool = False
    gate: Gate | None = None

    @field_validator("engines")
    @classmethod
    def _unique_engines(cls, value: list[EngineSpec]) -> list[EngineSpec]:
        _refuse_twice("engine", [engine.name for engine in value])
        return value

    @field_validator("load")
    @classmethod
    def _unique_points(cls, value: list[LoadSpec]) -> list[LoadSpec]:
        _refuse_twice("load", [point.name for load in value for point in load.points()])
        return value

    def points(self) -> list[Point]:
        """The load points of one repeat on one engine, in the order of the file."""
        return [point for load in self.load for point in load.points()]

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
        """Identifies what is measured: equal for two files that resolve to the same scenario, whatever gates them."""
        data = {key: value for key, value in self.resolved().items() if key != "gate"}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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
