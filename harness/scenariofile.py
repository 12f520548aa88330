"""Reading a scenario file: every fault is one line that says where it is and what would be right."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.enginespec import EngineSpec, TransformersArgs
from harness.errors import InputError
from harness.lengths import DISTRIBUTIONS, PAUSES, TAGS
from harness.loads import LoadSpec
from harness.parts import Part, by_kind
from harness.scenario import Client, Gate, Scenario, Warmup
from harness.workloadspec import SYNTHETIC, WORKLOADS, Fields, Sampling, SharedPrefix
from harness.yamlfile import Place, YamlFile


def load_scenario(path: Path) -> Scenario:
    """Read and check a scenario file.

    Raises:
        InputError: one line for each fault, with file, line, path of the key and what would be right.
    """
    file = YamlFile(path)
    if not isinstance(file.data, dict):
        kind = "a list" if isinstance(file.data, list) else "one value"
        raise InputError(f"{path}:1: a scenario is a mapping of keys, not {kind}", "see `bench scenario new`")
    try:
        return Scenario.model_validate(file.data, context=path.parent)
    except ValidationError as error:
        faults = [_fault(file, fault) for fault in error.errors()]
        raise InputError(
            "\n".join(dict.fromkeys(faults)), "all keys: docs/scenario.md; in an editor: bench scenario schema"
        ) from None


def _fault(file: YamlFile, fault: Any) -> str:
    """One pydantic fault as `file:line: path: what is wrong`."""
    absent = fault["type"] in ("missing", "extra_forbidden")
    place, whole = _place(file.data, fault["loc"], absent)
    text = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    key = str(place[-1]) if place else ""
    if fault["type"] == "extra_forbidden":
        keys = _known_keys(file.data, place)
        close = difflib.get_close_matches(key, keys, n=1)
        text = f"unknown key '{key}'" + (
            f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(keys)}"
        )
    elif fault["type"] == "missing":
        text = f"the key '{key}' is missing"
    elif fault["type"].startswith("union_tag"):
        tags = (fault.get("ctx") or {}).get("expected_tags", "").split(", ")
        expected = ", ".join(tag for tag in tags if tag.strip("'") not in TAGS)
        text = f"unknown kind; one of {expected}" if "invalid" in fault["type"] else "the key 'kind' is missing"
    elif fault["type"] == "string_pattern_mismatch" and key == "name":
        text = f"only letters, digits, '.', '_' and '-', 64 at most (it names files), not {fault['input']!r}"
    elif fault["type"] not in ("value_error", "assertion_error"):
        text = f"{text[0].lower()}{text[1:]}" if whole else "nothing of this kind can stand here"
        shown = repr(fault["input"])
        text += f", not {shown if len(shown) <= 80 else shown[:77] + '...'}"
    where = ".".join(str(part) for part in place)
    return f"{file.path}:{file.line(place)}: {where + ': ' if where else ''}{text}"


def _place(data: Any, loc: Place, absent: bool) -> tuple[Place, bool]:
    """The path as the file has it, and whether that is all of `loc`: pydantic adds the tags of unions, which are no
    keys of the file, and the branches of those that have none. `absent`: the last part is in the file by its lack."""
    place: list[str | int] = []
    node, tags = data, 0
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        tag = part == node.get("kind", SYNTHETIC) and not last if isinstance(node, dict) else part in TAGS
        if tag:
            tags += 1
        elif part in (node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()):
            place.append(part)
            node = node[part]
        elif absent and last:
            place.append(part)
    return tuple(place), len(place) + tags == len(loc)


_PARTS: dict[str | int, type[Part]] = {
    "warmup": Warmup, "client": Client, "sampling": Sampling, "shared_prefix": SharedPrefix, "fields": Fields,
    "gate": Gate, "args": TransformersArgs,  # those of other engines may be anything
}  # fmt: skip
_KINDS: dict[str, dict[str, type[Part]]] = {
    "engines": by_kind(EngineSpec), "load": by_kind(LoadSpec),
    "workload": dict(WORKLOADS), "input_tokens": DISTRIBUTIONS, "output_tokens": DISTRIBUTIONS,
    "turns": DISTRIBUTIONS, "think_time": PAUSES,
}  # fmt: skip


def _known_keys(data: Any, place: Place) -> list[str]:
    """The keys that may stand where the last part of `place` stands."""
    table: type[Part] = Scenario
    node, kinds = data, None
    for part in place[:-1]:
        node = node[part]
        kinds = _KINDS.get(part, kinds) if isinstance(part, str) else kinds
        if part in _PARTS:
            table = _PARTS[part]
        elif kinds and isinstance(node, dict):
            table = kinds.get(node.get("kind", SYNTHETIC), table)
    return sorted(table.model_fields)
