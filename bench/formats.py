"""How commands print."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """How to print: for people, or for programs."""

    table = "table"
    json = "json"


class Text(StrEnum):
    """How a scenario is shown: what it would do, or all of it."""

    text = "text"
    json = "json"


class Export(StrEnum):
    """Files for other tools: the figures, or the plots."""

    csv = "csv"
    json = "json"
    parquet = "parquet"
    png = "png"
    svg = "svg"
