"""One load host as the tool sees it: the way to it, and its clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.cluster.clock import Clock
from harness.cluster.echo import Asker

LOST_S = 5.0  # without an answer


class HostLost(Exception):
    """A host, or what ran on it, answers no more; the text says why."""


class Remote(Protocol):
    """A `LoadHost` somewhere else. `ask` sends, `answer` waits for what comes back and raises HostLost."""

    def ask(self, method: str, *args: Any) -> Any: ...
    def answer(self, asked: Any, timeout_s: float) -> Any: ...
    def end(self) -> None: ...


@dataclass(slots=True)
class LoadNode:
    """One load host as the tool sees it. `lost`: why it is no more."""

    name: str
    address: str
    remote: Remote
    workers: int
    about: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    asker: Asker | None = None
    lost: str | None = None
    offset_s: float = 0.0

    def ping(self, count: int) -> None:
        """Measure its clock, by packets of our own; where none comes through, by calls. Raises HostLost."""
        for _ in range(count):
            if self.asker is not None:
                answer = self.asker.ask()
                if answer is not None:
                    self.clock.add(*answer)
                    continue
            sent_s = time.monotonic()
            stamp_s = self.remote.answer(self.remote.ask("clock"), LOST_S)
            self.clock.add(sent_s, stamp_s, time.monotonic())
