"""Windows of made-up requests, whose figures follow from times written by hand: what the tests of metrics share."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import pyarrow as pa

from harness.metrics import METRICS, Measured, Stat, evaluate, measured
from harness.records import Fact, PointRun, RequestRecord, TelemetrySample
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA

CLOSED = {"kind": "concurrency", "concurrency": 2}
OPEN = {"kind": "poisson", "rate_rps": 2.0}
KV = [
    Fact("kv_bytes_per_token", 100, "bytes", "derived", "x"),
    Fact("kv_capacity_bytes", 10_000, "bytes", "logged", "x"),
]


def request_at(sent_s: float, ttft_s: float | None = 0.5, gaps_s: Any = (0.25, 0.25), **more: Any) -> RequestRecord:
    """A request whose derived figures follow from its times, as the driver makes them."""
    gaps = list(gaps_s)
    first = None if ttft_s is None else sent_s + ttft_s
    last = None if first is None else first + sum(gaps)
    output, first_tokens = more.get("output_tokens", len(gaps) + 1), more.get("first_chunk_tokens", 1)
    rest = (output or 0) - (first_tokens or 1)
    request = RequestRecord(
        engine="e", point="p", repeat=0, request_id=int(sent_s * 1000), phase="measure", scheduled_s=sent_s,
        sent_s=sent_s, first_token_s=first, last_token_s=last, end_s=last, input_tokens=10, output_tokens=output,
        token_source="server", chunks=len(gaps) + 1, gaps_s=array("d", gaps), ttft_s=ttft_s,
        tpot_s=sum(gaps) / rest if rest > 0 else None, e2e_s=None if last is None else last - sent_s,
        status="ok", http_status=200, error=None, finish_reason="length", first_chunk_tokens=first_tokens,
    )  # fmt: skip
    return replace(request, **more)


def failed_at(sent_s: float, **more: Any) -> RequestRecord:
    given = {"end_s": sent_s + 0.1, "status": "error", "output_tokens": None, "input_tokens": None} | more
    return request_at(sent_s, None, (), **given)


def window_of(
    requests: list[RequestRecord], open_s: float | None = 0.0, close_s: float | None = 10.0, *,
    load: dict[str, Any] = CLOSED, samples: list[TelemetrySample] | None = None, facts: list[Fact] | None = None,
    slo: dict[str, float] | None = None,
) -> Measured:  # fmt: skip
    def table(rows: Any, schema: pa.Schema) -> pa.Table:
        columns = [[getattr(row, name) for row in rows] for name in schema.names]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)

    point = PointRun("e", "p", 0, load, "done", open_s=open_s, close_s=close_s)
    telemetry = table(samples or [], TELEMETRY_SCHEMA)
    return measured(table(requests, REQUEST_SCHEMA), point, telemetry, facts or [], slo or {})


def stat_of(key: str, *repeats: Measured) -> Stat:
    return evaluate(METRICS[key], list(repeats))


def value_of(key: str, *repeats: Measured) -> float:
    stat = stat_of(key, *repeats)
    assert stat.value is not None, f"{key}: {stat.reason}"
    return stat.value
