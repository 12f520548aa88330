"""The reading of the CSV tables in `sizing/data`: rows, blank cells, and names close to an unknown one."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path

DATA = Path(__file__).with_name("data")


def read_rows(file_name: str) -> list[dict[str, str]]:
    """The rows of one table; a blank cell is an empty string."""
    with (DATA / file_name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def to_float(text: str) -> float | None:
    """A cell as a number, None when blank. "16/32" is one row of two boards: the smaller, so that plans stay safe."""
    return float(text.split("/")[0]) if text else None


def to_int(text: str) -> int:
    """A cell as a whole number, 0 when blank."""
    return int(float(text)) if text else 0


def closest(name: str, known: list[str]) -> str:
    """A clause for an error message that names what is spelt like `name`."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=4, cutoff=0.4)
    return "close: " + ", ".join(by_lower[k] for k in close) if close else "nothing close is known"
