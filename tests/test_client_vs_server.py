"""The client against the server, and clocks that were held down, on figures that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness.measured import measured
from harness.metrics import METRICS
from harness.records import PointRun, RequestRecord, RunRecord, TelemetrySample
from harness.store import RunFolder
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA
from reports import clientserver, throttling
from reports.rows import Compared
from tests.benchmarks.gpu.client_vs_server import counts, energy, latencies, where
from tests.counted import Counted

GROWN = {
    "finished_total": 2, "prompt_tokens_total": 1536, "generation_tokens_total": 25, "preemptions_total": 0,
    "ttft_sum_s": 0.24, "ttft_count": 3, "itl_sum_s": 0.22, "itl_count": 22, "e2e_sum_s": 0.38, "e2e_count": 2,
    "queue_sum_s": 0.02, "queue_count": 2, "prefill_sum_s": 0.1, "prefill_count": 2, "decode_sum_s": 0.2,
    "decode_count": 2,
}  # fmt: skip
POINT = PointRun("vllm", "c1", 0, {"kind": "concurrency", "concurrency": 1}, "done", 9.0, 9.0, 49.0, 50.0)


def _request(sent_s: float, first_s: float | None, last_s: float | None, output: int | None, **more: Any) -> Any:
    given: dict[str, Any] = dict.fromkeys(RequestRecord.__dataclass_fields__) | {
        "engine": "vllm", "point": "c1", "repeat": 0, "request_id": int(sent_s), "phase": "measure",
        "scheduled_s": sent_s, "sent_s": sent_s, "first_token_s": first_s, "last_token_s": last_s,
        "output_tokens": output, "chunks": output or 0, "gaps_s": [], "status": "ok", "asked_input_tokens": 512,
        "first_chunk_tokens": 1, "worker": 0,
    }  # fmt: skip
    return RequestRecord(**(given | more))


# 512 tokens in, 11 out: first token after 100 ms, then one each 10 ms; one was cut off after 3 tokens, one before any
REQUESTS = [
    _request(10.0, 10.1, 10.2, 11), _request(20.0, 20.1, 20.2, 11),
    _request(30.0, 30.1, 30.12, 3, status="cancelled"), _request(40.0, None, None, None, status="cancelled"),
]  # fmt: skip


def _samples(grown: dict[str, float], source: str = "vllm") -> list[TelemetrySample]:
    return [
        TelemetrySample(t, "vllm", source, metric, 100.0 + (by if t > 9 else 0))
        for metric, by in grown.items()
        for t in (8.9, 50.1)
    ]


def _table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = [[getattr(row, name) for row in rows] for name in schema.names]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def compared(
    requests: list[Any] = REQUESTS, grown: dict[str, float] = GROWN, points: tuple[PointRun, ...] = (POINT,),
    more: tuple[TelemetrySample, ...] = (),
) -> list[Compared]:  # fmt: skip
    record = RunRecord("x", {}, "", "", 0.0, "", points=list(points))
    samples = _table([*_samples(grown), *more], TELEMETRY_SCHEMA)
    return clientserver.compare(record, _table(requests, REQUEST_SCHEMA), samples)


def test_both_sides_of_a_point() -> None:
    (found,) = compared()
    assert counts(found) == ["c1", "2", "2", "1,536", "1,536", "25", "25", "2", "0", ""]
    assert latencies(found) == [
        "c1", "100.00", "80.00", "+25.0 %", "10.00", "10.00", "-0.0 %", "200.00", "190.00", "+5.3 %",
    ]  # fmt: skip
    assert where(found) == ["c1", "10.0", "50.0", "100.0", "30.0", "10.0"]
    assert clientserver.rows([found])[3] == ["1 concurrent", "vllm", "TTFT", "100 ms", "80.0 ms", "+20.0 ms (+25.0 %)"]
    assert clientserver.rows([found])[0][-1] == "0"
    assert clientserver.where([found]) == [
        ["1 concurrent", "vllm", "10.0 ms", "50.0 ms", "100 ms", "30.0 ms", "10.0 ms"]
    ]


def test_a_time_that_disagrees_is_a_warning_that_says_where_it_went() -> None:
    """The client saw 20 ms more to the first token than vLLM; the other times are within the tolerance."""
    (text,) = clientserver.warnings(compared())
    assert text == (
        "vllm, 1 concurrent: TTFT: the client saw 100 ms, the server says 80.0 ms: the time went in the server's HTTP "
        "process rather than in queue, prefill or decode (30.0 ms of its own E2E is neither of them); the client was "
        "not late"
    )
    late = replace(POINT, client={"loop_lag_p50_s": 0.015})
    assert "in the client, whose loop was late by 15.0 ms" in clientserver.warnings(compared(points=(late,)))[0]
    limited = replace(POINT, status="client-limited")
    assert "the client was itself the limit" in clientserver.warnings(compared(points=(limited,)))[0]
    late = GROWN | {"ttft_sum_s": 0.3, "itl_sum_s": 0.24}
    assert "its first tokens reached the client late" in clientserver.warnings(compared(grown=late))[0]
    quick = GROWN | {"decode_sum_s": 0.26}  # nothing is left of vLLM's own E2E
    assert "on the way" in clientserver.warnings(compared(grown=quick))[0]
    more = GROWN | {"ttft_sum_s": 0.45}
    assert "requests that this load did not send" in clientserver.warnings(compared(grown=more))[0]
    assert clientserver.warnings(compared(grown=GROWN | {"ttft_sum_s": 0.28})) == []  # 6.7 ms are within 10 ms


@pytest.mark.parametrize(
    ("grown", "said"),
    [
        ({"finished_total": 4}, None),  # two were cut off: the server may have ended them first
        ({"finished_total": 5}, "requests: the client counted 2, the server 5: another client uses it"),
        ({"finished_total": 1}, "requests: the client counted 2, the server 1: it restarted"),
        ({"prompt_tokens_total": 1536 + 1024}, None),
        ({"prompt_tokens_total": 1536 + 1025}, "prompt tokens: the client counted 1,536, the server 2,561"),
        ({"generation_tokens_total": 25 + 22}, None),
        ({"generation_tokens_total": 25 + 23}, "output tokens: the client counted 25, the server 48"),
    ],
)
def test_counts_may_differ_by_what_was_cut_off(grown: dict[str, float], said: str | None) -> None:
    texts = clientserver.warnings(compared(grown=GROWN | {"ttft_sum_s": 0.3} | grown))
    assert [said in text for text in texts if said] == [True] if said else texts == []


def test_requests_of_the_load_before_are_named_and_its_times_are_not_judged() -> None:
    running = TelemetrySample(8.9, "vllm", "vllm", "running", 3.0), TelemetrySample(50.1, "vllm", "vllm", "running", 0)
    (text,) = clientserver.warnings(compared(grown=GROWN | {"finished_total": 9}, more=running))
    assert text.endswith("3 requests of the load before were still running when this one began")


def test_repeats_are_added_up_and_a_lost_page_is_no_comparison() -> None:
    again = replace(POINT, repeat=1, start_s=109.0, open_s=109.0, close_s=149.0, end_s=150.0)
    later = [replace(r, repeat=1, sent_s=r.sent_s + 100, first_token_s=r.first_token_s and r.first_token_s + 100,
                     last_token_s=r.last_token_s and r.last_token_s + 100) for r in REQUESTS]  # fmt: skip
    second = [TelemetrySample(t, "vllm", "vllm", metric, 200.0 + (by if t > 109 else 0))
              for metric, by in GROWN.items() for t in (108.9, 150.1)]  # fmt: skip
    (found,) = compared(REQUESTS + later, points=(POINT, again), more=tuple(second))
    assert counts(found)[1:8] == ["4", "4", "3,072", "3,072", "50", "50", "4"]
    assert latencies(found)[1:3] == ["100.00", "80.00"]
    assert compared(REQUESTS + later, points=(POINT, again)) == []  # of the second repeat nothing is known
    assert compared(REQUESTS, {}) == []
    assert compared([], GROWN) == []


def test_what_ollama_says_of_its_answers() -> None:
    """Its clock: 195 ms in all, of which 5 ms loading, 60 ms prompt, 100 ms answer; 30 ms it waited."""
    timings = {"total_s": 0.195, "load_s": 0.005, "prompt_eval_s": 0.06, "eval_s": 0.1}
    answers = [replace(r, server_timings=timings) if r.status == "ok" else r for r in REQUESTS]
    (found,) = compared(answers, {})
    assert found.source == "Ollama's answers"
    assert [(p.what, p.client, p.server) for p in found.pairs] == [
        ("requests", 2, 2), ("prompt tokens", 1536, None),
        ("output tokens", 22, 22), ("TTFT", pytest.approx(0.1), pytest.approx(0.095)),
        ("time per token", pytest.approx(0.01), pytest.approx(0.01)),
        ("E2E", pytest.approx(0.2), pytest.approx(0.195)),
    ]  # fmt: skip
    parts = [found.parts_s[name] for name in ("queue", "prefill", "decode", "network and client")]
    assert parts == [pytest.approx(x) for x in (0.03, 0.065, 0.1, 0.005)]
    assert clientserver.warnings([found]) == []
    grown = {"prompt_tokens_total": 512.0, "prompt_tokens_cached_total": 1024.0, "generation_tokens_total": 26.0}
    ran = tuple(_samples(grown, "llama-server"))
    (counted,) = compared(answers, {}, more=ran)  # its runner made one token more of what was cut off
    assert [(p.client, p.server) for p in counted.pairs[:3]] == [(2, 2), (1536, 1536), (25, 26)]
    assert clientserver.warnings([counted]) == []
    less = tuple(_samples(grown | {"prompt_tokens_cached_total": 0.0}, "llama-server"))
    assert (
        "prompt tokens: the client counted 1,536, the server 512"
        in clientserver.warnings(compared(answers, {}, more=less))[0]
    )
    slow = [replace(r, server_timings=timings | {"total_s": 0.15, "eval_s": 0.085}) if r.status == "ok" else r
            for r in REQUESTS]  # fmt: skip
    assert [text.split(": ")[1] for text in clientserver.warnings(compared(slow, {}))] == [
        "TTFT", "time per token", "E2E",
    ]  # fmt: skip


def test_energy_sampled_and_counted() -> None:
    power = [TelemetrySample(0.5 * n, None, "nvidia:0", "power_w", 300.0) for n in range(120)]
    counter = [
        TelemetrySample(0.5 * n, None, "nvidia:0", "energy_j", 1000.0 + 150.0 * n / 0.98) for n in range(120)
    ]  # fmt: skip
    samples = _table(power + counter, TELEMETRY_SCHEMA).to_pandas()
    record = RunRecord("x", {}, "", "", 0.0, "", points=[POINT])
    run = Counted(record, _table(REQUESTS, REQUEST_SCHEMA).to_pandas(), samples)
    assert "| nvidia:0 | c1 | 41.0 | 12,300 | 12,551 | -2.00 % |" in energy(run, [POINT])
    assert energy(run, []) == []


def _held_back(metric: str, grown: float) -> list[str]:
    samples = [TelemetrySample(10.0 + n, "vllm", "host", metric, 5.0 + grown * n / 35) for n in range(36)]
    part = measured(_table(REQUESTS, REQUEST_SCHEMA), POINT, _table(samples, TELEMETRY_SCHEMA), [], {})
    return throttling.warnings({("vllm", "c1"): [(POINT, part)]})


def test_a_quota_that_was_used_up_and_swapping_are_warnings() -> None:
    """A window of 40 s: 4 s of it stood still; 1 GiB came back from swap."""
    (text,) = _held_back("cpu_throttled_total_s", 4.0)
    assert "at 1 concurrent processes stood still for 10 % of the window" in text
    (text,) = _held_back("swap_in_total_bytes", 2.0**30)
    assert "the machine swapped inside the window (1.00 GiB at 1 concurrent)" in text
    assert _held_back("cpu_throttled_total_s", 0.3) == _held_back("swap_in_total_bytes", 2.0**20) == []


def _throttled(masks: list[int]) -> Any:
    samples = [TelemetrySample(10.0 + n, "vllm", "nvidia:0", "throttle_reasons", mask) for n, mask in enumerate(masks)]
    samples += [
        TelemetrySample(10.0 + n, "vllm", "nvidia:0", "sm_clock_mhz", 1980 - 10 * m) for n, m in enumerate(masks)
    ]
    return measured(_table(REQUESTS, REQUEST_SCHEMA), POINT, _table(samples, TELEMETRY_SCHEMA), [], {})


def test_a_real_vllm_on_an_h100_agrees_to_the_token_and_in_energy() -> None:
    """The reference run, as it was recorded: a load that ended by itself, and windows of 30 s or more."""
    path = Path(__file__).parents[1] / "results/reference/1b-bf16"
    folder, run = RunFolder.open(path), Counted.open(path)
    compared = clientserver.compare(run.record, folder.requests(), folder.telemetry())
    burst = next(each for each in compared if each.point == "c64-burst")
    assert [pair.apart for pair in burst.pairs if not pair.unit] == [0, 0, 0]
    points = [point for point in run.record.points if point.start_s is not None]
    shares = [float(line.split("|")[-2].removesuffix(" % ")) for line in energy(run, points)[2:] if line]
    assert len(shares) >= 2
    assert max(map(abs, shares)) < 3.0
    point = next(point for point in points if point.point.startswith("poisson"))
    samples = pa.Table.from_pandas(run.samples, TELEMETRY_SCHEMA, preserve_index=False)
    window = measured(_table([], REQUEST_SCHEMA), point, samples, [], {}, live=False)
    joules, watts = (METRICS[key].formula(window).value for key in ("gpu_energy_j", "gpu_power_w"))
    assert joules == pytest.approx((watts or 0.0) * window.window_s, rel=0.03)


def test_clocks_that_were_held_down_are_a_warning() -> None:
    idle_and_asked = _throttled([1, 2, 0, 0x100] * 10)  # idle, and clocks that somebody set: not held down
    assert throttling.warnings({("vllm", "c1"): [(POINT, idle_and_asked)]}) == []
    once = _throttled([4] + [0] * 39)  # 2.5 % of the window
    assert throttling.warnings({("vllm", "c1"): [(POINT, once)]}) == []
    hot = _throttled([0x20, 0x44, 0, 0])
    (text,) = throttling.warnings({("vllm", "c1"): [(POINT, once), (POINT, hot)]})
    assert text.startswith(
        "vllm: a GPU's clocks were held down (heat, power cap) at 1 concurrent (50 %) of the window; its clock was "
        "1,300 to 1,980 MHz"
    )
    assert throttling.is_throttled(0.05)
    assert not throttling.is_throttled(None)


def test_links_that_stand_still_while_pcie_is_busy_are_a_warning() -> None:
    """Two GPUs without their direct path (the first h200-8b-tp2); replicas, which need none, say nothing."""
    (text,) = throttling.warnings({("vllm", "c1"): [(POINT, _linked(0.0, 6e9))]})
    assert text.startswith("vllm: NVLink carried nothing at 1 concurrent, but PCIe did, 6 GB/s and more on each GPU")
    assert throttling.warnings({("vllm", "c1"): [(POINT, _linked(5e9, 6e9))]}) == []
    assert throttling.warnings({("vllm", "c1"): [(POINT, _linked(0.0, 1e8))]}) == []


def _linked(nvlink: float, pcie: float) -> Any:
    samples = [
        TelemetrySample(10.0 + n, "vllm", f"nvidia:{gpu}", f"{link}_{way}_bytes_s", rate)
        for n in range(4)
        for gpu in (0, 1)
        for link, rate in (("nvlink", nvlink), ("pcie", pcie))
        for way in ("tx", "rx")
    ]
    return measured(_table(REQUESTS, REQUEST_SCHEMA), POINT, _table(samples, TELEMETRY_SCHEMA), [], {})
