"""What must be alike for a candidate's figures to be comparable with its baseline's at all."""

from __future__ import annotations

import os
from typing import Any

from harness.metrics import METRICS
from harness.units import show
from reports.sides import Side, SidePoint

LIMITED_NO_PASS = 0.2  # more client-limited repeats than this, and those left may fail a gate but not pass it
LIMITED_NO_VERDICT = 0.5
MACHINE_TITLES = {
    "cpu_model": "CPU", "cores_allowed": "cores", "memory_bytes": "memory", "memory_limit_bytes": "memory limit",
    "gpus": "GPUs", "driver": "GPU driver", "arch": "architecture", "cores_logical": "logical cores",
}  # fmt: skip


def unlike(base: Side, cand: Side) -> list[str]:
    """Why the two sides cannot be compared; empty if they can."""
    reasons = []
    if base.fingerprint != cand.fingerprint:
        reasons.append(f"measured on unlike machines ({_machines(base, cand)}): that may be the whole difference")
    if base.simulated != cand.simulated:
        which = "candidate" if cand.simulated else "baseline"
        reasons.append(f"the {which} is simulated and the other is not")
    # A key that only one side states came with a newer version of the tool: what it meant before is its default.
    before, after = _placeless(base.workload), _placeless(cand.workload)
    keys = [key for key in before if key in after and before[key] != after[key]]
    if keys:
        said = ", ".join(f"{key} {_short(base.workload.get(key))} and {_short(cand.workload.get(key))}" for key in keys)
        reasons.append(f"other prompts were sent: {said}")
    if _same_run(base, cand):
        reasons.append("both sides are the same run: it cannot be compared with itself")
    return reasons


def unlike_point(base: SidePoint | None, cand: SidePoint | None) -> str | None:
    """Why one point cannot be judged: not measured on a side, another load, or too often limited by the client."""
    for name, point in (("baseline", base), ("candidate", cand)):
        if point is None:
            return f"the {name} did not measure this point"
    assert base is not None
    assert cand is not None
    before, after = _placeless(base.load), _placeless(cand.load)
    keys = [key for key in before if key in after and before[key] != after[key]]
    if keys:
        said = ", ".join(f"{key} {_short(base.load.get(key))} and {_short(cand.load.get(key))}" for key in keys)
        return f"not the same load: {said}"
    return _limited(base, cand, LIMITED_NO_VERDICT)


def no_pass(base: SidePoint, cand: SidePoint) -> str | None:
    """Why what is left of a point is no fair sample to pass a candidate on; it may still fail it."""
    if cand.failed:
        return f"{cand.failed} of the candidate's repeats failed: what is left is no fair sample"
    return _limited(base, cand, LIMITED_NO_PASS)


def _limited(base: SidePoint, cand: SidePoint, share: float) -> str | None:
    for name, point in (("baseline", base), ("candidate", cand)):
        measured = point.counted + point.limited
        if point.limited > share * measured:
            return (
                f"client-limited: in {point.limited} of {measured} repeats of the {name} the client, not the server, "
                "was measured"
            )
    return None


def notes(base: Side, cand: Side) -> list[str]:
    """What differs but may be the very change that is tested."""
    found = []
    for title, before, after in (
        ("model", base.model, cand.model), ("engine kind", base.kind, cand.kind),
        ("engine version", base.version, cand.version), ("enginebench", base.tool_version, cand.tool_version),
    ):  # fmt: skip
        if before and after and before != after:
            found.append(f"{title}: {before} before, {after} now")
    if _same_figures(base, cand) and not _same_run(base, cand):
        found.append("both sides hold the very same figures: is one a copy of the other?")
    if base.fingerprint is None and cand.fingerprint is None:
        found.append("neither side says on what machine it ran")
    return found


def _same_run(base: Side, cand: Side) -> bool:
    if not base.source or base.engine != cand.engine:
        return False
    return os.path.realpath(base.source) == os.path.realpath(cand.source)


def _same_figures(base: Side, cand: Side) -> bool:
    """Equal to as many digits as a baseline file keeps, in every repeat: two runs are never that alike."""
    pairs = [
        (repeats.values, cand.points[name].figures[key].values)
        for name, point in base.points.items()
        for key, repeats in point.figures.items()
        if name in cand.points and key in cand.points[name].figures and METRICS[key].unit in ("s", "tok/s")
    ]
    return bool(pairs) and all(
        len(mine) == len(others) and all(abs(a - b) <= 2e-5 * abs(a) for a, b in zip(mine, others, strict=True))
        for mine, others in pairs
    )


def _placeless(value: Any) -> Any:
    """Without the places of files that are known by their content."""
    if isinstance(value, dict):
        known = value.get("sha256") is not None
        return {key: _placeless(inner) for key, inner in value.items() if not (known and key == "file")}
    return value


def _machines(base: Side, cand: Side) -> str:
    said = []
    for key, title in MACHINE_TITLES.items():
        before, after = base.machine.get(key), cand.machine.get(key)
        if before != after:
            texts = [show(v, "bytes") if key.endswith("_bytes") and v else _short(v) for v in (before, after)]
            said.append(f"{title} {texts[0]} and {texts[1]}")
    return "; ".join(said) or "one of them does not say on which"


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = ", ".join(str(item.get("name") or item) for item in value)
    text = "not stated" if value in (None, "", []) else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
