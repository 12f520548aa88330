"""Every metric against an answer that was worked out by hand."""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from harness.metrics import (
    METRICS,
    Measured,
    Rates,
    Stat,
    evaluate,
    measured,
    pooled,
    rates_of,
    statistic,
    time_weighted_mean,
)
from harness.records import Fact, PointRun, RequestRecord, TelemetrySample
from harness.sampled import coverage
from harness.statistics import t_quantile
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA

CLOSED = {"kind": "concurrency", "concurrency": 2}
OPEN = {"kind": "poisson", "rate_rps": 2.0}


def _request(sent_s: float, ttft_s: float | None = 0.5, gaps_s: Any = (0.25, 0.25), **more: Any) -> RequestRecord:
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


def _failed(sent_s: float, **more: Any) -> RequestRecord:
    given = {"end_s": sent_s + 0.1, "status": "error", "output_tokens": None, "input_tokens": None} | more
    return _request(sent_s, None, (), **given)


def _measured(
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


def _stat(key: str, *repeats: Measured) -> Stat:
    return evaluate(METRICS[key], list(repeats))


def _value(key: str, *repeats: Measured) -> float:
    stat = _stat(key, *repeats)
    assert stat.value is not None, f"{key}: {stat.reason}"
    return stat.value


# --- latencies -----------------------------------------------------------------------------------


def test_ttft_and_e2e_count_from_sent_in_a_closed_loop_and_from_due_in_an_open_one() -> None:
    requests = [_request(1.0, scheduled_s=0.5), _request(2.0, 1.5, scheduled_s=2.0)]
    closed, opened = _measured(requests), _measured(requests, load=OPEN)
    assert (_value("ttft_mean_s", closed), _value("ttft_mean_s", opened)) == (1.0, 1.25)
    assert (_value("e2e_mean_s", closed), _value("e2e_mean_s", opened)) == (1.5, 1.75)
    for m in (closed, opened):
        assert _value("ttft_sent_mean_s", m) == 1.0
        assert _value("ttft_due_mean_s", m) == 1.25


def test_latencies_are_of_the_requests_of_the_phase_that_ended_well() -> None:
    warm = _request(0.0, 9.0, [9.0], phase="warmup")
    drained = _request(0.1, 8.0, [9.0], phase="cooldown")
    cut = _request(3.0, 7.0, [7.0, 7.0], status="timeout")
    m = _measured([warm, drained, cut, _failed(2.0), _request(1.0), _request(4.0)])
    assert _stat("ttft_mean_s", m).n == 2
    assert _value("ttft_mean_s", m) == 0.5
    assert _value("e2e_mean_s", m) == 1.0
    assert _value("itl_mean_s", m) == 0.25
    assert _value("tpot_mean_s", m) == 0.25
    assert _stat("itl_mean_s", m).n == 4


def test_a_request_that_outlives_the_window_counts_with_its_whole_latency() -> None:
    assert _value("e2e_mean_s", _measured([_request(9.5, 1.0, [20.0])])) == 21.0


def test_tpot_leaves_out_the_tokens_of_the_first_chunk() -> None:
    """3 tokens in the first chunk, then 2 chunks of 2: 1 s for 4 tokens. One token alone has no TPOT."""
    speculative = _request(1.0, 0.5, [0.5, 0.5], output_tokens=7, first_chunk_tokens=3)
    m = _measured([speculative, _request(2.0, 0.5, [])])
    assert _value("tpot_mean_s", m) == 0.25
    assert _stat("tpot_mean_s", m).n == 1
    assert _value("itl_mean_s", m) == 0.5
    assert _value("itl_token_mean_s", m) == 0.25


def test_itl_is_pooled_over_requests_not_averaged_of_averages() -> None:
    m = _measured([_request(1.0, 0.5, [1.0]), _request(2.0, 0.5, [0.1, 0.1, 0.1])])
    assert _value("itl_mean_s", m) == pytest.approx(1.3 / 4, rel=1e-6)
    assert _stat("itl_mean_s", m).n == 4


def test_chunks_without_a_token_have_no_time_per_token() -> None:
    """The server counts one token, the stream shows two chunks (half a character, then nothing new)."""
    m = _measured([_request(1.0, 0.5, [0.5], output_tokens=1), _request(2.0, 0.5, [0.25])])
    assert _value("itl_token_mean_s", m) == 0.25
    assert _stat("itl_mean_s", m).n == 2


def test_unknown_token_counts_are_the_chunks() -> None:
    m = _measured([_request(1.0, 0.5, [0.5, 0.5], output_tokens=None, first_chunk_tokens=None)])
    assert m.window_tokens == 3
    assert _value("itl_token_mean_s", m) == 0.5
    assert _stat("output_tokens_mean", m) == Stat(None, reason="no requests to take it of")


# --- throughput ----------------------------------------------------------------------------------


def test_tokens_count_when_they_arrive_whichever_request_they_belong_to() -> None:
    """The window is [10, 20). A closed end and an open one: a chunk at 10 counts, one at 20 does not."""
    early = _request(9.0, 0.5, [0.5, 0.5], phase="warmup")  # chunks at 9.5, 10.0, 10.5: 2 of 3
    late = _request(19.0, 0.5, [0.25, 0.25, 0.25])  # 19.5, 19.75, 20.0, 20.25: 2 of 4
    after = _request(20.0, 0.5, [0.5], phase="cooldown")
    broken = _request(15.0, 0.5, [0.5], status="error", output_tokens=2)  # its tokens did arrive
    m = _measured([early, late, after, broken], 10.0, 20.0)
    assert _value("output_tok_s", m) == pytest.approx(0.6)
    assert _value("input_tok_s", m) == pytest.approx(2.0)  # the prompts of `late` and `broken`
    assert _value("total_tok_s", m) == pytest.approx(2.6)
    assert _value("request_s", m) == pytest.approx(0.1)  # `early` ended in it; `late` later, `broken` badly


def test_several_tokens_a_chunk_are_counted_each() -> None:
    """9 tokens: 3 in the first chunk, then 2 chunks of 3; the window holds the first and the second chunk."""
    request = _request(1.0, 0.5, [1.0, 1.0], output_tokens=9, first_chunk_tokens=3)
    assert _measured([request], 1.0, 3.0).window_tokens == 6
    assert _measured([request], 2.0, 4.0).window_tokens == 6
    assert _measured([request], 0.0, 10.0).window_tokens == 9
    alone = _request(1.0, 0.5, [], output_tokens=9, first_chunk_tokens=None)
    assert _measured([alone]).window_tokens == 9


def test_prompts_that_the_server_did_not_count_are_no_zero() -> None:
    facts = [Fact("kv_bytes_per_token", 100, "bytes", "derived", "x")]
    unknown = _measured([_request(1.0, input_tokens=None), _request(2.0, input_tokens=None)], facts=facts)
    for key in ("input_tok_s", "total_tok_s", "kv_live_bytes", "input_tokens_mean"):
        stat = _stat(key, unknown)
        assert stat.value is None, key
        assert stat.reason, key
    assert _value("output_tok_s", unknown) == pytest.approx(0.6)
    some = _measured([_request(1.0), _failed(2.0)])
    assert _value("input_tok_s", some) == 1.0


def test_all_failed_is_zero_tokens_and_no_latency() -> None:
    m = _measured([_failed(1.0), _failed(2.0, end_s=None)], slo={"ttft_p95": 1.0})
    assert _value("error_ratio", m) == 1.0
    assert _value("output_tok_s", m) == 0.0
    assert _value("request_s", m) == 0.0
    assert _value("goodput_request_s", m) == 0.0
    for key in ("ttft_mean_s", "ttft_p50_s", "tpot_mean_s", "itl_mean_s", "itl_token_mean_s", "e2e_p95_s"):
        assert _stat(key, m).value is None, key
        assert "no " in str(_stat(key, m).reason), key


@pytest.mark.parametrize("case", ["no rows", "warm-up only", "no window", "no repeats"])
def test_what_was_not_measured_is_null_with_a_reason_and_never_zero(case: str) -> None:
    slo = {"ttft_p95": 1.0}
    made = {
        "no rows": [_measured([], slo=slo)],
        "warm-up only": [_measured([_request(-5.0, phase="warmup")], slo=slo)],
        "no window": [_measured([_request(1.0, None, ())], None, None, slo=slo)],
        "no repeats": [],
    }[case]
    for key, metric in METRICS.items():
        stat = evaluate(metric, made)
        if case == "no window" and key in ("error_ratio", "slo_ratio", "output_tokens_mean", "input_tokens_mean"):
            continue  # that request was sent, and ended well
        assert stat.value is None, key
        assert stat.reason, key
        assert stat.ci_low is stat.ci_high is None, key


# --- the SLO -------------------------------------------------------------------------------------


def test_goodput_counts_requests_within_every_number_and_a_failed_one_is_a_miss() -> None:
    slo = {"ttft_p95": 0.5, "tpot_p95": 0.25, "e2e_p99": 3.0}
    requests = [
        _request(1.0, 0.5, [0.25, 0.25]),  # on every limit: within
        _request(2.0, 0.5, []),  # one token: it has no TPOT, which is no miss
        _request(3.0, 0.75, [0.25]),  # TTFT
        _request(4.0, 0.5, [0.5, 0.5]),  # TPOT
        _request(5.0, 0.5, [0.25] * 12),  # E2E
        _failed(6.0),
        _request(7.0, None, ()),  # "ok" without any token: no TTFT is a miss
        _request(0.5, 0.5, [0.25], phase="warmup"),
    ]
    m = _measured(requests, slo=slo)
    assert m.within_slo().tolist() == [True, True, False, False, False, False, False]
    assert _value("goodput_request_s", m) == pytest.approx(0.2)
    assert _value("goodput_tok_s", m) == pytest.approx(0.4)
    assert _value("slo_ratio", m) == pytest.approx(2 / 7)
    assert _value("error_ratio", m) == pytest.approx(1 / 7)


def test_the_slo_counts_from_due_in_an_open_loop() -> None:
    requests = [_request(1.5, 0.5, scheduled_s=1.0)]
    assert _value("slo_ratio", _measured(requests, slo={"ttft_p95": 0.9})) == 1.0
    assert _value("slo_ratio", _measured(requests, load=OPEN, slo={"ttft_p95": 0.9})) == 0.0


def test_an_itl_target_tests_the_mean_gap_of_a_request() -> None:
    m = _measured(
        [_request(1.0, 0.5, [0.1, 0.3]), _request(2.0, 0.5, [0.1, 0.5]), _request(3.0, 0.5, [])],
        slo={"itl_p95": 0.2001},
    )
    assert m.within_slo().tolist() == [True, False, True]


def test_without_an_slo_there_is_no_goodput() -> None:
    m = _measured([_request(1.0)])
    for key in ("goodput_request_s", "goodput_tok_s", "slo_ratio"):
        assert _stat(key, m).value is None
        assert "SLO" in str(_stat(key, m).reason)


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stat", "needed"), [("p50", 10), ("p90", 50), ("p95", 100), ("p99", 500)])
def test_a_percentile_needs_five_samples_beyond_it(stat: str, needed: int) -> None:
    values = np.arange(needed, dtype=float)
    too_few = statistic(values[1:], stat, "requests")
    assert too_few == Stat(None, n=needed - 1, reason=f"{stat} needs {needed} requests, there are {needed - 1}")
    assert statistic(values, stat, "requests").value == pytest.approx(np.quantile(values, float(stat[1:]) / 100))


def test_the_interval_comes_from_repeats_first() -> None:
    """Repeats of 1, 2 and 3 s: mean 2, s = 1, and t(2) = 4.303."""
    repeats = [_measured([_request(float(i), ttft) for i in range(4)]) for ttft in (1.0, 2.0, 3.0)]
    stat = _stat("ttft_mean_s", *repeats)
    half = 4.303 / math.sqrt(3)
    assert (stat.value, stat.ci_low, stat.ci_high) == pytest.approx((2.0, 0.0, 2.0 + half))  # no time is negative
    near = _stat("ttft_mean_s", *(_measured([_request(float(i), t) for i in range(4)]) for t in (1.9, 2.0, 2.1)))
    assert (near.ci_low, near.ci_high) == pytest.approx((2.0 - half / 10, 2.0 + half / 10))
    assert stat.n == 12
    rate = _stat("request_s", *repeats)
    assert (rate.ci_low, rate.ci_high) == pytest.approx((0.4, 0.4))  # three equal repeats


def test_the_interval_of_one_repeat_comes_from_its_requests() -> None:
    dice = np.random.default_rng(5)
    m = _measured([_request(i / 100, float(t)) for i, t in enumerate(dice.normal(1.0, 0.1, 400))])
    mean, median = _stat("ttft_mean_s", m), _stat("ttft_p50_s", m)
    for stat, width in ((mean, 0.1 * 4.2 / 20), (median, 0.1 * 1.2533 * 3.92 / 20)):
        assert stat.value is not None
        assert stat.ci_low is not None
        assert stat.ci_high is not None
        assert stat.ci_low < stat.value < stat.ci_high
        assert stat.ci_high - stat.ci_low == pytest.approx(width, rel=0.5)
    few = _stat("ttft_mean_s", _measured([_request(1.0), _request(2.0)]))
    assert (few.value, few.ci_low, few.ci_high) == (0.5, None, None)
    assert _stat("output_tok_s", m).ci_low is None  # a rate of one window has no samples


def test_repeats_too_short_for_a_percentile_give_it_together() -> None:
    """Two repeats of 60: none has a p95, both together do; its interval then comes from the 120 requests."""
    parts = [_measured([_request(i / 10, i / 60 + r) for i in range(60)]) for r in (0, 1)]
    assert _stat("ttft_p95_s", parts[0]).value is None
    stat = _stat("ttft_p95_s", *parts)
    assert stat.n == 120
    assert stat.ci_low is not None
    assert stat.value is not None
    assert stat.ci_low < stat.value < (stat.ci_high or 0)


def test_the_interval_of_a_quantile_of_gaps_knows_how_few_requests_they_came_from() -> None:
    """1000 gaps of 2 requests are 2 samples, not 1000."""
    dice = np.random.default_rng(3)
    few = _measured([_request(float(i), 0.5, dice.exponential(0.01, 500)) for i in range(2)])
    many = _measured([_request(i / 10, 0.5, dice.exponential(0.01, 10)) for i in range(100)])
    assert _stat("itl_p50_s", few).value is not None
    assert _stat("itl_p50_s", few).n == 2
    assert _stat("itl_p50_s", few).ci_low is None
    assert _stat("itl_p50_s", many).n == 100
    assert _stat("itl_p50_s", many).ci_low is not None


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_the_95_percent_interval_over_repeats_covers_95_percent(repeats: int) -> None:
    """500 seeded trials; runs differ from each other (the reason why the run is the unit)."""
    dice = np.random.default_rng(repeats)
    base = _measured([_request(float(i)) for i in range(4)])
    hits = 0
    for _ in range(500):
        parts = []
        for _ in range(repeats):
            values = 1.0 + dice.normal(0, 0.1) + dice.normal(0, 0.05, 4)
            parts.append(replace(base, requests=base.requests | {"first": base.requests["sent"] + values}))
        stat = _stat("ttft_mean_s", *parts)
        assert stat.ci_low is not None
        assert stat.ci_high is not None
        hits += stat.ci_low <= 1.0 <= stat.ci_high
    assert 0.92 <= hits / 500 <= 0.975


def test_t_quantiles() -> None:
    """From the tables of Student's t."""
    for degrees, exact in (
        (1, 12.706),
        (2, 4.303),
        (9, 2.262),
        (20, 2.086),
        (21, 2.0796),
        (30, 2.0423),
        (60, 2.0003),
        (1000, 1.9623),
    ):
        assert t_quantile(degrees) == pytest.approx(exact, rel=0.003)


# --- KV memory and telemetry ---------------------------------------------------------------------

KV = [
    Fact("kv_bytes_per_token", 100, "bytes", "derived", "x"),
    Fact("kv_capacity_bytes", 10_000, "bytes", "logged", "x"),
]


def test_kv_live_is_what_running_requests_hold_at_the_peak() -> None:
    """A: prompt 10, chunks at 1.5, 1.75, 2.0 and gone at 2.0. B: prompt 20 from 1.8 on, its 2 tokens at 1.8 and 2.8.
    The peak is at 2.0, A's last token: 13 + 21."""
    a = _request(1.0, 0.5, [0.25, 0.25])
    b = _request(1.5, 0.3, [1.0], input_tokens=20)
    m = _measured([a, b], facts=KV)
    assert m.live_tokens_peak == 34
    assert _value("kv_live_bytes", m) == 3400
    assert _value("kv_efficiency_ratio", m) == pytest.approx(0.34)
    assert _value("kv_capacity_bytes", m) == 10_000


def test_kv_live_counts_what_is_held_when_the_window_opens_and_what_never_ended() -> None:
    held = _request(0.0, 0.5, [0.5, 9.0], phase="warmup")  # 10 + 2 tokens from 1.0 to 10.0
    assert _measured([held], 5.0, 6.0).live_tokens_peak == 12
    assert _measured([held], 20.0, 30.0).live_tokens_peak == 0
    cut = _request(0.0, 0.5, [0.5], end_s=None, status="cancelled")
    assert _measured([cut], 5.0, 6.0).live_tokens_peak == 12
    assert _measured([replace(cut, end_s=4.0)], 5.0, 6.0).live_tokens_peak == 0


def test_kv_without_the_engines_word_is_null() -> None:
    m = _measured([_request(1.0)])
    assert _stat("kv_live_bytes", m).reason == "bytes per token are not known"
    assert _stat("kv_efficiency_ratio", m).reason == "bytes per token are not known"
    assert _stat("kv_efficiency_ratio", _measured([_request(1.0)], facts=KV[:1])).value is None
    assert _stat("weights_bytes", m).reason == "the engine did not say it"


def _power(
    pairs: list[tuple[float, float]], source: str = "nvidia:0", metric: str = "power_w"
) -> list[TelemetrySample]:
    return [TelemetrySample(time, None, source, metric, value) for time, value in pairs]


def test_telemetry_means_weigh_each_sample_by_its_time() -> None:
    """100 W for 1 s, then a hole of 8 s on the way to 300 W: (100 + 8 x 200) / 9, not the mean of three samples."""
    samples = _power([(0, 100), (1, 100), (9, 300), (10, 9e9), (-1, 9e9), (5, math.nan)])
    m = _measured([_request(1.0)], samples=samples)
    assert _value("gpu_power_w", m) == pytest.approx((100 + 8 * 200) / 9)
    assert _stat("gpu_power_w", m).n == 3
    assert _value("gpu_power_w", _measured([_request(1.0)], samples=_power([(3, 250)]))) == 250


def test_a_hole_in_the_samples_is_none_of_the_mean() -> None:
    """100 W each second up to 3 s, nothing up to 7 s, then 300 W: two spans of 3 s, not a ramp between them."""
    samples = _power([(t, 100.0) for t in range(4)] + [(t, 300.0) for t in range(7, 10)])
    assert _value("gpu_power_w", _measured([_request(1.0)], samples=samples)) == pytest.approx((3 * 100 + 2 * 300) / 5)
    series = [(np.arange(4.0), np.ones(4)), (np.array([0.0, 1.0, 8.0, 9.0, 10.0]), np.ones(5))]
    assert coverage(series, 20.0) == pytest.approx((4 + 5) / 20)
    assert coverage(series[:1], 2.0) == 1.0
    assert coverage([(np.array([1.0]), np.ones(1))], 2.0) is None


def test_a_mean_of_less_than_half_the_window_is_none() -> None:
    m = _measured([_request(1.0)], samples=_power([(0.5, 100), (1.0, 100), (1.5, 100)]))
    assert _stat("gpu_power_w", m).reason == "nvidia power_w was sampled in 15 % of the window only"
    peak = _power([(0.5, 100), (1.0, 300), (1.5, 100)], metric="memory_used_bytes")
    assert _value("gpu_memory_bytes", _measured([_request(1.0)], samples=peak)) == 300  # a bound, whatever was missed


# --- energy ---

RATES = Rates({"nvidia:0": 50.0, "rapl:package-0": 10.0}, machine_hour=3.6, energy_kwh=0.36, currency="EUR")


def _energy_window(samples: list[TelemetrySample], rates: Rates = RATES) -> Measured:
    """10 s in which 2 requests of 3 tokens each (and 10 of their prompt) arrive."""
    return replace(_measured([_request(1.0), _request(2.0)], samples=samples), rates=rates)


def test_energy_is_the_growth_of_the_counter_between_the_windows_ends() -> None:
    """200 J a second, read at odd moments and at none of the ends; a processor of 40 W beside it."""
    at = [-0.7, 0.4, 2.1, 4.9, 7.0, 9.6, 10.3]
    samples = _power([(t, 1e6 + 200 * t) for t in at], metric="energy_j") + _power([(t, 9e9) for t in at])
    samples += _power([(t, 40 * t) for t in at], "rapl:package-0", "energy_j")
    m = _energy_window(samples)
    assert _value("gpu_energy_j", m) == pytest.approx(2000)
    assert _value("cpu_energy_j", m) == pytest.approx(400)
    assert _value("energy_j", m) == pytest.approx(2400)
    assert _value("energy_above_idle_j", m) == pytest.approx(2400 - 600)
    assert _value("energy_per_token_j", m) == pytest.approx(2400 / 6)
    assert _value("energy_per_token_above_idle_j", m) == pytest.approx(1800 / 6)
    assert _value("tok_s_per_w", m) == pytest.approx(6 / 2400)
    assert _value("tok_s_per_w_above_idle", m) == pytest.approx(6 / 1800)
    # An hour of the machine costs 3.60, so 10 s of it 0.01; a kWh (3.6 MJ) costs 0.36, so 2,400 J of it 0.00024.
    assert _value("cost_per_m_output_tokens", m) == pytest.approx(0.01024 / 6 * 1e6)
    assert _value("cost_per_m_tokens", m) == pytest.approx(0.01024 / 26 * 1e6)
    assert _value("energy_j", m, m) == pytest.approx(4800)


def test_a_gpu_on_which_the_engine_is_not_is_no_part_of_its_figures() -> None:
    at = [-0.7, 0.4, 2.1, 4.9, 7.0, 9.6, 10.3]
    counters = [
        _power([(t, watts * t) for t in at], gpu, "energy_j") for gpu, watts in (("nvidia:0", 200), ("nvidia:1", 70))
    ]
    both = [sample for each in counters for sample in each]
    assert _value("gpu_energy_j", _energy_window(both)) == pytest.approx(2700)  # nobody says who is where
    seen = _power([(0.0, 6e10)], "nvidia:0", "engine_memory_bytes")
    assert _value("gpu_energy_j", _energy_window(both + seen)) == pytest.approx(2000)


def test_energy_without_a_counter_is_the_integral_of_power() -> None:
    """100 W in the first half, 300 W in the second."""
    power = _power([(t / 2, 100.0 if t < 10 else 300.0) for t in range(20)])
    assert _value("gpu_energy_j", _energy_window(power)) == pytest.approx(2000, rel=0.03)
    back = power + _power([(1, 500), (5, 900), (9, 3)], metric="energy_j")  # a driver that was loaded anew
    assert _value("gpu_energy_j", _energy_window(back)) == pytest.approx(2000, rel=0.03)


def test_energy_that_cannot_be_told_is_none() -> None:
    none = _energy_window([])
    assert _stat("energy_j", none).reason == "no power of a GPU or processor was sampled"
    assert _stat("cost_per_m_tokens", none).reason == "no power of a GPU or processor was sampled"
    few = _energy_window(_power([(1.0, 100), (1.5, 100), (2.0, 100)]))
    assert _stat("energy_per_token_j", few).reason == "no power of a GPU or processor was sampled often enough"
    counter = _power([(float(t), 30.0 * t) for t in range(11)], metric="energy_j")
    unknown = _stat("energy_above_idle_j", _energy_window(counter, Rates()))
    assert unknown.reason == "the idle power of nvidia:0 was not measured before the engine started"
    below = _stat("energy_above_idle_j", _energy_window(counter))
    assert below.reason == "the window took no more power than the idle machine"
    assert _stat("cost_per_m_tokens", _energy_window(counter, Rates())).reason == "the scenario states no price"
    silent = replace(_energy_window(counter), window_tokens=0.0)
    assert "no token arrived" in str(_stat("energy_per_token_j", silent).reason)
    machine = _energy_window([], Rates(machine_hour=3.6))  # needs no energy
    assert _value("cost_per_m_output_tokens", machine) == pytest.approx(0.01 / 6 * 1e6)


def test_rates_of_a_run() -> None:
    price = {"machine": "2.50 EUR/h", "energy": "0.30 EUR/kWh"}
    assert rates_of({"idle_power_w": {"nvidia:0": 70}}, {"price": price}) == Rates({"nvidia:0": 70.0}, 2.5, 0.3, "EUR")
    assert rates_of({}, {"price": None}) == rates_of({}, {}) == Rates()


def test_gpus_are_added_up() -> None:
    memory = [("nvidia:0", 5.0), ("nvidia:1", 7.0), ("nvidia:10", 1.0)]
    samples = [s for source, value in memory for s in _power([(1, value), (2, value + 1)], source, "memory_used_bytes")]
    samples += _power([(1, 1.0), (9, 2.0)], "nvidia:0") + _power([(1, 10.0), (9, 20.0)], "nvidia:1")
    samples += _power([(1, 99.0)], "nvidiax:0") + _power([(1, 99.0)], "host")
    m = _measured([_request(1.0)], samples=samples)
    assert _value("gpu_memory_bytes", m) == 16.0
    assert _value("gpu_power_w", m) == 16.5
    assert _stat("engine_cpu_cores", m).reason == "no process cpu_cores was sampled"


def test_the_time_between_repeats_is_no_part_of_a_mean() -> None:
    """Two repeats of 10 s at 100 W and 300 W, an hour apart; and one of 30 s weighs three times one of 10 s."""
    one = _measured([_request(1.0)], samples=_power([(0, 100), (9, 100)]))
    two = _measured([_request(3601.0)], 3600, 3610, samples=_power([(3600, 300), (3609, 300)]))
    assert _value("gpu_power_w", one, two) == pytest.approx(200)
    long = _measured([_request(3601.0)], 3600, 3630, samples=_power([(3600, 300), (3627, 300)]))
    assert _value("gpu_power_w", one, long) == pytest.approx(250)
    assert time_weighted_mean([(np.array([1.0]), np.array([5.0])), (np.array([9.0]), np.array([7.0]))]) == 6.0


def test_repeats_of_different_lengths_are_pooled_by_time() -> None:
    short = _measured([_request(float(i)) for i in range(4)], 0.0, 5.0, facts=KV)
    long = _measured([_request(10.0 + i, 1.0, [0.25] * 9) for i in range(2)], 10.0, 25.0, facts=KV)
    both = pooled([short, long])
    assert both.window_s == 20.0
    assert both.window_tokens == 4 * 3 + 2 * 10
    assert _value("output_tok_s", short, long) == pytest.approx(32 / 20)
    assert _value("request_s", short, long) == pytest.approx(6 / 20)
    assert _value("ttft_mean_s", short, long) == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)
    assert len(both.gaps) == 4 * 2 + 2 * 9
    assert both.live_tokens_peak == max(short.live_tokens_peak, long.live_tokens_peak) > 0
    assert pooled([short]) is short


def test_a_table_in_several_chunks_with_null_lists() -> None:
    """Tables come from several files; an older one may lack the gaps."""
    requests = [_request(float(i), 0.5, [0.1 * (i + 1)] * i) for i in range(6)]
    columns = {name: [getattr(r, name) for r in requests] for name in REQUEST_SCHEMA.names}
    columns["gaps_s"][3] = None
    columns["tpot_s"][3] = None
    whole = pa.table({n: pa.array(c, REQUEST_SCHEMA.field(n).type) for n, c in columns.items()})
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 3), whole.slice(5)])
    point = PointRun("e", "p", 0, CLOSED, "done", open_s=0.0, close_s=10.0)
    m = measured(pieces, point, TELEMETRY_SCHEMA.empty_table(), [], {})
    assert m.window_tokens == 1 + 2 + 3 + 4 + 5 + 6  # without its gaps all four tokens stand at the first one's time
    assert len(m.gaps) == 1 + 2 + 4 + 5
    assert np.allclose(m.requests["mean_gap"][[1, 2, 4, 5]], [0.2, 0.3, 0.5, 0.6])
    assert np.isnan(m.requests["mean_gap"][[0, 3]]).all()


def test_no_gaps_at_all() -> None:
    m = _measured([_request(1.0, 0.5, ()), _request(2.0, 0.5, ())])
    assert m.window_tokens == 2
    assert _stat("itl_mean_s", m) == Stat(None, reason="no gaps to take it of")
    assert _stat("tpot_p50_s", m).value is None


def test_the_table_is_consistent() -> None:
    for key, metric in METRICS.items():
        assert key == metric.key
        assert metric.unit
        assert metric.help.endswith(".")
        assert metric.better in ("lower", "higher", None)
        assert (metric.samples is None) == (metric.stat is None)
        if metric.unit in ("s", "bytes", "w"):
            assert key.endswith(f"_{metric.unit}"), key
