"""The load generator's processes. `worker_main(control, board)` is the one seam: it takes jobs from a pipe, drives the
server (see `driver`), writes records to a journal of its own, and answers with what became of each job.

`Load` is the other end of the pipes, in the tool's own process: nothing that the tool does while it waits (drawing,
sampling, writing run.json) can delay a timestamp.
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from harness.board import Board
from harness.errors import RunError
from harness.job import Job, Outcome, merged
from harness.protocols import Prompt

POLL_S = 0.2
CANCEL_S = 10.0
IDLE_S = 0.3  # asked for nothing so long, a load process loads what its jobs will take: an engine is starting
FIRST_SENT_S = 0.05  # after this, a warm-up's first requests are on their way


class Load:
    """Up to `workers` load processes. `run` and `probe` block; Ctrl-C during `run` still returns the outcome.

    On Linux they are forked, while this process has no other thread: they share what it has loaded, and start at once.
    `make_board`: of a number of processes and a context of multiprocessing; `fork` False never forks.
    """

    def __init__(
        self, workers: int = 1, cores: list[int] | None = None, make_board: Callable[[int, Any], Board] = Board,
        fork: bool = True,
    ) -> None:  # fmt: skip
        alone = fork and sys.platform.startswith("linux") and threading.active_count() == 1
        context = multiprocessing.get_context("fork" if alone else "spawn")
        self.board = make_board(workers, context)
        self._workers: list[tuple[Any, Any]] = []
        self._broken = False
        for number in range(workers):
            control, other = context.Pipe()
            core = cores[number] if cores else None
            process = context.Process(  # type: ignore[attr-defined]
                target=worker_main, args=(other, self.board, core), daemon=True, name=f"load-{number}"
            )
            process.start()
            other.close()
            self._workers.append((control, process))

    def run(self, job: Job, journals: list[str], watch: Callable[[dict[str, float]], bool]) -> Outcome:
        """Drive a job with as many processes as there are journals. `watch` sees the progress figures five times a
        second and returns False to cancel it.

        Raises:
            RunError: a load process itself failed.
        """
        self.board.reset(len(journals))
        taking = self.begin(
            [replace(job, journal=path, worker=n, workers=len(journals)) for n, path in enumerate(journals)]
        )
        outcomes: dict[Any, Outcome] = {}
        cancelled = interrupted = False
        while len(outcomes) < len(taking):
            try:
                answered = self.answers([c for c in taking if c not in outcomes], CANCEL_S if cancelled else POLL_S)
                outcomes |= answered
                if answered:
                    continue
                if cancelled:
                    self._broken = True
                    raise RunError("a load process does not answer", "please report this")
                cancelled = not watch(self.board.figures())
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = cancelled = True
            if cancelled:
                self.cancel(taking)
        outcome = merged(job.point, [outcomes[control] for control in taking])
        outcome.interrupted = interrupted
        return outcome

    def begin(self, jobs: Sequence[Job]) -> list[Any]:
        """Give each of the first processes its share of a job, once the board is reset; what `answers` is asked for."""
        taking = [control for control, _ in self._workers[: len(jobs)]]
        for control, job in zip(taking, jobs, strict=True):
            control.send(("job", job))
        return taking

    def answers(self, asked: list[Any], wait_s: float) -> dict[Any, Outcome]:
        """The outcomes of those that end within `wait_s`. Raises RunError, see `run`."""
        return {control: self._answer(control) for control in wait(asked, wait_s)}

    def cancel(self, asked: list[Any]) -> None:
        """Have them end at once; their outcomes come all the same."""
        self._tell([w for w in self._workers if w[0] in asked], ("cancel",))

    def probe(self, job: Job, prompts: Sequence[Prompt]) -> list[int | None] | str:
        """See `harness.probe`."""
        control = self._workers[0][0]
        control.send(("probe", job, list(prompts)))
        counts: list[int | None] | str = self._answer(control)
        return counts

    def compact(self, folder: Path) -> None:
        """Have a load process turn the run's journal into tables: it has loaded what that takes. Where it cannot, the
        journal stays, and is as good."""
        control, process = self._workers[0]
        if self._broken or not process.is_alive():
            return
        with contextlib.suppress(OSError, RunError):
            control.send(("compact", folder))
            self._answer(control)

    def _tell(self, workers: list[tuple[Any, Any]], message: Any) -> None:
        for control, _ in workers:
            with contextlib.suppress(OSError):
                control.send(message)

    def _answer(self, control: Any) -> Any:
        try:
            kind, value = control.recv()
        except (EOFError, OSError):
            process = next(p for c, p in self._workers if c is control)
            process.join(1)
            raise RunError(
                f"the load process ended with exit code {process.exitcode}", "is the machine out of memory?"
            ) from None
        if kind == "failed":
            raise RunError(f"the load process failed: {value}", "please report this")
        return value

    def close(self) -> None:
        """End the processes; they end by themselves when their pipes do."""
        self._tell(self._workers, ("quit",))
        for control, process in self._workers:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            control.close()


def worker_main(control: Any, board: Board, core: int | None = None) -> None:
    """Serve jobs until the pipe ends, on one core if it is given.

    Takes ("job", Job), ("probe", Job, prompts), ("compact", folder), ("cancel",) and ("quit",); answers ("done",
    result) or ("failed", text).
    """
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tool's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if core is not None:
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setaffinity(0, {core})
    _ask_for_priority()
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own keeps 10 MB more than it uses
    runner: Callable[[Any], Any] = asyncio.run
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop

            runner = uvloop.run
    runner(_serve(control, board))


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


async def _serve(control: Any, board: Board) -> None:
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[Any] = asyncio.Queue()
    current: list[asyncio.Task[Any]] = []
    cancelled = False  # what was asked for last is to end, though it may not have begun

    def take(message: Any) -> None:
        nonlocal cancelled
        cancelled = message[0] in ("cancel", "quit")
        for task in current if cancelled else ():
            loop.call_soon(task.cancel)  # not before its first step: the driver ends a job
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
    gc.set_threshold(100_000, 20, 100)
    gc.freeze()  # what a fork brought stays: to look at it would cost 40 ms, and copy every page of it
    libraries = _Libraries()
    while (message := await _next(messages, libraries))[0] != "quit":
        current[:] = [asyncio.ensure_future(_work(message, board, libraries))]
        if cancelled:
            loop.call_soon(current[0].cancel)
        try:
            answer = ("done", await current[0])
        except (Exception, asyncio.CancelledError) as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        current.clear()
        with contextlib.suppress(OSError):
            control.send(answer)
        await asyncio.sleep(0)  # the loop lets go of what it was to call
        gc.collect()  # a job's streams and their last answers are in cycles, which the threshold would let pile up
        gc.freeze()  # what is still here stays: no collection needs to look at it again


async def _next(messages: asyncio.Queue[Any], libraries: _Libraries) -> Any:
    """The next message. If none comes, the wait is used."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(messages.get(), None if libraries.begun else IDLE_S)
    libraries.begin()
    return await messages.get()


class _Libraries:
    """Numpy and Arrow, which journals and tables take: here and not in the tool's own process. They load (a quarter of
    a second) while an engine starts or answers the warm-up's first requests, whose records wait for them; never
    in a process that measures."""

    def __init__(self) -> None:
        self._loading: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._loading is not None

    def begin(self) -> None:
        self._loading = self._loading or asyncio.create_task(asyncio.to_thread(_load))

    async def loaded(self) -> None:
        self.begin()
        assert self._loading is not None
        await asyncio.shield(self._loading)


def _compact(folder: Path) -> None:
    from harness import tables

    with contextlib.suppress(AttributeError, OSError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)  # glibc's: what the streams held goes back before more is taken
    tables.compact(folder)


def _load() -> None:
    import harness.tables  # noqa: F401


async def _work(message: Any, board: Board, libraries: _Libraries) -> Any:
    from harness.probe import probe

    if message[0] == "probe":
        return await probe(*message[1:])
    if message[0] == "compact":
        return _compact(message[1])
    from harness.driver import Driver

    job: Job = message[1]
    if job.warmup:
        asyncio.get_running_loop().call_later(FIRST_SENT_S, libraries.begin)
    else:
        try:
            await libraries.loaded()
        except asyncio.CancelledError:  # the driver knows what a cancelled job comes to
            await libraries.loaded()
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
    board.join(job.workers)
    return await Driver(job, board).run()
