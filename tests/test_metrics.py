"""Every metric of requests against an answer that was worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from harness.metrics import METRICS, Stat, evaluate, measured, pooled, statistic
from harness.records import Fact, PointRun
from harness.statistics import t_quantile
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA
from tests.windows import CLOSED, KV, OPEN, failed_at, request_at, stat_of, value_of, window_of

# --- latencies -----------------------------------------------------------------------------------


def test_ttft_and_e2e_count_from_sent_in_a_closed_loop_and_from_due_in_an_open_one() -> None:
    requests = [request_at(1.0, scheduled_s=0.5), request_at(2.0, 1.5, scheduled_s=2.0)]
    closed, opened = window_of(requests), window_of(requests, load=OPEN)
    assert (value_of("ttft_mean_s", closed), value_of("ttft_mean_s", opened)) == (1.0, 1.25)
    assert (value_of("e2e_mean_s", closed), value_of("e2e_mean_s", opened)) == (1.5, 1.75)
    for m in (closed, opened):
        assert value_of("ttft_sent_mean_s", m) == 1.0
        assert value_of("ttft_due_mean_s", m) == 1.25


def test_latencies_are_of_the_requests_of_the_phase_that_ended_well() -> None:
    warm = request_at(0.0, 9.0, [9.0], phase="warmup")
    drained = request_at(0.1, 8.0, [9.0], phase="cooldown")
    cut = request_at(3.0, 7.0, [7.0, 7.0], status="timeout")
    m = window_of([warm, drained, cut, failed_at(2.0), request_at(1.0), request_at(4.0)])
    assert stat_of("ttft_mean_s", m).n == 2
    assert value_of("ttft_mean_s", m) == 0.5
    assert value_of("e2e_mean_s", m) == 1.0
    assert value_of("itl_mean_s", m) == 0.25
    assert value_of("tpot_mean_s", m) == 0.25
    assert stat_of("itl_mean_s", m).n == 4


def test_a_request_that_outlives_the_window_counts_with_its_whole_latency() -> None:
    assert value_of("e2e_mean_s", window_of([request_at(9.5, 1.0, [20.0])])) == 21.0


def test_tpot_leaves_out_the_tokens_of_the_first_chunk() -> None:
    """3 tokens in the first chunk, then 2 chunks of 2: 1 s for 4 tokens. One token alone has no TPOT."""
    speculative = request_at(1.0, 0.5, [0.5, 0.5], output_tokens=7, first_chunk_tokens=3)
    m = window_of([speculative, request_at(2.0, 0.5, [])])
    assert value_of("tpot_mean_s", m) == 0.25
    assert stat_of("tpot_mean_s", m).n == 1
    assert value_of("itl_mean_s", m) == 0.5
    assert value_of("itl_token_mean_s", m) == 0.25


def test_itl_is_pooled_over_requests_not_averaged_of_averages() -> None:
    m = window_of([request_at(1.0, 0.5, [1.0]), request_at(2.0, 0.5, [0.1, 0.1, 0.1])])
    assert value_of("itl_mean_s", m) == pytest.approx(1.3 / 4, rel=1e-6)
    assert stat_of("itl_mean_s", m).n == 4


def test_chunks_without_a_token_have_no_time_per_token() -> None:
    """The server counts one token, the stream shows two chunks (half a character, then nothing new)."""
    m = window_of([request_at(1.0, 0.5, [0.5], output_tokens=1), request_at(2.0, 0.5, [0.25])])
    assert value_of("itl_token_mean_s", m) == 0.25
    assert stat_of("itl_mean_s", m).n == 2


def test_unknown_token_counts_are_the_chunks() -> None:
    m = window_of([request_at(1.0, 0.5, [0.5, 0.5], output_tokens=None, first_chunk_tokens=None)])
    assert m.window_tokens == 3
    assert value_of("itl_token_mean_s", m) == 0.5
    assert stat_of("output_tokens_mean", m) == Stat(None, reason="no requests to take it of")


# --- throughput ----------------------------------------------------------------------------------


def test_tokens_count_when_they_arrive_whichever_request_they_belong_to() -> None:
    """The window is [10, 20). A closed end and an open one: a chunk at 10 counts, one at 20 does not."""
    early = request_at(9.0, 0.5, [0.5, 0.5], phase="warmup")  # chunks at 9.5, 10.0, 10.5: 2 of 3
    late = request_at(19.0, 0.5, [0.25, 0.25, 0.25])  # 19.5, 19.75, 20.0, 20.25: 2 of 4
    after = request_at(20.0, 0.5, [0.5], phase="cooldown")
    broken = request_at(15.0, 0.5, [0.5], status="error", output_tokens=2)  # its tokens did arrive
    m = window_of([early, late, after, broken], 10.0, 20.0)
    assert value_of("output_tok_s", m) == pytest.approx(0.6)
    assert value_of("input_tok_s", m) == pytest.approx(2.0)  # the prompts of `late` and `broken`
    assert value_of("total_tok_s", m) == pytest.approx(2.6)
    assert value_of("request_s", m) == pytest.approx(0.1)  # `early` ended in it; `late` later, `broken` badly


def test_several_tokens_a_chunk_are_counted_each() -> None:
    """9 tokens: 3 in the first chunk, then 2 chunks of 3; the window holds the first and the second chunk."""
    request = request_at(1.0, 0.5, [1.0, 1.0], output_tokens=9, first_chunk_tokens=3)
    assert window_of([request], 1.0, 3.0).window_tokens == 6
    assert window_of([request], 2.0, 4.0).window_tokens == 6
    assert window_of([request], 0.0, 10.0).window_tokens == 9
    alone = request_at(1.0, 0.5, [], output_tokens=9, first_chunk_tokens=None)
    assert window_of([alone]).window_tokens == 9


def test_prompts_that_the_server_did_not_count_are_no_zero() -> None:
    facts = [Fact("kv_bytes_per_token", 100, "bytes", "derived", "x")]
    unknown = window_of([request_at(1.0, input_tokens=None), request_at(2.0, input_tokens=None)], facts=facts)
    for key in ("input_tok_s", "total_tok_s", "kv_live_bytes", "input_tokens_mean"):
        stat = stat_of(key, unknown)
        assert stat.value is None, key
        assert stat.reason, key
    assert value_of("output_tok_s", unknown) == pytest.approx(0.6)
    some = window_of([request_at(1.0), failed_at(2.0)])
    assert value_of("input_tok_s", some) == 1.0


def test_all_failed_is_zero_tokens_and_no_latency() -> None:
    m = window_of([failed_at(1.0), failed_at(2.0, end_s=None)], slo={"ttft_p95": 1.0})
    assert value_of("error_ratio", m) == 1.0
    assert value_of("output_tok_s", m) == 0.0
    assert value_of("request_s", m) == 0.0
    assert value_of("goodput_request_s", m) == 0.0
    for key in ("ttft_mean_s", "ttft_p50_s", "tpot_mean_s", "itl_mean_s", "itl_token_mean_s", "e2e_p95_s"):
        assert stat_of(key, m).value is None, key
        assert "no " in str(stat_of(key, m).reason), key


@pytest.mark.parametrize("case", ["no rows", "warm-up only", "no window", "no repeats"])
def test_what_was_not_measured_is_null_with_a_reason_and_never_zero(case: str) -> None:
    slo = {"ttft_p95": 1.0}
    made = {
        "no rows": [window_of([], slo=slo)],
        "warm-up only": [window_of([request_at(-5.0, phase="warmup")], slo=slo)],
        "no window": [window_of([request_at(1.0, None, ())], None, None, slo=slo)],
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
        request_at(1.0, 0.5, [0.25, 0.25]),  # on every limit: within
        request_at(2.0, 0.5, []),  # one token: it has no TPOT, which is no miss
        request_at(3.0, 0.75, [0.25]),  # TTFT
        request_at(4.0, 0.5, [0.5, 0.5]),  # TPOT
        request_at(5.0, 0.5, [0.25] * 12),  # E2E
        failed_at(6.0),
        request_at(7.0, None, ()),  # "ok" without any token: no TTFT is a miss
        request_at(0.5, 0.5, [0.25], phase="warmup"),
    ]
    m = window_of(requests, slo=slo)
    assert m.within_slo().tolist() == [True, True, False, False, False, False, False]
    assert value_of("goodput_request_s", m) == pytest.approx(0.2)
    assert value_of("goodput_tok_s", m) == pytest.approx(0.4)
    assert value_of("slo_ratio", m) == pytest.approx(2 / 7)
    assert value_of("error_ratio", m) == pytest.approx(1 / 7)


def test_the_slo_counts_from_due_in_an_open_loop() -> None:
    requests = [request_at(1.5, 0.5, scheduled_s=1.0)]
    assert value_of("slo_ratio", window_of(requests, slo={"ttft_p95": 0.9})) == 1.0
    assert value_of("slo_ratio", window_of(requests, load=OPEN, slo={"ttft_p95": 0.9})) == 0.0


def test_an_itl_target_tests_the_mean_gap_of_a_request() -> None:
    m = window_of(
        [request_at(1.0, 0.5, [0.1, 0.3]), request_at(2.0, 0.5, [0.1, 0.5]), request_at(3.0, 0.5, [])],
        slo={"itl_p95": 0.2001},
    )
    assert m.within_slo().tolist() == [True, False, True]


def test_without_an_slo_there_is_no_goodput() -> None:
    m = window_of([request_at(1.0)])
    for key in ("goodput_request_s", "goodput_tok_s", "slo_ratio"):
        assert stat_of(key, m).value is None
        assert "SLO" in str(stat_of(key, m).reason)


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stat", "needed"), [("p50", 10), ("p90", 50), ("p95", 100), ("p99", 500)])
def test_a_percentile_needs_five_samples_beyond_it(stat: str, needed: int) -> None:
    values = np.arange(needed, dtype=float)
    too_few = statistic(values[1:], stat, "requests")
    assert too_few == Stat(None, n=needed - 1, reason=f"{stat} needs {needed} requests, there are {needed - 1}")
    assert statistic(values, stat, "requests").value == pytest.approx(np.quantile(values, float(stat[1:]) / 100))


def test_the_interval_comes_from_repeats_first() -> None:
    """Repeats of 1, 2 and 3 s: mean 2, s = 1, and t(2) = 4.303."""
    repeats = [window_of([request_at(float(i), ttft) for i in range(4)]) for ttft in (1.0, 2.0, 3.0)]
    stat = stat_of("ttft_mean_s", *repeats)
    half = 4.303 / math.sqrt(3)
    assert (stat.value, stat.ci_low, stat.ci_high) == pytest.approx((2.0, 0.0, 2.0 + half))  # no time is negative
    near = stat_of("ttft_mean_s", *(window_of([request_at(float(i), t) for i in range(4)]) for t in (1.9, 2.0, 2.1)))
    assert (near.ci_low, near.ci_high) == pytest.approx((2.0 - half / 10, 2.0 + half / 10))
    assert stat.n == 12
    rate = stat_of("request_s", *repeats)
    assert (rate.ci_low, rate.ci_high) == pytest.approx((0.4, 0.4))  # three equal repeats


def test_the_interval_of_one_repeat_comes_from_its_requests() -> None:
    dice = np.random.default_rng(5)
    m = window_of([request_at(i / 100, float(t)) for i, t in enumerate(dice.normal(1.0, 0.1, 400))])
    mean, median = stat_of("ttft_mean_s", m), stat_of("ttft_p50_s", m)
    for stat, width in ((mean, 0.1 * 4.2 / 20), (median, 0.1 * 1.2533 * 3.92 / 20)):
        assert stat.value is not None
        assert stat.ci_low is not None
        assert stat.ci_high is not None
        assert stat.ci_low < stat.value < stat.ci_high
        assert stat.ci_high - stat.ci_low == pytest.approx(width, rel=0.5)
    few = stat_of("ttft_mean_s", window_of([request_at(1.0), request_at(2.0)]))
    assert (few.value, few.ci_low, few.ci_high) == (0.5, None, None)
    assert stat_of("output_tok_s", m).ci_low is None  # a rate of one window has no samples


def test_repeats_too_short_for_a_percentile_give_it_together() -> None:
    """Two repeats of 60: none has a p95, both together do; its interval then comes from the 120 requests."""
    parts = [window_of([request_at(i / 10, i / 60 + r) for i in range(60)]) for r in (0, 1)]
    assert stat_of("ttft_p95_s", parts[0]).value is None
    stat = stat_of("ttft_p95_s", *parts)
    assert stat.n == 120
    assert stat.ci_low is not None
    assert stat.value is not None
    assert stat.ci_low < stat.value < (stat.ci_high or 0)


def test_the_interval_of_a_quantile_of_gaps_knows_how_few_requests_they_came_from() -> None:
    """1000 gaps of 2 requests are 2 samples, not 1000."""
    dice = np.random.default_rng(3)
    few = window_of([request_at(float(i), 0.5, dice.exponential(0.01, 500)) for i in range(2)])
    many = window_of([request_at(i / 10, 0.5, dice.exponential(0.01, 10)) for i in range(100)])
    assert stat_of("itl_p50_s", few).value is not None
    assert stat_of("itl_p50_s", few).n == 2
    assert stat_of("itl_p50_s", few).ci_low is None
    assert stat_of("itl_p50_s", many).n == 100
    assert stat_of("itl_p50_s", many).ci_low is not None


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_the_95_percent_interval_over_repeats_covers_95_percent(repeats: int) -> None:
    """500 seeded trials; runs differ from each other (the reason why the run is the unit)."""
    dice = np.random.default_rng(repeats)
    base = window_of([request_at(float(i)) for i in range(4)])
    hits = 0
    for _ in range(500):
        parts = []
        for _ in range(repeats):
            values = 1.0 + dice.normal(0, 0.1) + dice.normal(0, 0.05, 4)
            parts.append(replace(base, requests=base.requests | {"first": base.requests["sent"] + values}))
        stat = stat_of("ttft_mean_s", *parts)
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


# --- pooling ---


def test_repeats_of_different_lengths_are_pooled_by_time() -> None:
    short = window_of([request_at(float(i)) for i in range(4)], 0.0, 5.0, facts=KV)
    long = window_of([request_at(10.0 + i, 1.0, [0.25] * 9) for i in range(2)], 10.0, 25.0, facts=KV)
    both = pooled([short, long])
    assert both.window_s == 20.0
    assert both.window_tokens == 4 * 3 + 2 * 10
    assert value_of("output_tok_s", short, long) == pytest.approx(32 / 20)
    assert value_of("request_s", short, long) == pytest.approx(6 / 20)
    assert value_of("ttft_mean_s", short, long) == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)
    assert len(both.gaps) == 4 * 2 + 2 * 9
    assert both.live_tokens_peak == max(short.live_tokens_peak, long.live_tokens_peak) > 0
    assert pooled([short]) is short


def test_a_table_in_several_chunks_with_null_lists() -> None:
    """Tables come from several files; an older one may lack the gaps."""
    requests = [request_at(float(i), 0.5, [0.1 * (i + 1)] * i) for i in range(6)]
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
    m = window_of([request_at(1.0, 0.5, ()), request_at(2.0, 0.5, ())])
    assert m.window_tokens == 2
    assert stat_of("itl_mean_s", m) == Stat(None, reason="no gaps to take it of")
    assert stat_of("tpot_p50_s", m).value is None


def test_the_table_is_consistent() -> None:
    for key, metric in METRICS.items():
        assert key == metric.key
        assert metric.unit
        assert metric.help.endswith(".")
        assert metric.better in ("lower", "higher", None)
        assert (metric.samples is None) == (metric.stat is None)
        if metric.unit in ("s", "bytes", "w"):
            assert key.endswith(f"_{metric.unit}"), key
