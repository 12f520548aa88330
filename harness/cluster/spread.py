"""A matrix over the hosts of a cluster: each engine is measured whole on one host, as many at a time as there is room.

One engine at a time on each GPU, and on a host without any: what runs beside an engine disturbs it. Nothing that is
finished is measured again, whatever ends in between.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cluster.cell import Cell, Taken
from harness.cluster.connect import Cluster, Host, checked
from harness.cluster.node import HostLost, LoadNode
from harness.engines.base import parallel
from harness.errors import RunError
from harness.plan import sweeps_left

if TYPE_CHECKING:
    from harness.records import PointRun
    from harness.run import Campaign

LOOK_S = 0.5
ANSWER_S = 30.0
PINGS = 60
FINISHED = ("done", "client-limited", "failed")


@dataclass(slots=True)
class _Active:
    """An engine that is being measured. `streams`: where what comes of its journals goes, by their names there."""

    spec: Any
    host: Host
    node: LoadNode
    gpus: float
    streams: dict[str, Path] = field(default_factory=dict)
    told: set[tuple[str, int]] = field(default_factory=set)


def spread(campaign: Campaign, cluster: Cluster) -> None:
    """Measure all engines that have something left.

    Raises:
        RunError: no host has what an engine needs.
        KeyboardInterrupt: after Ctrl-C; what was measured is here.
    """
    record = campaign.record
    record.cluster = {"hosts": [], "clocks": [], "gaps": [], **record.cluster}
    waiting = [s for s in campaign.scenario.engines if campaign.pending(s.name) or _sweeps(campaign, s)]
    active: list[_Active] = []
    hosts = {host.id: host for host in cluster.hosts()}
    try:
        while waiting or active:
            for spec, host, gpus in _that_fit(waiting, active, list(hosts.values())):
                waiting.remove(spec)
                if begun := _begin(campaign, cluster, spec, host, gpus):
                    active.append(begun)
                else:
                    hosts.pop(host.id, None)
            for cell in list(active):
                if _look(campaign, cell):
                    active.remove(cell)
                if cell.node.lost:
                    hosts.pop(cell.host.id, None)
            if waiting and not active:
                raise RunError(
                    f"no host of the cluster has what {waiting[0].name} needs ({_gpus(waiting[0], True):g} GPUs)",
                    "see `ray status`; what was measured is kept: bench run --resume",
                )
            time.sleep(LOOK_S)
    finally:
        for cell in active:
            with contextlib.suppress(HostLost, RunError):
                _take(campaign, cell, cell.node.remote.answer(cell.node.remote.ask("take"), ANSWER_S))
            _end(cell)
        campaign.save()


def _sweep_of(point: PointRun) -> str | None:
    name: str | None = point.load.get("shape", {}).get("sweep")
    return name


def _sweeps(campaign: Campaign, spec: Any) -> bool:
    return bool(sweeps_left(campaign.scenario, campaign.record, spec.name))


def _gpus(spec: Any, any_there: bool) -> float:
    """How many GPUs an engine takes; none where the cluster has none."""
    if spec.simulated or not spec.launched or not any_there:
        return 0.0
    return float(parallel(getattr(spec, "args", None)))


def _that_fit(waiting: list[Any], active: list[_Active], hosts: list[Host]) -> Iterator[tuple[Any, Host, float]]:
    """Engines for which there is room now, each with its host."""
    any_gpu = any(host.gpus for host in hosts)
    used = {host.id: sum(a.gpus or host.gpus or 1.0 for a in active if a.host.id == host.id) for host in hosts}
    for spec in list(waiting):
        need = _gpus(spec, any_gpu)
        for host in hosts:
            room = (host.gpus or 1.0) - used[host.id]
            if (need and host.gpus and room >= need) or (not need and used[host.id] == 0.0):
                used[host.id] += need or host.gpus or 1.0
                yield spec, host, need
                break


def _begin(campaign: Campaign, cluster: Cluster, spec: Any, host: Host, gpus: float) -> _Active | None:
    """Start an engine's part on a host; None if the host is lost."""
    actor = cluster.place(Cell, host, min(1.0, host.cores), host.address, gpus=gpus)
    node = LoadNode(spec.name, host.address, actor, 0)
    cell = _Active(spec, host, node, gpus)
    try:
        checked(node, campaign.warn)
        node.ping(PINGS)
        offset = node.clock.at(time.monotonic())
        node.offset_s = offset.offset_s if offset else 0.0
        scenario = campaign.scenario.model_copy(update={"engines": [spec]})
        part = _part(campaign, spec)
        actor.answer(actor.ask("begin", scenario.resolved(), part, campaign.origin_s + node.offset_s), ANSWER_S)
    except HostLost as lost:
        _lose(campaign, cell, str(lost))
        return None
    known = campaign.record.cluster["hosts"]
    if host.address not in {row["address"] for row in known}:
        known.append({"name": f"host{len(known) + 1}", "address": host.address, "lost": None, **node.about})
    campaign.observer.engine(spec.name, f"starting on {host.address}", None)
    return cell


def _part(campaign: Campaign, spec: Any) -> Any:
    """The run's record as one engine's host gets it: what is pending of that engine. A sweep begins anew."""
    record = campaign.record
    left = {(sweep.name, repeat) for sweep, repeat in sweeps_left(campaign.scenario, record, spec.name)}
    for point in [p for p in record.points if p.engine == spec.name and (_sweep_of(p), p.repeat) in left]:
        campaign.folder.set_aside(point.engine, point.point, point.repeat)
        record.points.remove(point)
    part = copy.deepcopy(record)
    part.engines = [row for row in part.engines if row.name == spec.name]
    part.points = [p for p in part.points if p.engine == spec.name and p.status == "pending"]
    part.findings = [f for f in part.findings if f.engine == spec.name]
    part.cluster, part.warnings = {}, []
    return part


def _look(campaign: Campaign, cell: _Active) -> bool:
    """Take what is new; whether that was the last."""
    remote = cell.node.remote
    try:
        taken: Taken = remote.answer(remote.ask("take"), ANSWER_S)
        cell.node.ping(2)
    except HostLost as lost:
        _lose(campaign, cell, str(lost))
        return True
    _take(campaign, cell, taken)
    if not taken.ended:
        return False
    _close_books(campaign, cell, taken)
    _end(cell)
    return True


def _take(campaign: Campaign, cell: _Active, taken: Taken) -> None:
    """Rows first, then the word that they are finished: a kill in between measures a point again, and loses none."""
    for name, data in taken.streams.items():
        if name not in cell.streams:
            cell.streams[name] = campaign.folder.new_journal(name.rpartition("-")[0], name.rpartition(".")[2])
        with open(cell.streams[name], "ab") as file:
            file.write(data)
    for name, data in taken.logs.items():
        with open(campaign.folder.path / name, "ab") as file:
            file.write(data)
    if taken.tables:
        _keep_tables(campaign, cell, taken.tables)
    if taken.record is not None:
        _merge(campaign, cell, taken.record)


def _keep_tables(campaign: Campaign, cell: _Active, tables: dict[str, bytes]) -> None:
    """The tables at a cell's end hold all rows that its streams had."""
    from harness.tables import keep_parquet

    for table, data in tables.items():
        if table in ("requests", "telemetry"):
            keep_parquet(data, campaign.folder.new_journal(table), table)
    for path in cell.streams.values():
        path.unlink(missing_ok=True)
    cell.streams.clear()


def _merge(campaign: Campaign, cell: _Active, theirs: Any) -> None:
    record = campaign.record
    places = {(p.engine, p.point, p.repeat): n for n, p in enumerate(record.points)}
    for point in theirs.points:
        key = (point.engine, point.point, point.repeat)
        if point.status in FINISHED and (point.point, point.repeat) not in cell.told:
            cell.told.add((point.point, point.repeat))
            campaign.observer.engine(cell.spec.name, f"{point.point} repeat {point.repeat + 1}: {point.status}", None)
            if key in places:
                record.points[places[key]] = point
            else:
                record.points.append(point)
    for row in theirs.engines:
        record.engines = [row if mine.name == row.name else mine for mine in record.engines]
    record.findings += [finding for finding in theirs.findings if finding not in record.findings]
    for text in theirs.warnings:
        campaign.warn(text if cell.spec.name in text else f"{cell.spec.name}: {text}")
    campaign.save()


def _close_books(campaign: Campaign, cell: _Active, taken: Taken) -> None:
    """An engine has been measured, or its process ended otherwise: then its points say so."""
    for point in campaign.pending(cell.spec.name):
        point.status, point.error = "failed", f"its process on {cell.host.address} ended: {taken.said[-300:]}"
    began_s, now_s = campaign.origin_s, time.monotonic()
    campaign.record.cluster["clocks"].append({
        "host": cell.node.name, "address": cell.host.address, "engine": cell.spec.name,
        "offset_s": cell.node.offset_s, "round_trip_s": cell.node.clock.round_trip_s,
        "error_s": cell.node.clock.error_of(cell.node.offset_s, max(began_s, cell.node.clock.pings[0].sent_s), now_s),
    })  # fmt: skip
    campaign.save()


def _lose(campaign: Campaign, cell: _Active, why: str) -> None:
    """The host, or what ran there, answers no more: a gap."""
    cell.node.lost = why
    at_s = campaign.now()
    gap = {"host": cell.node.name, "address": cell.host.address, "from_s": at_s, "reason": why}
    campaign.record.cluster["gaps"].append(gap)
    text = f"the host of engine {cell.spec.name} ({cell.host.address}) was lost at {at_s:.1f} s: {why}"
    for point in campaign.pending(cell.spec.name):
        point.status, point.error = "failed", text
    row = next(row for row in campaign.record.engines if row.name == cell.spec.name)
    row.status, row.error = "failed", text
    campaign.warn(text)
    campaign.save()
    _end(cell)


def _end(cell: _Active) -> None:
    if cell.node.lost is None:
        with contextlib.suppress(HostLost, RunError):
            cell.node.remote.answer(cell.node.remote.ask("close"), ANSWER_S)
    if cell.node.asker is not None:
        cell.node.asker.close()
        cell.node.asker = None
    cell.node.remote.end()
