"""A stored baseline: one engine's figures of one or more sessions, as a small JSON file for the user's repository.

One line a metric, so that a review sees what changed. The newest session is what a candidate is compared with; the
earlier ones say how much sessions differ when nothing has changed. `schema_version` is raised when a key changes its
meaning; older files are read for good.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.metrics import METRICS
from reports.effects import Repeats
from reports.likeness import unlike
from reports.sides import Side, SidePoint

BASELINE_VERSION = 1
KIND = "enginebench-baseline"
FOLDER = Path("baselines")
MOST_SESSIONS = 20  # older ones say little of the machine as it is
DIGITS = 6
KEYS = [
    key for key, metric in METRICS.items()
    if (metric.better is not None or key == "output_tokens_mean") and not key.startswith(("ttft_sent", "ttft_due"))
]  # fmt: skip
ABOUT = (
    "source", "engine", "kind", "model", "version", "simulated", "started_at", "tool_version", "scenario_hash",
    "fingerprint", "machine", "workload", "slo",
)  # fmt: skip


def path_of(name: str, folder: Path) -> Path:
    """Where the baseline of that name is kept; a path to a JSON file is itself.

    Raises:
        InputError: the name would lead out of the folder.
    """
    if name.endswith(".json"):
        return Path(name)
    if not name or name.startswith(".") or any(mark in name for mark in "/\\\0"):
        raise InputError(f"not a name for a baseline: {name!r}", "letters, digits, dots and dashes")
    return folder / f"{name}.json"


def save(path: Path, side: Side, fresh: bool = False) -> int:
    """Add a session to a baseline, or begin it (`fresh`: anew); the number of sessions it holds now.

    Raises:
        InputError: the session has no figures, is of another engine, machine or load, or is there already.
    """
    if not any(point.figures for point in side.points.values()):
        raise InputError(f"{side.source}: {side.engine} has no figures", "save a run that was measured")
    sessions = [] if fresh or not path.exists() else load(path)
    if sessions:
        if any(old.started_at == side.started_at for old in sessions):
            raise InputError(f"{path} holds this run already", "save another run of the same engine")
        if reasons := unlike(sessions[-1], side):
            raise InputError(
                f"{path}: the new session is not like the last: {reasons[0]}", "use another name, or --new"
            )
    sessions = [*sessions, side][-MOST_SESSIONS:]
    _write(path, sessions)
    return len(sessions)


def load(path: Path) -> list[Side]:
    """The sessions of a baseline, the newest last.

    Raises:
        InputError: the file is none, is damaged, or is of a newer format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("kind") != KIND:
            raise InputError(f"{path} is no baseline", "make one with: bench baseline save NAME RUN")
        if int(data["schema_version"]) > BASELINE_VERSION:
            raise InputError(
                f"{path} has format {data['schema_version']}; this enginebench reads up to {BASELINE_VERSION}",
                "upgrade it: pip install -U enginebench",
            )
        sessions = [_session(item) for item in data["sessions"]]
    except FileNotFoundError:
        raise InputError(f"{path}: no such baseline", "`bench baseline list` shows those there are") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}", "restore it from the repository's history") from None
    if not sessions:
        raise InputError(f"{path} holds no session", "make it anew with: bench baseline save NAME RUN --new")
    return sessions


def as_side(path: Path) -> Side:
    """The newest session, which knows how far earlier ones of the same machine and load were from each other."""
    *earlier, last = load(path)
    alike = [old for old in earlier if not unlike(old, last)]
    history = [_means(session) for session in [*alike, last]]
    return replace(last, source=str(path), history=history if alike else [])


def _means(side: Side) -> dict[tuple[str, str], float]:
    return {
        (name, key): sum(repeats.values) / len(repeats)
        for name, point in side.points.items()
        for key, repeats in point.figures.items()
    }


def _write(path: Path, sessions: list[Side]) -> None:
    lines = [f'{{"kind": "{KIND}", "schema_version": {BASELINE_VERSION}, "sessions": [']
    for number, side in enumerate(sessions):
        about = {key: getattr(side, key) for key in ABOUT}
        lines.append(" {" + ", ".join(f'"{key}": {_json(value)}' for key, value in about.items()) + ",")
        lines.append('  "points": {')
        points = [_point_text(name, point) for name, point in side.points.items()]
        lines.append(",\n".join(points))
        lines.append("  }}" + ("," if number < len(sessions) - 1 else ""))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text("\n".join([*lines, "]}"]) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "give another --dir") from None


def _point_text(name: str, point: SidePoint) -> str:
    counts = {"load": point.load, "counted": point.counted, "limited": point.limited, "failed": point.failed}
    rows = [
        f"    {_json(key)}: " + _json([_short(repeats.values), _short(repeats.errors)])
        for key, repeats in point.figures.items()
    ]
    at_s = max((repeats.at_s for repeats in point.figures.values()), key=len, default=[])
    head = ", ".join(f'"{key}": {_json(value)}' for key, value in counts.items())
    return (
        f'   {_json(name)}: {{{head}, "at_s": {_json([round(at, 1) for at in at_s])},\n    "figures": {{\n'
        + ",\n".join(rows) + "}}"
    )  # fmt: skip


def _short(values: list[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _session(data: dict[str, Any]) -> Side:
    """A session as the file has it; keys that this version does not know are passed over, missing ones are unknown."""
    points = {}
    for name, item in data["points"].items():
        at_s = [float(at) for at in item.get("at_s") or []]
        figures = {}
        for key, (values, errors) in item["figures"].items():
            if key in METRICS and len(at_s) >= len(values):
                figures[key] = Repeats([float(v) for v in values], at_s[: len(values)], [float(e) for e in errors])
        points[str(name)] = SidePoint(
            dict(item["load"]), int(item.get("counted", 0)), int(item.get("limited", 0)), int(item.get("failed", 0)),
            figures=figures,
        )  # fmt: skip
    return Side(
        source="", engine=str(data["engine"]), kind=str(data.get("kind", "")), model=str(data.get("model", "")),
        version=data.get("version"), simulated=bool(data.get("simulated")), started_at=str(data["started_at"]),
        tool_version=str(data.get("tool_version", "")), scenario_hash=str(data.get("scenario_hash", "")),
        fingerprint=data.get("fingerprint"), machine=dict(data.get("machine") or {}),
        workload=dict(data.get("workload") or {}), slo={k: float(v) for k, v in (data.get("slo") or {}).items()},
        points=points,
    )  # fmt: skip
