"""A gate's verdict for a terminal, as Markdown for a pull request, and as GitHub annotations."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports.gate import Verdict
from reports.gatewords import TITLES, advice, change, headline, limit, lines, place, rows
from reports.markdown import plain

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def render(verdict: Verdict) -> RenderableType:
    """The whole verdict within 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for title in ("", "figure", *TITLES[3:]):
        right = title in ("baseline", "candidate", "change", "limit")
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=title != "figure")
    for check, (first, metric, load, *rest) in rows(verdict):
        figure = f"{metric} at {load}" if load else metric
        table.add_row(Text(first, style=STYLES[check.state]), Text(figure), *map(Text, rest))
    parts: list[RenderableType] = [Text(headline(verdict), style=STYLES[verdict.state]), Text("")]
    return Group(*parts, table, *(Text(line, style="dim") for line in lines(verdict)))


def markdown(verdict: Verdict) -> str:
    """A whole comment; the first line is a mark by which a workflow finds its own comment again."""
    titles = [title or "verdict" for title in TITLES]
    table = ["| " + " | ".join(titles) + " |", "| " + " | ".join(":--" for _ in titles) + " |"]
    for check, (first, *rest) in rows(verdict):
        marked = f"**{first}**" if check.state == "fail" else first
        table.append("| " + " | ".join([marked, *map(plain, rest)]) + " |")
    parts = ["<!-- enginebench gate -->", f"## {plain(headline(verdict))}", "\n".join(table)]
    if said := lines(verdict):
        parts.append("\n".join(f"- {plain(line)}" for line in said))
    parts.append(f"<sub>baseline {plain(verdict.baseline)}, candidate {plain(verdict.candidate)}</sub>")
    return "\n\n".join(parts) + "\n"


def github(verdict: Verdict) -> str:
    """GitHub's workflow commands: an error a failed check, a warning an undecided one, a notice for the rest."""
    kinds = {"fail": "error", "inconclusive": "warning"}
    if verdict.state != verdict.outcome == "fail":
        kinds["inconclusive"] = "error"
    found = [
        f"::{kinds[check.state]} title={_property(f'bench gate: {check.title} at {place(check)}')}::"
        + _data(f"{change(check)}, {limit(check)}: {advice(check)}")
        for check in verdict.checks
        if check.state in kinds
    ]
    return "\n".join([*found, f"::notice title=bench gate::{_data(headline(verdict))}"]) + "\n"


def _data(text: str) -> str:
    """Text that cannot end the command or begin another."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
