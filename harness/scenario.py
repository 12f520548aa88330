"""A scenario: which engines, which prompts, which load, which targets. Read from strict YAML.

Everything that a file leaves out has its default here, and the resolved scenario goes whole into run.json.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.errors import InputError
from harness.units import parse_duration_s, parse_rate_rps
from harness.yamlfile import YamlFile


def _duration(value: object, info: ValidationInfo) -> float:
    if info.context == RESOLVED and isinstance(value, int | float):
        return float(value)  # read back from run.json, where every duration is in seconds
    return parse_duration_s(value)


RESOLVED = "resolved"
Duration = Annotated[float, BeforeValidator(_duration)]
Rate = Annotated[float, BeforeValidator(parse_rate_rps), Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scalar = str | int | float | bool
SLO_KEY = re.compile(r"^(ttft|tpot|itl|e2e)_(mean|p50|p90|p95|p99)$")


class Part(BaseModel):
    """The base of every part: unknown keys are refused, values are final."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    ready_url: str | None = None
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
    base_url: str | None = None
    gguf: str | None = None
    options: dict[str, Scalar] = {}


class OpenAISpec(EngineBase):
    """Any running endpoint that speaks OpenAI's API. The key is read from the environment and never stored."""

    kind: Literal["openai"]
    base_url: str
    flavor: Literal["vllm", "ollama", "other"] = "other"
    metrics_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    ca_file: str | None = None
    headers: dict[str, str] = {}

    @field_validator("base_url")
    @classmethod
    def _ends_in_v1(cls, value: str) -> str:
        if not re.match(r"^https?://[^/\s]+", value):
            raise ValueError("must start with http:// or https://")
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


class RateLoad(LoadBase):
    """An open loop: requests fall due at `rate` a second, whatever the server does."""

    kind: Literal["poisson", "constant"]
    rate: Rate


LoadSpec = Annotated[ConcurrencyLoad | RateLoad, Field(discriminator="kind")]


class Scenario(Part):
    """The whole file, with every default filled in."""

    name: Name
    engines: list[EngineSpec] = Field(min_length=1)
    workload: Workload = Workload()
    load: list[LoadSpec] = Field(min_length=1)
    slo: dict[str, Duration] = {}
    warmup: Warmup = Warmup()
    repeats: int = Field(1, ge=1, le=1000)
    restart: Literal["once", "repeat"] = "once"
    seed: int = Field(42, ge=0)
    save_text: bool = False

    @field_validator("slo")
    @classmethod
    def _known_targets(cls, value: dict[str, float]) -> dict[str, float]:
        for key in value:
            if not SLO_KEY.match(key):
                raise ValueError(f"unknown target '{key}': write for example ttft_p95, tpot_p95, e2e_p99")
        return value

    @model_validator(mode="after")
    def _unique_names(self) -> Scenario:
        for what, names in (("engine", [e.name for e in self.engines]), ("load", [p.name for p in self.points()])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"the {what} '{twice[0]}' is there twice")
        return self

    def points(self) -> list[Point]:
        """The load points of one repeat on one engine, in the order of the file."""
        points: list[Point] = []
        for load in self.load:
            if isinstance(load, ConcurrencyLoad):
                suffix = "-burst" if load.start == "burst" else ""
                points += [
                    Point(f"c{n}{suffix}", "concurrency", load.requests, load.duration, n, None, load.start)
                    for n in load.levels
                ]
            else:
                name = f"{load.kind}-{load.rate:g}rps"
                points.append(Point(name, load.kind, load.requests, load.duration, None, load.rate, "staggered"))
        return points

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default, as run.json keeps them."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """Identifies what is measured: equal for two files that resolve to the same scenario."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Point:
    """One load point: a closed loop of `concurrency` streams, or an open loop of `rate_rps`."""

    name: str
    kind: Literal["concurrency", "poisson", "constant"]
    requests: int | None = None
    duration_s: float | None = None
    concurrency: int | None = None
    rate_rps: float | None = None
    start: Literal["staggered", "burst"] = "staggered"


def load_scenario(path: Path) -> Scenario:
    """Read and check a scenario file.

    Raises:
        InputError: one line for each fault, with file, line, path of the key and what would be right.
    """
    file = YamlFile(path)
    if not isinstance(file.data, dict):
        raise InputError(f"{path}: a scenario is a mapping of keys", "see `bench scenario new`")
    try:
        return Scenario.model_validate(file.data)
    except ValidationError as error:
        faults = [_fault(file, fault) for fault in error.errors()]
        raise InputError("\n".join(dict.fromkeys(faults)), f"check it with: bench scenario check {path}") from None


def _fault(file: YamlFile, fault: Any) -> str:
    """One pydantic fault as `file:line: path: what is wrong`."""
    place, keys = _place(file.data, fault["loc"])
    text = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    key = str(place[-1]) if place else ""
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, keys, n=1)
        text = f"unknown key '{key}'" + (
            f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(keys)}"
        )
    elif fault["type"] == "missing":
        text = f"the key '{key}' is missing"
    elif fault["type"].startswith("union_tag"):
        expected = (fault.get("ctx") or {}).get("expected_tags", "")
        text = f"unknown kind; one of {expected}" if "invalid" in fault["type"] else "the key 'kind' is missing"
    elif fault["type"] not in ("value_error", "assertion_error"):
        text = f"{text[0].lower()}{text[1:]}, not {fault['input']!r}"
    where = ".".join(str(part) for part in place)
    return f"{file.path}:{file.line(place)}: {where + ': ' if where else ''}{text}"


def _place(data: Any, loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], list[str]]:
    """The path as the file has it (pydantic adds union tags), and the keys that are known at its end."""
    place: list[str | int] = []
    node: Any = data
    for index, part in enumerate(loc):
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue  # a union's tag, no key of the file
        if index < len(loc) - 1 and isinstance(node, dict) and part not in node:
            break
        place.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    return tuple(place), _known_keys(data, place)


def _known_keys(data: Any, place: list[str | int]) -> list[str]:
    tables: dict[str, type[Part]] = {"workload": Workload, "warmup": Warmup, "sampling": Sampling}
    kinds: dict[str, type[Part]] = {
        "vllm": VllmSpec, "ollama": OllamaSpec, "openai": OpenAISpec, "sim": SimSpec,
        "concurrency": ConcurrencyLoad, "poisson": RateLoad, "constant": RateLoad,
    }  # fmt: skip
    node, model = data, Scenario
    table: type[Part] = model
    for part in place[:-1]:
        node = node[part] if isinstance(node, dict | list) else None  # type: ignore[index]
        table = tables.get(str(part), table)
        if isinstance(node, dict) and node.get("kind") in kinds:
            table = kinds[node["kind"]]
    return sorted(table.model_fields)


def from_resolved(data: dict[str, Any]) -> Scenario:
    """The scenario that a run.json holds."""
    return Scenario.model_validate(data, context=RESOLVED)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file, so that editors complete and check it."""
    return Scenario.model_json_schema()
