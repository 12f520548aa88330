"""The engines. Adding one: a file beside this, a line in ENGINES, and its part of the scenario in `enginespec`."""

from __future__ import annotations

from typing import Any

from harness.engines import ollama, sim, vllm
from harness.engines.base import Engine, Launched
from harness.engines.ollama import OllamaEngine
from harness.engines.openai import OpenAIEngine
from harness.engines.replicas import Replicated
from harness.engines.sim import SimEngine
from harness.engines.transformers import TransformersEngine
from harness.engines.vllm import VllmEngine

ENGINES: dict[str, Any] = {
    "vllm": VllmEngine, "ollama": OllamaEngine, "openai": OpenAIEngine, "sim": SimEngine,
    "transformers": TransformersEngine,
}  # fmt: skip


CHECKS: dict[str, Any] = {
    "vllm": vllm.check, "ollama": ollama.check, "sim": sim.check, "transformers": vllm.check,
}  # fmt: skip


def check_engines(specs: list[Any]) -> None:
    """What can be known before anything starts, lest the second engine's mistake be found after the first one's hour.

    Raises:
        InputError: a model's file is not on this machine, or a simulated engine's name is in no catalogue.
    """
    for spec in specs:
        if spec.kind in CHECKS:
            CHECKS[spec.kind](spec)


def make_engine(spec: Any, host: str | None = None) -> Engine:
    """The engine that an `engines:` entry of a scenario describes. `host`: the address that one which is started here
    serves on, where others than this machine use it."""
    engine: Engine
    if getattr(spec, "replicas", 1) > 1:
        engine = Replicated(spec, lambda one, _: make_engine(one))
    else:
        engine = ENGINES[spec.kind](spec)
    if host is not None and isinstance(engine, Launched | Replicated):
        engine.host = host
    return engine
