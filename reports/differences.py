"""What keeps the engines of a run from being comparable besides the engine itself: named beside the figures."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from harness.units import significant
from reports.rows import EngineState, PointState, Summary

FACTS = (
    ("quantization", "quantization"), ("context_tokens", "context length"), ("prefix_caching", "prefix caching"),
    ("kv_cache_dtype", "KV cache type"), ("prompt_form", "form of the prompts"),
)  # fmt: skip
WORKLOAD = (
    ("api", "API"), ("kind", "kind of prompts"), ("sha256", "file of prompts"), ("input_tokens", "prompt tokens"),
    ("output_tokens", "output tokens asked for"), ("shared_prefix", "shared prefix"), ("turns", "turns of a session"),
    ("think_time", "think time"), ("order", "order of the prompts"), ("unique", "uniqueness of the prompts"),
    ("sampling", "sampling"),
)  # fmt: skip
TOKENS_APART = 0.02  # output lengths further apart than this make E2E and requests/s incomparable


def found_differences(summary: Summary, engines: list[EngineState], usable: dict[str, list[PointState]]) -> list[str]:
    """What differs between the engines besides the engine itself."""
    if len(engines) < 2:
        return []
    found = []
    if len({engine.simulated for engine in engines}) > 1:
        said = [f"{e.name} {'simulated' if e.simulated else 'measured'}" for e in engines]
        found.append(f"some figures are simulated: {', '.join(said)}")
    found += _unlike("model", {e.name: e.model for e in engines})
    for key, title in FACTS:
        found += _unlike(title, _stated(engines, key))
    for key, title in WORKLOAD:
        found += _unlike(title, {e.name: _in_words(e.workload.get(key)) for e in engines})
    return found + _lengths(summary, engines, usable)


def alike_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Everything that is looked at, engine by engine: `alike`, `differs`, or `not stated` by all of them."""
    rows = []
    looked: list[tuple[str, dict[str, Any]]] = [
        ("simulated", {e.name: "yes" if e.simulated else "no" for e in summary.engines}),
        ("model", {e.name: e.model for e in summary.engines}),
        *((title, _stated(summary.engines, key)) for key, title in FACTS),
        *((title, {e.name: _in_words(e.workload.get(key)) for e in summary.engines}) for key, title in WORKLOAD),
    ]
    for title, values in looked:
        known = [value for value in values.values() if value is not None]
        if not known:
            continue
        alike = all(value == known[0] for value in known)
        state = "differs" if not alike else "alike" if len(known) == len(values) else "not stated by all"
        rows.append([title, *("–" if value is None else _said(value) for value in values.values()), state])
    return ["What", *(e.name for e in summary.engines), "State"], rows


def _stated(engines: list[EngineState], key: str) -> dict[str, Any]:
    """A fact of each engine. What one was told and another of its kind was not is unlike, also where none says it."""
    found = {engine.name: engine.facts.get(key) for engine in engines}
    if key != "quantization":
        return found
    told = {engine.kind for engine in engines if found[engine.name] is not None}
    return {e.name: "not stated" if found[e.name] is None and e.kind in told else found[e.name] for e in engines}


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unlike(title: str, values: dict[str, Any]) -> list[str]:
    """One line if the engines state unlike values; what one of them does not state is no difference."""
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < 2 or all(value == next(iter(known.values())) for value in known.values()):
        return []
    texts = {name: _said(value) for name, value in known.items()}
    return [f"{title}: " + ", ".join(f"{name} {text}" for name, text in texts.items())]


def _in_words(value: Any) -> Any:
    """A part of a scenario without what it leaves out: `kind lognormal, median 200, max 2000`."""
    if not isinstance(value, dict):
        return value
    return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner not in (None, []))


def _lengths(summary: Summary, engines: list[EngineState], usable: dict[str, list[PointState]]) -> list[str]:
    """Points where prompts or answers differ in length by more than 2 %."""
    found = []
    for point in summary.point_names():
        here = [e for e in engines if point in {p.point for p in usable[e.name]}]
        label = next(s.label for s in summary.points if s.point == point)
        for key, what, advice in (
            ("input_tokens_mean", "prompt tokens", ""),
            ("output_tokens_mean", "output tokens", ": compare TPOT and tokens/s, not E2E or requests/s"),
        ):
            values = {e.name: summary.row(e.name, point, key).value for e in here}
            known = {name: value for name, value in values.items() if value}
            worst = max((max(a, b) / min(a, b) - 1 for a, b in combinations(known.values(), 2)), default=0.0)
            if worst > TOKENS_APART:
                said = ", ".join(f"{name} {significant(value)}" for name, value in known.items())
                found.append(f"{what} a request at {label}: {said} ({significant(worst * 100)} % apart){advice}")
    return found
