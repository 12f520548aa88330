"""Strict YAML with places: what a user wrote, and on which line each part of it stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from harness.errors import InputError

Place = tuple[str | int, ...]
MAX_DEPTH = 50
MAX_PARTS = 50_000  # an alias counts each time it is used: a few lines of them can stand for billions of parts


class YamlFile:
    """A parsed file. `data` holds plain Python values, `line(path)` the line (from 1) of a part of it.

    Only text, numbers, true, false and null: a date and `12:30` (a number to YAML 1.1) stay the text they are.

    Raises:
        InputError: the file cannot be read, is no YAML, says the same key twice, or nests without end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Place, int] = {}
        self._parts = 0
        self._scalars = yaml.SafeLoader("")
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file", "check the path; `bench scenario new` writes one") from None
        except IsADirectoryError:
            raise InputError(f"{path} is a folder", "name a scenario file in it") from None
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise InputError(f"{path}: cannot be read: {said}", "a scenario is a text file in UTF-8") from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: Any = {} if node is None else self._value(node, ())
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            character = f"the character #x{ord(text[error.position]):04x} is not allowed"
            raise _no_yaml(f"{path}:{line}", character, "take it out") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{path}:{mark.line + 1}" if mark else str(path)
            raise _no_yaml(place, getattr(error, "problem", error)) from None
        except RecursionError:  # in PyYAML itself, before any part is looked at
            raise _no_yaml(f"{path}:1", "nested too deeply", "a scenario has few levels") from None

    def line(self, place: Place) -> int:
        """The line of the part at `place`, or of the nearest part around it."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def _fault(self, node: yaml.Node, place: Place, text: str) -> InputError:
        where = ".".join(map(str, place))
        return InputError(f"{self.path}:{node.start_mark.line + 1}: {where + ': ' if where else ''}{text}")

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        self._parts += 1
        if len(place) > MAX_DEPTH or self._parts > MAX_PARTS:
            raise self._fault(node, place[:3], "nested too deeply, or too many parts (an alias of an alias?)")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*place, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, place)

    def _scalar(self, node: yaml.Node, place: Place) -> str | int | float | bool | None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "timestamp" or (kind in ("int", "float") and ":" in node.value):
            return str(node.value)
        try:
            value: Any = self._scalars.construct_object(node, deep=True)
        except ValueError as error:  # a number of thousands of digits
            raise self._fault(node, place, str(error).partition(";")[0]) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._fault(node, place, "not a finite number")
        if value is not None and not isinstance(value, str | int | float | bool):
            raise self._fault(node, place, f"{node.tag} is not allowed: write text, a number, true or false")
        return value

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._fault(key_node, place, "a key must be plain text")
            key = str(key_node.value)
            here = (*place, key)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._fault(key_node, here, "merge keys are not supported: write the keys out")
            if key in result:
                raise self._fault(key_node, here, f"the key '{key}' is there twice")
            self._lines[here] = key_node.start_mark.line + 1
            result[key] = self._value(value_node, here)
        return result


def _no_yaml(
    place: str, why: object, remedy: str = "look there and at the line before: an indent, a bracket, a quote"
) -> InputError:
    if "'\\t'" in str(why):
        remedy = "indent with spaces: YAML takes no tabs there"
    return InputError(f"{place}: not valid YAML: {why}", remedy)
