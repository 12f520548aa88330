"""Metrics of memory, telemetry and energy against answers that were worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.metrics import Measured, Rates, rates_of, time_weighted_mean
from harness.records import TelemetrySample
from harness.sampled import coverage
from tests.windows import KV, request_at, stat_of, value_of, window_of

# --- KV memory and telemetry ---------------------------------------------------------------------


def test_kv_live_is_what_running_requests_hold_at_the_peak() -> None:
    """A: prompt 10, chunks at 1.5, 1.75, 2.0 and gone at 2.0. B: prompt 20 from 1.8 on, its 2 tokens at 1.8 and 2.8.
    The peak is at 2.0, A's last token: 13 + 21."""
    a = request_at(1.0, 0.5, [0.25, 0.25])
    b = request_at(1.5, 0.3, [1.0], input_tokens=20)
    m = window_of([a, b], facts=KV)
    assert m.live_tokens_peak == 34
    assert value_of("kv_live_bytes", m) == 3400
    assert value_of("kv_efficiency_ratio", m) == pytest.approx(0.34)
    assert value_of("kv_capacity_bytes", m) == 10_000


def test_kv_live_counts_what_is_held_when_the_window_opens_and_what_never_ended() -> None:
    held = request_at(0.0, 0.5, [0.5, 9.0], phase="warmup")  # 10 + 2 tokens from 1.0 to 10.0
    assert window_of([held], 5.0, 6.0).live_tokens_peak == 12
    assert window_of([held], 20.0, 30.0).live_tokens_peak == 0
    cut = request_at(0.0, 0.5, [0.5], end_s=None, status="cancelled")
    assert window_of([cut], 5.0, 6.0).live_tokens_peak == 12
    assert window_of([replace(cut, end_s=4.0)], 5.0, 6.0).live_tokens_peak == 0


def test_kv_without_the_engines_word_is_null() -> None:
    m = window_of([request_at(1.0)])
    assert stat_of("kv_live_bytes", m).reason == "bytes per token are not known"
    assert stat_of("kv_efficiency_ratio", m).reason == "bytes per token are not known"
    assert stat_of("kv_efficiency_ratio", window_of([request_at(1.0)], facts=KV[:1])).value is None
    assert stat_of("weights_bytes", m).reason == "the engine did not say it"


def _power(
    pairs: list[tuple[float, float]], source: str = "nvidia:0", metric: str = "power_w"
) -> list[TelemetrySample]:
    return [TelemetrySample(time, None, source, metric, value) for time, value in pairs]


def test_telemetry_means_weigh_each_sample_by_its_time() -> None:
    """100 W for 1 s, then a hole of 8 s on the way to 300 W: (100 + 8 x 200) / 9, not the mean of three samples."""
    samples = _power([(0, 100), (1, 100), (9, 300), (10, 9e9), (-1, 9e9), (5, math.nan)])
    m = window_of([request_at(1.0)], samples=samples)
    assert value_of("gpu_power_w", m) == pytest.approx((100 + 8 * 200) / 9)
    assert stat_of("gpu_power_w", m).n == 3
    assert value_of("gpu_power_w", window_of([request_at(1.0)], samples=_power([(3, 250)]))) == 250


def test_a_hole_in_the_samples_is_none_of_the_mean() -> None:
    """100 W each second up to 3 s, nothing up to 7 s, then 300 W: two spans of 3 s, not a ramp between them."""
    samples = _power([(t, 100.0) for t in range(4)] + [(t, 300.0) for t in range(7, 10)])
    assert value_of("gpu_power_w", window_of([request_at(1.0)], samples=samples)) == pytest.approx(
        (3 * 100 + 2 * 300) / 5
    )
    series = [(np.arange(4.0), np.ones(4)), (np.array([0.0, 1.0, 8.0, 9.0, 10.0]), np.ones(5))]
    assert coverage(series, 20.0) == pytest.approx((4 + 5) / 20)
    assert coverage(series[:1], 2.0) == 1.0
    assert coverage([(np.array([1.0]), np.ones(1))], 2.0) is None


def test_a_mean_of_less_than_half_the_window_is_none() -> None:
    m = window_of([request_at(1.0)], samples=_power([(0.5, 100), (1.0, 100), (1.5, 100)]))
    assert stat_of("gpu_power_w", m).reason == "nvidia power_w was sampled in 15 % of the window only"
    peak = _power([(0.5, 100), (1.0, 300), (1.5, 100)], metric="memory_used_bytes")
    assert (
        value_of("gpu_memory_bytes", window_of([request_at(1.0)], samples=peak)) == 300
    )  # a bound, whatever was missed


# --- energy ---

RATES = Rates({"nvidia:0": 50.0, "rapl:package-0": 10.0}, machine_hour=3.6, energy_kwh=0.36, currency="EUR")


def _energy_window(samples: list[TelemetrySample], rates: Rates = RATES) -> Measured:
    """10 s in which 2 requests of 3 tokens each (and 10 of their prompt) arrive."""
    return replace(window_of([request_at(1.0), request_at(2.0)], samples=samples), rates=rates)


def test_energy_is_the_growth_of_the_counter_between_the_windows_ends() -> None:
    """200 J a second, read at odd moments and at none of the ends; a processor of 40 W beside it."""
    at = [-0.7, 0.4, 2.1, 4.9, 7.0, 9.6, 10.3]
    samples = _power([(t, 1e6 + 200 * t) for t in at], metric="energy_j") + _power([(t, 9e9) for t in at])
    samples += _power([(t, 40 * t) for t in at], "rapl:package-0", "energy_j")
    m = _energy_window(samples)
    assert value_of("gpu_energy_j", m) == pytest.approx(2000)
    assert value_of("cpu_energy_j", m) == pytest.approx(400)
    assert value_of("energy_j", m) == pytest.approx(2400)
    assert value_of("energy_above_idle_j", m) == pytest.approx(2400 - 600)
    assert value_of("energy_per_token_j", m) == pytest.approx(2400 / 6)
    assert value_of("energy_per_token_above_idle_j", m) == pytest.approx(1800 / 6)
    assert value_of("tok_s_per_w", m) == pytest.approx(6 / 2400)
    assert value_of("tok_s_per_w_above_idle", m) == pytest.approx(6 / 1800)
    # An hour of the machine costs 3.60, so 10 s of it 0.01; a kWh (3.6 MJ) costs 0.36, so 2,400 J of it 0.00024.
    assert value_of("cost_per_m_output_tokens", m) == pytest.approx(0.01024 / 6 * 1e6)
    assert value_of("cost_per_m_tokens", m) == pytest.approx(0.01024 / 26 * 1e6)
    assert value_of("energy_j", m, m) == pytest.approx(4800)


def test_a_gpu_on_which_the_engine_is_not_is_no_part_of_its_figures() -> None:
    at = [-0.7, 0.4, 2.1, 4.9, 7.0, 9.6, 10.3]
    counters = [
        _power([(t, watts * t) for t in at], gpu, "energy_j") for gpu, watts in (("nvidia:0", 200), ("nvidia:1", 70))
    ]
    both = [sample for each in counters for sample in each]
    assert value_of("gpu_energy_j", _energy_window(both)) == pytest.approx(2700)  # nobody says who is where
    seen = _power([(0.0, 6e10)], "nvidia:0", "engine_memory_bytes")
    assert value_of("gpu_energy_j", _energy_window(both + seen)) == pytest.approx(2000)


def test_energy_without_a_counter_is_the_integral_of_power() -> None:
    """100 W in the first half, 300 W in the second."""
    power = _power([(t / 2, 100.0 if t < 10 else 300.0) for t in range(20)])
    assert value_of("gpu_energy_j", _energy_window(power)) == pytest.approx(2000, rel=0.03)
    back = power + _power([(1, 500), (5, 900), (9, 3)], metric="energy_j")  # a driver that was loaded anew
    assert value_of("gpu_energy_j", _energy_window(back)) == pytest.approx(2000, rel=0.03)


def test_energy_that_cannot_be_told_is_none() -> None:
    none = _energy_window([])
    assert stat_of("energy_j", none).reason == "no power of a GPU or processor was sampled"
    assert stat_of("cost_per_m_tokens", none).reason == "no power of a GPU or processor was sampled"
    few = _energy_window(_power([(1.0, 100), (1.5, 100), (2.0, 100)]))
    assert stat_of("energy_per_token_j", few).reason == "no power of a GPU or processor was sampled often enough"
    counter = _power([(float(t), 30.0 * t) for t in range(11)], metric="energy_j")
    unknown = stat_of("energy_above_idle_j", _energy_window(counter, Rates()))
    assert unknown.reason == "the idle power of nvidia:0 was not measured before the engine started"
    below = stat_of("energy_above_idle_j", _energy_window(counter))
    assert below.reason == "the window took no more power than the idle machine"
    assert stat_of("cost_per_m_tokens", _energy_window(counter, Rates())).reason == "the scenario states no price"
    silent = replace(_energy_window(counter), window_tokens=0.0)
    assert "no token arrived" in str(stat_of("energy_per_token_j", silent).reason)
    machine = _energy_window([], Rates(machine_hour=3.6))  # needs no energy
    assert value_of("cost_per_m_output_tokens", machine) == pytest.approx(0.01 / 6 * 1e6)


def test_rates_of_a_run() -> None:
    price = {"machine": "2.50 EUR/h", "energy": "0.30 EUR/kWh"}
    assert rates_of({"idle_power_w": {"nvidia:0": 70}}, {"price": price}) == Rates({"nvidia:0": 70.0}, 2.5, 0.3, "EUR")
    assert rates_of({}, {"price": None}) == rates_of({}, {}) == Rates()


def test_gpus_are_added_up() -> None:
    memory = [("nvidia:0", 5.0), ("nvidia:1", 7.0), ("nvidia:10", 1.0)]
    samples = [s for source, value in memory for s in _power([(1, value), (2, value + 1)], source, "memory_used_bytes")]
    samples += _power([(1, 1.0), (9, 2.0)], "nvidia:0") + _power([(1, 10.0), (9, 20.0)], "nvidia:1")
    samples += _power([(1, 99.0)], "nvidiax:0") + _power([(1, 99.0)], "host")
    m = window_of([request_at(1.0)], samples=samples)
    assert value_of("gpu_memory_bytes", m) == 16.0
    assert value_of("gpu_power_w", m) == 16.5
    assert stat_of("engine_cpu_cores", m).reason == "no process cpu_cores was sampled"


def test_the_time_between_repeats_is_no_part_of_a_mean() -> None:
    """Two repeats of 10 s at 100 W and 300 W, an hour apart; and one of 30 s weighs three times one of 10 s."""
    one = window_of([request_at(1.0)], samples=_power([(0, 100), (9, 100)]))
    two = window_of([request_at(3601.0)], 3600, 3610, samples=_power([(3600, 300), (3609, 300)]))
    assert value_of("gpu_power_w", one, two) == pytest.approx(200)
    long = window_of([request_at(3601.0)], 3600, 3630, samples=_power([(3600, 300), (3627, 300)]))
    assert value_of("gpu_power_w", one, long) == pytest.approx(250)
    assert time_weighted_mean([(np.array([1.0]), np.array([5.0])), (np.array([9.0]), np.array([7.0]))]) == 6.0
