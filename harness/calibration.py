"""What the load generator can take on this machine: found by driving the reference server, kept, and used by runs.

No reported latency is ever corrected by it: a point beyond the ceiling is marked `client-limited`, that is all.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import environment
from harness.home import data_folder

FILE = "client.json"
ERROR_MAX = 0.05  # of the mean TTFT: up to here a level counts
LATE_MAX_S = 0.0025  # where both are off, a server later than this in one of a hundred chunks was the first
BEATEN_S = 0.01  # a server as late as this cannot make more load
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Level:
    """One load on the reference server. Errors are what the client reported over what the server stamped, minus 1."""

    streams: int
    chunks_s: float
    ttft_mean_s: float | None
    server_ttft_mean_s: float | None
    ttft_error: float | None
    tpot_error: float | None
    cpu_ratio: float | None
    loop_lag_p99_s: float | None
    server_cpu_ratio: float | None
    server_late_p99_s: float | None

    @property
    def good(self) -> bool:
        """Whether the client took this much: errors count from what the server did, not from what it should have."""
        return self.ttft_error is not None and abs(self.ttft_error) <= ERROR_MAX

    @property
    def server_late(self) -> bool:
        return self.server_late_p99_s is None or self.server_late_p99_s > LATE_MAX_S

    @property
    def server_beaten(self) -> bool:
        return self.server_late_p99_s is None or self.server_late_p99_s > BEATEN_S


@dataclass(frozen=True, slots=True)
class Calibration:
    """The levels of one calibration, and what they come to.

    `ceiling_chunks_s` is the most that one load process took with a mean TTFT within 5 %; None if no level was good.
    `first` says which side gave in above it: only where it was the client is the ceiling a limit.
    """

    at: str
    fingerprint: str
    tool_version: str
    levels: list[Level]
    ceiling_chunks_s: float | None
    first: Literal["client", "server", "neither"]
    schema_version: int = SCHEMA_VERSION

    @property
    def limit_chunks_s(self) -> float | None:
        """Chunks a second of one load process beyond which a point is client-limited."""
        return self.ceiling_chunks_s if self.first == "client" else None


def conclude(levels: list[Level], at: str, fingerprint: str, tool_version: str) -> Calibration:
    """The ceiling, and which side saturated first above it."""
    best = max((level for level in levels if level.good), key=lambda level: level.chunks_s, default=None)
    ceiling = best.chunks_s if best else None
    beyond = [level for level in levels if level.streams > (best.streams if best else 0)]
    first: Literal["client", "server", "neither"] = "neither"
    if beyond:
        first = "server" if beyond[0].server_late else "client"
    elif levels and levels[-1].server_beaten:
        first = "server"
    return Calibration(at, fingerprint, tool_version, levels, ceiling, first)


def store(calibration: Calibration, folder: Path | None = None) -> Path:
    """Keep it in place of an earlier one; where it lies.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = (folder or data_folder()) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(calibration), indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def load(env: dict[str, Any], folder: Path | None = None) -> tuple[Calibration | None, str | None]:
    """The calibration of the machine that `env` describes; None with the reason where there is none."""
    path = (folder or data_folder()) / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema_version"] > SCHEMA_VERSION:
            return None, f"{FILE} is of a newer version of this tool"
        names = {field.name for field in dataclasses.fields(Level)}
        data["levels"] = [Level(**{k: v for k, v in level.items() if k in names}) for level in data["levels"]]
        known = {field.name for field in dataclasses.fields(Calibration)}
        found = Calibration(**{key: value for key, value in data.items() if key in known})
    except FileNotFoundError:
        return None, "the client was not calibrated on this machine"
    except (OSError, ValueError, KeyError, TypeError):
        return None, f"{FILE} cannot be read"
    if found.fingerprint != environment.fingerprint(env):
        return None, "the client was calibrated on another machine"
    return found, None
