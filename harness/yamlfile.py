"""Strict YAML with places: what a user wrote, and on which line each part of it stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError

Place = tuple[str | int, ...]


class YamlFile:
    """A parsed file. `data` holds plain Python values, `line(path)` the line (from 1) of a part of it.

    Raises:
        InputError: the file cannot be read, is no YAML, or says the same key twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Place, int] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file", "check the path; `bench scenario new` writes one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: Any = {} if node is None else self._value(node, ())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{path}:{mark.line + 1}" if mark else str(path)
            raise InputError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from None

    def line(self, place: Place) -> int:
        """The line of the part at `place`, or of the nearest part around it."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*place, i)) for i, child in enumerate(node.value)]
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(
                f"{self.path}:{node.start_mark.line + 1}: {'.'.join(map(str, place))}: not a finite number"
            )
        return value

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*place, key)
            if key in result:
                raise InputError(f"{self.path}:{key_node.start_mark.line + 1}: the key '{key}' is there twice")
            self._lines[here] = key_node.start_mark.line + 1
            result[key] = self._value(value_node, here)
        return result
