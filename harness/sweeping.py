"""Runs a sweep: measures the rates that `sweep` asks for, reads what its probes say, keeps what was found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.loads import SweepLoad
from harness.metrics import METRICS, Measured, evaluate, measured
from harness.records import Finding, PointRun
from harness.statistics import t_quantile
from harness.store import RunFolder
from harness.sweep import Found, Probe, Search, saturation, slo_limit
from harness.tables import TELEMETRY_SCHEMA

if TYPE_CHECKING:
    from harness.engines.base import Engine
    from harness.job import Job
    from harness.run import Campaign

FAILED_MAX = 0.01  # a larger share of failed requests misses the SLO, whatever the others took
BEHIND_MIN = 0.05  # a server that serves this much less than what fell due may have fallen behind
CHANCE = 2.5  # deviations: one probe in 160 of a server that keeps up seems not to
SLICES = 10  # of a window: how unlike they are says how sure its throughput is
FAR = 1.25  # a figure without an interval is sure of its side of the limit if it is so many times off


def run_sweep(campaign: Campaign, load: SweepLoad, repeat: int, job: Job, engine: Engine) -> None:
    """One sweep of one repeat. Its points go into the record as they are decided, and those that a resumed run finds
    there are not measured again."""
    record, slo = campaign.record, campaign.scenario.slo_of(load)
    search = Search(job.latency_s, bool(slo), load.min_rate, load.max_rate, load.probes)
    rows = [p for p in record.points if (p.engine, p.repeat, sweep_of(p)) == (job.engine, repeat, load.name)]
    probes = [read_probe(campaign.folder, row, slo) for row in rows]
    while (rate_rps := search.next_rate(probes)) is not None:
        point = load.point(rate_rps)
        row = PointRun(job.engine, point.name, repeat, dataclasses.asdict(point))
        record.points.append(row)
        campaign.observer.point(row, len(probes) + 1, load.probes)
        campaign.measure_point(job, row, engine)
        probes.append(read_probe(campaign.folder, row, slo))
    found = {"slo": slo_limit(probes, search)} if slo else {}
    for what, result in (found | {"saturation": saturation(probes, search)}).items():
        record.findings.append(_finding(what, result, job.engine, load.name, repeat, len(probes)))
    campaign.save()


def sweep_of(point: PointRun) -> str | None:
    """The name of the sweep that a point is a probe of."""
    name: str | None = point.load.get("shape", {}).get("sweep")
    return name


def _finding(what: str, found: Found, engine: str, sweep: str, repeat: int, probes: int) -> Finding:
    return Finding(
        engine, sweep, repeat, what, found.estimate_rps, found.low_rps, found.high_rps, probes, found.reason
    )  # fmt: skip


def read_probe(folder: RunFolder, row: PointRun, slo: dict[str, float]) -> Probe:
    """What one measured point says, from its records."""
    rate_rps = float(row.load["rate_rps"])
    table = folder.requests()
    for name in ("engine", "point", "repeat"):
        table = table.filter(pc.field(name) == getattr(row, name))
    if table.num_rows == 0 or row.open_s is None or row.close_s is None:
        return Probe(rate_rps, False, None, 0.0, usable=row.status != "client-limited")
    found = measured(table, row, TELEMETRY_SCHEMA.empty_table(), [], slo)
    within, sure, slack, note = judge(found, slo)
    return Probe(
        rate_rps, kept_up(found, row.client.get("in_flight_mean")), within, found.window_finished / found.window_s,
        _served_error(table, row), sure, slack, row.status != "client-limited", note,
    )  # fmt: skip


def kept_up(found: Measured, in_flight: float | None) -> bool:
    """Whether as many requests ended inside the window as fell due in it, but for chance.

    The two differ by the requests under way at its end less those at its opening: in a steady state, with random
    arrivals, that is 0 with a deviation of sqrt(2 * so many of them). `in_flight` is their mean over the window; what
    was there at its opening is less by half of what was added.
    """
    due = len(found.ok)
    if due == 0:
        return False
    added = due - found.window_finished
    at_first = max((in_flight or 0.0) - added / 2, 1.0)
    return bool(added <= max(BEHIND_MIN * due, CHANCE * (2 * at_first) ** 0.5))


def judge(found: Measured, slo: dict[str, float]) -> tuple[bool | None, bool, float | None, str | None]:
    """Whether every target was met (None: that cannot be said), whether that is sure, the largest of the targets'
    values over their limits, and why something cannot be said."""
    failed = evaluate(METRICS["error_ratio"], [found]).value
    if slo and failed is not None and failed > FAILED_MAX:
        return False, True, None, None
    sure, ratios, note = True, [], None
    for key, limit_s in slo.items():
        stat = evaluate(METRICS[f"{key}_s"], [found])
        if stat.value is None:
            note = f"{key}: {stat.reason}"
            continue
        ratios.append(stat.value / limit_s)
        if stat.ci_low is None or stat.ci_high is None:
            sure &= not 1 / FAR < ratios[-1] < FAR
        else:
            sure &= not stat.ci_low <= limit_s < stat.ci_high
    slack = max(ratios, default=None)
    if slack is not None and slack > 1:
        return False, sure, slack, note
    return (None if note or not ratios else True), sure, slack, note


def _served_error(table: pa.Table, row: PointRun) -> float:
    """Half the 95 % interval of the throughput, over the throughput: from equal slices of the window."""
    ended = table.filter(pc.field("status") == "ok")["end_s"].to_numpy()
    counts, _ = np.histogram(ended, SLICES, (row.open_s or 0.0, row.close_s or 0.0))
    if counts.sum() == 0:
        return 0.0
    return float(t_quantile(SLICES - 1) * counts.std(ddof=1) / SLICES**0.5 / counts.mean())
