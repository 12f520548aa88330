"""Reading and writing durations, sizes and rates. Inside the program everything is in base units."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ/%]*)\s*$")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_RATES = {"": 1.0, "/s": 1.0, "rps": 1.0, "/min": 1 / 60, "/m": 1 / 60, "/h": 1 / 3600}


def _parse(value: object, units: dict[str, float], what: str, example: str, bare_ok: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"not a {what}: {value!r} (write for example {example})")
    match = _NUMBER.match(str(value))
    unit = match.group(2).lower() if match else ""
    if match is None or (unit not in units and unit != "") or (unit == "" and not bare_ok):
        known = ", ".join(u for u in units if u)
        raise ValueError(f"not a {what}: {value!r} (write for example {example}; units: {known})")
    result = float(match.group(1)) * units.get(unit, 1.0)
    if not math.isfinite(result) or result < 0:
        raise ValueError(f"a {what} must be finite and not negative: {value!r}")
    return result + 0.0  # -0s is 0


def parse_duration_s(value: object) -> float:
    """`60s`, `500ms`, `2m`, `1h` to seconds. A bare number is refused: its unit would be a guess.

    Raises:
        ValueError: the text is no duration, has no unit or an unknown one, or is negative.
    """
    return _parse(value, _SECONDS, "duration", "60s or 500ms", bare_ok=False)


def parse_size_bytes(value: object) -> int:
    """`24GiB`, `512MB` to bytes; a bare number is bytes."""
    return round(_parse(value, {k: float(v) for k, v in _BYTES.items()}, "size", "24GiB", bare_ok=True))


def parse_rate_rps(value: object) -> float:
    """`8`, `8/s`, `120/min` to requests per second."""
    return _parse(value, _RATES, "rate", "8/s or 120/min", bare_ok=True)


def parse_percent(value: object) -> float:
    """`5%` to 0.05. A bare number is refused: 5 and 0.05 would both be guesses.

    Raises:
        ValueError: the text is no percentage, or is over 1000 %.
    """
    share = _parse(value, {"%": 0.01}, "percentage", "5%", bare_ok=False)
    if share > 10:
        raise ValueError(f"a percentage of at most 1000 is meant: {value!r}")
    return share


_PRICE = re.compile(r"^\s*([$€£]?)\s*(\d+\.?\d*|\.\d+)\s*((?!per)[A-Za-z]{3}|[$€£]|)\s*(?:/\s*(h|hr|hour|kWh))?\s*$")
_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP"}


def parse_price(value: object, unit: str) -> tuple[float, str]:
    """`2.50 EUR/h`, `$2.50/h` or `0.30 EUR/kWh` (`unit` says which is wanted) to (2.5, "EUR"). Currencies are three
    letters, or one of $, €, £.

    Raises:
        ValueError: it is no price, or one of something else.
    """
    amount, currency, per = _price(value)
    if per != unit or not currency:
        raise ValueError(f"not a price per {unit}: {value!r} (write for example 2.50 EUR/{unit})")
    return amount, currency


def parse_hourly(value: str) -> tuple[float, str]:
    """`2`, `$2/h`, `2 USD/h` to (2.0, "USD"): as `parse_price`, but currency (then "") and hour may be left out.

    Raises:
        ValueError: it is no price, or one of something else.
    """
    amount, currency, per = _price(value)
    if per not in ("", "h"):
        raise ValueError(f"not a price per hour: {value!r} (write for example 2, $2/h or '2 USD/h')")
    return amount, currency


def _price(value: object) -> tuple[float, str, str]:
    """(amount, currency or "", unit or ""); the unit is "-" for what is no price."""
    match = _PRICE.match(value) if isinstance(value, str) else None
    if match is None or (match[1] and match[3]) or match[3].lower() == "kwh":
        return 0.0, "", "-"
    currency = match[1] or match[3]
    per = {"hr": "h", "hour": "h"}.get(match[4], match[4] or "")
    return float(match[2]), _CURRENCIES.get(currency, currency.upper()), per


def show_duration(seconds: float | None) -> str:
    """Three significant digits with the unit that reads best: `812 µs`, `50.1 ms`, `2.41 s`, `3 min 20 s`."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    size = _rounded(seconds)
    if size >= 120:
        minutes, rest = divmod(round(abs(seconds)), 60)
        return f"{'-' if seconds < 0 else ''}{minutes:,} min {rest} s"
    scale, unit = (1.0, "s") if size >= 1 else (1e3, "ms") if size >= 1e-3 else (1e6, "µs")
    return "0 s" if size == 0 else f"{significant(seconds * scale)} {unit}"


def show_bytes(count: float | None) -> str:
    """Binary units: `1.50 GiB`."""
    if count is None or not math.isfinite(count):
        return "-"
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if _rounded(count / scale) >= 1:
            return f"{significant(count / scale)} {unit}"
    return f"{round(count)} B"


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, never in exponent form, with thousands separated."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 9.999 is 10.0, not 10.00
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def _rounded(value: float) -> float:
    """The size of `value` in the three digits that are shown: it decides the unit (999.9 ms is 1.00 s)."""
    return float(f"{abs(value):.3g}")


def show(value: float | None, unit: str) -> str:
    """A value in its base unit (`s`, `bytes`, `1/s`, `tok/s`, `W`, ...) as people read it."""
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "s":
        return show_duration(value)
    if unit == "bytes":
        return show_bytes(value)
    if unit == "ratio":
        return f"{significant(value * 100)} %"
    return f"{significant(value)} {unit}".strip()
