"""The engines of a scenario file: what may be said of each kind. Adding one: a class and its name in `EngineSpec`, and
the engine itself in `harness/engines`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from harness.parts import Duration, Part
from harness.workloadspec import AnyWorkload


def _http_url(value: str) -> str:
    if not re.match(r"^https?://[^/\s]+", value):
        raise ValueError("must start with http:// or https://")
    if "@" in value.split("/")[2]:
        raise ValueError("holds a password: put it into `headers`, as ${NAME} of the environment")
    return value


Url = Annotated[str, AfterValidator(_http_url)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Scalar = str | int | float | bool


class EngineBase(Part):
    """What every engine has. `launched`: the tool starts it, and so it can be seen before; `simulated`: no hardware is
    behind its figures."""

    launched: ClassVar[bool] = False
    simulated: ClassVar[bool] = False
    name: Name
    model: str
    workload: AnyWorkload | None = None
    env: dict[str, Scalar] = {}
    ready_timeout: Duration = 600.0
    request_timeout: Duration = 600.0


class LaunchedBase(EngineBase):
    """An engine that the tool starts. `command` replaces how: a list, never a shell, e.g. [docker, run, ...].
    `replicas`: so many of it behind a `balancer`. `on`: what a cluster's host must have to serve it."""

    launched: ClassVar[bool] = True
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

    simulated: ClassVar[bool] = True
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
