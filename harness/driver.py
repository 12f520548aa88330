"""Drives one job: decides when requests are sent and in which phase (how they are sent and recorded: `sender`).

The steady state of a closed loop: slots start staggered; the window opens when every slot's first answer has begun, so
that all streams are busy and warm; the wanted number of requests is sent inside it; then further ones (`cooldown`) keep
the load up until the last measured one has ended, and what is still under way is cancelled. An open loop sends at its
due times whatever the server does, before, in and after the window alike.

Several load processes may share a job. Each has its share of the slots, or of the due times, and a driver of its own;
what they must agree on (the start, the window, which requests are measured, the end) is on the board.
"""

from __future__ import annotations

import asyncio
from typing import Any

from harness.alarm import Sleeper
from harness.arrivals import schedule
from harness.board import Board
from harness.job import Job, Outcome, Request
from harness.records import Phase
from harness.sender import Sender
from harness.workloads import Ask

RAMP_MAX_S = 30.0
TAIL_S = 30.0  # an open loop's arrivals go on at most this long after the window, while measured requests end
BACKOFF_S = (0.05, 1.0)  # a slot waits this long after its first failure, and at most that long after many
CONNECTIONS_AHEAD = 512
TICK_S = 0.25
AGREE_S = 0.005  # how often one process looks for what another decides (stamps do not wait for it)


class Driver:
    """One job under way, or one process's share of it."""

    def __init__(self, job: Job, board: Board) -> None:
        self.job = job
        self.board = board
        self.worker = job.worker
        self.sender = Sender(job, board, self._check_finished)
        self.stopping = False
        self.begun: set[int] = set()
        self.finished = asyncio.Event()
        self.fault: BaseException | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self._now = self.sender.now

    async def run(self) -> Outcome:
        """Drive the job to its end, or until it is cancelled; the outcome either way."""
        sender = self.sender
        helpers = [asyncio.ensure_future(work) for work in (self._tick(), sender.read_answers(), sender.health.watch())]
        for helper in helpers:
            helper.add_done_callback(self._ended)
        try:
            await (self._closed_loop() if self.job.point.kind == "concurrency" else self._open_loop())
        except asyncio.CancelledError:
            sender.out.cancelled = True
        finally:
            await self._end_tasks()
            for helper in helpers:
                helper.cancel()
            sender.close(read=self.fault is None)
        return sender.outcome()

    async def _together(self) -> float:
        """Wait until all processes are ready; the moment, a little later, at which all begin."""
        self.board.ready(self.worker)
        while self.board.start_s is None:
            if self.worker == 0 and self.board.all_ready:
                self.board.start_s = self._now() + (self.board.lead_s if self.job.workers > 1 else 0.0)
            else:
                await asyncio.sleep(AGREE_S)
        return self.board.start_s

    # --- a closed loop ---

    async def _closed_loop(self) -> None:
        job = self.job
        slots = range(job.worker, job.point.concurrency or 1, job.workers)
        burst = job.warmup or job.point.start == "burst"
        await self.sender.pool.ahead(min(len(slots), CONNECTIONS_AHEAD))
        stagger_s = 0.0 if burst else min(job.latency_s, RAMP_MAX_S) / (job.point.concurrency or 1)
        start_s = await self._together()
        if burst and not job.warmup:
            self._open(start_s)
        for number in slots:
            self._spawn(self._slot(number, start_s + number * stagger_s))
        if burst:
            if self.tasks:
                await asyncio.wait(list(self.tasks))  # gather would cancel them with us, and lose their records
            while self.board.pending and self.fault is None:
                await asyncio.sleep(AGREE_S)
            self.board.close_s = self._now()
            if self.fault is not None:
                raise self.fault
            return
        self._spawn(self._open_when_warm(len(slots)))
        await self._until_finished()

    async def _slot(self, number: int, start_s: float) -> None:
        """One stream of the closed loop: a session after the other, with a pause after a failure."""
        await self._sleep_until(start_s)
        backoff_s, ask = 0.0, None
        self.sender.occupy(1)
        while not self.stopping:
            ask = ask or self.sender.source.first(next(self.sender.sessions), None)
            due_s = self._now() + ask.think_s
            if ask.think_s:
                await self._sleep_until(due_s)
            if (phase := self._admit(due_s)) is None:
                break
            request = Request(next(self.sender.ids), ask, phase, due_s)
            x = await self.sender.send(request, number)
            self.begun.add(number)
            ask = self.sender.next(request, x)
            good, retry_after_s = x.good, x.retry_after_s
            del x, request  # else each stream holds an answer's bytes while it waits for the next
            if good:
                backoff_s = 0.0
            else:
                backoff_s = min(max(2 * backoff_s, BACKOFF_S[0]), BACKOFF_S[1])
                self.sender.occupy(-1)
                await self._sleep_until(self._now() + max(backoff_s, min(retry_after_s, 10.0)))
                self.sender.occupy(1)
        self.sender.occupy(-1)

    def _admit(self, due_s: float) -> Phase | None:
        """The phase of a slot's next request, or None if no further one is wanted."""
        board, point = self.board, self.job.point
        if self.stopping:
            return None
        if self.job.warmup:
            return "warmup" if board.admit(self.worker, due_s, point.requests, due_s) else None
        open_s = board.open_s
        if open_s is None or due_s < open_s:
            return "warmup"
        if board.admit(self.worker, due_s, point.requests, open_s + (point.duration_s or 0.0)):
            return "measure"
        self._check_finished()
        return None if point.start == "burst" else "cooldown"

    async def _open_when_warm(self, slots: int) -> None:
        """Open the window when every slot's first answer has begun (a look every 5 ms; the stamps do not wait)."""
        while len(self.begun) < slots:
            await asyncio.sleep(AGREE_S)
            self.begun.update(n for n, x in self.sender.pool.under_way() if n is not None and x.began_answering)
        self.board.warm(self.worker)
        while self.worker == 0 and not self.board.all_warm:
            await asyncio.sleep(AGREE_S)
        if self.worker == 0:
            self._open(self._now() + self.board.open_lead_s)

    def _open(self, at_s: float) -> None:
        if self.job.point.duration_s is not None:
            self.board.close_s = at_s + self.job.point.duration_s
        self.board.open_s = at_s

    # --- an open loop ---

    async def _open_loop(self) -> None:
        job, point = self.job, self.job.point
        lead_s = min(max(2 * job.latency_s, 1.0), RAMP_MAX_S)
        plan = schedule(point, lead_s, TAIL_S, f"{job.plan.seed}/arrivals/{point.name}/{job.repeat}")
        due_s = plan.due_s
        lead_s = max(0.0, -due_s[0]) if due_s else 0.0  # what the schedule has of it
        ours = range(job.worker, len(due_s), job.workers)
        self.board.expect(self.worker, sum(0 <= due_s[index] < plan.close_s for index in ours))
        rate = point.rate_rps or 1.0
        await self.sender.pool.ahead(min(CONNECTIONS_AHEAD, int(rate * job.latency_s * 2 / job.workers) + 4))
        open_s = await self._together() + lead_s + 0.05
        if self.worker == 0:
            self.board.close_s, self.board.open_s = open_s + plan.close_s, open_s
        with Sleeper() as sleeper:
            for index in ours:
                at = due_s[index]
                await sleeper.until(job.origin_s + open_s + at)
                if self.finished.is_set():
                    break
                phase: Phase = "warmup" if at < 0 else "measure" if at < plan.close_s else "cooldown"
                size = plan.sizes[index] if plan.sizes else None
                self._spawn(self._session(self.sender.source.first(index, size), open_s + at, phase))
                if phase == "cooldown":
                    self._check_finished()
        if not self.finished.is_set():
            await self._sleep_until(open_s + plan.close_s)  # where nothing fell due after the window
        self._check_finished()
        await self._until_finished()

    async def _session(self, first: Ask, due_s: float, phase: Phase) -> None:
        """What begins with one arrival: a request, and the further turns of its session."""
        ask: Ask | None = first
        while ask is not None and not self.stopping:
            request = Request(next(self.sender.ids), ask, phase, due_s)
            ask = self.sender.next(request, await self.sender.send(request))
            if ask is None:
                break
            due_s = self._now() + ask.think_s
            await self._sleep_until(due_s)
            open_s, close_s = self.board.open_s or 0.0, self.board.close_s or 0.0
            phase = "warmup" if due_s < open_s else "measure" if due_s < close_s else "cooldown"
            if phase == "measure":
                self.board.expect(self.worker, 1)

    def _check_finished(self) -> None:
        """Finished when the window has closed and everything measured has ended, here and in the other processes."""
        close_s = self.board.close_s
        if close_s is not None and not self.job.warmup and self._now() >= close_s and self.board.pending == 0:
            self.finished.set()

    # --- tasks ---

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self.stopping:
            self.fault = task.exception()
            self.finished.set()

    async def _until_finished(self) -> None:
        await self.finished.wait()
        if self.fault is not None:  # a fault of ours, not of the server: it must be seen
            raise self.fault

    async def _end_tasks(self) -> None:
        """End what is under way: exchanges are recorded as cancelled, sleepers are woken."""
        self.stopping = True
        self.sender.health.stop()
        self.sender.pool.abort_all("cancelled")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=5)

    async def _tick(self) -> None:
        """Four times a second: the display's figures, the journal, and whether the other processes have ended."""
        while True:
            await asyncio.sleep(TICK_S)
            self.sender.tick()
            self._check_finished()

    async def _sleep_until(self, at_s: float) -> None:
        """Sleep until a moment of the run, never less (event loops round to milliseconds, early too)."""
        while (left := at_s - self._now()) > 0:
            await asyncio.sleep(left + 0.0005)
