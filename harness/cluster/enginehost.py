"""An engine on another host: what runs there, and what stands for it here.

An `EngineHost` lives in a Ray actor on a host that the scenario's `on:` fits, with as many GPUs as the engine takes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cluster.node import HostLost, Remote
from harness.engines import make_engine
from harness.engines.base import Say
from harness.engines.process import trim_log
from harness.errors import EngineError, RunError
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.family import ProcessFamilySource
from harness.telemetry.host import HostSource
from harness.telemetry.nvidia import nvidia_sources

ANSWER_S = 30.0
READ_S = 5.0
LOOK_S = 1.0


class EngineHost:
    """One engine on this host. `call` is all there is to it: errors of the engine come back as values."""

    def __init__(self, spec: Any, address: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="enginebench-"))
        self.log = self.folder / f"{spec.name}.log"
        self.engine: Any = make_engine(spec, address)
        self.sources: list[Any] = []

    def call(self, method: str, *args: Any) -> tuple[str, Any]:
        try:
            return "good", getattr(self, method)(*args)
        except EngineError as error:
            return "engine", (error.message, error.remedy, error.log_tail)

    def start(self) -> tuple[list[str], dict[str, str]]:
        self.engine.start(self.log)
        return self.engine.command, self.engine.environment

    def ready(self) -> dict[str, float | None]:
        phases: dict[str, float | None] = self.engine.ready(lambda text, share: None)
        return phases

    def listed(self) -> list[tuple[str, float, bool]]:
        """Name and pace of every source, and whether it is the engine's (and not the host's)."""
        gpus, _ = nvidia_sources()
        own = [*self.engine.sources(), ProcessFamilySource(self.engine.pids)]
        self.sources = [*own, HostSource(), *gpus]
        return [(source.name, source.period_s, source in own) for source in self.sources]

    def read(self, number: int) -> dict[str, float]:
        found: dict[str, float] = self.sources[number].read()
        return found

    def target(self) -> Target:
        found: Target = self.engine.target()
        return found

    def facts(self) -> list[Fact]:
        found: list[Fact] = self.engine.facts()
        return found

    def fault(self) -> None:
        if fault := self.engine.fault():
            raise fault

    def stop(self) -> bytes:
        """End it; its log."""
        self.engine.stop()
        trim_log(self.log)
        log = self.log.read_bytes() if self.log.exists() else b""
        shutil.rmtree(self.folder, ignore_errors=True)
        return log


class RemoteEngine:
    """See `harness.engines.base.Engine`: an `EngineHost` behind `remote`. `name`: what its host is called."""

    simulated = False

    def __init__(self, spec: Any, remote: Remote, name: str, address: str) -> None:
        self.spec, self.remote, self.name, self.address = spec, remote, name, address
        self.simulated = spec.simulated
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        self._log: Path | None = None
        self._fault: EngineError | None = None
        self._looked_s = 0.0
        self._listed: list[tuple[str, float, bool]] = []

    def _call(self, timeout_s: float, method: str, *args: Any) -> Any:
        """Raises EngineError: the engine's own, or that its host is lost."""
        try:
            kind, value = self.remote.answer(self.remote.ask("call", method, *args), timeout_s)
        except HostLost as lost:
            raise EngineError(
                f"engine {self.spec.name}: its host {self.address} was lost: {lost}",
                "bring the host back, then: bench run --resume",
            ) from None
        if kind == "engine":
            raise EngineError(*value)
        return value

    def start(self, log: Path) -> None:
        self._log = log
        self.command, self.environment = self._call(60.0, "start")

    def ready(self, say: Say) -> dict[str, float | None]:
        say(f"starting on {self.address}", None)
        phases: dict[str, float | None] = self._call(self.spec.ready_timeout + ANSWER_S, "ready")
        self._listed = self._call(ANSWER_S, "listed")
        return phases

    def target(self) -> Target:
        found: Target = self._call(ANSWER_S, "target")
        return found

    def facts(self) -> list[Fact]:
        return [*self._call(ANSWER_S, "facts"), Fact("host", self.address, "", "configured", "placed by `on`")]

    def sources(self) -> list[Any]:
        """What the engine says of itself, and its processes."""
        return [self._source(n, name, pace) for n, (name, pace, own) in enumerate(self._listed) if own]

    def host_sources(self) -> list[Any]:
        """Its host, as `engine1/host`, and the host's GPUs."""
        listed = enumerate(self._listed)
        return [self._source(n, f"{self.name}/{name}", pace) for n, (name, pace, own) in listed if not own]

    def _source(self, number: int, name: str, pace_s: float) -> RemoteSource:
        return RemoteSource(name, max(pace_s, 1.0), lambda: self._call(READ_S, "read", number))

    def pids(self) -> list[int]:
        """None of this host's."""
        return []

    def fault(self) -> EngineError | None:
        if self._fault is None and time.monotonic() - self._looked_s > LOOK_S:
            try:
                self._call(ANSWER_S, "fault")
            except EngineError as error:
                self._fault = error
            self._looked_s = time.monotonic()
        return self._fault

    def stop(self) -> None:
        with contextlib.suppress(EngineError, RunError, OSError):
            log = self._call(60.0, "stop")
            if self._log is not None:
                self._log.write_bytes(log)
        self.remote.end()


class RemoteSource:
    """A telemetry source of another host; its values are stamped when they are asked for here."""

    blocking = True

    def __init__(self, name: str, period_s: float, read: Callable[[], dict[str, float]]) -> None:
        self.name, self.period_s, self.read = name, period_s, read
