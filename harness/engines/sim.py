"""The embedded engine: a real server in a process of its own, at the speed that `sizing` predicts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from harness.engines.base import Launched, Say
from harness.engines.ollama import first_of_each, ps_facts
from harness.engines.vllm import cache_facts, flags, log_facts, version_fact
from harness.enginespec import SimSpec
from harness.errors import InputError
from harness.http import HttpError, get_json, get_text
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.ollama import OllamaSource
from harness.telemetry.vllm import vllm_source


def check(spec: SimSpec) -> None:
    """Raises InputError: hardware, model or quantization are not in the catalogue."""
    if spec.command is not None:  # a server of the user's own
        return
    from sizing import catalog  # read by runs that simulate alone

    try:
        catalog.hardware(spec.hardware), catalog.model(spec.model), catalog.quantization(spec.quantization)
    except (LookupError, ValueError) as error:
        said = error.args[0] if error.args else error
        raise InputError(
            f"engine {spec.name}: {said}", "`bench advise --list hardware|models|quantizations` has all names"
        ) from None


class SimEngine(Launched):
    """Everything it says carries the label `simulated`."""

    spec: SimSpec
    simulated = True

    def start(self, log: Path) -> None:
        self.log = log
        self.claim()
        spec = self.spec
        command = [
            sys.executable,
            "-m",
            "harness.simserver",
            "--host",
            self.host,
            "--port",
            str(self.port),
            "--model",
            spec.model,
        ]
        command += ["--hardware", spec.hardware, "--quantization", spec.quantization, "--policy", spec.policy]
        self.launch(command + flags(dict(spec.args)), {}, log)

    def ready(self, say: Say) -> dict[str, float | None]:
        say("starting the simulated engine", None)
        return {"start_s": self.await_answer(f"{self.root}/health")}

    def target(self) -> Target:
        if self.spec.policy == "ollama":
            return Target(self.root, "ollama", self.spec.model)
        return Target(
            f"{self.root}/v1", "openai", self.spec.model, exact_length=True, token_ids=True, extended_sampling=True
        )

    def facts(self) -> list[Fact]:
        facts = log_facts(self.log.read_text("utf-8", "replace"), "simulated", "simulated engine's log")
        facts |= version_fact(self.root)
        try:
            facts |= cache_facts(get_text(f"{self.root}/metrics", 5.0), facts)
            others = ps_facts(get_json(f"{self.root}/api/ps", 5.0), self.spec.model)
        except HttpError:
            others = []
        spec = self.spec
        own = [
            Fact("hardware", spec.hardware, "", "simulated", "scenario"),
            Fact("quantization", spec.quantization, "", "simulated", "scenario"),
            Fact("policy", spec.policy, "", "simulated", "scenario"),
        ]
        rows = first_of_each([*own, *facts.values(), *others])
        return [Fact(f.name, f.value, f.unit, "simulated", f.source) for f in rows]

    def sources(self) -> list[Any]:
        if self.spec.policy == "ollama":
            return [OllamaSource(self.root, self.spec.model), vllm_source(f"{self.root}/metrics")]
        return [vllm_source(f"{self.root}/metrics")]
