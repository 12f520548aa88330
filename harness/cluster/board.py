"""The board of a job whose load processes are on several hosts: this host's own part of it.

Each host has one in its shared memory. Its own rows are true; those of other hosts are filled with what the tool says
of them, and that is late by a round of talk. What all must agree on is therefore settled ahead of its time: the start,
the opening of the window, and its end.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.board import PROGRESS, Board

LEAD_S = 0.5
"""How long ahead a moment is settled, so that all hosts have heard of it: many rounds of talk."""


@dataclass(slots=True)
class Said:
    """What a host says of its own part. `drawn`: measured requests that it has sent; times in seconds of the run."""

    ready: bool = False
    warm: bool = False
    pending: float = 0.0
    drawn: float = 0.0
    start_s: float | None = None
    open_s: float | None = None
    close_s: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What the tool says to a host of all the others."""

    ready: bool = False
    warm: bool = False
    pending: float = 1.0
    start_s: float | None = None
    open_s: float | None = None
    close_s: float | None = None


class SharedBoard(Board):
    """A board of up to `workers` rows in all. Which of them are this host's, each job says anew: `deal`."""

    lead_s = LEAD_S
    open_lead_s = LEAD_S

    def __init__(self, workers: int, context: Any = multiprocessing) -> None:
        self._own = context.RawArray("b", workers)
        super().__init__(workers, context)

    def deal(self, workers: int, own: Sequence[int]) -> None:
        """Blank for a job of that many workers, of which `own` are here."""
        self._own[:] = [row in own for row in range(len(self._own))]
        self.reset(workers)

    @property
    def alone(self) -> bool:
        """Whether the whole job is this host's."""
        return all(self._own[row] for row in range(self.workers))

    def say(self) -> Said:
        """Read `ready` before `pending`: who is ready has said before what it expects."""
        mine = [row for row in range(self.workers) if self._own[row]]
        said = Said(ready=all(self.is_ready(row) for row in mine), warm=all(self.is_warm(row) for row in mine))
        said.start_s, said.open_s, said.close_s = self.start_s, self.open_s, self.close_s
        said.pending, said.drawn = sum(self.pending_of(row) for row in mine), self.drawn
        columns = {name: [self.figure(row, index) for row in mine] for index, name in enumerate(PROGRESS)}
        said.figures = {name: sum(values) for name, values in columns.items()}
        said.figures["ttft_s"] = max(columns["ttft_s"], default=0.0)
        return said

    def hear(self, told: Told) -> None:
        """Take over what is known of the others. A moment that is settled here already stays."""
        others = [row for row in range(self.workers) if not self._own[row]]
        for index, row in enumerate(others):
            self.set_pending(row, told.pending if index == 0 else 0.0)
            if told.ready:
                self.ready(row)
            if told.warm:
                self.warm(row)
        if self.close_s is None and told.close_s is not None:
            self.close_s = told.close_s
        if self.open_s is None and told.open_s is not None:
            self.open_s = told.open_s
        if self.start_s is None and told.start_s is not None:
            self.start_s = told.start_s

    def admit(self, worker: int, now_s: float, requests: int | None, until_s: float) -> bool:
        """As `Board.admit`; but a window of so many requests is closed by the tool, which alone can count them all. It
        lasts a little longer than that, and holds some more."""
        if self.alone or requests is None:
            return super().admit(worker, now_s, requests, until_s)
        if self.close_s is not None and now_s >= self.close_s:
            return False
        return super().admit(worker, now_s, None, now_s + 1.0)
