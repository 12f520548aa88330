"""A part of a scenario that names a file: found beside the scenario, and known by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from harness.datafiles import digest
from harness.parts import ExistingFile, Part


class FilePart(Part):
    """`file` is relative to the folder of the scenario; resolved it is absolute, with the home folder as `~`.

    `sha256` is filled in. Given in a scenario (or kept in a run that is gone on with), it must be that of the file.
    """

    file: ExistingFile | None = None
    sha256: str | None = Field(None, validate_default=True, pattern=r"^[0-9a-f]{64}$")

    def path(self) -> Path:
        """Where the file is."""
        return Path(self.file or "").expanduser()

    @field_validator("sha256")
    @classmethod
    def _of_this_content(cls, value: str | None, info: ValidationInfo) -> str | None:
        file = info.data.get("file")
        if file is None:
            return value
        try:
            found = digest(Path(file).expanduser())
        except OSError as error:
            raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
        if value not in (None, found):
            raise ValueError(f"{file} holds something else than was asked for: its SHA-256 is {found}")
        return found


def without_places(value: Any) -> Any:
    """A resolved scenario without the places of its files: what they hold counts, not where they lie."""
    if isinstance(value, dict):
        known = value.get("sha256") is not None
        return {key: without_places(inner) for key, inner in value.items() if not (known and key == "file")}
    return [without_places(inner) for inner in value] if isinstance(value, list) else value
