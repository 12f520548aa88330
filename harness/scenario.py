"""A scenario: which engines, which prompts, which load, which targets. Read from strict YAML.

Everything that a file leaves out has its default here, and the resolved scenario goes whole into run.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

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


def _http_url(value: str) -> str:
    if not re.match(r"^https?://[^/\s]+", value):
        raise ValueError("must start with http:// or https://")
    if "@" in value.split("/")[2]:
        raise ValueError("holds a password: put it into `headers`, as ${NAME} of the environment")
    return value


HIDDEN = "***"
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
Url = Annotated[str, AfterValidator(_http_url)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scalar = str | int | float | bool


class Warmup(Part):
    """Requests sent before the first point of each engine; their records carry the phase `warmup`. `auto`: until an
    engine gets no faster, but not longer than `limit`; a number: so many."""

    requests: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    limit: Duration = 30.0


class Client(Part):
    """The load generator itself. `workers`: its processes; `auto` takes as many as the asked load needs."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"


class EngineBase(Part):
    name: Name
    model: str
    workload: AnyWorkload | None = None
    env: dict[str, Scalar] = {}
    ready_timeout: Duration = 600.0
    request_timeout: Duration = 600.0


class LaunchedBase(EngineBase):
    """An engine that the tool starts. `command` replaces how: a list, never a shell, e.g. [docker, run, ...].
    `replicas`: so many of it behind a `balancer`. `on`: what a cluster's host must have to serve it."""

    replicas: int = Field(1, ge=1, le=64)
    balancer: Literal["nginx", "vllm-router"] = "nginx"
    on: dict[str, Scalar] = {}
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


class TransformersArgs(Part):
    """`batch`: requests at once, 1 is one at a time; `batch_wait`: how long the first of a batch waits for more;
    `load: dummy` gives random weights to a folder that holds a config.json alone."""

    batch: int = Field(1, ge=1, le=4096)
    batch_wait: Duration = 0.05
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    attn: Literal["sdpa", "cudnn", "eager", "flash_attention_2"] = "sdpa"
    load: Literal["weights", "dummy"] = "weights"


class TransformersSpec(LaunchedBase):
    """The baseline: Hugging Face `generate` behind a minimal server of ours, one request at a time or in batches."""

    kind: Literal["transformers"]
    python: str | None = None
    args: TransformersArgs = TransformersArgs()


EngineSpec = Annotated[VllmSpec | OllamaSpec | OpenAISpec | SimSpec | TransformersSpec, Field(discriminator="kind")]


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
