"""The host's memory bandwidth and arithmetic, measured with numpy: what layers on the CPU go by."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

_WORDS = 32 * 1024**2  # 256 MiB of 64 bits: beyond any cache
_SIDE = 1024


@dataclass(frozen=True, slots=True)
class HostSpeed:
    """The best of several repeats: others on the machine only make it slower."""

    bandwidth_gbs: float
    """10^9 bytes read and written per second by a copy of one thread"""
    gflops: float
    repeats: int


def measure(seconds: float) -> HostSpeed:
    """Half of the time for each of the two; at least two repeats each."""
    source, target = np.ones(_WORDS), np.zeros(_WORDS)
    left = np.ones((_SIDE, _SIDE), np.float32)
    copy_s, repeats = _best(lambda: np.copyto(target, source), seconds / 2)
    product_s, _ = _best(lambda: left @ left, seconds / 2)
    return HostSpeed(2 * source.nbytes / copy_s / 1e9, 2 * _SIDE**3 / product_s / 1e9, repeats)


def _best(work: object, seconds: float) -> tuple[float, int]:
    assert callable(work)
    best, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        best, count = min(best, time.perf_counter() - started), count + 1
    return best, count
