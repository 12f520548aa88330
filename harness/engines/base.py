"""The seam of an engine: start, ready, facts, stop. What is measured is behind `target()`; whatever an engine says of
itself comes out as facts under common names, so that nothing else branches on the engine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from harness.engines import hub
from harness.engines.process import Child, claim_port, wait_until
from harness.enginespec import LaunchedBase
from harness.errors import EngineError
from harness.http import HttpError, get_text
from harness.protocols import Target
from harness.records import Fact

TINY = "builtin:tiny"
LOOPBACK = "127.0.0.1"
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
OFFLINE_ENV = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OLLAMA_NO_CLOUD": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
}  # fmt: skip
Say = Callable[[str, float | None], None]
"""Told what an engine is doing (`pulling model`), and how far it is (0 to 1, None if that is unknown)."""


class Engine(Protocol):
    """One engine under test. Methods raise EngineError; `stop` never does and can be called at any time."""

    simulated: bool
    command: list[str]
    environment: dict[str, str]

    def start(self, log: Path) -> None:
        """Start its processes (nothing, for an engine that runs already)."""

    def ready(self, say: Say) -> dict[str, float | None]:
        """Wait until it serves the model; seconds of each phase (`start_s`, `load_s`, ...)."""

    def target(self) -> Target:
        """Where requests go."""

    def facts(self) -> list[Fact]:
        """What it says of itself, once it is ready."""

    def sources(self) -> list[Any]:
        """Its telemetry sources."""

    def pids(self) -> list[int]:
        """Its processes; empty where they are not ours."""

    def fault(self) -> EngineError | None:
        """What ended it, if it ended by itself."""

    def stop(self) -> None:
        """End all of it."""


class Launched:
    """What engines that the tool starts have in common: a port, a child, a log."""

    simulated = False
    host = LOOPBACK

    def __init__(self, spec: LaunchedBase) -> None:
        self.spec = spec
        self.port = 0
        self.child: Child | None = None
        self.command: list[str] = []
        self.environment: dict[str, str] = {}

    @property
    def root(self) -> str:
        return f"http://{self.host}:{self.port}"

    def launch(self, command: list[str], env: dict[str, str], log: Path) -> None:
        """Start `command`, or the scenario's own in its place, with `env` on top of ours and the scenario's on top."""
        spec = self.spec
        self.command = [
            part.replace("{port}", str(self.port)).replace("{host}", self.host) for part in spec.command or command
        ]
        own = {key: _env_text(value) for key, value in spec.env.items()}
        self.environment = OFFLINE_ENV | env | own
        self.child = Child(self.command, {**os.environ, **self.environment}, log, spec.stop_command)
        self.child.start()

    def reach(self, model: str) -> None:
        """Raises EngineError: the hub has to be asked for the model, and can't be (a user's own command may know)."""
        if self.spec.command is None:
            own = {key: _env_text(value) for key, value in self.spec.env.items()}
            hub.check(self.spec.name, model, {**os.environ, **own})

    def claim(self) -> None:
        self.port = claim_port(self.spec.port, self.spec.name, self.host)

    def await_answer(self, url: str) -> float:
        """Wait until `url` (or the scenario's `ready_url`) answers; the seconds it took."""
        assert self.child is not None
        where = (self.spec.ready_url or url).replace("{port}", str(self.port)).replace("{host}", self.host)
        return wait_until(self.child, lambda: answers(where), self.spec.ready_timeout, f"engine {self.spec.name}")

    def pids(self) -> list[int]:
        return self.child.pids() if self.child else []

    def fault(self) -> EngineError | None:
        if self.child is None or self.child.alive:
            return None
        return EngineError(
            f"engine {self.spec.name} ended in mid-run with exit code {self.child.exit_code}",
            f"the reason is in its log: {self.child.log}",
            self.child.tail(),
        )

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()


def parallel(args: Any, names: tuple[str, ...] = PARALLEL) -> int:
    """How many GPUs these arguments of an engine spread it over."""
    given = {key.lstrip("-").replace("-", "_"): value for key, value in args.items()} if isinstance(args, dict) else {}
    numbers = (given.get(name) for name in names)
    return math.prod(int(str(number)) for number in numbers if str(number).isdecimal() and int(str(number)) > 0)


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds."""
    try:
        get_text(url, timeout_s=2.0)
    except HttpError:
        return False
    return True


def _env_text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else os.path.expandvars(str(value))
