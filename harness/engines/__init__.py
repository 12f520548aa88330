"""The engines. Adding one: a file beside this, and a line in ENGINES (its part of the scenario is in `scenario`)."""

from __future__ import annotations

from typing import Any

from harness.engines.base import Engine
from harness.engines.ollama import OllamaEngine
from harness.engines.openai import OpenAIEngine
from harness.engines.sim import SimEngine
from harness.engines.transformers import TransformersEngine
from harness.engines.vllm import VllmEngine

ENGINES: dict[str, Any] = {
    "vllm": VllmEngine, "ollama": OllamaEngine, "openai": OpenAIEngine, "sim": SimEngine,
    "transformers": TransformersEngine,
}  # fmt: skip


def make_engine(spec: Any) -> Engine:
    """The engine that an `engines:` entry of a scenario describes."""
    engine: Engine = ENGINES[spec.kind](spec)
    return engine
