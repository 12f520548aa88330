"""What a gate's verdict says in words: one headline, one line a check. All outputs are made of these."""

from __future__ import annotations

from harness.units import show, significant
from reports.decide import UNDECIDED
from reports.gate import Check, Verdict

WORDS = {"pass": "pass", "fail": "FAIL", "inconclusive": "unsure"}
TITLES = ["", "metric", "load", "baseline", "candidate", "change", "interval", "limit"]


def headline(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    failed, unsure = verdict.of("fail"), verdict.of("inconclusive")
    prefix = "Simulated: " if verdict.simulated else ""
    if verdict.state == "fail":
        first = failed[0]
        others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"{prefix}Fail: {first.title} at {first.label} changed by {change(first)}, {limit(first)}{others}."
    if verdict.state == "pass":
        count = sum(not check.guard for check in verdict.checks)
        return f"{prefix}Pass: {count} limit{'s' if count > 1 else ''} held."
    if not verdict.checks:
        return f"{prefix}Inconclusive: there was nothing to judge."
    first = next((check for check in unsure if not check.guard), unsure[0])
    return f"{prefix}Inconclusive: {first.title}{f' at {first.label}' if first.label else ''}: {first.reason}."


def change(check: Check) -> str:
    """`+8.3 %`, or in points for shares; `–` where there is none."""
    return "–" if check.change is None else _signed(check, check.change)


def interval(check: Check) -> str:
    """`+1.2 to +4.5`, in the unit of the change."""
    if check.change_low is None or check.change_high is None:
        return "–"
    return " to ".join(_signed(check, end).partition(" ")[0] for end in (check.change_low, check.change_high))


def limit(check: Check) -> str:
    unit = "points" if check.unit == "ratio" else "%"
    return f"limit {check.limit * 100:g} {unit}{' (guard)' if check.guard else ''}"


def advice(check: Check) -> str:
    """The reason of a check, and how many more repeats would decide one that is not decided."""
    if check.state != "inconclusive" or check.change is None:
        return check.reason
    if check.reason not in UNDECIDED:
        return check.reason
    if check.more is None:
        return (
            f"{check.reason}; no number of repeats would decide: the change is too near the limit, or sessions differ"
        )
    return f"{check.reason}; about {check.more} more repeat{'s' if check.more > 1 else ''} a side would decide"


def cells(check: Check, engines: bool) -> list[str]:
    """One line of a table, under `TITLES`. `engines`: there are several, so that each must be named."""
    return [
        WORDS[check.state], check.title + (" (guard)" if check.guard else ""),
        place(check) if engines else check.label, show(check.baseline, check.unit), show(check.candidate, check.unit),
        change(check), interval(check), limit(check).removeprefix("limit ").removesuffix(" (guard)"),
    ]  # fmt: skip


def rows(verdict: Verdict) -> list[tuple[Check, list[str]]]:
    """The lines of the table: all limits, and the guards that did not just pass."""
    several = len({check.engine for check in verdict.checks}) > 1
    shown = [check for check in verdict.checks if not check.guard or check.state != "pass"]
    return [(check, cells(check, several)) for check in shown]


def place(check: Check) -> str:
    return f"{check.engine}, {check.label}" if check.label else check.engine


def guards_line(verdict: Verdict) -> str:
    """What was watched besides, where nothing came of it."""
    quiet = [check.title for check in verdict.checks if check.guard and check.state == "pass"]
    names = list(dict.fromkeys(quiet))
    return f"Watched besides, without a change past its limit: {', '.join(names)}." if names else ""


def basis_line(verdict: Verdict) -> str:
    """How many repeats the verdict rests on, and whether the sides took turns."""
    found = dict.fromkeys((check.repeats, check.design) for check in verdict.checks if check.design)
    said = []
    for (base, cand), design in found:
        count = f"{base} repeats a side" if base == cand else f"{base} and {cand} repeats"
        said.append(f"{count}, {'measured in turn' if design == 'interleaved' else 'one side after the other'}")
    return f"Rests on {'; '.join(said)}." if said else ""


def outcome_line(verdict: Verdict) -> str:
    """How the exit differs from what was found, if it does."""
    if verdict.state == "inconclusive" and verdict.outcome != "inconclusive":
        return f"An inconclusive gate is configured to {verdict.outcome}."
    return ""


def lines(verdict: Verdict) -> list[str]:
    """Everything that is said below the table."""
    why: dict[str, list[str]] = {}
    for check in verdict.of("inconclusive"):
        why.setdefault(advice(check), []).append(f"{check.title} at {place(check)}")
    reasons = [f"{_listed(places)}: {reason}" for reason, places in why.items()]
    return [
        *reasons, *filter(None, [basis_line(verdict), guards_line(verdict), outcome_line(verdict)]),
        *(f"Differs: {note}" for note in verdict.notes), *(f"Warning: {text}" for text in verdict.warnings),
    ]  # fmt: skip


def _listed(places: list[str]) -> str:
    return "; ".join(places) if len(places) <= 3 else f"{places[0]} and {len(places) - 1} more"


def _signed(check: Check, value: float) -> str:
    text = significant(abs(value) * 100, 2 if abs(value) < 0.1 else 3)
    if text.strip("0.,") == "":
        text = "0"
    sign = "" if text == "0" else "-" if value < 0 else "+"
    return f"{sign}{text} {'points' if check.unit == 'ratio' else '%'}"
