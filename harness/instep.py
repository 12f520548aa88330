"""Whether the requests of a closed loop fell into step.

Requests of equal length that are answered together end together, and their successors are sent together: each then
waits for the prompts of all others, and TTFT is that of a burst, however the streams were started. Lengths that vary
keep streams apart.
"""

from __future__ import annotations

import numpy as np

from harness.series import Floats

STREAMS_MIN = 8
PARTS = 20  # of the mean latency, in which requests are counted
PAUSE_PERIODS = 2.0  # a longer pause, in mean latencies, parts two repeats


def in_step(sent_s: Floats, latency_s: float, concurrency: int) -> float | None:
    """0 where the sendings are as even as chance or evener, 1 where all streams send at once; None where it cannot be
    said: few streams, or a short window.

    It is (D - 1) / (concurrency - 1), within 0 and 1, with D the index of dispersion (variance over mean) of the
    numbers of requests sent in each twentieth of the mean latency: 1 for arrivals by chance, `concurrency` where all
    are in step. `sent_s`: sendings in seconds, of one repeat or several, which a long pause parts.
    """
    if concurrency < STREAMS_MIN or len(sent_s) < concurrency or not latency_s > 0:
        return None
    ordered = np.sort(sent_s)
    spells = np.split(ordered, np.flatnonzero(np.diff(ordered) > PAUSE_PERIODS * latency_s) + 1)
    counts = [_counts(spell, latency_s / PARTS) for spell in spells if spell[-1] - spell[0] >= latency_s]
    if sum(map(len, counts)) <= PARTS:
        return None
    pooled = np.concatenate(counts)
    dispersion = float(pooled.var() / pooled.mean())
    return min(1.0, max(0.0, (dispersion - 1) / (concurrency - 1)))


def _counts(sent_s: Floats, part_s: float) -> Floats:
    bins = int(np.ceil((sent_s[-1] - sent_s[0]) / part_s + 1e-9))
    return np.bincount(((sent_s - sent_s[0]) / part_s).astype(int), minlength=bins).astype(float)
