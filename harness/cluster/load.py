"""The load of a run on many hosts: what `Load` is to the load processes of one machine.

The tool asks each host twenty times a second: that carries the board, brings the records home as they are made,
and measures the hosts' clocks all the while. A host that does not answer is lost: the point ends there, as failed, with
what all hosts had measured by then; the points after it go on without that host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from harness.cluster.agent import Heard
from harness.cluster.board import Said, Told
from harness.cluster.clock import Clock
from harness.cluster.echo import Asker
from harness.errors import RunError
from harness.job import Job, Outcome, merged
from harness.protocols import Prompt
from harness.records import TelemetrySample

SYNC_S = 0.05
LOST_S = 5.0
CANCEL_S = 10.0
PINGS = 60
CLOSE_LEAD_S = 0.12


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


@dataclass(slots=True)
class _Part:
    """One host's part of the job under way."""

    node: LoadNode
    journals: dict[int, str]
    said: Said = field(default_factory=Said)
    stamp_s: float = 0.0
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    done: bool = False


class ClusterLoad:
    """The load processes of all hosts. Same methods as `Load`; `gaps` and `clocks` grow while it is used. `former`:
    hosts of an earlier part of the run that are no more.

    `sample` takes what the hosts' telemetry says, on the run's clock; `warn` a line for the reader.
    """

    def __init__(
        self, nodes: Sequence[LoadNode], origin_s: float, sample: Callable[[TelemetrySample], None],
        warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.nodes = list(nodes)
        self.origin_s, self.sample, self.warn = origin_s, sample, warn
        self.gaps: list[dict[str, Any]] = []
        self.clocks: list[dict[str, Any]] = []
        self.former: list[dict[str, Any]] = []

    @property
    def alive(self) -> list[LoadNode]:
        return [node for node in self.nodes if node.lost is None]

    @property
    def workers(self) -> int:
        """How many load processes there are now."""
        return sum(node.workers for node in self.alive)

    def run(self, job: Job, journals: list[str], watch: Callable[[dict[str, float]], bool]) -> Outcome:
        """See `Load.run`. The outcome's `lost` says which host was lost.

        Raises:
            RunError: no host is left, or a load process itself failed.
        """
        self._measure_clocks()
        parts = self._deal(job, journals)
        began_s = time.monotonic()
        whole = _Whole(self, job, parts)
        whole.drive(watch)
        with contextlib.suppress(RunError):  # no host is left: the outcome says so
            self._measure_clocks()
        outcomes = [part.outcomes[row] for part in parts for row in sorted(part.outcomes)]
        if not outcomes:
            outcomes = [Outcome(began_s - self.origin_s, self.now(), cancelled=True)]
        outcome = merged(job.point, outcomes)
        outcome.interrupted, outcome.lost = whole.interrupted, whole.lost
        outcome.client["clock_error_s"] = self._keep_clocks(job, parts, began_s)
        return outcome

    def now(self) -> float:
        return time.monotonic() - self.origin_s

    def lose(self, node: LoadNode, why: str) -> None:
        """Mark a host as lost: a gap from now on."""
        node.lost = why
        self.gaps.append({"host": node.name, "address": node.address, "from_s": self.now(), "reason": why})
        self.warn(f"load host {node.name} ({node.address}) was lost at {self.now():.1f} s: {why}")

    def _measure_clocks(self) -> None:
        for node in self.alive:
            try:
                node.ping(PINGS)
                offset = node.clock.at(time.monotonic())
                if offset is None:  # a clock was set, or the host slept: only what comes now counts
                    node.clock.pings.clear()
                    node.ping(PINGS)
                    offset = node.clock.at(time.monotonic())
                assert offset is not None
                node.offset_s = offset.offset_s
            except HostLost as lost:
                self.lose(node, str(lost))
        if not self.alive:
            raise RunError("no load host is left", "bring hosts back, then: bench run --resume")

    def _deal(self, job: Job, journals: list[str]) -> list[_Part]:
        """Start every host's share of a job. Rows go round the hosts, so that the first few are on as many hosts."""
        order = sorted((rank, place, node) for place, node in enumerate(self.alive) for rank in range(node.workers))
        taking = order[: len(journals)]
        parts: dict[str, _Part] = {}
        shares: dict[str, list[Job]] = {}
        for number, ((_, _, node), journal) in enumerate(zip(taking, journals, strict=False)):
            share = replace(job, worker=number, workers=len(taking), origin_s=self.origin_s + node.offset_s)
            parts.setdefault(node.name, _Part(node, {})).journals[number] = journal
            shares.setdefault(node.name, []).append(share)
        for name, part in parts.items():
            try:
                part.node.remote.answer(part.node.remote.ask("begin", shares[name]), LOST_S)
            except HostLost as lost:
                self.lose(part.node, str(lost))
        return list(parts.values())

    def _keep_clocks(self, job: Job, parts: list[_Part], began_s: float) -> float | None:
        """Note each host's offset and its error over this job, by all pings before, in and after it; the largest."""
        worst: float | None = 0.0
        for part in parts:
            node = part.node
            error_s = node.clock.error_of(node.offset_s, began_s, time.monotonic())
            if error_s is None:
                self.warn(f"the clock of load host {node.name} was set while it measured; its times are not comparable")
            self.clocks.append({
                "host": node.name, "address": node.address, "engine": job.engine,
                "point": job.point.name, "repeat": job.repeat,
                "offset_s": node.offset_s, "error_s": error_s, "round_trip_s": node.clock.round_trip_s,
            })  # fmt: skip
            worst = None if worst is None or error_s is None else max(worst, error_s)
        return worst

    def probe(self, job: Job, prompts: Sequence[Prompt]) -> list[int | None] | str:
        """See `harness.probe`."""
        if not self.alive:
            raise RunError("no load host is left", "bring hosts back, then: bench run --resume")
        node = self.alive[0]
        try:
            asked = node.remote.ask("probe", job, list(prompts))
            counts: list[int | None] | str = node.remote.answer(asked, job.timeout_s + LOST_S)
        except HostLost as lost:
            self.lose(node, str(lost))
            return self.probe(job, prompts)
        return counts

    def compact(self, folder: Path) -> None:
        """The tool does it itself, once it measures no more."""

    def close(self) -> None:
        for node in self.nodes:
            if node.lost is None:
                with contextlib.suppress(HostLost):
                    node.remote.answer(node.remote.ask("close"), CANCEL_S)
            if node.asker is not None:
                node.asker.close()
            node.remote.end()


class _Whole:
    """One job under way on all hosts: what each said last, and what all are told."""

    def __init__(self, load: ClusterLoad, job: Job, parts: list[_Part]) -> None:
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

    def _under_way(self) -> list[_Part]:
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

    def _take(self, part: _Part, heard: Heard) -> None:
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

    def _told(self, part: _Part) -> Told:
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
        opened = any(part.said.open_s is not None for part in self.parts)
        return {**dict.fromkeys(("done", "failed", "in_flight", "tokens", "measured_done", "ttft_s"), 0.0),
                **found, "window_is_open": float(opened)}  # fmt: skip


def _first(values: Any) -> float | None:
    return next((value for value in values if value is not None), None)


def described(load: ClusterLoad) -> dict[str, Any]:
    """What run.json keeps of the hosts."""
    hosts = [
        {"name": node.name, "address": node.address, "load_processes": node.workers, "lost": node.lost, **node.about}
        for node in load.nodes
    ]
    return {"hosts": [*hosts, *load.former], "clocks": load.clocks, "gaps": load.gaps}
