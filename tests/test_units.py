"""Durations, sizes and rates: what is read, what is refused, and how figures are shown."""

from __future__ import annotations

import math
import random
import re

import pytest

from harness.units import (
    parse_duration_s,
    parse_hourly,
    parse_price,
    parse_rate_rps,
    parse_size_bytes,
    show,
    show_bytes,
    show_duration,
)

NUMBER = re.compile(r"^-?\d{1,3}(,\d{3})*(\.\d+)?$")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("500ms", 0.5), ("1.5 s", 1.5), ("2m", 120), ("2min", 120), ("1h", 3600), ("812us", 812e-6),
     ("812µs", 812e-6), ("5MS", 0.005), ("1e3ms", 1), (".5s", 0.5), ("0s", 0), ("-0s", 0), ("+2s", 2)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds, rel=1e-12)
    assert math.copysign(1, parse_duration_s(text)) == 1


@pytest.mark.parametrize(
    "value",
    ["60", 60, 60.0, "s", "", "60 kg", "60sec", "-5s", "1e400s", "nans", "infs", "1 s s", "1:30", "1_000s", True, None,
     [1], {"s": 1}, math.nan, math.inf],
)  # fmt: skip
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration_s(value)


@pytest.mark.parametrize(
    ("value", "count"),
    [("24GiB", 24 * 2**30), ("24gib", 24 * 2**30), ("512MB", 512 * 10**6), ("1.5 KiB", 1536), ("7", 7), (7, 7),
     ("7 B", 7), ("1 TB", 10**12), ("2TiB", 2**41), ("0.4", 0)],
)  # fmt: skip
def test_sizes(value: object, count: int) -> None:
    assert parse_size_bytes(value) == count


@pytest.mark.parametrize("value", ["-1GiB", "1 Gib/s", "GiB", "1e308TiB", math.inf, -1, False, None])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size_bytes(value)


@pytest.mark.parametrize(
    ("value", "rps"),
    [(8, 8), (0.5, 0.5), ("8", 8), ("8/s", 8), ("8 rps", 8), ("120/min", 2), ("120/m", 2), ("36/h", 0.01)],
)  # fmt: skip
def test_rates(value: object, rps: float) -> None:
    assert parse_rate_rps(value) == pytest.approx(rps)


@pytest.mark.parametrize("value", ["8/day", "-8/s", -8, math.nan, math.inf, "eight", True, "8ms"])
def test_what_is_no_rate(value: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate_rps(value)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (math.nan, "-"), (math.inf, "-"), (0, "0 s"), (-0.0, "0 s"), (812e-6, "812 µs"), (0.0501, "50.1 ms"),
     (2.41, "2.41 s"), (200, "3 min 20 s"), (-200, "-3 min 20 s"), (179.7, "3 min 0 s"), (119.7, "2 min 0 s"),
     (0.9999, "1.00 s"), (0.0009999, "1.00 ms"), (9.999, "10.0 s"), (-0.05, "-50.0 ms"), (7200, "120 min 0 s")],
)  # fmt: skip
def test_show_duration(seconds: float | None, shown: str) -> None:
    assert show_duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "-"), (math.nan, "-"), (0, "0 B"), (-0.4, "0 B"), (1000, "1000 B"), (1023.7, "1.00 KiB"),
     (2**20 - 1, "1.00 MiB"), (1.5 * 2**30, "1.50 GiB"), (-(2**31), "-2.00 GiB"), (3 * 2**50, "3,072 TiB")],
)  # fmt: skip
def test_show_bytes(count: float | None, shown: str) -> None:
    assert show_bytes(count) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(None, "W", "-"), (math.nan, "W", "-"), (math.inf, "ratio", "-"), (0.123, "ratio", "12.3 %"),
     (-0.0, "tok/s", "0 tok/s"), (12345.6, "tok/s", "12,346 tok/s"),
     (0.05, "s", "50.0 ms"), (2**30, "bytes", "1.00 GiB"), (3, "", "3.00")],
)  # fmt: skip
def test_show(value: float | None, unit: str, shown: str) -> None:
    assert show(value, unit) == shown


def test_no_figure_is_shown_in_exponent_form_or_as_minus_zero() -> None:
    dice = random.Random(1)
    for _ in range(3000):
        value = dice.choice((1, -1)) * 10 ** dice.uniform(-12, 15)
        for unit in ("s", "bytes", "ratio", "tok/s"):
            shown = show(value, unit)
            number = shown.split(" ")[0]
            assert NUMBER.match(number) or number.isdigit() or re.fullmatch(r"-?\d+", number), (value, unit, shown)
            assert not (number.startswith("-") and not re.search("[1-9]", shown)), (value, unit, shown)
            if unit == "tok/s":
                assert float(number.replace(",", "")) == pytest.approx(
                    value, rel=0.006, abs=0.51 if abs(value) > 99 else 0
                )


def test_prices_as_people_write_them() -> None:
    for text in ("$2.5/h", "2.5 USD/h", "2.50usd/hour", "2.5$/hr"):
        assert parse_price(text, "h") == parse_hourly(text) == (2.5, "USD")
    assert [parse_hourly(text) for text in ("2", "2/h", "€2", ".5 GBP")] == [(2, ""), (2, ""), (2, "EUR"), (0.5, "GBP")]
    for text in ("0.30 EUR/kWh", "2 kWh", "$2 EUR/h", "2 per/h", "two", "-1", "1,5", ""):
        with pytest.raises(ValueError, match="write for example 2"):
            parse_hourly(text)
    for value in (2, "2", "2/h", "0.30 EUR/kWh"):
        with pytest.raises(ValueError, match="not a price per h: "):
            parse_price(value, "h")
