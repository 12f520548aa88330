"""Scenario files that ship with the tool; `bench run quickstart` finds them by name."""

from importlib.resources import files
from pathlib import Path


def shipped() -> dict[str, Path]:
    """The scenario files in this package by name (without `.yaml`), sorted."""
    folder = Path(str(files(__package__)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
