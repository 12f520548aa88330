"""The load generator's process. `worker_main(control, progress)` is the one seam: it takes jobs from a pipe, drives the
server (see `driver`), writes records to journals of its own, and answers with what became of each job.

`LoadProcess` is the other end of the pipe, in the tool's own process: nothing that the tool does while it waits
(drawing, sampling, writing run.json) can delay a timestamp.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.driver import Driver, probe
from harness.errors import RunError
from harness.job import PROGRESS, Job, Outcome

POLL_S = 0.2
CANCEL_S = 10.0


class LoadProcess:
    """A worker process. `run` and `probe` block; Ctrl-C during `run` still returns the outcome, cancelled."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, other = context.Pipe()
        self._progress = context.RawArray("d", len(PROGRESS))
        self._process = context.Process(target=worker_main, args=(other, self._progress), daemon=True, name="load")
        self._process.start()
        other.close()

    def run(self, job: Job, watch: Callable[[dict[str, float]], bool]) -> Outcome:
        """Drive a job. `watch` sees the progress figures five times a second and returns False to cancel it.

        Raises:
            RunError: the worker itself failed.
        """
        self._control.send(("job", job))
        cancelled = interrupted = False
        while True:
            try:
                if self._control.poll(POLL_S if not cancelled else CANCEL_S):
                    break
                if cancelled:
                    raise RunError("the load process does not answer", "please report this")
                cancelled = not watch(dict(zip(PROGRESS, self._progress, strict=True)))
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = cancelled = True
            if cancelled:
                self._control.send(("cancel",))
        outcome: Outcome = self._answer()
        outcome.interrupted = interrupted
        return outcome

    def probe(self, job: Job, word_counts: list[int]) -> list[tuple[int, int]] | str:
        """See `driver.probe`."""
        self._control.send(("probe", job, word_counts))
        counts: list[tuple[int, int]] | str = self._answer()
        return counts

    def _answer(self) -> Any:
        try:
            kind, value = self._control.recv()
        except (EOFError, OSError):
            raise RunError(
                f"the load process ended with exit code {self._process.exitcode}", "is the machine out of memory?"
            ) from None
        if kind == "failed":
            raise RunError(f"the load process failed: {value}", "please report this")
        return value

    def close(self) -> None:
        """End the process; it ends by itself when the pipe does."""
        self._control.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def worker_main(control: Any, progress: Any) -> None:
    """Serve jobs until the pipe ends.

    Takes ("job", Job), ("probe", Job, words) and ("cancel",); answers ("done", result) or ("failed", text).
    """
    _die_with_parent()
    sys.meta_path.insert(0, _WithoutPandas())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tool's to answer
    _ask_for_priority()
    runner: Callable[[Any], Any] = asyncio.run
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop

            runner = uvloop.run
    runner(_serve(control, progress))


class _WithoutPandas:
    """pyarrow imports pandas at its first array: seconds and 60 MB, in a process that has no use for it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _ask_for_priority() -> None:
    """A client that waits for a core which the engine uses stamps late. Needs a privilege; without it nothing happens,
    and the point's client health tells what that costs."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        os.setsid()  # Linux weighs sessions first, processes second
        Path("/proc/self/autogroup").write_text("-10")


async def _serve(control: Any, progress: Any) -> None:
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[Any] = asyncio.Queue()
    current: list[asyncio.Task[Any]] = []

    def take(message: Any) -> None:
        if message[0] in ("cancel", "quit"):
            for task in current:
                task.cancel()
        if message[0] != "cancel":
            messages.put_nowait(message)

    def listen() -> None:  # a thread, because not every event loop can wait for a pipe
        message: Any = ("",)
        while message[0] != "quit":
            try:
                message = control.recv()
            except (EOFError, OSError):
                message = ("quit",)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(take, message)

    threading.Thread(target=listen, daemon=True).start()
    gc.freeze()  # what is here now stays: no collection needs to look at it again
    gc.set_threshold(100_000, 20, 100)
    while (message := await messages.get())[0] != "quit":
        work = Driver(message[1], progress).run() if message[0] == "job" else probe(*message[1:])
        current[:] = [asyncio.ensure_future(work)]
        try:
            answer = ("done", await current[0])
        except Exception as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        current.clear()
        with contextlib.suppress(OSError):
            control.send(answer)
