"""Small plots out of letters, for a terminal of 80 columns."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from harness.units import show
from reports.rows import Summary

BLOCKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉"
WIDTH = 80  # at most
PLOTTED = (("output_tok_s", "Output tokens/s"), ("ttft_p50_s", "TTFT p50"))


def columns() -> int:
    """The width of the terminal, up to 80; 80 where there is none."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def spark(values: Sequence[float | None]) -> str:
    """A line of blocks, from the least to the most; a gap where there is no value."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if v is None else BLOCKS[round((v - low) / span * 7) if span else 3] for v in values)


def bar(share: float, width: int) -> str:
    """A bar of up to `width` letters, to an eighth of one."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def bars(summary: Summary) -> list[str]:
    """Throughput and time to the first token of every engine at every load, as bars on one scale each."""
    lines: list[str] = []
    for key, title in PLOTTED:
        rows = [
            (state, row)
            for point in summary.point_names()
            for state in summary.points
            if state.point == point and (row := summary.row(state.engine, point, key)).value is not None
        ]
        if len(rows) < 2:
            continue
        most = max(row.value or 0.0 for _, row in rows)
        labels = [_fit(state.label, 14) for state, _ in rows]
        engines = [_fit(state.engine + (" *" if state.client_limited else ""), 16) for state, _ in rows]
        left = max(map(len, labels)) + max(map(len, engines)) + 3
        lines += ["", title]
        before = ""
        for (_, row), label, engine in zip(rows, labels, engines, strict=True):
            text = show(row.value, "" if row.unit == "tok/s" else row.unit)
            drawn = bar((row.value or 0.0) / most if most else 0.0, max(1, columns() - left - len(text) - 1))
            shown = label if label != before else ""
            name = engine.ljust(max(map(len, engines)))
            lines.append(f"{shown.ljust(max(map(len, labels)))}  {name} {drawn} {text}")
            before = label
    return lines


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
