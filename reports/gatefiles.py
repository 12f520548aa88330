"""A gate's verdict as files that other programs and people read: JUnit, GitLab's code quality, a badge, a page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from harness.errors import InputError
from harness.metrics import METRICS
from reports.gate import Check, Verdict
from reports.gatetext import markdown
from reports.gatewords import TITLES, advice, change, headline, interval, limit, lines, place, rows
from reports.pageparts import in_code

COLOURS = {"pass": "#2a7f3f", "fail": "#b3261e", "inconclusive": "#8a6100"}
SEVERITY = {"fail": "major", "inconclusive": "info"}


def as_json(verdict: Verdict) -> str:
    return json.dumps(verdict.to_dict() | {"headline": headline(verdict)}, ensure_ascii=False, allow_nan=False) + "\n"


def junit(verdict: Verdict) -> str:
    """One test a check; an undecided one is skipped, unless such a gate is configured to fail."""
    failing = {"fail"} | ({"inconclusive"} if verdict.state != verdict.outcome == "fail" else set())
    cases = []
    for check in verdict.checks:
        name = f"{check.metric} {limit(check)}"
        text = f"{change(check)} (interval {interval(check)}), {limit(check)}: {advice(check)}"
        inner = ""
        if check.state in failing:
            inner = f"<failure message={_attribute(text)}>{_text(text)}</failure>"
        elif check.state == "inconclusive":
            inner = f"<skipped message={_attribute(text)}/>"
        cases.append(
            f"  <testcase classname={_attribute('gate.' + place(check))} name={_attribute(name)}>{inner}</testcase>"
        )
    failures = sum(check.state in failing for check in verdict.checks)
    skipped = sum(check.state == "inconclusive" for check in verdict.checks if check.state not in failing)
    counts = f'tests="{len(cases)}" failures="{failures}" errors="0" skipped="{skipped}"'
    body = "\n".join(cases)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites {counts}>\n<testsuite name="bench gate" {counts}>\n'
        f"{body}\n<system-out>{_text(headline(verdict))}</system-out>\n</testsuite>\n</testsuites>\n"
    )


def code_quality(verdict: Verdict) -> str:
    """GitLab's code quality report: what did not pass. It wants a file to point at: the baseline's."""
    found = []
    for check in verdict.checks:
        if check.state not in SEVERITY:
            continue
        mark = f"{check.engine} {check.point} {check.metric}"
        found.append(
            {
                "description": f"{check.title} at {place(check)}: {change(check)}, {limit(check)}: {advice(check)}",
                "check_name": f"bench-gate/{check.metric}",
                "fingerprint": hashlib.sha256(mark.encode()).hexdigest()[:32],
                "severity": SEVERITY[check.state],
                "location": {"path": verdict.baseline or "baseline", "lines": {"begin": 1}},
            }
        )
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def badge(verdict: Verdict) -> str:
    """A small picture for a README: the last gate's state."""
    title, state = "bench gate", verdict.state
    left, right = 7 * len(title) + 10, 7 * len(state) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{title}: {state}"><title>{title}: {state}</title>'
        f'<rect width="{left + right}" height="20" rx="3" fill="#444"/>'
        f'<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{left}z" fill="{COLOURS[state]}"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2:g}" y="14">{title}</text><text x="{left + right / 2:g}" y="14">{state}</text></g></svg>\n'
    )


def page(verdict: Verdict) -> str:
    """One self-contained page; everything from outside is escaped, and it may load and run nothing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = in_code
    template = environment.from_string((files("reports") / "templates/gate.html.j2").read_text(encoding="utf-8"))
    found = rows(verdict)
    drawn = [check for check, _ in found if check.change is not None]
    reach = _reach(drawn)
    bars = [_bar(check, reach) for check in drawn]
    return template.render(
        verdict=verdict, headline=headline(verdict), reach=f"{reach * 100:.3g} %", titles=TITLES, bars=bars,
        lines=lines(verdict),
        rows=[{"state": check.state, "cells": texts} for check, texts in found],
        css=Markup((files("reports") / "templates/report.css").read_text(encoding="utf-8")),
    )  # fmt: skip


def _reach(checks: list[Check]) -> float:
    """How far all strips go to either side: to the widest interval, but to no more than four times the widest limit,
    lest one noisy figure press all others flat."""
    ends = [abs(end) for check in checks for end in (check.change_low, check.change_high, check.limit) if end]
    return min(1.1 * max(ends, default=0.05), 4 * max((check.limit for check in checks), default=0.05)) or 0.05


def _bar(check: Check, reach: float) -> dict[str, str | float | list[float]]:
    """Where an interval lies around 0 and its limits, in percent of a strip; cut where it goes further."""
    better = METRICS[check.metric].better
    low, high, middle = check.change_low or 0.0, check.change_high or 0.0, check.change or 0.0

    def at(value: float) -> float:
        return round(min(100.0, max(0.0, 50 + 50 * value / reach)), 2)

    return {
        "name": f"{check.title} at {place(check)}", "state": check.state, "left": at(low),
        "width": round(at(high) - at(low), 2), "middle": at(middle),
        "edges": [at(check.limit)] * (better != "higher") + [at(-check.limit)] * (better != "lower"),
    }  # fmt: skip


KINDS: dict[str, Callable[[Verdict], str]] = {
    ".codequality.json": code_quality, ".json": as_json, ".md": markdown, ".html": page, ".xml": junit, ".svg": badge,
}  # fmt: skip


def write(verdict: Verdict, path: Path) -> None:
    """Write the verdict in the kind that the file's name ends in.

    Raises:
        InputError: no kind of file is known by that ending, or it cannot be written.
    """
    kind = writer(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kind(verdict), encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "give another path") from None


def writer(path: Path) -> Callable[[Verdict], str]:
    """What makes a file of that name.

    Raises:
        InputError: no kind of file is known by that ending.
    """
    for ending, kind in KINDS.items():
        if path.name.endswith(ending):
            return kind
    raise InputError(f"--write {path}: no kind of file ends like that", f"one of {', '.join(KINDS)}")


def _attribute(text: str) -> str:
    return quoteattr(_xml(text))


def _text(text: str) -> str:
    return escape(_xml(text))


def _xml(text: str) -> str:
    """Without the control characters that XML does not allow at all."""
    return "".join(
        letter for letter in text if letter in "\t\n" or (ord(letter) >= 32 and letter not in "\ufffe\uffff")
    )
