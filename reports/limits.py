"""What a gate is asked to hold: limits by metric, read from the command line or a scenario's `gate:` part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import InputError
from harness.metrics import metric_key
from harness.units import parse_percent

EXAMPLE = "--limit 'ttft_p95: 5%'"
GUARDS = {"error_ratio": 0.01, "output_tokens_mean": 0.02, "slo_ratio": 0.05}
OUTCOMES = ("inconclusive", "pass", "fail")


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest change for the worse that is let pass: a share of the baseline's figure, or, of a metric that is a
    share itself (`error_ratio`), a difference in points. A `guard` is watched without having been asked for."""

    key: str
    share: float
    guard: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides a gate. `look` counts the looks at growing data so far, of the numbers of repeats in `looks`; a gate
    over finished runs looks once. `inconclusive`: what an undecided gate exits as."""

    limits: list[Limit]
    looks: tuple[int, ...] = ()
    look: int = 0
    inconclusive: str = "inconclusive"

    @property
    def keys(self) -> list[str]:
        """The metrics that must be read: the limited ones and those that are always watched."""
        return list(dict.fromkeys([*(limit.key for limit in self.limits), *GUARDS]))

    def guards(self) -> list[Limit]:
        """What is watched without having been asked for."""
        return [Limit(key, share, guard=True) for key, share in GUARDS.items()]


def parse_limits(texts: Sequence[str]) -> list[Limit]:
    """`ttft_p95: 5%`, as options give it.

    Raises:
        InputError: one of them is no limit, or a metric is limited twice.
    """
    found: dict[str, Limit] = {}
    for text in texts:
        name, colon, share = text.replace("=", ":").partition(":")
        if not colon:
            raise InputError(f"not a limit: {text!r}", f"write a metric and a percentage, for example {EXAMPLE}")
        try:
            key = metric_key(name)
            limit = Limit(key, parse_percent(share.strip()))
        except ValueError as error:
            raise InputError(f"{text!r}: {error}", f"for example {EXAMPLE}; docs/metrics.md has all names") from None
        if key in found:
            raise InputError(f"{name.strip()} is limited twice", "give one limit for each metric")
        found[key] = limit
    return list(found.values())


def scenario_rules(scenario: dict[str, Any], texts: Sequence[str], inconclusive: str | None) -> Rules:
    """The rules of a gate: what the command line says, else the scenario's `gate:` part (as run.json holds it).

    Raises:
        InputError: nothing says what is to be held.
    """
    part = scenario.get("gate") or {}
    stated = part.get("limits") or {}
    limits = parse_limits(texts) or [Limit(metric_key(name), float(share)) for name, share in stated.items()]
    if not limits:
        raise InputError(
            "no limit says what counts as a regression",
            f"give one ({EXAMPLE}), or put `gate: {{limits: {{ttft_p95: 5%}}}}` into the scenario",
        )
    outcome = inconclusive or str(part.get("inconclusive") or "inconclusive")
    if outcome not in OUTCOMES:
        raise InputError(f"--inconclusive {outcome}: no such outcome", f"one of {', '.join(OUTCOMES)}")
    return Rules(limits, inconclusive=outcome)
