"""The figures on a report page against the same recomputed with pandas from requests.parquet and run.json.

Written apart from the product: it imports nothing of it (a test checks), reads the page as a reader's browser would,
and holds every shown figure to the digits it is shown with.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SCALES = {
    "": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "%": 0.01, "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    "TiB": 2.0**40, "tok/s": 1.0, "1/s": 1.0,
}  # fmt: skip
NUMBER = re.compile(r"^(-?[\d,]*\.?\d+)(?:\s+(\S+))?$")
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
NEEDED = {"p50": 10, "p95": 100}
SUMMARY = {
    "Output tok/s": "output_tok_s", "TTFT p50": "ttft_p50", "TTFT p95": "ttft_p95", "TPOT p50": "tpot_p50",
    "TPOT p95": "tpot_p95", "E2E p95": "e2e_p95", "Failed": "error_ratio", "KV live": "kv_live",
}  # fmt: skip
BEHIND_PLOTS = {
    "Output tokens/s": "output_tok_s", "Requests/s": "request_s", "Live at the peak": "kv_live",
    **{f"{name} {stat}": f"{name.lower()}_{stat}" for name in ("TTFT", "TPOT", "E2E") for stat in ("p50", "p95")},
}  # fmt: skip
CURVE = {"least": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "most": 1.0}


@dataclass
class Cell:
    """What stands in a cell: its text, and apart from it the small print."""

    text: str = ""
    small: str = ""
    label: str | None = None


@dataclass
class Table:
    """A table as shown: `label` is its region's, `rows` its cells, each row with its class."""

    label: str
    kind: str
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)


class Page(HTMLParser):
    """The tables and the verdict of a page; what only a screen reader hears is left out."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.verdict = ""
        self._open: list[tuple[str, str]] = []
        self._region = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag in ("meta", "link", "br", "input"):
            return
        self._open.append((tag, given.get("class", "")))
        if tag == "div" and "aria-label" in given:
            self._region = given["aria-label"]
        elif tag == "table":
            self.tables.append(Table(self._region, given.get("class", "")))
        elif tag == "tr":
            self.tables[-1].rows.append((given.get("class", ""), []))
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1][1].append(Cell(label=given.get("data-label")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing stands in a tag that ends itself."""

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags, kinds = {tag for tag, _ in self._open}, {kind for _, kind in self._open}
        if "verdict" in kinds:
            self.verdict += data
        if not {"td", "th"} & tags or "sr" in kinds or "script" in tags or not self.tables:
            return
        cell = self.tables[-1].rows[-1][1][-1]
        if "ci" in kinds:
            cell.small += data
        elif "flag" not in kinds:
            cell.text += data


@dataclass
class Checked:
    """What was compared: how many figures, and those that are off."""

    figures: int = 0
    wrong: list[str] = field(default_factory=list)

    def hold(self, where: str, shown: str, value: float | None, unit: str = "") -> None:
        """One shown figure against its value (None: it must be missing). `unit`: what a bare number is in."""
        self.figures += 1
        shown = shown.strip()
        if value is None or math.isnan(value):
            if not shown.startswith("–"):
                self.wrong.append(f"{where}: shown {shown}, but there is no such figure")
            return
        match = NUMBER.match(shown)
        if match is None or (match[2] or unit or "") not in SCALES:
            self.wrong.append(f"{where}: {shown!r} is no figure, {value:.6g} is right")
            return
        digits = len(match[1].partition(".")[2])
        scale = SCALES[match[2] or unit]
        if abs(float(match[1].replace(",", "")) - value / scale) > 0.501 * 10.0**-digits + 1e-4 * abs(value / scale):
            self.wrong.append(f"{where}: shown {shown}, {value / scale:.6g} is right")


class Golden:
    """The records of one engine at one point, and what they say."""

    def __init__(self, run: dict[str, Any], frame: pd.DataFrame, engine: str, point: str) -> None:
        self.points = [p for p in run["points"] if (p["engine"], p["point"]) == (engine, point)
                       and p["status"] in ("done", "client-limited")]  # fmt: skip
        self.open_loop = bool(self.points) and self.points[0]["load"]["kind"] != "concurrency"
        self.frame = frame[(frame["engine"] == engine) & (frame["point"] == point)]
        stated = next(e for e in run["engines"] if e["name"] == engine)["facts"]
        self.facts = {fact["name"]: fact["value"] for fact in stated}
        self._known: dict[str, tuple[float | None, float | None, float | None]] = {}

    def figure(self, key: str) -> tuple[float | None, float | None, float | None]:
        """Value, and the ends of its interval where several repeats give one."""
        if key not in self._known:
            self._known[key] = self._figure(key)
        return self._known[key]

    def _figure(self, key: str) -> tuple[float | None, float | None, float | None]:
        repeats = [p["repeat"] for p in self.points]
        whole = self._of(key, repeats)
        if whole is None or len(repeats) < 2:
            return whole, None, None
        each = [self._of(key, [repeat]) for repeat in repeats]
        if any(value is None for value in each):
            return whole, None, None
        half = T975[len(each) - 1] * np.std(np.array(each, float), ddof=1) / len(each) ** 0.5
        return whole, max(0.0, whole - half), whole + half

    def samples(self, name: str, repeats: list[int]) -> pd.Series:
        """One latency of the measured requests that ended well, in seconds."""
        rows = self._measured(repeats)
        rows = rows[rows["status"] == "ok"]
        start = rows["scheduled_s"] if self.open_loop else rows["sent_s"]
        if name == "tpot":
            later = rows["output_tokens"] - rows["first_chunk_tokens"].fillna(1)
            later = later.where(later > 0)
            return ((rows["last_token_s"] - rows["first_token_s"]) / later).dropna()
        end = rows["first_token_s"] if name == "ttft" else rows["last_token_s"]
        return (end - start).dropna()

    def _measured(self, repeats: list[int]) -> pd.DataFrame:
        return self.frame[self.frame["repeat"].isin(repeats) & (self.frame["phase"] == "measure")]

    def _of(self, key: str, repeats: list[int]) -> float | None:
        if key == "output_tok_s":
            return self._rate(repeats, self._tokens)
        if key == "request_s":
            return self._rate(repeats, lambda rows, o, c: float(
                ((rows["end_s"] >= o) & (rows["end_s"] < c) & (rows["status"] == "ok")).sum()))  # fmt: skip
        if key == "error_ratio":
            rows = self._measured(repeats)
            return float((rows["status"] != "ok").mean()) if len(rows) else None
        if key == "kv_live":
            return self._live(repeats)
        name, _, stat = key.partition("_")
        values = self.samples(name, repeats)
        return float(values.quantile(float(stat[1:]) / 100)) if len(values) >= NEEDED[stat] else None

    def _windows(self, repeats: list[int]) -> list[tuple[pd.DataFrame, float, float]]:
        return [(self.frame[self.frame["repeat"] == p["repeat"]], p["open_s"], p["close_s"])
                for p in self.points if p["repeat"] in repeats]  # fmt: skip

    def _rate(self, repeats: list[int], count: Any) -> float:
        windows = self._windows(repeats)
        return sum(count(*window) for window in windows) / sum(close - begin for _, begin, close in windows)

    @staticmethod
    def _events(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Time and tokens of every chunk; the first has its own count, the others share the rest."""
        times, weights = [np.empty(0)], [np.empty(0)]
        for row in rows[rows["first_token_s"].notna()].itertuples():
            gaps = np.asarray(row.gaps_s, dtype=float)
            tokens = len(gaps) + 1 if pd.isna(row.output_tokens) else float(row.output_tokens)
            first = 1.0 if pd.isna(row.first_chunk_tokens) else float(row.first_chunk_tokens)
            first = min(first, tokens) if len(gaps) else tokens
            rest = max(tokens - first, 0.0) / len(gaps) if len(gaps) else 0.0
            times += [np.array([row.first_token_s]), row.first_token_s + np.cumsum(gaps)]
            weights += [np.array([first]), np.full(len(gaps), rest)]
        return np.concatenate(times), np.concatenate(weights)

    def _tokens(self, rows: pd.DataFrame, begin: float, close: float) -> float:
        times, tokens = self._events(rows)
        return float(tokens[(times >= begin) & (times < close)].sum())

    def _live(self, repeats: list[int]) -> float | None:
        """The most tokens held at once inside the windows, times the bytes of one."""
        per_token = self.facts.get("kv_bytes_per_token")
        if per_token is None:
            return None
        most = 0.0
        for rows, begin, close in self._windows(repeats):
            rows = rows[rows["first_token_s"].notna()]
            prompts, output = rows["input_tokens"].fillna(0), rows["output_tokens"].fillna(rows["chunks"])
            ended, (times, tokens) = rows["end_s"].notna(), self._events(rows)
            taken = pd.DataFrame({"at": np.concatenate([times, rows["first_token_s"]]), "last": 0,
                                  "change": np.concatenate([tokens, prompts])})  # fmt: skip
            given = pd.DataFrame({"at": rows["end_s"], "last": 1, "change": -(prompts + output)})[ended]
            both = pd.concat([taken, given]).sort_values(["at", "last"])  # a token of the same moment comes first
            held = both["change"].cumsum()
            inside = (both["at"] >= begin) & (both["at"] < close)
            before = held[both["at"] < begin]
            most = max(most, float(held[inside].max()), float(before.iloc[-1]) if len(before) else 0.0)
        return most * float(per_token) if most else None


def check(folder: Path) -> Checked:
    """Every figure of a run's page that requests.parquet can answer."""
    run = json.loads((folder / "run.json").read_text())
    frame = pd.read_parquet(folder / "requests.parquet")
    page, found = Page((folder / "report.html").read_text()), Checked()
    cache: dict[tuple[str, str], Golden] = {}

    def golden(engine: str, label: str) -> Golden:
        if (engine, label) not in cache:
            cache[engine, label] = Golden(run, frame, engine, labels(run)[label])
        return cache[engine, label]

    for table in page.tables:
        if table.kind == "summary":
            _summary(found, table, golden, run.get("scenario", {}).get("slo") or {})
        elif table.label.startswith("Data: "):
            _behind_plot(found, table, golden, frame)
    _verdict(found, page.verdict, golden, run)
    return found


def labels(run: dict[str, Any]) -> dict[str, str]:
    """Points by how the page names their load."""
    names = {}
    for point in run["points"]:
        load = point["load"]
        burst = ", burst" if load.get("start") == "burst" else ""
        closed = load["kind"] == "concurrency"
        label = f"{load['concurrency']} concurrent{burst}" if closed else f"{load['rate_rps']:g}/s {load['kind']}"
        names[label] = point["point"]
    return names


def _summary(found: Checked, table: Table, golden: Any, slo: dict[str, float]) -> None:
    label = ""
    for kind, cells in table.rows:
        if kind == "load":
            label = cells[0].text.strip()
        elif cells[0].text.strip() != "Engine":
            engine = cells[0].text.strip()
            for cell in cells[1:]:
                where = f"summary, {engine} at {label}, {cell.label}"
                if cell.label in SUMMARY:
                    _figure(found, where, cell, golden(engine, label), SUMMARY[cell.label])
                elif cell.label == "SLO":
                    _slo(found, where, cell, golden(engine, label), slo)


def _figure(found: Checked, where: str, cell: Cell, golden: Golden, key: str) -> None:
    value, low, high = golden.figure(key)
    found.hold(where, cell.text, value)
    if key == "kv_live":
        if value is not None and golden.facts.get("kv_capacity_bytes"):
            found.hold(f"{where}, capacity", cell.small.removeprefix("of "), float(golden.facts["kv_capacity_bytes"]))
        return
    if low is None or high is None or not low < high:
        return
    least, _, most = cell.small.partition(" – ")
    unit = cell.text.strip().rpartition(" ")[2] if " " in cell.text.strip() else ""
    most_unit = most.strip().rpartition(" ")[2] if " " in most.strip() else unit
    found.hold(f"{where}, interval from", least, low, most_unit)
    found.hold(f"{where}, interval to", most, high, unit)


def _slo(found: Checked, where: str, cell: Cell, golden: Golden, slo: dict[str, float]) -> None:
    values = {key: golden.figure(key)[0] for key in slo}
    missed = any(value is not None and value > slo[key] for key, value in values.items())
    want = "missed" if missed else "–" if None in values.values() else "met"
    found.figures += 1
    if cell.text.strip() != want:
        found.wrong.append(f"{where}: shown {cell.text.strip()}, {want} is right")


def _behind_plot(found: Checked, table: Table, golden: Any, frame: pd.DataFrame) -> None:
    titles = [cell.text for cell in table.rows[0][1]]
    for _, cells in table.rows[1:]:
        row = dict(zip(titles, (cell.text.strip() for cell in cells), strict=True))
        if titles == ["Engine", "Kind", "Requests"]:
            status, _, text = row["Kind"].partition(": ")
            measured = frame[(frame["engine"] == row["Engine"]) & (frame["phase"] == "measure")]
            same = (measured["status"] == status) & (measured["error"].fillna("no text").str[:180] == text[:180])
            found.hold(f"{table.label}, {row['Kind'][:40]}", row["Requests"], float(same.sum()))
        elif "least" in titles and titles[0] == "Load":
            part = golden(row["Engine"], row["Load"])
            name = {"Data: Time to first token": "ttft", "Data: Time per output token": "tpot"}.get(table.label, "e2e")
            values = part.samples(name, [p["repeat"] for p in part.points])
            for title, share in CURVE.items():
                found.hold(f"{table.label}, {row['Engine']} at {row['Load']}, {title}", row[title],
                           float(values.quantile(share)))  # fmt: skip
        elif titles[:2] == ["Load", "Engine"]:
            for title, key in BEHIND_PLOTS.items():
                if title in row:
                    _with_interval(found, f"{table.label}, {row['Engine']} at {row['Load']}, {title}", row[title],
                                   golden(row["Engine"].removesuffix(", burst"), row["Load"]).figure(key))  # fmt: skip


def _with_interval(found: Checked, where: str, shown: str, want: tuple[float | None, ...]) -> None:
    value, low, high = want
    if shown.startswith("–"):
        found.hold(where, shown, value)
        return
    number, _, rest = shown.partition(" (")
    found.hold(where, number, value)
    if low is not None and high is not None and low < high and "kv" not in where:
        least, _, most = rest.rstrip(")").partition(" to ")
        found.hold(f"{where}, from", least, low)
        found.hold(f"{where}, to", most, high)


def _verdict(found: Checked, verdict: str, golden: Any, run: dict[str, Any]) -> None:
    """The two speeds in the headline are those of two engines at its load."""
    match = re.search(r"\(([\d,.]+) against ([\d,.]+)\)", verdict)
    if match is None:
        return
    load = next(label for label in labels(run) if label.split()[0] in re.findall(r"[\d.]+(?:/s)?", verdict)[:1])
    speeds = sorted(golden(e["name"], load).figure("output_tok_s")[0] or 0.0 for e in run["engines"])[-2:]
    found.hold("verdict, faster", match[1], speeds[1])
    found.hold("verdict, slower", match[2], speeds[0])
