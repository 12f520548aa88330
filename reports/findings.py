"""What sweeps found, in one sentence an engine: where the SLO breaks, and where throughput stops growing."""

from __future__ import annotations

from math import prod

from harness.records import Finding
from harness.units import significant
from reports.rows import Summary

UNSAID = {
    "slo": "where its SLO breaks cannot be said",
    "saturation": "where its throughput stops growing cannot be said",
}


def sentences(summary: Summary) -> list[str]:
    """One for each engine and sweep, in the run's order."""
    several = len({finding.sweep for finding in summary.findings}) > 1
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in summary.findings:
        groups.setdefault((finding.engine, finding.sweep), []).append(finding)
    return [
        f"{engine}{f' ({sweep})' if several else ''} {'; '.join(_parts(found))}."
        for (engine, sweep), found in groups.items()
    ]


def _parts(found: list[Finding]) -> list[str]:
    said = {"slo": _slo, "saturation": _saturation}
    parts = [
        _with_reasons(say(same), same)
        for what, say in said.items()
        if (same := [finding for finding in found if finding.what == what])
    ]
    repeats = len({finding.repeat for finding in found})
    probes = sum(finding.probes for finding in found if finding.what == "saturation")
    return [*parts, f"{probes} probes" + (f" in {repeats} repeats" if repeats > 1 else "")]


def _slo(found: list[Finding]) -> str:
    if rate := _rate(found):
        return f"keeps the SLO up to {rate}"
    lows = [finding.low_rps for finding in found if finding.low_rps is not None]
    if lows:
        return f"keeps the SLO at least up to {significant(min(lows))} requests/s"
    missed = any(finding.high_rps is not None for finding in found)
    return "keeps the SLO at no rate that was tried" if missed else UNSAID["slo"]


def _saturation(found: list[Finding]) -> str:
    if rate := _rate(found):
        return f"throughput stops growing at {rate}"
    lows = [finding.low_rps for finding in found if finding.low_rps is not None]
    return f"throughput grows at least up to {significant(min(lows))} requests/s" if lows else UNSAID["saturation"]


def _rate(found: list[Finding]) -> str | None:
    """`7.40 requests/s (7.10 to 7.80)`: over repeats their geometric mean and their widest interval; None where no
    repeat has an estimate."""
    estimates = [finding.estimate_rps for finding in found if finding.estimate_rps]
    if not estimates:
        return None
    mean = prod(estimates) ** (1 / len(estimates))
    lows, highs = [finding.low_rps for finding in found], [finding.high_rps for finding in found]
    low = min((low for low in lows if low is not None), default=None)
    high = max((high for high in highs if high is not None), default=None)
    bounds = [significant(bound) if bound is not None else "?" for bound in (low, high)]
    return f"{significant(mean)} requests/s ({bounds[0]} to {bounds[1]})"


def _with_reasons(text: str, found: list[Finding]) -> str:
    reasons = list(dict.fromkeys(finding.reason for finding in found if finding.reason))
    if not reasons:
        return text
    missing = sum(finding.reason is not None for finding in found)
    where = f"in {missing} of {len(found)} repeats " if len(found) > 1 and missing < len(found) else ""
    return f"{text} ({where}{'; '.join(reasons)})"
