"""The timeline of requests: when each was sent, when it began to answer, when it ended; one lane a stream."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from harness.records import PointRun
from harness.units import show
from reports.plots import Chart, faded, figure_json, look, rounded
from reports.rows import Summary
from reports.rundata import RunData

SHOWN, LANES = 160, 40  # requests of a load and engine, and lanes: more would be thinner than a line
NEAR = 4000  # requests around the middle that lanes are given to
LOADS = 12  # of a sweep's many probes, those shown


def request_timelines(data: RunData, summary: Summary, shown_point: str | None) -> list[Chart]:
    """One plot an engine, with a load to choose: the requests in flight around the middle of its first window."""
    labels = {s.point: s.label for s in summary.points if (s.engine, s.point) in data.measured}
    names = [name for name in summary.point_names() if name in labels]
    names = names[:: max(1, -(-len(names) // LOADS))]
    first = shown_point if shown_point in names else (names[-1] if names else None)
    choices = [(name, labels[name], name == first) for name in names]
    found: list[Chart] = []
    for engine in summary.engines:
        traces: list[Any] = []
        rows: list[list[str]] = []
        for name in names:
            parts = data.measured.get((engine.name, name), [])
            if parts and (part := _middle(data.requests, parts[0][0])):
                traces += _traces(summary, engine.name, name, part, name == first)
                rows += _rows(labels[name], part)
        if not traces:
            continue
        figure = figure_json(
            traces, barmode="overlay", bargap=0.25, xaxis={"title": {"text": "Seconds since the run's start"}},
            yaxis={"title": {"text": "Lane"}, "rangemode": "tozero", "zeroline": False}, height=340,
        )  # fmt: skip
        note = (
            f"Around the middle of the first window, {LANES} lanes of those there are; a lane holds one request at a "
            "time. Pale: waiting for the first token; full: answering; crosses: failed, or cut off at the end."
        )
        columns = ["Load", "Request", "Sent at", "Waited", "Answered", "Ended"]
        found.append(Chart(f"requests-{len(found)}", "requests", f"{engine.name}: requests over time", note, figure,
                           columns, rows, choices, ("ttft_p50_s", "e2e_p50_s")))  # fmt: skip
    return found


def _middle(requests: pa.Table, point: PointRun) -> dict[str, Any] | None:
    """The requests in flight around the middle of a window, in the order in which they were sent, with their lane."""
    if point.open_s is None or point.close_s is None:
        return None
    due = requests["scheduled_s"].to_numpy()
    if (due[1:] >= due[:-1]).all():  # those of one run: what lies outside of the point's time needs no look
        begin, end = np.searchsorted(due, [point.start_s or 0.0, point.close_s])
        requests = requests.slice(int(begin), int(end - begin))
    mask = (pc.field("engine") == point.engine) & (pc.field("point") == point.point)
    table = requests.select(["engine", "point", "repeat", "request_id", "sent_s", "first_token_s", "last_token_s",
                             "end_s", "status"]).filter(mask & (pc.field("repeat") == point.repeat))  # fmt: skip
    table = table.filter(pc.is_valid(table["sent_s"]))
    if table.num_rows == 0:
        return None
    table = table.sort_by("sent_s")
    sent = table["sent_s"].to_numpy()
    centre = int(np.searchsorted(sent, (point.open_s + point.close_s) / 2))
    begin = max(0, centre - NEAR // 2)
    frame = table.slice(begin, NEAR).to_pandas()
    frame["lane"] = lanes(frame["sent_s"], frame["end_s"].fillna(frame["sent_s"]))
    frame["far"] = np.abs(np.arange(len(frame)) - (centre - begin))
    frame = frame[frame["lane"] <= LANES].nsmallest(SHOWN, "far").sort_values("sent_s")
    return {name: frame[name].to_numpy() for name in frame.columns}


def lanes(starts: Any, ends: Any) -> list[int]:
    """The lowest lane that is free when each begins, from 1; starts are in order."""
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    found = []
    for start, end in zip(starts, ends, strict=True):
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        lane = heappop(free) if free else len(busy) + 1
        heappush(busy, (float(end), lane))
        found.append(lane)
    return found


def _traces(summary: Summary, engine: str, point: str, part: dict[str, Any], visible: bool) -> list[Any]:
    colour = look(summary, engine).colour
    good = ~np.isnan(part["first_token_s"])
    lane, sent = part["lane"], part["sent_s"]
    waited = np.where(good, part["first_token_s"], np.where(np.isnan(part["end_s"]), sent, part["end_s"])) - sent
    answered = (part["last_token_s"] - part["first_token_s"])[good]
    shared = {"orientation": "h", "meta": {"point": point}, "visible": visible, "marker": {"line": {"width": 0}}}
    found = [
        go.Bar(**shared | {"marker": {"color": faded(colour), "line": {"width": 0}}}, y=lane.tolist(),
               x=rounded(waited), base=rounded(sent), name="waiting", hovertemplate="waited %{x:.3~g} s"),
        go.Bar(**shared | {"marker": {"color": colour, "line": {"width": 0}}}, y=lane[good].tolist(),
               x=rounded(answered), base=rounded(part["first_token_s"][good]), name="answering",
               hovertemplate="answered for %{x:.3~g} s"),
    ]  # fmt: skip
    failed = part["status"] != "ok"
    if failed.any():
        found.append(go.Scatter(
            x=rounded((sent + waited)[failed]), y=lane[failed].tolist(), mode="markers", name="failed or cut off",
            marker={"symbol": "x", "size": 8, "color": "#8b919a"}, meta={"point": point}, visible=visible,
            hovertemplate="ended at %{x:.4~g} s",
        ))  # fmt: skip
    return found


def _rows(label: str, part: dict[str, Any]) -> list[list[str]]:
    """The first few of them as text: all of them are in requests.parquet."""
    found = []
    for i in range(min(10, len(part["sent_s"]))):
        first, last, sent = (float(part[key][i]) for key in ("first_token_s", "last_token_s", "sent_s"))
        found.append([label, str(part["request_id"][i]), f"{sent:.3f} s", show(first - sent, "s"),
                      show(last - first, "s"), str(part["status"][i])])  # fmt: skip
    return found
