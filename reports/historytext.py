"""One figure over many runs, for a terminal: a table with a small line of its course, in 80 columns."""

from __future__ import annotations

from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.metrics import METRICS
from harness.units import show, significant
from reports.history import Past
from reports.termplots import spark

Series = tuple[tuple[str, str, str], list[Past]]


def series(found: list[Past]) -> list[Series]:
    """(scenario, engine, load) with its runs in time."""
    return [(key, list(rows)) for key, rows in groupby(found, key=lambda p: (p.scenario, p.engine, p.load))]


def render(found: list[Past], metric: str) -> RenderableType:
    """One table a series, the newest run last; a change is against the run before."""
    better = METRICS[metric].better
    lines: list[RenderableType] = []
    title = METRICS[metric].title + (f" ({better} is better)" if better else "")
    lines.append(Text(title, style="bold"))
    for (scenario, engine, load), rows in series(found):
        values = [row.value for row in rows]
        lines.append(Text(f"\n{scenario}, {engine}, {load}  {spark(values)}"))
        lines.append(_table(rows))
    return Group(*lines)


def _table(rows: list[Past]) -> Table:
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    found.add_column("started", no_wrap=True)
    found.add_column("run", overflow="fold", max_width=27)  # where it is narrow, names are broken and figures are not
    cells: list[tuple[str, ...]] = []
    before: float | None = None
    for row in rows:
        text = show(row.value, row.unit) if row.value is not None else f"– {row.reason}"
        span = "" if row.ci_low is None or row.ci_high is None else (
            f"{show(row.ci_low, row.unit)} – {show(row.ci_high, row.unit)}")  # fmt: skip
        change = f"× {significant(row.value / before)}" if row.value is not None and before else ""
        note = " *" if row.client_limited else ""
        name = row.folder.rstrip("/").rpartition("/")[2]
        cells.append((row.started_at[:16].replace("T", " "), name, text + note, span, change))
        before = row.value if row.value is not None else before
    for place, title in ((2, "value"), (3, "95 % interval"), (4, "before")):
        whole = max((len(cell[place]) for cell in cells if not cell[place].startswith("–")), default=0)
        if whole or title != "before":
            found.add_column(title, justify="right", min_width=min(whole, 18), max_width=18)
    for cell in cells:
        found.add_row(*map(Text, cell[: len(found.columns)]))
    return found
