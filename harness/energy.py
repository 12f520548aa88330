"""Energy of the measured window and what it costs: pure functions of records.

A device with an energy counter (NVML's of a GPU, RAPL's of a processor) is read from that, between the window's two
ends; one without has its sampled power integrated. What the idle machine would have taken in the same time is
subtracted in the `above_idle` figures: its power was measured before the first engine started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.measured import Measured, Rates
from harness.sampled import coverage, devices, time_weighted_mean
from harness.series import Series
from harness.statistics import Stat
from harness.units import parse_price

COVERED_MIN = 0.8  # of the window, before energy is given for the whole of it
KWH_J = 3.6e6
KINDS = {"nvidia": "GPU", "rapl": "processor"}
Formula = Callable[[Measured], Stat]


def rates_of(environment: Mapping[str, Any], scenario: Mapping[str, Any]) -> Rates:
    """The idle power and the prices that a run's record holds."""
    idle = {str(key): float(value) for key, value in (environment.get("idle_power_w") or {}).items()}
    found: dict[str, Any] = {}
    for key, unit in (("machine", "h"), ("energy", "kWh")):
        if text := (scenario.get("price") or {}).get(key):
            found[key], found["currency"] = parse_price(text, unit)
    return Rates(idle, found.get("machine"), found.get("energy"), found.get("currency", ""))


def energy(*kinds: str, above_idle: bool = False) -> Formula:
    """Joules of all devices of these kinds together, as far as they could be measured."""

    def formula(m: Measured) -> Stat:
        whole = {name: _device_j(m, name) for kind in kinds for name in _names(m, kind)}
        known = {name: joules for name, joules in whole.items() if joules is not None}
        if not known:
            what = " or ".join(KINDS[kind] for kind in kinds)
            return Stat(None, reason=f"no power of a {what} was sampled" + (" often enough" if whole else ""))
        total = sum(known.values())
        if above_idle:
            if unknown := [name for name in known if name not in m.rates.idle_w]:
                return Stat(None, reason=f"the idle power of {unknown[0]} was not measured before the engine started")
            total -= sum(m.rates.idle_w[name] for name in known) * m.window_s
            if total <= 0:
                return Stat(None, reason="the window took no more power than the idle machine")
        return Stat(total, n=len(known))

    return formula


def per(of: Formula, count: Callable[[Measured], float], inverse: bool = False) -> Formula:
    """A formula's figure over a count of tokens, or the tokens over the figure."""

    def formula(m: Measured) -> Stat:
        whole, tokens = of(m), count(m)
        if whole.value is None:
            return whole
        if not tokens > 0:
            return Stat(None, reason="no token arrived in the window, or the server did not count them")
        return Stat(tokens / whole.value if inverse else whole.value / tokens, n=whole.n)

    return formula


def money(m: Measured) -> Stat:
    """What the window cost: the machine's time and the energy, as far as the scenario prices them."""
    rates = m.rates
    if rates.machine_hour is None and rates.energy_kwh is None:
        return Stat(None, reason="the scenario states no price")
    if not m.window_s > 0:
        return Stat(None, reason="the measured window never opened, or never closed")
    cost = (rates.machine_hour or 0.0) * m.window_s / 3600
    if rates.energy_kwh is not None:
        used = energy(*KINDS)(m)
        if used.value is None:
            return used
        cost += rates.energy_kwh * used.value / KWH_J
    return Stat(cost, n=1)


def _names(m: Measured, kind: str) -> list[str]:
    return sorted({*devices(m, kind, "energy_j"), *devices(m, kind, "power_w")})


def _device_j(m: Measured, name: str) -> float | None:
    """Joules of one device over the window; None where its samples cover too little of it."""
    counter, power = m.telemetry.get((name, "energy_j")), m.telemetry.get((name, "power_w"))
    if counter and (counted := _counted_j(counter, m.window_s)) is not None:
        return counted
    covered = coverage(power, m.window_s) if power else None
    if not power or covered is None or covered < COVERED_MIN:
        return None
    return time_weighted_mean(power) * m.window_s


def _counted_j(counter: list[Series], window_s: float) -> float | None:
    """What a counter grew by; None where it went back (a new driver) or was not read near both ends of the window."""
    if any(bool((np.diff(values) < 0).any()) for _, values in counter):
        return None
    span_s = sum(float(times[-1] - times[0]) for times, _ in counter)
    grown_j = sum(float(values[-1] - values[0]) for _, values in counter)
    # Where no read lies beyond an end of the window, what is missing there is taken to be as the rest.
    return grown_j * window_s / span_s if 0 < COVERED_MIN * window_s <= span_s else None
