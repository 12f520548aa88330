"""What a run says, in one or two sentences for someone who will not read the tables, and what limits it.

No superlatives and no false certainty: figures whose intervals overlap are no difference, one repeat is said to be
one, a point that measured the client is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.units import show, show_duration, significant
from reports.differences import found_differences
from reports.findings import sentences
from reports.gpucount import ADDED, counts, of_gpus
from reports.rows import EngineState, PointState, Row, Summary

WITHIN_ONE_RUN = 1.05  # one repeat says nothing of a smaller ratio: repeats differ by as much
UNDECIDED_RATIO = 1.1
UNDECIDED = "the repeats are too few or too unlike to be sure: their intervals overlap"
SAMPLED = (("gpu_memory_bytes", "GPU memory"), ("engine_rss_bytes", "memory"))
STATED = (("gpu_memory_bytes", "GPU memory"), ("memory_bytes", "memory"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """`headline` and `support` are whole sentences; `differences` name what keeps the engines from being comparable.

    `kind`: faster | same | undecided | alone | apart (no point in common) | swept (sweeps alone) | nothing.
    """

    kind: str
    headline: str
    support: str
    differences: list[str]
    point: str | None = None


def judge(summary: Summary) -> Verdict:
    """The verdict of a run, from its summary alone."""
    usable = _usable(summary)
    measured = [engine for engine in summary.engines if usable.get(engine.name)]
    differences = found_differences(summary, measured, usable)
    if not measured and summary.findings:
        return Verdict("swept", _said(summary) + sentences(summary)[0], _targets(summary), _swept_differences(summary))
    if not measured:
        return Verdict("nothing", *_nothing(summary), differences)
    if len(measured) == 1:
        point = _highest(list(usable[measured[0].name]))
        return Verdict("alone", *_alone(summary, measured[0], point), differences, point.point)
    common = set.intersection(*({p.point for p in usable[e.name]} for e in measured))
    if not common:
        return Verdict("apart", *_apart(summary, measured, usable), differences)
    point = _highest([p for p in usable[measured[0].name] if p.point in common])
    first, second = _leaders(summary, measured, point)
    kind, headline = _headline(summary, first, second, point)
    others = [_short(summary, engine, point) for engine in measured if engine not in (first, second)]
    support = [
        _reversed(summary, first, second, common), *others, _memory(summary, measured, point),
        _slo(summary, measured), _sureness(summary, measured, point, kind),
    ]  # fmt: skip
    return Verdict(kind, _said(summary) + headline, " ".join(filter(None, support)), differences, point.point)


def _usable(summary: Summary) -> dict[str, list[PointState]]:
    """Each engine's points that a verdict may use; a sweep's probes are chosen to break it, and compare nothing."""
    return _known(summary, lambda state: state.sweep is None)


def _swept_differences(summary: Summary) -> list[str]:
    probes = _known(summary, lambda state: state.sweep is not None)
    return found_differences(summary, [engine for engine in summary.engines if engine.name in probes], probes)


def _known(summary: Summary, wanted: Callable[[PointState], bool]) -> dict[str, list[PointState]]:
    usable: dict[str, list[PointState]] = {}
    for state in filter(wanted, summary.points):
        known = summary.row(state.engine, state.point, "output_tok_s").value is not None
        if known and not state.client_limited:
            usable.setdefault(state.engine, []).append(state)
    return usable


def _highest(points: list[PointState]) -> PointState:
    """The heaviest load: the most concurrent closed loop, else the highest rate."""
    return max(points, key=lambda p: (p.load.get("concurrency") or 0, p.load.get("rate_rps") or 0.0))


def spoken(point: PointState) -> str:
    """The load as a sentence has it."""
    closed = point.load.get("kind") == "concurrency" and point.label != point.point
    one = point.load.get("concurrency") == 1
    said = "request at a time" if one else "requests at once"
    return point.label.replace("concurrent", said) if closed else point.label


def _leaders(summary: Summary, engines: list[EngineState], point: PointState) -> tuple[EngineState, EngineState]:
    """The two engines with the most output tokens/s."""

    def speed(engine: EngineState) -> float:
        return summary.row(engine.name, point.point, "output_tok_s").value or 0.0

    first, second = sorted(engines, key=speed, reverse=True)[:2]
    return first, second


def _headline(summary: Summary, first: EngineState, second: EngineState, point: PointState) -> tuple[str, str]:
    at = f"With {spoken(point)}"
    a, b = (summary.row(e.name, point.point, "output_tok_s") for e in (first, second))
    ratio = (a.value or 0.0) / b.value if b.value else None
    first_tokens = [summary.row(e.name, point.point, "ttft_p50_s") for e in (first, second)]
    if ratio is None:
        nothing = not a.value
        text = "neither engine produced a token" if nothing else f"only {first.name} produced tokens"
        return ("same" if nothing else "faster"), f"{at}, {text}."
    values = f"{significant(a.value or 0.0)} against {significant(b.value or 0.0)}"
    if not _apart_enough(a, b, ratio):
        _, ttft = _ttft(first_tokens[0], first_tokens[1], first.name)
        text = f"no difference in tokens per second was seen between {first.name} and {second.name} ({values})"
        if max(ratio, 1 / ratio) > UNDECIDED_RATIO:
            text = f"{first.name} and {second.name} differ in tokens per second ({values}), but {UNDECIDED}"
            return "undecided", f"{at}, {text}" + (f"; {ttft}." if ttft else ".")
        return "same", f"{at}, {text}" + (f"; {ttft}." if ttft else ".")
    joint, ttft = _ttft(first_tokens[0], first_tokens[1], "it")
    text = f"{first.name} writes {significant(ratio)} times as many tokens per second as {second.name} ({values})"
    return "faster", f"{at}, {text}" + (f", {joint} {ttft}." if ttft else ".")


def _ttft(a: Row, b: Row, who: str) -> tuple[str, str]:
    """`and` or `but`, and how the first token of the faster engine compares; empty where it is not known."""
    if not a.value or not b.value:
        return "", ""
    values = f"{show_duration(a.value)} against {show_duration(b.value)}"
    ratio = max(a.value, b.value) / min(a.value, b.value)
    if not _apart_enough(a, b, ratio):
        if ratio > UNDECIDED_RATIO:
            return "and", f"the time until an answer begins differs ({values}), but {UNDECIDED}"
        return "and", f"no difference in the time until an answer begins was seen ({values})"
    joint, word = ("and", "sooner") if a.value < b.value else ("but", "later")
    return joint, f"{who} starts to answer {significant(ratio)} times {word} ({values})"


def _reversed(summary: Summary, first: EngineState, second: EngineState, common: set[str]) -> str:
    """The lighter loads at which the other engine is ahead: a ratio at one load says nothing of them."""
    found = []
    for state in (s for s in summary.points if s.engine == first.name and s.point in common):
        a, b = (summary.row(e.name, state.point, "output_tok_s") for e in (first, second))
        if a.value and b.value and b.value > a.value and _apart_enough(a, b, b.value / a.value):
            found.append(state.label)
    loads = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else ""
    return f"At {loads} it is the other way round: {second.name} writes more." if loads else ""


def _apart_enough(a: Row, b: Row, ratio: float) -> bool:
    """Whether two figures differ: their intervals do not touch; without intervals, by more than repeats usually do."""
    if a.ci_low is None or a.ci_high is None or b.ci_low is None or b.ci_high is None:
        return max(ratio, 1 / ratio if ratio else 0.0) > WITHIN_ONE_RUN
    return a.ci_low > b.ci_high or b.ci_low > a.ci_high


def _said(summary: Summary) -> str:
    names = [engine.name for engine in summary.engines if engine.simulated]
    if not names:
        return ""
    return "Simulated: " if len(names) == len(summary.engines) else f"Partly simulated ({', '.join(names)}): "


def _nothing(summary: Summary) -> tuple[str, str]:
    limited = [state for state in summary.points if state.client_limited]
    if limited:
        return (
            "No verdict: wherever something was measured, the client, not the server, was the limit.",
            "Give the client more cores or lower the load; the figures below describe this machine's client.",
        )
    reasons = list(dict.fromkeys(f"{s.engine}: {s.reason}" for s in summary.points if s.reason))
    reasons = reasons or [f"{e.name}: {e.error}" for e in summary.engines if e.error]
    return "Nothing was measured.", "; ".join(reasons[:3]) + ("." if reasons else "")


def _alone(summary: Summary, engine: EngineState, point: PointState) -> tuple[str, str]:
    count = len(summary.engines)
    alone = "One engine was measured, so nothing is compared." if count == 1 else (
        f"Only {engine.name} has usable figures, so nothing is compared."
    )  # fmt: skip
    parts = [alone, _memory(summary, [engine], point), _slo(summary, [engine]), _sureness(summary, [engine], point)]
    return _said(summary) + _short(summary, engine, point, at=True), " ".join(filter(None, parts))


def _apart(summary: Summary, engines: list[EngineState], usable: dict[str, list[PointState]]) -> tuple[str, str]:
    texts = [_short(summary, engine, _highest(usable[engine.name]), at=True) for engine in engines]
    return _said(summary) + "No load point was measured on every engine, so nothing is compared.", " ".join(texts)


def _short(summary: Summary, engine: EngineState, point: PointState, at: bool = False) -> str:
    """One engine at one point in one sentence."""
    speed = summary.row(engine.name, point.point, "output_tok_s").value
    text = f"{engine.name} writes {significant(speed or 0.0)} tokens per second"
    begin, each = (summary.row(engine.name, point.point, key).value for key in ("ttft_p50_s", "tpot_p50_s"))
    if begin is not None:
        text += f"; half of the answers begin within {show_duration(begin)}"
        text += f" and then take {show_duration(each)} a token" if each is not None else ""
    return (f"With {spoken(point)}, " if at else "") + text + "."


def _memory(summary: Summary, engines: list[EngineState], point: PointState) -> str:
    """Sampled memory, else what the engines state. A simulated engine's own process says nothing of the real one."""
    found: list[tuple[str, str, list[Any]]] = []
    if not any(engine.simulated for engine in engines):
        found += [
            (key, f"Peak {n}", [summary.row(e.name, point.point, key).value for e in engines]) for key, n in SAMPLED
        ]
    found += [
        (key, f"{name[0].upper()}{name[1:]} as stated", [e.facts.get(key) for e in engines]) for key, name in STATED
    ]
    gpus = counts(summary, [engine.name for engine in engines])
    for key, title, values in found:
        if all(isinstance(value, int | float) for value in values):
            of = [of_gpus(count) if key in ADDED else "" for count in gpus]
            together = of[0] if len(set(of)) == 1 else ""
            each = [""] * len(of) if together else of
            said = ", ".join(f"{e.name} {show(v, 'bytes')}{o}" for e, v, o in zip(engines, values, each, strict=True))
            return f"{title}{together}: {said}."
    return "Memory was not measured."


def _slo(summary: Summary, engines: list[EngineState]) -> str:
    """How far up the load each engine held every target."""
    if not (named := _targets(summary).removesuffix(".")):
        return ""
    held = [f"{engine.name} {_held(summary, engine)}" for engine in engines]
    return f"{named}: " + "; ".join(held) + "."


def _targets(summary: Summary) -> str:
    limits = {t.target: t.limit_s for t in summary.targets}
    named = ", ".join(f"{_target_name(key)} ≤ {show_duration(limit)}" for key, limit in limits.items())
    return f"Targets ({named})." if named else ""


def _held(summary: Summary, engine: EngineState) -> str:
    """The heaviest closed and open loads that met every target, with no lighter one that missed it."""
    states = [s for s in summary.points if s.engine == engine.name and s.sweep is None]
    said = []
    for closed in (True, False):
        kind = [s for s in states if (s.load.get("kind") == "concurrency") == closed]
        best = None
        for state in sorted(kind, key=lambda s: s.load.get("concurrency") or s.load.get("rate_rps") or 0):
            met = _all_met(summary, state)
            if met is False:
                break
            best = state if met else best
        said += [best.label] if best else []
    if said:
        return "keeps them up to " + " and ".join(said)
    judged = [_all_met(summary, state) for state in states]
    if False not in judged:
        return "could not be judged"
    return "misses them" if None not in judged else "misses them at every load that could be judged"


def _all_met(summary: Summary, state: PointState) -> bool | None:
    """Every target met; False as soon as one is missed; None where one cannot be judged."""
    met = [t.met for t in summary.targets if (t.engine, t.point) == (state.engine, state.point)]
    return False if False in met else None if None in met else True


def _target_name(key: str) -> str:
    name, _, stat = key.partition("_")
    return f"{name.upper()} {stat}"


def _sureness(summary: Summary, engines: list[EngineState], point: PointState, kind: str = "") -> str:
    """How much the figures rest on."""
    states = [s for s in summary.points if s.point == point.point and s.engine in {e.name for e in engines}]
    fewest = min(state.repeats for state in states)
    limited = [s for s in states if s.limited_repeats]
    said = {"faster": "do not overlap", "same": "overlap", "undecided": "overlap"}.get(kind)
    text = (
        "How sure: one repeat only, so how much the figures vary from run to run is not known."
        if fewest == 1
        else f"How sure: over {fewest} repeats, " + (f"the 95 % intervals {said}." if said else "with 95 % intervals.")
    )
    for state in limited:
        text += f" {state.limited_repeats} of {state.repeats} repeats of {state.engine} were limited by the client."
    return text
