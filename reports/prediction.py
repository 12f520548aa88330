"""A prediction for a terminal: figures with their intervals, and what is missing with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from harness.units import show, significant
from sizing.estimate import Estimate
from sizing.predict import Prediction

_UNITS = {
    "weights_bytes": "bytes", "kv_bytes_per_token": "bytes", "kv_capacity_bytes": "bytes", "overhead_bytes": "bytes",
    "kv_capacity_tokens": "tokens", "max_concurrency": "requests", "prefill_tok_s": "tok/s", "decode_tok_s": "tok/s",
    "output_tok_s": "tok/s",
}  # fmt: skip


def table(answer: Prediction) -> Table:
    """One row a figure: value, 80 % interval, label."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    found.add_column("figure", no_wrap=True)
    found.add_column("value", justify="right", no_wrap=True)
    found.add_column("80 % interval", justify="right", no_wrap=True)
    found.add_column("label", min_width=10, overflow="fold")
    for part in (answer.memory, answer.speed):
        for key, estimate in part.items():
            found.add_row(*map(Text, (key, figure(key, estimate), interval(key, estimate), _label(estimate))))
        found.add_section()
    return found


def figure(key: str, estimate: Estimate) -> str:
    """The value as people read it; `–` where there is none."""
    return _show(key, estimate.value)


def interval(key: str, estimate: Estimate) -> str:
    """`low – high`, empty where there is no value or no doubt."""
    if estimate.value is None or estimate.low == estimate.high:
        return ""
    return f"{_show(key, estimate.low)} – {_show(key, estimate.high)}"


def points_table(points: Sequence[tuple[str, str, Prediction | None]]) -> Table:
    """One row an engine and point, the main figures."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for title in ("engine", "point"):
        found.add_column(title, overflow="fold")
    keys = ("output_tok_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s")
    for title in ("tok/s", "TTFT p50", "TTFT p95", "TPOT p50"):
        found.add_column(title, justify="right")
    for engine, point, answer in points:
        cells = [figure(key, answer.speed[key]) if answer else "–" for key in keys]
        found.add_row(*map(Text, (engine, point, *cells)))
    return found


def _show(key: str, value: float | bool | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    unit = _UNITS.get(key, "s")
    if unit == "tokens":
        return f"{value:,.0f}"
    return f"{significant(value)} {unit}" if unit == "requests" else show(value, unit)


def _label(estimate: Estimate) -> str:
    return estimate.label if estimate.value is not None else estimate.reason
