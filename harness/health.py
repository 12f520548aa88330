"""How the client itself fared: a slow client reports slow servers, so every point says how far it can be believed."""

from __future__ import annotations

import asyncio
import math
import os
import time
from array import array
from collections.abc import Sequence
from time import monotonic

from harness.records import RequestRecord
from harness.scenario import Point

LAG_PERIOD_S = 0.01
EDGE_S = 0.01  # a request due at the very end of the window may be sent this long after it
LIMITS = {
    "loop_lag_p99_s": "the client's event loop ran late",
    "cpu_ratio": "the client's core was busy",
    "send_delay_p99_s": "requests were sent late",
    "load_delivered_ratio": "the asked load was not reached",
}


class Health:
    """Measures one job of one worker: loop lag, CPU, send delay, delivered load, chunks a read."""

    def __init__(self) -> None:
        self._lags = array("d")
        self._sent, self._ended, self._served = array("d"), array("d"), array("d")
        self._delays = array("d")
        self._measured = array("d")
        self._chunks = self._reads = 0
        self._cpu_s = self._wall_s = 0.0

    async def watch(self) -> None:
        """Ask for the loop every 10 ms, for ever, and note how late it comes.

        A stall is noted for each time it would have been asked meanwhile: else one of seconds is one sample of many.
        """
        self._cpu_s, self._wall_s = time.process_time(), monotonic()
        while True:
            asked = monotonic() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            late_s = monotonic() - asked
            self._lags.append(max(0.0, late_s))
            while (late_s := late_s - LAG_PERIOD_S) > 0:
                self._lags.append(late_s)

    def add(self, record: RequestRecord, reads: int) -> None:
        """Note a finished request. `reads`: the socket reads that its answer took."""
        if record.sent_s is None:
            return
        self._sent.append(record.sent_s)
        self._ended.append(record.end_s if record.end_s is not None else record.sent_s)
        if record.status == "ok":
            self._served.append(self._ended[-1])
        if record.phase == "measure":
            self._measured.append(record.sent_s)
            self._delays.append(record.sent_s - record.scheduled_s)
            if record.status == "ok":
                self._chunks += record.chunks
                self._reads += reads

    def figures(self, point: Point, open_s: float | None, close_s: float | None) -> dict[str, float | None]:
        """The figures of the job; the ones about load are of the window."""
        wall_s = monotonic() - self._wall_s
        window_s = close_s - open_s if open_s is not None and close_s is not None else 0.0
        held = got = wanted = None
        if window_s > 0 and open_s is not None and close_s is not None:
            pairs = zip(self._sent, self._ended, strict=True)
            held = sum(max(0.0, min(end, close_s) - max(sent, open_s)) for sent, end in pairs) / window_s
            got, wanted = held, float(point.concurrency or 0)
            if point.concurrency is None:  # against what fell due, not against the rate: arrivals are random
                got, wanted = float(sum(at < close_s + EDGE_S for at in self._measured)), float(len(self._measured))
        return {
            "loop_lag_p50_s": quantile(self._lags, 0.5),
            "loop_lag_p99_s": quantile(self._lags, 0.99),
            "loop_lag_max_s": max(self._lags, default=None),
            "cpu_ratio": (time.process_time() - self._cpu_s) / wall_s if wall_s > 0 else None,
            "send_delay_p50_s": quantile(self._delays, 0.5),
            "send_delay_p99_s": quantile(self._delays, 0.99),
            "chunks_per_read": self._chunks / self._reads if self._reads else None,
            "in_flight_mean": held,
            "served_ratio": self._served_ratio(open_s, close_s),
            "load_delivered_ratio": got / wanted if got is not None and wanted else None,
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }

    def _served_ratio(self, open_s: float | None, close_s: float | None) -> float | None:
        """Requests that ended well inside the window, over those that were sent to be measured."""
        if open_s is None or close_s is None or not self._measured:
            return None
        return sum(open_s <= end < close_s for end in self._served) / len(self._measured)


def verdict(point: Point, client: dict[str, float | None], ttft_p50_s: float | None) -> list[str]:
    """Why this point says more of the client than of the server; empty if it can be believed.

    Lateness counts against what it distorts: a tenth of the median TTFT in one of a hundred cases, at least 10 ms and
    at most 50 ms (the TTFT itself is measured by this client). A burst does not hold its load by design.
    """
    late_s = min(max(0.01, 0.1 * (ttft_p50_s or 0.0)), 0.05)
    bounds: dict[str, tuple[float, bool]] = {
        "loop_lag_p99_s": (late_s, True),
        "cpu_ratio": (0.95, True),
        "send_delay_p99_s": (late_s, True),
        "load_delivered_ratio": (0.95, False),
    }
    reasons = []
    for key, (bound, above) in bounds.items():
        value = client.get(key)
        if value is None or (key == "load_delivered_ratio" and point.start == "burst"):
            continue
        if (value > bound) if above else (value < bound):
            reasons.append(f"{LIMITS[key]} ({key} {value:.3g}, limit {bound:.3g})")
    return reasons


def quantile(values: Sequence[float], q: float) -> float | None:
    """The nearest-rank quantile; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
