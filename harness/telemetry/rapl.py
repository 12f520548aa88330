"""Energy of the processors (and their memory, where told) by Intel's RAPL counters, which AMD's processors have too.

Linux shows them under /sys/class/powercap, since 2020 to root alone. A counter starts again from 0 at
`max_energy_range_uj`, after some minutes of full load. Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")
PERIOD_S: Final = 1.0


class RaplSource:
    """One zone, such as `rapl:package-0`: `energy_j` (counter, from an arbitrary start, never going back) and `power_w`
    since the last read."""

    period_s = PERIOD_S

    def __init__(self, zone: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = f"rapl:{name}"
        self._file, self._clock = zone / "energy_uj", clock
        self._range_uj = _number(zone / "max_energy_range_uj") or 2**32
        self._turns = 0
        self._before: tuple[float, int] | None = None

    def read(self) -> dict[str, float]:
        """The first read gives no power. Raises OSError: the counter is gone, or may not be read any more."""
        now_s, count_uj = self._clock(), int(self._file.read_text())
        before, self._before = self._before, (now_s, count_uj)
        self._turns += before is not None and count_uj < before[1]
        values = {"energy_j": (count_uj + self._turns * self._range_uj) / 1e6}
        if before is not None and now_s > before[0]:
            grown_uj = (count_uj - before[1]) % self._range_uj
            values["power_w"] = grown_uj / 1e6 / (now_s - before[0])
        return values


def rapl_sources(powercap: Path = POWERCAP) -> tuple[list[RaplSource], str | None]:
    """A source for each package and its memory, and the reason where there is none."""
    zones = sorted(powercap.glob("intel-rapl:*"))
    named = [(zone, (zone / "name").read_text().strip()) for zone in zones if (zone / "name").is_file()]
    wanted = [(zone, _plain(zone, name)) for zone, name in named if name.startswith("package") or name == "dram"]
    if not wanted:
        return [], "this machine shows no RAPL counters (/sys/class/powercap)"
    try:
        for zone, _ in wanted:
            int((zone / "energy_uj").read_text())
    except OSError:
        return [], "the RAPL counters may be read by root alone (/sys/class/powercap)"
    except ValueError:
        return [], "the RAPL counters cannot be read (/sys/class/powercap)"
    return [RaplSource(zone, name) for zone, name in wanted], None


def _plain(zone: Path, name: str) -> str:
    """`dram` of package 0 is `dram-0`: two sockets have one each."""
    return name if name != "dram" else f"dram-{zone.name.split(':')[1]}"


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
