"""Keys and home paths taken out of what a report shows, should a run folder hold any (written by hand, or by others).

`bench run` keeps them out of the folder itself; this is the second lock on the same door.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

HOMES = re.compile(r"(?:/(?:home|Users)/[^/\s\"'<>:,;)\]}]+|(?<![\w/.-])/root(?=/|\b)|[A-Z]:\\Users\\[^\\\s\"'<>]+)")
KEYS = re.compile(
    r"\b(?:sk|pk|hf|ghp|gho|ghs|github_pat|glpat|xox[abp]|nvapi)[-_][A-Za-z0-9_-]{12,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"
)
BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
NAMES = {"engine", "point", "name"}  # by these, records are found


def hidden(text: str) -> str:
    """The text with `~` for homes and `***` for what looks like a key."""
    return BEARER.sub(r"\1 ***", KEYS.sub("***", HOMES.sub("~", text)))


def hide(value: Any) -> Any:
    """The same of everything inside dataclasses, lists and mappings; names stay as they are."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, dict):
        return {key: inner if key in NAMES else hide(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hide(inner) for inner in value]
    if is_dataclass(value) and not isinstance(value, type):
        kept = [field.name for field in fields(value) if field.name not in NAMES]
        return replace(value, **{name: hide(getattr(value, name)) for name in kept})
    return value
