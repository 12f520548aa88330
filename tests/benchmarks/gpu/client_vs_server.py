"""The client's figures of each load point beside those that the engine and the GPU counted themselves, as Markdown.

    python -m tests.benchmarks.gpu.client_vs_server RUN_FOLDER...

vLLM's counters and histograms are read just before a point begins and just after it ends, so their differences hold all
of its requests: ramp, window, and what was cancelled at the end. The client's side is made of the same requests. In a
closed or open loop some requests are cut off at the end, of which the server may have made a few tokens that nobody
received; a point whose load ends by itself (`burst`) must agree to the token.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from harness.measured import measured
from harness.records import PointRun
from harness.store import RunFolder
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA
from reports.clientserver import compare
from reports.rows import Compared
from tests.counted import Counted

KV_FACTS = ("version", "weights_bytes", "kv_capacity_bytes", "kv_capacity_tokens", "kv_bytes_per_token", "graph_bytes")
ENERGY_SPAN_S = 30.0  # over shorter times the two differ by where their samples lie


def tables(path: Path) -> list[str]:
    """All tables of a run folder."""
    folder, run = RunFolder.open(path), Counted.open(path)
    compared = compare(run.record, folder.requests(), folder.telemetry())
    points = [p for p in run.record.points if None not in (p.start_s, p.open_s, p.close_s, p.end_s)]
    lines = [f"### {path.name}", ""]
    for point in points:
        asked = run.of_point(point)
        ok = asked[asked.status == "ok"]
        inexact = int((ok.output_tokens != ok.asked_output_tokens).sum())
        inexact += int((ok.input_tokens != ok.asked_input_tokens).sum())
        if inexact:
            lines += [f"**{point.point}: {inexact} lengths are not as asked.**", ""]
    lines += table(
        ["point", "requests: client", "vLLM", "prompt tokens: client", "vLLM", "output tokens: client", "vLLM",
         "cut off at the end", "preempted", "prefix hits"],
        [counts(each) for each in compared],
    )  # fmt: skip
    lines += table(
        ["point", "TTFT ms: client", "vLLM", "difference", "ms a token: client", "vLLM", "difference",
         "E2E ms: client", "vLLM", "difference"],
        [latencies(each) for each in compared],
    )  # fmt: skip
    lines += table(
        ["point", "queue ms", "prefill ms", "decode ms", "rest of vLLM's E2E ms", "client beyond that ms"],
        [where(each) for each in compared],
    )
    return lines + memory(run, points) + energy(run, points)


def counts(each: Compared) -> list[str]:
    cells = [_number(side, "{:,.0f}") for pair in each.pairs if not pair.unit for side in (pair.client, pair.server)]
    rest = [each.extra.get(metric) for metric in ("preemptions_total", "prefix_cache_hits_total")]
    return [each.point, *cells, str(each.cut_off), *(_number(value, "{:,.0f}") for value in rest)]


def latencies(each: Compared) -> list[str]:
    cells = [each.point]
    for pair in each.pairs:
        if pair.unit == "s":
            apart = f"{pair.apart / pair.server * 100:+.1f} %" if pair.apart is not None and pair.server else ""
            cells += [_ms(pair.client, "{:,.2f}"), _ms(pair.server, "{:,.2f}"), apart]
    return cells


def where(each: Compared) -> list[str]:
    """Where a finished request's time went. What is left of vLLM's own E2E is its HTTP process: reading, streaming."""
    return [each.point, *(_ms(value, "{:,.1f}") for value in each.parts_s.values())]


def memory(run: Counted, points: list[PointRun]) -> list[str]:
    """The KV cache: what the engine reserved by its log and its page, and how much of it held tokens at the peak by
    vLLM's usage (once a second, in whole blocks) and by the records (every chunk)."""
    facts = {fact.name: fact for engine in run.record.engines for fact in engine.facts}
    told = [f"{name} {facts[name].value} ({facts[name].source})" for name in KV_FACTS if name in facts]
    capacity = facts["kv_capacity_tokens"].value if "kv_capacity_tokens" in facts else None
    rows = []
    for point in points:
        used = run.series("vllm", "kv_used_ratio")
        inside = used[(used.time_s >= point.open_s) & (used.time_s < point.close_s)].value
        peak = inside.max() * capacity if len(inside) and isinstance(capacity, int | float) else None
        of_point = pa.Table.from_pandas(run.of_point(point), REQUEST_SCHEMA, preserve_index=False)
        live = measured(of_point, point, TELEMETRY_SCHEMA.empty_table(), [], {}).live_tokens_peak
        rows.append([point.point, _number(peak, "{:,.0f}"), f"{live:,.0f}"])
    return [*(f"- {line}" for line in told), "", *table(["point", "peak KV tokens: vLLM", "by the records"], rows)]


def energy(run: Counted, points: list[PointRun]) -> list[str]:
    """Sampled power against the GPU's energy counter, over all points together and over each long one."""
    if not points:
        return []
    spans = [("all points", float(points[0].start_s or 0), float(points[-1].end_s or 0))]
    spans += [(p.point, float(p.start_s or 0), float(p.end_s or 0)) for p in points]
    rows = []
    for source in sorted(name for name in run.samples.source.unique() if name.startswith("nvidia")):
        counter, power = run.series(source, "energy_j"), run.series(source, "power_w")
        for name, start_s, end_s in spans:
            inside = counter[(counter.time_s >= start_s) & (counter.time_s <= end_s)]
            watts = power[(power.time_s >= start_s) & (power.time_s <= end_s)]
            if end_s - start_s < ENERGY_SPAN_S or len(inside) < 2 or len(watts) < 2:
                continue
            times = np.array([inside.time_s.iloc[0], inside.time_s.iloc[-1]])
            counted_j = float(inside.value.iloc[-1] - inside.value.iloc[0])
            grid = np.union1d(times, watts.time_s[(watts.time_s > times[0]) & (watts.time_s < times[1])])
            sampled_j = float(np.trapezoid(np.interp(grid, power.time_s, power.value), grid))
            apart = f"{(sampled_j / counted_j - 1) * 100:+.2f} %" if counted_j else ""
            rows.append([source, name, f"{times[1] - times[0]:.1f}", f"{sampled_j:,.0f}", f"{counted_j:,.0f}", apart])
    return table(["GPU", "window", "s", "J sampled", "J by its counter", "difference"], rows) if rows else []


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _ms(value_s: float | None, form: str) -> str:
    return "" if value_s is None else form.format(1e3 * value_s)


def main() -> None:
    for folder in sys.argv[1:]:
        print("\n".join(tables(Path(folder))))


if __name__ == "__main__":
    main()
