"""Drives one job: decides when requests are sent and in which phase, sends them, records them.

The steady state of a closed loop: slots start staggered; the window opens when every slot's first answer has begun, so
that all streams are busy and warm; the wanted number of requests is sent inside it; then further ones (`cooldown`) keep
the load up until the last measured one has ended, and what is still under way is cancelled. An open loop sends at its
due times whatever the server does, before, in and after the window alike.

Several load processes may share a job. Each has its share of the slots, or of the due times, and a driver of its own;
what they must agree on (the start, the window, which requests are measured, the end) is on the board.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from harness.alarm import Sleeper
from harness.answers import read_answer
from harness.arrivals import schedule
from harness.board import PROGRESS, Board
from harness.health import Health
from harness.job import Job, Outcome, Request, make_record
from harness.pool import Pool
from harness.protocols import path_and_body
from harness.records import Phase, RequestRecord
from harness.stream import Exchange
from harness.tables import REQUEST_SCHEMA, Journal
from harness.workloads import Ask, make_source

RAMP_MAX_S = 30.0
TAIL_S = 30.0  # an open loop's arrivals go on at most this long after the window, while measured requests end
BACKOFF_S = (0.05, 1.0)  # a slot waits this long after its first failure, and at most that long after many
CONNECTIONS_AHEAD = 512
FLUSH_S, FLUSH_ROWS = 0.2, 32  # a batch of a second would hold the loop for several milliseconds
TICK_S = 0.25
AGREE_S = 0.005  # how often one process looks for what another decides (stamps do not wait for it)
UNREAD_MAX = 64  # answers that wait to be read

_DONE, _FAILED, _IN_FLIGHT, _TOKENS, _MEASURED, _TTFT = range(len(PROGRESS))


class Driver:
    """One job under way, or one process's share of it."""

    def __init__(self, job: Job, board: Board) -> None:
        self.job = job
        self.board = board
        self.worker = job.worker
        self.health = Health()
        self.journal = Journal(Path(job.journal), REQUEST_SCHEMA, FLUSH_S, FLUSH_ROWS)
        self.pool = Pool(job.target)
        self.source = make_source(job.workload, job.plan, f"{job.point.name}/{job.repeat}")
        self.out = Outcome(self._now(), 0.0)
        self.ids, self.sessions = count(job.worker, job.workers), count(job.worker, job.workers)
        self.stopping = False
        self.begun: set[int] = set()
        self.reads_done = self.tokens_done = 0
        self.latencies: deque[float] = deque(maxlen=500)
        self.ttfts: deque[float] = deque(maxlen=10_000)
        self.finished = asyncio.Event()
        self.fault: BaseException | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.unread: deque[tuple[Request, Exchange]] = deque()
        self.has_unread = asyncio.Event()

    def _now(self) -> float:
        return monotonic() - self.job.origin_s

    async def run(self) -> Outcome:
        """Drive the job to its end, or until it is cancelled; the outcome either way."""
        helpers = [asyncio.ensure_future(work) for work in (self._tick(), self._read_answers(), self.health.watch())]
        for helper in helpers:
            helper.add_done_callback(self._ended)
        try:
            await (self._closed_loop() if self.job.point.kind == "concurrency" else self._open_loop())
        except asyncio.CancelledError:
            self.out.cancelled = True
        finally:
            await self._end_tasks()
            for helper in helpers:
                helper.cancel()
            self.pool.close()
            while self.unread and self.fault is None:
                self._note(*self.unread.popleft())
            self.journal.close()
        return self._outcome()

    def _outcome(self) -> Outcome:
        out = self.out
        out.end_s, out.open_s, out.close_s = self._now(), self.board.open_s, self.board.close_s
        if out.open_s is not None and (out.close_s is None or out.cancelled):
            out.close_s = min(out.end_s, out.close_s if out.close_s is not None else out.end_s)
            if out.open_s >= out.close_s:  # it ended before the window began
                out.open_s = out.close_s = None
        out.latency_s = sum(self.latencies) / len(self.latencies) if self.latencies else None
        out.ttft_p50_s = sorted(self.ttfts)[len(self.ttfts) // 2] if self.ttfts else None
        self.health.window(out.open_s, out.close_s)
        out.fared = self.health.result(out.end_s)
        return out

    async def _together(self) -> float:
        """Wait until all processes are ready; the moment, a little later, at which all begin."""
        self.board.ready(self.worker)
        while self.board.start_s is None:
            if self.worker == 0 and self.board.all_ready:
                self.board.start_s = self._now() + (2 * AGREE_S if self.job.workers > 1 else 0.0)
            else:
                await asyncio.sleep(AGREE_S)
        return self.board.start_s

    # --- a closed loop ---

    async def _closed_loop(self) -> None:
        job = self.job
        slots = range(job.worker, job.point.concurrency or 1, job.workers)
        burst = job.warmup or job.point.start == "burst"
        await self.pool.ahead(min(len(slots), CONNECTIONS_AHEAD))
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
        self._occupy(1)
        while not self.stopping:
            ask = ask or self.source.first(next(self.sessions), None)
            due_s = self._now() + ask.think_s
            if ask.think_s:
                await self._sleep_until(due_s)
            if (phase := self._admit(due_s)) is None:
                break
            request = Request(next(self.ids), ask, phase, due_s)
            x = await self._send(request, number)
            self.begun.add(number)
            ask = self._next(request, x)
            good, retry_after_s = x.good, x.retry_after_s
            del x, request  # else each stream holds an answer's bytes while it waits for the next
            if good:
                backoff_s = 0.0
            else:
                backoff_s = min(max(2 * backoff_s, BACKOFF_S[0]), BACKOFF_S[1])
                self._occupy(-1)
                await self._sleep_until(self._now() + max(backoff_s, min(retry_after_s, 10.0)))
                self._occupy(1)
        self._occupy(-1)

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
            self.begun.update(n for n, x in self.pool.under_way() if n is not None and x.began_answering)
        self.board.warm(self.worker)
        while self.worker == 0 and not self.board.all_warm:
            await asyncio.sleep(AGREE_S)
        if self.worker == 0:
            self._open(self._now())

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
        await self.pool.ahead(min(CONNECTIONS_AHEAD, int(rate * job.latency_s * 2 / job.workers) + 4))
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
                self._spawn(self._session(self.source.first(index, size), open_s + at, phase))
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
            request = Request(next(self.ids), ask, phase, due_s)
            ask = self._next(request, await self._send(request))
            if ask is None:
                break
            due_s = self._now() + ask.think_s
            await self._sleep_until(due_s)
            open_s, close_s = self.board.open_s or 0.0, self.board.close_s or 0.0
            phase = "warmup" if due_s < open_s else "measure" if due_s < close_s else "cooldown"
            if phase == "measure":
                self.board.expect(self.worker, 1)

    # --- one request ---

    async def _send(self, request: Request, slot: int | None = None) -> Exchange:
        """Send one request and wait for its end."""
        job, ask = self.job, request.ask
        path, body = path_and_body(job.target, job.workload.api, ask.prompt, ask.output_tokens, job.workload.sampling)
        if slot is None:
            self._occupy(1)
        self.board.add(self.worker, _IN_FLIGHT)
        x = await self.pool.exchange(path, body, job.timeout_s, slot)
        self.board.add(self.worker, _IN_FLIGHT, -1)
        if slot is None:
            self._occupy(-1)
        return x

    def _next(self, request: Request, x: Exchange) -> Ask | None:
        """The turn that follows an answer, if one does.

        Only then is the answer read at once: what is due now is the next request, and the stamps of other streams.
        """
        if not request.ask.last:
            text = self._note(request, x)
            return None if text is None else self.source.follow(request.ask, text)
        self.unread.append((request, x))
        self.has_unread.set()
        if len(self.unread) > UNREAD_MAX:  # more arrives than can be read later: then it is read now
            self._note(*self.unread.popleft())
        return None

    async def _read_answers(self) -> None:
        """Read what has arrived, one answer a round of the loop: no stream waits for more than one."""
        while True:
            await self.has_unread.wait()
            self.has_unread.clear()
            while self.unread:
                self._note(*self.unread.popleft())
                await asyncio.sleep(0)
                if self.journal.due():
                    self.journal.flush()
                    await asyncio.sleep(0)

    def _note(self, request: Request, x: Exchange) -> str | None:
        """Read an answer and record it; its text, if it ended well and the session goes on."""
        job, goes_on = self.job, not request.ask.last
        answer = read_answer(job.target.dialect, x, job.save_text or goes_on)
        text = answer.text if goes_on and answer.status == "ok" else None
        if not job.save_text:
            answer.text = None
        self._count(make_record(job, request, x, answer), x)
        return text

    def _count(self, record: RequestRecord, x: Exchange) -> None:
        board, worker = self.board, self.worker
        self.journal.add(record)
        self.health.window(board.open_s, board.close_s)
        self.health.add(record, len(x.reads))
        self.reads_done += len(x.reads)
        self.tokens_done += record.output_tokens or 0
        if record.status == "ok":
            self.out.ok += 1
            board.add(worker, _DONE)
            self.latencies.append((record.end_s or 0.0) - (record.sent_s or 0.0))
            if record.phase == "measure" and record.first_token_s is not None and record.sent_s is not None:
                start_s = record.sent_s if self.job.point.concurrency is not None else record.scheduled_s
                self.ttfts.append(record.first_token_s - start_s)
                board.put(worker, _TTFT, self.ttfts[-1])
        elif record.status != "cancelled":
            self.out.failed += 1
            board.add(worker, _FAILED)
            self.out.first_error = self.out.first_error or record.error
        if record.phase == "measure" or self.job.warmup:
            board.measured(worker)
        if record.phase == "measure":
            self.out.measured_ok += record.status == "ok"
            board.add(worker, _MEASURED)
            self._check_finished()

    def _occupy(self, change: int) -> None:
        self.health.window(self.board.open_s, self.board.close_s)
        self.health.occupy(self._now(), change)

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
        self.health.stop()
        self.pool.abort_all("cancelled")
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
            a_read = self.tokens_done / self.reads_done if self.tokens_done else 1.0  # tokens, as far as is known
            reads = sum(len(x.reads) for _, x in self.pool.under_way())
            self.board.put(self.worker, _TOKENS, self.tokens_done + a_read * reads)
            self._check_finished()
            if self.journal.due():
                self.journal.flush()

    async def _sleep_until(self, at_s: float) -> None:
        """Sleep until a moment of the run, never less (event loops round to milliseconds, early too)."""
        while (left := at_s - self._now()) > 0:
            await asyncio.sleep(left + 0.0005)
