"""How the client itself fared: a slow client reports slow servers, so every point says how far it can be believed."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

from harness.records import RequestRecord
from harness.scenario import Point
from harness.units import show

LAG_PERIOD_S = 0.01
EDGE_S = 0.01  # a request due at the very end of the window may be sent this long after it
LIMITS = {
    "loop_lag_p99_s": "the client's event loop ran late",
    "cpu_ratio": "the client's core was busy",
    "chunks_s": "more chunks a second than this machine's client takes, as `bench calibrate client` found",
    "send_delay_p99_s": "requests were sent late",
    "load_delivered_ratio": "the asked load was not reached",
}

KINDS = {"loop_lag_p99_s": "p99 ", "send_delay_p99_s": "p99 "}


class Histogram:
    """Times in bins of 2 %, from a microsecond on: of any number of them, in the same memory."""

    STEP = math.log(1.02)

    def __init__(self) -> None:
        self.bins: Counter[int] = Counter()
        self.max_s = 0.0

    def add(self, value_s: float) -> None:
        self.bins[max(0, math.ceil(math.log(value_s / 1e-6) / self.STEP)) if value_s > 1e-6 else 0] += 1
        self.max_s = max(self.max_s, value_s)

    def merge(self, other: Histogram) -> None:
        self.bins.update(other.bins)
        self.max_s = max(self.max_s, other.max_s)

    def quantile(self, q: float) -> float | None:
        """The nearest-rank quantile, up to 2 % too high; None of nothing."""
        rank, seen = max(1, math.ceil(q * self.bins.total())), 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= rank:
                return min(self.max_s, 1e-6 * math.exp(index * self.STEP)) if index else min(self.max_s, 1e-6)
        return None


@dataclass(slots=True)
class Fared:
    """How one load process fared in one job, as counts that those of others can be added to.

    `held_s` is the time that its streams were occupied inside the window, added over streams; `ended` and `served`
    count the requests that ended inside it, and ended well; `measured_s` sums how long measured ones took. Of all reads
    (`received`), `stamped` came with the kernel's time of arrival.
    """

    lags: Histogram = field(default_factory=Histogram)
    delays: Histogram = field(default_factory=Histogram)
    cpu_ratio: float | None = None
    held_s: float = 0.0
    chunks: int = 0
    reads: int = 0
    ended: int = 0
    served: int = 0
    measured: int = 0
    measured_s: float = 0.0
    longest_s: float = 0.0
    sent_in_time: int = 0
    received: int = 0
    stamped: int = 0
    workers: int = 1

    def merge(self, other: Fared) -> None:
        self.lags.merge(other.lags)
        self.delays.merge(other.delays)
        self.cpu_ratio = max(self.cpu_ratio or 0.0, other.cpu_ratio or 0.0)
        self.longest_s = max(self.longest_s, other.longest_s)
        for name in (
            "held_s", "chunks", "reads", "ended", "served", "measured", "measured_s", "sent_in_time", "received",
            "stamped", "workers",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def figures(self, point: Point, window_s: float) -> dict[str, float | None]:
        """The figures of the job; the ones about load are of the window, whose length is 0 if it never was.

        `little_ratio` is throughput over concurrency / mean latency: no closed loop can have more than 1, apart from
        the one request a stream that the window's edge may cut in two.
        """
        held = self.held_s / window_s if window_s > 0 else None
        delivered = little = None
        if point.concurrency is None:  # against what fell due, not against the rate: arrivals are random
            delivered = self.sent_in_time / self.measured if self.measured and window_s > 0 else None
        elif held is not None:
            delivered = held / point.concurrency
            if self.measured:
                little = self.ended / window_s * (self.measured_s / self.measured) / point.concurrency
        return {
            "loop_lag_p50_s": self.lags.quantile(0.5),
            "loop_lag_p99_s": self.lags.quantile(0.99),
            "loop_lag_max_s": self.lags.max_s if self.lags.bins else None,
            "cpu_ratio": self.cpu_ratio,
            "send_delay_p50_s": self.delays.quantile(0.5),
            "send_delay_p99_s": self.delays.quantile(0.99),
            "chunks_s": self.chunks / window_s if window_s > 0 else None,
            "chunks_per_read": self.chunks / self.reads if self.reads else None,
            "kernel_stamped_ratio": self.stamped / self.received if self.received else None,
            "in_flight_mean": held,
            "served_ratio": self.served / self.measured if self.measured and window_s > 0 else None,
            "load_delivered_ratio": delivered,
            "little_ratio": little,
            "little_limit": 1.02 + self.longest_s / window_s if little is not None else None,
            "workers": float(self.workers),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }


class Health:
    """Measures one job of one load process: loop lag, CPU, send delay, delivered load, chunks a read."""

    def __init__(self) -> None:
        self.fared = Fared()
        self._occupied = 0
        self._changed_s = 0.0
        self._open_s: float | None = None
        self._close_s: float | None = None
        self._cpu_s = self._wall_s = 0.0
        self._stopped = False

    async def watch(self) -> None:
        """Ask for the loop every 10 ms, and note how late it comes.

        A stall is noted for each time it would have been asked meanwhile: else one of seconds is one sample of many.
        """
        self._cpu_s, self._wall_s = time.process_time(), monotonic()
        while not self._stopped:
            asked = monotonic() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            if self._stopped:
                return
            late_s = monotonic() - asked
            self.fared.lags.add(max(0.0, late_s))
            while (late_s := late_s - LAG_PERIOD_S) > 0:
                self.fared.lags.add(late_s)

    def window(self, open_s: float | None, close_s: float | None) -> None:
        """The window, as far as it is known. Told before anything that `occupy` or `ended` is to know of it."""
        if open_s is not None and self._open_s is None:
            self._changed_s = max(self._changed_s, open_s)
            self.fared.lags = Histogram()  # how late it was while it connected distorts nothing
            self._cpu_s, self._wall_s = time.process_time(), monotonic()
        self._open_s, self._close_s = open_s, close_s

    def occupy(self, now_s: float, change: int) -> None:
        """A stream becomes occupied (+1) or free (-1); times from the run's start."""
        if self._open_s is not None:
            until_s = min(now_s, self._close_s) if self._close_s is not None else now_s
            if until_s > self._changed_s:
                self.fared.held_s += self._occupied * (until_s - self._changed_s)
                self._changed_s = until_s
        self._occupied += change

    def add(self, record: RequestRecord, reads: int) -> None:
        """Note a finished request. `reads`: the socket reads that its answer took."""
        if record.sent_s is None:
            return
        fared, open_s, close_s = self.fared, self._open_s, self._close_s
        end_s = record.end_s if record.end_s is not None else record.sent_s
        if open_s is not None and end_s >= open_s and (close_s is None or end_s < close_s):
            fared.ended += 1
            fared.served += record.status == "ok"
        if record.phase == "measure":
            fared.measured += 1
            fared.measured_s += end_s - record.sent_s
            fared.longest_s = max(fared.longest_s, end_s - record.sent_s)
            fared.sent_in_time += close_s is None or record.sent_s < close_s + EDGE_S
            fared.delays.add(record.sent_s - record.scheduled_s)
            if record.status == "ok":
                fared.chunks += record.chunks
                fared.reads += reads

    def result(self, now_s: float) -> Fared:
        """What has been noted until now."""
        self.occupy(now_s, 0)
        return self.fared

    def stop(self) -> None:
        """The last measured request has ended: what comes now (cancelling a thousand streams) distorts nothing."""
        if not self._stopped:
            self._stopped = True
            wall_s = monotonic() - self._wall_s
            self.fared.cpu_ratio = (time.process_time() - self._cpu_s) / wall_s if wall_s > 0 else None


def verdict(
    point: Point, client: dict[str, float | None], ttft_p50_s: float | None, chunks_max_s: float | None = None
) -> list[str]:
    """Why this point says more of the client than of the server; empty if it can be believed.

    Lateness counts against what it distorts: a tenth of the median TTFT in one of a hundred cases, at least 10 ms and
    at most 50 ms (the TTFT itself is measured by this client). A burst does not hold its load by design.
    `chunks_max_s`: what one load process can take on this machine, where that was calibrated.
    """
    late_s = min(max(0.01, 0.1 * (ttft_p50_s or 0.0)), 0.05)
    bounds: dict[str, tuple[float, bool]] = {
        "loop_lag_p99_s": (late_s, True),
        "cpu_ratio": (0.95, True),
        "send_delay_p99_s": (late_s, True),
        "load_delivered_ratio": (0.95, False),
    }
    if chunks_max_s is not None:
        bounds["chunks_s"] = (chunks_max_s * (client.get("workers") or 1.0), True)
    reasons = []
    for key, (bound, above) in bounds.items():
        value = client.get(key)
        if value is None or (key == "load_delivered_ratio" and point.start == "burst"):
            continue
        if (value > bound) if above else (value < bound):
            unit = "s" if key.endswith("_s") and key != "chunks_s" else "ratio" if key.endswith("_ratio") else "1/s"
            reasons.append(f"{LIMITS[key]} ({KINDS.get(key, '')}{show(value, unit)}, limit {show(bound, unit)})")
    return reasons
