"""Alarms on the monotonic clock, as exact as the system allows: event loops round their timers to milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from time import monotonic


class Alarm:
    """One alarm on the monotonic clock. Linux's timerfd keeps it to 0.1 ms; the loops' own timers know milliseconds."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._fd: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        if sys.platform.startswith("linux"):
            self._libc = ctypes.CDLL(None, use_errno=True)
            fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if fd >= 0:
                self._fd = fd
                self._loop.add_reader(fd, self._ring)

    def set(self, at_s: float) -> None:
        """Ring at `at_s`, or at once if it has passed; a former setting is forgotten."""
        if self._fd is not None:
            whole = int(at_s)
            setting = (ctypes.c_long * 4)(0, 0, whole, max(1, int((at_s - whole) * 1e9)))
            self._libc.timerfd_settime(self._fd, 1, setting, None)  # 1: an absolute time
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, at_s - monotonic()), self._callback)

    def _ring(self) -> None:
        assert self._fd is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._callback()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


class Sleeper:
    """Sleeps of one task at a time until exact moments."""

    def __enter__(self) -> Sleeper:
        self._rung = asyncio.Event()
        self._alarm = Alarm(self._rung.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.close()

    async def until(self, at_s: float) -> None:
        """Come back at `at_s`, never before; if it has passed, after one round of the loop."""
        if monotonic() >= at_s:
            await asyncio.sleep(0)
        while monotonic() < at_s:
            self._rung.clear()
            self._alarm.set(at_s)
            await self._rung.wait()
