"""One job under way on all hosts of a cluster: what each said last, and what all are told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.cluster.agent import Heard
from harness.cluster.board import Said, Told
from harness.cluster.node import LOST_S, HostLost, LoadNode
from harness.errors import RunError
from harness.job import Job, Outcome

if TYPE_CHECKING:
    from harness.cluster.load import ClusterLoad

SYNC_S = 0.05
CANCEL_S = 10.0
CLOSE_LEAD_S = 0.12


@dataclass(slots=True)
class Part:
    """One host's part of the job under way."""

    node: LoadNode
    journals: dict[int, str]
    said: Said = field(default_factory=Said)
    stamp_s: float = 0.0
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    done: bool = False


class Whole:
    """One job under way on all hosts: what each said last, and what all are told."""

    def __init__(self, load: ClusterLoad, job: Job, parts: list[Part]) -> None:
        self.load, self.job, self.parts = load, job, parts
        self.close_s: float | None = None
        self.interrupted = self.cancelled = False
        self.lost = next((self._reason(part.node) for part in parts if part.node.lost), None)

    def drive(self, watch: Callable[[dict[str, float]], bool]) -> None:
        """Until every host that is left has given its outcomes."""
        give_up_s = float("inf")
        looked_s = 0.0
        while self._under_way() and time.monotonic() < give_up_s:
            try:
                if (self.lost or self.cancelled) and give_up_s == float("inf"):
                    give_up_s = time.monotonic() + CANCEL_S
                self._round()
                if time.monotonic() - looked_s >= 4 * SYNC_S and not self.cancelled:
                    looked_s = time.monotonic()
                    self.cancelled = not watch(self._figures())
                time.sleep(SYNC_S)
            except KeyboardInterrupt:
                if self.interrupted:
                    raise
                self.interrupted = self.cancelled = True

    def _under_way(self) -> list[Part]:
        return [part for part in self.parts if not part.done and part.node.lost is None]

    def _round(self) -> None:
        """Ask all at once, then hear each: a slow one delays nobody's answer."""
        asked = []
        for part in self._under_way():
            asked.append((part, time.monotonic(), part.node.remote.ask("sync", self._told(part), bool(self._ending))))
        for part, sent_s, question in asked:
            try:
                heard = part.node.remote.answer(question, LOST_S)
                part.node.clock.add(sent_s, heard.stamp_s, time.monotonic())
                self._take(part, heard)
                part.node.ping(1)
            except HostLost as lost:
                self.load.lose(part.node, str(lost))
                self.lost = self.lost or self._reason(part.node)
        self._settle()

    @property
    def _ending(self) -> bool:
        return self.cancelled or self.lost is not None

    def _reason(self, node: LoadNode) -> str:
        return f"load host {node.name} was lost at {self.load.now():.1f} s: {node.lost}"

    def _take(self, part: Part, heard: Heard) -> None:
        node = part.node
        for row, data in heard.journals.items():
            with open(part.journals[row], "ab") as file:
                file.write(data)
        for sample in heard.samples:
            at_s = sample.time_s - node.offset_s - self.load.origin_s
            self.load.sample(replace(sample, time_s=at_s, source=f"{node.name}/{sample.source}"))
        for text in heard.warnings:
            self.load.warn(f"load host {node.name}: {text}")
        if heard.failed:
            raise RunError(f"load host {node.name}: {heard.failed}", "please report this")
        part.said, part.stamp_s = heard.said, heard.stamp_s - node.offset_s - self.load.origin_s
        part.outcomes, part.done = heard.outcomes, heard.done

    def _settle(self) -> None:
        """Close a window of so many requests, when all hosts together have sent them."""
        point = self.job.point
        counted = point.requests is not None and point.kind == "concurrency" and len(self.parts) > 1
        if self.close_s is None and counted and sum(part.said.drawn for part in self.parts) >= (point.requests or 0):
            self.close_s = self.load.now() + CLOSE_LEAD_S + 2 * self._slowest_s()

    def _slowest_s(self) -> float:
        return max(part.node.clock.round_trip_s or 0.0 for part in self.parts)

    def _told(self, part: Part) -> Told:
        others = [other for other in self.parts if other is not part and other.node.lost is None]
        close_s = self.close_s if self.close_s is not None else _first(other.said.close_s for other in others)
        known = close_s if close_s is not None else part.said.close_s
        pending = sum(other.said.pending for other in others)
        # What another says it waits for is final only if it said so after the window.
        if others and not (known is not None and all(o.done or o.stamp_s >= known for o in others)):
            pending = max(pending, 1.0)
        return Told(
            ready=all(other.said.ready for other in others), warm=all(other.said.warm for other in others),
            pending=pending, start_s=_first(other.said.start_s for other in others),
            open_s=_first(other.said.open_s for other in others), close_s=close_s,
        )  # fmt: skip

    def _figures(self) -> dict[str, float]:
        said = [part.said.figures for part in self.parts if part.said.figures]
        names = said[0] if said else {}
        found = {name: sum(figures[name] for figures in said) for name in names}
        if said:
            found["ttft_s"] = max(figures["ttft_s"] for figures in said)
        close_s = self.close_s if self.close_s is not None else _first(part.said.close_s for part in self.parts)
        edges = {"open_s": _first(part.said.open_s for part in self.parts), "close_s": close_s}
        found |= {name: at for name, at in edges.items() if at is not None}
        return {**dict.fromkeys(("done", "failed", "in_flight", "tokens", "measured_done", "ttft_s"), 0.0),
                **found, "window_is_open": float(edges["open_s"] is not None)}  # fmt: skip


def _first(values: Any) -> float | None:
    return next((value for value in values if value is not None), None)
