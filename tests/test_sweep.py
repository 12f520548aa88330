"""The search of a sweep, on servers that do not exist: known answers, noise, and what cannot be said."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.sweep import Found, Probe, Search, rate_of, saturation, slo_limit, step_of, threshold

SEARCH = Search(latency_s=0.5, judged=True)
Model = Callable[[float], Probe]


def server(capacity_rps: float, slo_rps: float | None, noise: float = 0.0, seed: int = 0) -> Model:
    """Keeps up to its capacity; its latency is at the limit at `slo_rps`. Noise: of both, and of what was served."""
    rng = random.Random(seed)

    def measure(rate_rps: float) -> Probe:
        shaken = rate_rps * rng.lognormvariate(0, noise)
        kept_up = shaken <= capacity_rps
        slack = None if slo_rps is None else (shaken / slo_rps) ** 2
        within = None if slack is None else slack <= 1
        served = min(rate_rps, capacity_rps) * rng.lognormvariate(0, noise / 3)
        error = 2 * noise / 3
        return Probe(
            rate_rps,
            kept_up,
            within,
            served,
            error,
            sure=slack is None or abs(math.log(slack)) > 4 * noise,
            slack=slack,
        )

    return measure


def sweep(search: Search, model: Model) -> list[Probe]:
    probes: list[Probe] = []
    while (rate := search.next_rate(probes)) is not None:
        probes.append(model(rate))
    rates = [probe.rate_rps for probe in probes]
    assert len(set(rates)) == len(rates) <= search.probes
    return probes


def holds(found: Found, true_rps: float) -> bool:
    low, high = found.low_rps or 0.0, found.high_rps or float("inf")
    return low * (1 - 1e-9) <= true_rps <= high * (1 + 1e-9)


def test_the_grid() -> None:
    assert [rate_of(step) for step in (0, 12, 40, -40)] == [1.0, 2.0, 10.0, 0.1]
    assert all(step_of(rate_of(step)) == step for step in range(-120, 200))


@pytest.mark.parametrize("capacity", [0.7, 9.3, 80.0, 870.0])
@pytest.mark.parametrize("share", [0.35, 0.8, 0.99])
def test_both_rates_are_found_to_a_step_of_the_grid(capacity: float, share: float) -> None:
    search = replace(SEARCH, latency_s=1.0, probes=25)
    probes = sweep(search, server(capacity, share * capacity))
    for found, true in ((saturation(probes, search), capacity), (slo_limit(probes, search), share * capacity)):
        assert found.reason is None
        assert found.low_rps is not None
        assert found.high_rps is not None
        assert found.estimate_rps is not None
        assert holds(found, true)
        assert found.high_rps / found.low_rps < 1.07
        assert found.low_rps * 0.999 <= found.estimate_rps <= found.high_rps * 1.001
        assert found.estimate_rps == pytest.approx(true, rel=0.03)


def test_few_probes_do_from_a_usual_start() -> None:
    """The warm-up is rarely off by more than a factor of ten."""
    for capacity in (4.0, 12.0, 25.0, 64.0):
        probes = sweep(SEARCH, server(capacity, 0.7 * capacity))
        assert len(probes) <= 12
        for found in (slo_limit(probes, SEARCH), saturation(probes, SEARCH)):
            assert found.low_rps is not None
            assert found.high_rps is not None
            assert found.high_rps / found.low_rps < 1.2


def test_noise_widens_the_interval_and_does_not_move_the_estimate() -> None:
    search = replace(SEARCH, probes=14)
    right = {"slo": 0, "saturation": 0}
    estimates: dict[str, list[float]] = {"slo": [], "saturation": []}
    for seed in range(200):
        probes = sweep(search, server(30.0, 20.0, noise=0.06, seed=seed))
        for name, found, true in (
            ("slo", slo_limit(probes, search), 20.0), ("saturation", saturation(probes, search), 30.0)
        ):  # fmt: skip
            right[name] += holds(found, true)
            estimates[name] += [found.estimate_rps / true] if found.estimate_rps else []
    assert right["slo"] >= 180
    assert right["saturation"] >= 170
    for name, ratios in estimates.items():
        ratios.sort()
        assert len(ratios) >= 195, name
        assert ratios[len(ratios) // 2] == pytest.approx(1.0, abs=0.05), name
        assert ratios[10] > 0.85, name
        assert ratios[-10] < 1.15, name


def test_one_wrong_probe_is_said_to_contradict_the_others() -> None:
    def hiccup(rate_rps: float) -> Probe:
        probe = server(30.0, 25.0)(rate_rps)
        return replace(probe, within=False, slack=3.0) if rate_rps == 8.0 else probe

    probes = [hiccup(rate) for rate in (4.0, 8.0, 16.0, 31.5)]
    while (rate := SEARCH.next_rate(probes)) is not None:
        probes.append(hiccup(rate))
    found = slo_limit(probes, SEARCH)
    assert found.reason is not None
    assert "contradict" in found.reason
    assert found.low_rps == pytest.approx(4.0, rel=0.01)
    assert holds(found, 25.0)
    assert found.estimate_rps == pytest.approx(25.0, rel=0.06)


def test_an_slo_that_is_never_met() -> None:
    probes = sweep(SEARCH, server(30.0, 0.01))
    found = slo_limit(probes, SEARCH)
    assert (found.estimate_rps, found.low_rps) == (None, None)
    assert found.high_rps == min(probe.rate_rps for probe in probes)
    assert found.reason is not None
    assert f"even at {found.high_rps}/s, where requests are almost alone" in found.reason
    assert saturation(probes, SEARCH).reason is None


def test_an_slo_that_is_always_met_breaks_where_the_queue_grows() -> None:
    probes = sweep(SEARCH, server(30.0, 1e6))
    assert holds(slo_limit(probes, SEARCH), 30.0)


def test_saturation_alone() -> None:
    search = replace(SEARCH, judged=False)
    probes = sweep(search, server(30.0, None))
    assert holds(saturation(probes, search), 30.0)
    assert len(probes) <= 8


def test_bounds_are_kept() -> None:
    search = Search(0.5, True, min_rps=3.0, max_rps=20.0)
    probes = sweep(search, server(30.0, 25.0))
    assert all(3.0 <= probe.rate_rps <= 20.0 for probe in probes)
    for found in (slo_limit(probes, search), saturation(probes, search)):
        assert (found.low_rps, found.high_rps) == (pytest.approx(20.0, rel=0.01), None)
        assert found.reason is not None
        assert "/s, the highest that is allowed" in found.reason
    probes = sweep(search, server(1.0, 0.5))
    assert min(probe.rate_rps for probe in probes) >= 3.0
    assert saturation(probes, search).estimate_rps == pytest.approx(1.0)
    assert "it is missed even at 3" in str(slo_limit(probes, search).reason)


def test_a_probe_that_measured_the_client_is_no_evidence() -> None:
    def limited(rate_rps: float) -> Probe:
        return replace(server(30.0, 25.0)(rate_rps), usable=rate_rps < 16)

    probes = sweep(SEARCH, limited)
    assert sum(not probe.usable for probe in probes) <= 5
    found = saturation(probes, SEARCH)
    assert found.high_rps is None
    assert found.low_rps is not None
    assert found.low_rps >= 13
    assert "on the client, not the server" in str(found.reason)
    everywhere = sweep(SEARCH, lambda rate: replace(server(30.0, 25.0)(rate), usable=False))
    assert len(everywhere) <= 6
    assert "no rate could be measured" in str(saturation(everywhere, SEARCH).reason)
    assert "no rate could be measured" in str(slo_limit(everywhere, SEARCH).reason)


def test_a_hiccup_of_the_client_is_no_end() -> None:
    def once(rate_rps: float) -> Probe:
        return replace(server(30.0, 20.0)(rate_rps), usable=not 20 < rate_rps < 24)

    probes = sweep(replace(SEARCH, probes=16), once)
    assert any(not probe.usable for probe in probes)
    assert holds(slo_limit(probes, SEARCH), 20.0)
    assert holds(saturation(probes, SEARCH), 30.0)


def test_a_figure_at_the_limit_is_backed_by_surer_ones() -> None:
    def unsure(rate_rps: float) -> Probe:
        return replace(server(30.0, 20.0)(rate_rps), sure=not 16 < rate_rps < 22)

    found = slo_limit(sweep(SEARCH, unsure), SEARCH)
    assert found.low_rps is not None
    assert found.high_rps is not None
    assert 13 < found.low_rps <= 16
    assert 22 <= found.high_rps < 26


def test_figures_that_cannot_be_said_are_no_evidence_of_the_slo() -> None:
    def untold(rate_rps: float) -> Probe:
        return replace(server(30.0, 25.0)(rate_rps), within=None, slack=None, note="ttft_p99 needs 500 requests")

    probes = sweep(SEARCH, untold)
    found = slo_limit(probes, SEARCH)
    assert found.low_rps is None
    assert holds(saturation(probes, SEARCH), 30.0)
    only_kept = [probe for probe in probes if probe.kept_up]
    assert slo_limit(only_kept, SEARCH).reason == "ttft_p99 needs 500 requests"


def test_a_server_without_end() -> None:
    search = Search(0.5, True, probes=4)
    probes = sweep(search, server(1e9, 1e9))
    assert "all 4 probes are spent" in str(saturation(probes, search).reason)


def test_thresholds() -> None:
    assert threshold([(1, True), (2, True), (3, False)]) == (2, 3)
    assert threshold([(1, False), (2, True), (3, True), (4, False)]) == (3, 4)
    assert threshold([(1, True)]) == (1, None)
    assert threshold([(1, False)]) == (None, 1)
    assert threshold([]) == (None, None)
