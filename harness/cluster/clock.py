"""What another host's monotonic clock says against ours, with bounds that hold whatever the network does. Pure.

Its stamp was taken after our question left and before its answer came: so its offset lies between stamp - back and
stamp - sent, however uneven the two ways are. Each such interval holds at its own moment; at another one it is wider by
what two clocks can part in between. All of them hold at once, so the truth is in what they share: short exchanges, and
those that were short one way only, narrow it from both sides.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

DRIFT = 100e-6
"""Seconds a second by which two hosts' clocks part at most: crystals keep within 50 ppm, NTP slews them together."""
KEPT = 2000


@dataclass(frozen=True, slots=True)
class Ping:
    """One exchange: sent and answered on our clock, stamped in between on theirs. Seconds."""

    sent_s: float
    stamp_s: float
    back_s: float


@dataclass(frozen=True, slots=True)
class Offset:
    """Their clock less ours, in seconds, and how far that can be off."""

    offset_s: float
    error_s: float


class Clock:
    """All pings of one host, and what follows from them."""

    def __init__(self, drift: float = DRIFT) -> None:
        self.drift = drift
        self.pings: deque[Ping] = deque(maxlen=KEPT)

    def add(self, sent_s: float, stamp_s: float, back_s: float) -> None:
        self.pings.append(Ping(sent_s, stamp_s, back_s))

    @property
    def round_trip_s(self) -> float | None:
        """The shortest exchange."""
        return min((ping.back_s - ping.sent_s for ping in self.pings), default=None)

    def bounds(self, at_s: float) -> tuple[float, float] | None:
        """Lowest and highest offset that all pings allow at a moment of our clock; None without any.

        The lower is above the higher where they contradict each other: a clock was set, or a host slept.
        """
        if not self.pings:
            return None
        low, high = -float("inf"), float("inf")
        for ping in self.pings:
            parted_s = self.drift * max(abs(at_s - ping.sent_s), abs(at_s - ping.back_s))
            low = max(low, ping.stamp_s - ping.back_s - parted_s)
            high = min(high, ping.stamp_s - ping.sent_s + parted_s)
        return low, high

    def at(self, at_s: float) -> Offset | None:
        """The offset at a moment of our clock. None: no ping, or pings that contradict each other."""
        bounds = self.bounds(at_s)
        if bounds is None or bounds[0] > bounds[1]:
            return None
        return Offset((bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2)

    def error_of(self, used_s: float, from_s: float, to_s: float) -> float | None:
        """How far an offset that was used from one moment to another can have been off, by all that is known now."""
        worst = 0.0
        for step in range(5):
            bounds = self.bounds(from_s + (to_s - from_s) * step / 4)
            if bounds is None or bounds[0] > bounds[1]:
                return None
            worst = max(worst, used_s - bounds[0], bounds[1] - used_s)
        return worst + self.drift * (to_s - from_s) / 8  # between two of the five moments
