"""A comparison as text: the rows that terminal, Markdown and page share."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.units import show, significant
from reports.compare import Difference, Pair
from reports.markdown import plain

SIGNS = {"improved": "▲", "regressed": "▼", "no difference seen": "=", "inconclusive": "?"}
STYLES = {"improved": "green", "regressed": "red", "no difference seen": "dim", "inconclusive": "yellow"}
HOW = (
    "Ratio: the second over the first, with its 95 % interval from the repeats. Improved or regressed: the whole "
    "interval is more than 1 % off, also after a correction for the number of figures. No difference seen: the whole "
    "interval is within 5 %. Else inconclusive."
)


def change(row: Difference) -> str:
    """`1.29` as a ratio, `+0.5 pt` (points) of a share."""
    return "–" if row.change is None else _one(row, row.change)


def interval(row: Difference) -> str:
    """`1.27 to 1.31`; empty where there is none."""
    return "" if row.low is None or row.high is None else f"{_one(row, row.low)} to {_one(row, row.high)}"


def _one(row: Difference, value: float) -> str:
    return f"{value * 100:+.1f} pt" if row.points else significant(value)


def cells(row: Difference) -> list[str]:
    """Figure, before, after, change, interval, word."""
    unit = "" if row.metric == "output_tok_s" else _unit(row)
    values = ["–" if v is None else show(v, unit) for v in (row.before, row.after)]
    return [row.title, *values, change(row), interval(row), f"{SIGNS[row.state]} {row.state}"]


def _unit(row: Difference) -> str:
    from harness.metrics import METRICS

    return METRICS[row.metric].unit


def reasons(pair: Pair) -> list[str]:
    """Why figures are inconclusive: each reason once, with how many it explains."""
    found: dict[str, int] = {}
    for row in pair.differences:
        if row.state == "inconclusive" and row.reason:
            found[row.reason] = found.get(row.reason, 0) + 1
    return [f"{count} inconclusive: {reason}" for reason, count in found.items()]


def render(pairs: list[Pair], headline: str) -> RenderableType:
    """For a terminal of 80 columns."""
    lines: list[RenderableType] = [Text(headline, style="bold")]
    for pair in pairs:
        lines += [Text(f"{pair.said()}."), *(Text(f"! {text}", style="yellow") for text in pair.unlike), Text("")]
        lines.append(_table(pair))
        lines += [Text(text, style="dim") for text in [*reasons(pair), *pair.notes]]
    return Group(*lines, Text(HOW, style="dim"))


def _table(pair: Pair) -> Table:
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    found.add_column("figure", max_width=16, overflow="fold")
    for title in (pair.baseline, pair.candidate):
        found.add_column(title, justify="right", max_width=10, overflow="fold")
    found.add_column("ratio", justify="right", max_width=7, overflow="fold")
    known = any(row.low is not None for row in pair.differences)
    found.add_column("95 % interval" if known else "", justify="right", max_width=14)
    found.add_column("", max_width=13, no_wrap=True)
    load = None
    for row in pair.differences:
        if row.label != load:
            if load is not None:
                found.add_section()
            found.add_row(Text(row.label, style="bold"))
            load = row.label
        *texts, word = cells(row)  # the word's sign is for where there is no colour
        found.add_row(*map(Text, texts), Text(word[2:].removesuffix(" seen"), style=STYLES[row.state]))
    return found


def markdown(pairs: list[Pair], headline: str) -> str:
    """For a pull request."""
    parts = [f"**{plain(headline)}**"]
    for pair in pairs:
        titles = ["load", "figure", pair.baseline, pair.candidate, "ratio", "95 % interval", ""]
        rows = [[row.label, *cells(row)] for row in pair.differences]
        aligned = [":--", ":--", "--:", "--:", "--:", "--:", ":--"]
        lines = [[plain(title) for title in titles], aligned, *[[plain(cell) for cell in row] for row in rows]]
        parts += [plain(f"{pair.said()}.")]
        parts += ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
        if said := [*pair.unlike, *reasons(pair), *pair.notes]:
            parts.append("\n".join(f"- {plain(text)}" for text in said))
    return "\n\n".join([*parts, HOW]) + "\n"


def to_dict(pairs: list[Pair], headline: str) -> dict[str, Any]:
    """What `--format json` prints."""
    rows = [
        {"baseline": d.baseline, "candidate": d.candidate, "point": d.point, "metric": d.metric, "before": d.before,
         "after": d.after, "state": d.state, "reason": d.reason, "change": d.change, "low": d.low, "high": d.high,
         "in_points": d.points, "repeats": list(d.repeats)}
        for pair in pairs for d in pair.differences
    ]  # fmt: skip
    said = [{"baseline": p.baseline, "candidate": p.candidate, "unlike": p.unlike, "notes": p.notes} for p in pairs]
    return {"headline": headline, "pairs": said, "differences": rows}
