"""The load of a run on many hosts: what `Load` is to the load processes of one machine.

The tool asks each host twenty times a second: that carries the board, brings the records home as they are made,
and measures the hosts' clocks all the while. A host that does not answer is lost: the point ends there, as failed, with
what all hosts had measured by then; the points after it go on without that host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cluster.node import LOST_S, HostLost, LoadNode
from harness.cluster.whole import CANCEL_S, Part, Whole
from harness.errors import RunError
from harness.job import Job, Outcome, merged
from harness.protocols import Prompt
from harness.records import TelemetrySample

PINGS = 60  # of each clock, before and after a job


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
        whole = Whole(self, job, parts)
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

    def _deal(self, job: Job, journals: list[str]) -> list[Part]:
        """Start every host's share of a job. Rows go round the hosts, so that the first few are on as many hosts."""
        order = sorted((rank, place, node) for place, node in enumerate(self.alive) for rank in range(node.workers))
        taking = order[: len(journals)]
        parts: dict[str, Part] = {}
        shares: dict[str, list[Job]] = {}
        for number, ((_, _, node), journal) in enumerate(zip(taking, journals, strict=False)):
            share = replace(job, worker=number, workers=len(taking), origin_s=self.origin_s + node.offset_s)
            parts.setdefault(node.name, Part(node, {})).journals[number] = journal
            shares.setdefault(node.name, []).append(share)
        for name, part in parts.items():
            try:
                part.node.remote.answer(part.node.remote.ask("begin", shares[name]), LOST_S)
            except HostLost as lost:
                self.lose(part.node, str(lost))
        return list(parts.values())

    def _keep_clocks(self, job: Job, parts: list[Part], began_s: float) -> float | None:
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


def described(load: ClusterLoad) -> dict[str, Any]:
    """What run.json keeps of the hosts."""
    hosts = [
        {"name": node.name, "address": node.address, "load_processes": node.workers, "lost": node.lost, **node.about}
        for node in load.nodes
    ]
    return {"hosts": [*hosts, *load.former], "clocks": load.clocks, "gaps": load.gaps}
