"""`matrix:` of a scenario: every engine once for each combination of values. Pure; on the plain data of the file."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

NAME_MAX = 64


def expanded(engines: list[Any], matrix: dict[str, list[Any]]) -> list[Any]:
    """The engines of all combinations, in the order of the keys, the last one changing fastest.

    A key is a path into an engine (`model`, `quantization`, `args.max_num_seqs`); what the engine says there itself is
    replaced. Each is named after its values: `fast-fp8-16`.

    Raises:
        ValueError: a key without values, or one that leads into what is no mapping.
    """
    if empty := [key for key, values in matrix.items() if not isinstance(values, list) or not values]:
        raise ValueError(f"matrix: `{empty[0]}` wants a list of values")
    found = []
    for engine in engines:
        for values in itertools.product(*matrix.values()):
            made = copy.deepcopy(engine)
            for key, value in zip(matrix, values, strict=True):
                _set(made, key.split("."), value)
            made["name"] = "-".join([str(made.get("name", "engine")), *map(_word, values)])[:NAME_MAX]
            found.append(made)
    return found


def _set(engine: dict[str, Any], path: list[str], value: Any) -> None:
    node = engine
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ValueError(f"matrix: `{'.'.join(path)}` leads through `{part}`, which is no mapping")
    node[path[-1]] = value


def _word(value: Any) -> str:
    """A value as a part of a name: `org/Model-8B` is `Model-8B`."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(value).rpartition("/")[2]).strip("-") or "none"
