"""Where the tool keeps what it learned about this machine, apart from any run."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """`$ENGINEBENCH_HOME`, else the platform's folder for a program's data. It is not made here."""
    if home := os.environ.get("ENGINEBENCH_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/enginebench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "enginebench"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "enginebench"
