"""The sections of a report page below its summary, in order. Adding one is a function and a row in `SECTIONS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reports import asked, clientserver, foretold, hosts
from reports.differences import alike_table
from reports.pageparts import FactCell, facts, flat, health
from reports.plots import Chart
from reports.rows import Summary
from reports.rundata import RunData
from reports.verdict import Verdict

Choice = tuple[str, str, bool]
LONG = 14  # rows of a table that is folded away


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a section; with a `fold` it is behind that line until somebody opens it."""

    label: str
    columns: list[str]
    rows: list[list[str | FactCell]]
    note: str = ""
    fold: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it. `empty`: what is said where there is nothing else."""

    key: str
    title: str
    note: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    empty: str = ""

    @property
    def choices(self) -> list[Choice]:
        """The loads that the reader may pick between, for all plots of the section."""
        found = next((chart.choices for chart in self.charts if len(chart.choices) > 1), [])
        return found

    @property
    def shown(self) -> bool:
        return bool(self.charts or self.tables or self.items or self.empty)


@dataclass(frozen=True, slots=True)
class Page:
    """What sections are made of: the records, the figures, the verdict and every plot there is."""

    data: RunData
    summary: Summary
    verdict: Verdict
    charts: list[Chart]
    compared: bool = False  # several runs, each with a clock of its own


def _plots(key: str, title: str, note: str = "", empty: str = "") -> Callable[[Page], Section]:
    """A section of plots alone: those that name it as theirs."""

    def section(page: Page) -> Section:
        charts = [chart for chart in page.charts if chart.section == key]
        return Section(key, title, note, charts, empty="" if charts or page.compared else empty)

    return section


def failed(page: Page) -> Section:
    charts = [chart for chart in page.charts if chart.section == "errors"]
    measured = any(state.requests for state in page.summary.points)
    empty = "Every measured request ended well." if measured else "No request was measured."
    return Section("errors", "Failed requests", charts=charts, empty="" if charts else empty)


def comparability(page: Page) -> Section:
    engines = page.summary.engines
    if len(engines) < 2:
        return Section("comparability", "Comparability", empty="One engine: there is nothing to compare.")
    columns, rows = alike_table(page.summary)
    note = (
        "Besides the engine, these differ. Read the figures with them in mind."
        if page.verdict.differences
        else "No difference was found in model, quantization, prompts, sampling, context length and output length, as "
        "far as the engines state them."
    )
    table = Table("What is alike between the engines, and what is not", columns, [list(row) for row in rows],
                  fold="What was compared, and how")  # fmt: skip
    return Section("comparability", "Comparability", note, tables=[table], items=page.verdict.differences)


def engines(page: Page) -> Section:
    run = page.data.run
    rows: list[list[Any]] = [[FactCell(fact["title"]), *fact["cells"]] for fact in facts(run)]
    table = Table("Facts of each engine", ["Fact", *(engine.name for engine in run.engines)], rows)
    return Section("facts", "Engines", tables=[table] if rows else [], empty="" if rows else "No engine was started.")


def lengths(page: Page) -> Section:
    rows = asked.table(page.summary.points, page.summary.rows)
    table = Table("Asked against got", list(asked.COLUMNS), [list(row) for row in rows])
    return Section("asked", "Asked against got", asked.NOTE if rows else "", tables=[table] if rows else [])


def compared(page: Page) -> Section:
    found = page.summary.compared
    parts = {"Client against server": (clientserver.COLUMNS, clientserver.rows(found)),
             "Where a finished request's time went": (clientserver.WHERE, clientserver.where(found))}  # fmt: skip
    tables = [Table(label, list(columns), [list(row) for row in rows], fold=label if number or len(rows) > LONG else "")
              for number, (label, (columns, rows)) in enumerate(parts.items()) if rows]  # fmt: skip
    return Section("compared", "Client against server", clientserver.NOTE if tables else "", tables=tables)


def replicas(page: Page) -> Section:
    rows = hosts.balance(page.data.run, page.data.telemetry)
    note = "What each replica behind the balancer served, by its own counter, from the start to the end of a point."
    table = Table("What each replica served", list(hosts.BALANCE), [list(row) for row in rows])
    return Section("replicas", "Replicas", note, tables=[table]) if rows else Section("replicas", "Replicas")


def cluster(page: Page) -> Section:
    run = page.data.run
    note = "Records of all hosts are on one clock. Times of one host against another's can be off by what is stated."
    parts = (("Gaps", hosts.GAPS, hosts.gaps(run), ""), ("Hosts", hosts.HOSTS, hosts.hosts(run), ""),
             ("Clocks", hosts.CLOCKS, hosts.clocks(run), "Each host's clock at each point"))  # fmt: skip
    tables = [Table(label, list(columns), [list(row) for row in rows], fold=fold)
              for label, columns, rows, fold in parts if rows]  # fmt: skip
    return Section("cluster", "Hosts of the cluster", note if tables else "", tables=tables)


def predicted(page: Page) -> Section:
    rows: list[list[Any]] = [list(row) for row in foretold.rows(page.summary)]
    table = Table("Predicted against measured", list(foretold.COLUMNS), rows, fold=f"{len(rows)} figures")
    line = foretold.in_short(page.summary)
    return Section("predicted", "Predicted against measured", foretold.NOTE if rows else "",
                   tables=[table] if rows else [], items=[line] if line else [])  # fmt: skip


def environment(page: Page) -> Section:
    rows: list[list[Any]] = [list(row) for row in flat(page.data.run.environment)]
    if not page.data.run.environment:
        return Section("environment", "Environment", empty="The environment was not recorded.")
    table = Table("Environment", ["What", "Value"], rows, fold=f"{len(rows)} facts about the machine")
    return Section("environment", "Environment", tables=[table])


def warnings(page: Page) -> Section:
    return Section("warnings", "Warnings", items=page.summary.warnings, empty="None.")


def client(page: Page) -> Section:
    found = health(page.data.run)
    note = (
        "What the load generator says of itself. Beyond this machine's limits a point is marked client-limited and no "
        "verdict uses it."
    )
    if not found["rows"]:
        return Section("client", "Client health", note, empty="No point was begun.")
    table = Table("Client health of each point", found["columns"], found["rows"],
                  fold=f"{len(found['rows'])} measured windows")  # fmt: skip
    return Section("client", "Client health", note, tables=[table])


SECTIONS: tuple[Callable[[Page], Section], ...] = (
    _plots("trade", "Throughput against latency"),
    _plots("load", "Throughput and latency over load"),
    _plots("cdf", "Distributions"),
    _plots("memory", "KV memory"),
    _plots("used", "Resources", "What each used inside the measured windows."),
    _plots("telemetry", "GPU, CPU, memory and power over time", empty="No telemetry was recorded in this run."),
    _plots("energy", "Energy and cost", empty="Not measured: no power was sampled in this run."),
    _plots("requests", "Timeline of requests"),
    failed,
    comparability,
    engines,
    lengths,
    compared,
    replicas,
    cluster,
    predicted,
    environment,
    warnings,
    client,
)


def sections(page: Page) -> list[Section]:
    """Every section that has something to say."""
    return [section for section in (make(page) for make in SECTIONS) if section.shown]
