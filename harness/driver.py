"""Drives one job: decides when requests are sent and in which phase, sends them, records them.

The steady state of a closed loop: slots start staggered; the window opens when every slot's first answer has begun, so
that all streams are busy and warm; the wanted number of requests is sent inside it; then further ones (`cooldown`) keep
the load up until the last measured one has ended, and what is still under way is cancelled. An open loop sends at its
due times whatever the server does, before, in and after the window alike.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from harness.alarm import Sleeper
from harness.arrivals import ARRIVALS
from harness.health import Health
from harness.job import Job, Outcome, make_record, open_window
from harness.pool import Pool
from harness.protocols import path_and_body, read_answer
from harness.records import Phase, RequestRecord
from harness.store import REQUEST_SCHEMA, Journal
from harness.stream import Exchange

RAMP_MAX_S = 30.0
TAIL_S = 30.0  # an open loop's arrivals go on at most this long after the window, while measured requests end
BACKOFF_S = (0.05, 1.0)  # a slot waits this long after its first failure, and at most that long after many
CONNECTIONS_AHEAD = 512
FLUSH_S = 0.2  # a batch of a second would hold the loop for several milliseconds
UNREAD_MAX = 64  # answers that wait to be read


class Driver:
    """One job under way. `progress` is shared memory: figures for the display, in the order of PROGRESS."""

    def __init__(self, job: Job, progress: Any) -> None:
        self.job = job
        self.progress = progress
        self.health = Health()
        self.journal = Journal(Path(job.journal), REQUEST_SCHEMA, FLUSH_S)
        self.pool = Pool(job.target)
        self.out = Outcome(self._now(), 0.0)
        self.next_id = 0
        self.measured_sent = self.measured_open = 0
        self.all_sent = False
        self.stopping = False
        self.begun: set[int] = set()
        self.reads_done = self.tokens_done = 0
        self.latencies: deque[float] = deque(maxlen=500)
        self.ttfts: deque[float] = deque(maxlen=10_000)
        self.finished = asyncio.Event()
        self.fault: BaseException | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.unread: deque[tuple[int, Phase, float, Exchange]] = deque()
        self.has_unread = asyncio.Event()
        progress[:] = [0.0] * len(progress)

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
                self._read_answer()
            self.journal.close()
        out = self.out
        out.end_s = self._now()
        if out.open_s is not None and (out.close_s is None or out.cancelled):
            out.close_s = min(out.end_s, out.close_s if out.close_s is not None else out.end_s)
            if out.open_s >= out.close_s:  # it ended before the window began
                out.open_s = out.close_s = None
        out.latency_s = sum(self.latencies) / len(self.latencies) if self.latencies else None
        out.ttft_p50_s = sorted(self.ttfts)[len(self.ttfts) // 2] if self.ttfts else None
        out.client = self.health.figures(self.job.point, out.open_s, out.close_s)
        return out

    # --- a closed loop ---

    async def _closed_loop(self) -> None:
        job = self.job
        slots = job.point.concurrency or 1
        burst = job.warmup or job.point.start == "burst"
        await self.pool.ahead(min(slots, CONNECTIONS_AHEAD))
        stagger_s = 0.0 if burst else min(job.latency_s, RAMP_MAX_S) / slots
        start = monotonic()
        if burst and not job.warmup:
            self.out.open_s = start - job.origin_s
        for number in range(slots):
            self._spawn(self._slot(number, start + number * stagger_s))
        if burst:
            await asyncio.wait(list(self.tasks))  # gather would cancel them with us, and lose their records
            self.out.close_s = self._now()
            if self.fault is not None:
                raise self.fault
            return
        self._spawn(self._open_when_warm(slots))
        await self._until_finished()

    async def _slot(self, number: int, start_s: float) -> None:
        """One stream of the closed loop: a request after the other, with a pause after a failure."""
        await sleep_until(start_s)
        backoff_s = 0.0
        while (phase := self._admit()) is not None:
            ok, retry_s = await self._one(self._now(), phase, number)
            self.begun.add(number)
            backoff_s = 0.0 if ok else min(max(2 * backoff_s, BACKOFF_S[0]), BACKOFF_S[1])
            if not ok:
                await sleep_until(monotonic() + max(backoff_s, min(retry_s, 10.0)))

    def _admit(self) -> Phase | None:
        """The phase of a slot's next request, or None if no further one is wanted."""
        out, point = self.out, self.job.point
        if self.stopping:
            return None
        if out.open_s is None and not self.job.warmup:
            return "warmup"
        if point.requests is not None:
            over, at = self.measured_sent >= point.requests, self._now()
        else:
            at = (out.open_s or 0.0) + (point.duration_s or 0.0)
            over = self._now() >= at
        if not over:
            self.measured_sent += 1
            return "warmup" if self.job.warmup else "measure"
        if self.job.warmup or point.start == "burst":
            return None
        if out.close_s is None:
            out.close_s = at
            self.all_sent = True
            self._check_finished()
        return "cooldown"

    async def _open_when_warm(self, slots: int) -> None:
        """Open the window when every slot's first answer has begun (a look every 5 ms; the stamps do not wait)."""
        while len(self.begun) < slots:
            await asyncio.sleep(0.005)
            self.begun.update(n for n, x in self.pool.under_way() if n is not None and x.began_answering)
        self.out.open_s = self._now()

    # --- an open loop ---

    async def _open_loop(self) -> None:
        job, point = self.job, self.job.point
        rate = point.rate_rps or 1.0
        ramp_s = min(max(2 * job.latency_s, 1.0), RAMP_MAX_S)
        window_s = point.duration_s if point.duration_s is not None else 1.5 * (point.requests or 1) / rate + 10
        seed = f"{job.plan.seed}/arrivals/{point.name}/{job.repeat}"
        span_s = ramp_s + window_s + TAIL_S
        due = ARRIVALS[point.kind](rate, span_s, seed)
        while sum(at >= ramp_s for at in due) <= (point.requests or 0):  # a longer span only appends
            span_s *= 2
            due = ARRIVALS[point.kind](rate, span_s, seed)
        opens, closes = open_window(due, ramp_s, point)
        await self.pool.ahead(min(CONNECTIONS_AHEAD, int(rate * job.latency_s * 2) + 4))
        start_s = self._now() + 0.05
        self.out.open_s, self.out.close_s = start_s + opens, start_s + closes
        with Sleeper() as sleeper:
            for at in due:
                await sleeper.until(job.origin_s + start_s + at)
                if at >= closes and not self.all_sent:
                    self.all_sent = True
                    self._check_finished()
                if self.finished.is_set() or at >= closes + TAIL_S:
                    break
                phase: Phase = "warmup" if at < opens else "measure" if at < closes else "cooldown"
                self.measured_sent += phase == "measure"
                self._spawn(self._one(start_s + at, phase))
        await sleep_until(job.origin_s + self.out.close_s)  # where nothing fell due after the window
        self.all_sent = True
        self._check_finished()
        await self._until_finished()

    # --- one request ---

    async def _one(self, scheduled_s: float, phase: Phase, slot: int | None = None) -> tuple[bool, float]:
        """Send one request. Returns whether it seems to have ended well, and how long the server asked to wait.

        The answer is read later: what is due now is the next request, and the stamps of the other streams.
        """
        job = self.job
        request_id, self.next_id = self.next_id, self.next_id + 1
        prompt = job.plan.prompt(f"{job.point.name}/{job.repeat}", request_id, job.workload.input_tokens)
        path, body = path_and_body(
            job.target, job.workload.api, prompt, job.workload.output_tokens, job.workload.sampling
        )
        self.measured_open += phase == "measure"
        self.progress[2] += 1
        x = await self.pool.exchange(path, body, job.timeout_s, slot)
        self.progress[2] -= 1
        self.unread.append((request_id, phase, scheduled_s, x))
        self.has_unread.set()
        if len(self.unread) > UNREAD_MAX:  # more arrives than can be read later: then it is read now
            self._read_answer()
        good = x.error is None and x.status == 200 and b'"error"' not in x.reads[-1]
        return good, float(retry) if (retry := x.headers.get("retry-after", "")).isdecimal() else 0.0

    async def _read_answers(self) -> None:
        """Read what has arrived, one answer a round of the loop: no stream waits for more than one."""
        while True:
            await self.has_unread.wait()
            self.has_unread.clear()
            while self.unread:
                self._read_answer()
                await asyncio.sleep(0)

    def _read_answer(self) -> None:
        request_id, phase, scheduled_s, x = self.unread.popleft()
        answer = read_answer(self.job.target.dialect, x, self.job.save_text)
        self._note(make_record(self.job, request_id, phase, scheduled_s, x, answer), x)

    def _note(self, record: RequestRecord, x: Exchange) -> None:
        self.journal.add(record)
        self.health.add(record, len(x.reads))
        self.reads_done += len(x.reads)
        self.tokens_done += record.output_tokens or 0
        if record.status == "ok":
            self.out.ok += 1
            self.progress[0] += 1
            self.latencies.append((record.end_s or 0.0) - (record.sent_s or 0.0))
            if record.phase == "measure" and record.first_token_s is not None and record.sent_s is not None:
                start_s = record.sent_s if self.job.point.concurrency is not None else record.scheduled_s
                self.ttfts.append(record.first_token_s - start_s)
                self.progress[6] = self.ttfts[-1]
        elif record.status != "cancelled":
            self.out.failed += 1
            self.progress[1] += 1
            self.out.first_error = self.out.first_error or record.error
        if record.phase == "measure":
            self.out.measured_ok += record.status == "ok"
            self.measured_open -= 1
            self.progress[5] += 1
            self._check_finished()

    def _check_finished(self) -> None:
        if self.all_sent and self.measured_open == 0:
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
        self.pool.abort_all("cancelled")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=5)

    async def _tick(self) -> None:
        """Four times a second: the display's figures, and the journal."""
        while True:
            await asyncio.sleep(0.25)
            a_read = self.tokens_done / self.reads_done if self.tokens_done else 1.0  # tokens, as far as is known
            self.progress[3] = self.tokens_done + a_read * sum(len(x.reads) for _, x in self.pool.under_way())
            self.progress[4] = float(self.out.open_s is not None)
            if self.journal.due():
                self.journal.flush()


async def sleep_until(at_s: float) -> None:
    """Sleep until a moment of the monotonic clock, never less (event loops round to milliseconds, early too)."""
    while (left := at_s - monotonic()) > 0:
        await asyncio.sleep(left + 0.0005)


async def probe(job: Job, word_counts: list[int]) -> list[tuple[int, int]] | str:
    """Send one prompt of each number of words and read how many tokens the server counted.

    Returns pairs of (words, tokens); none where the server does not count; a text where it refused.
    """
    pool = Pool(job.target)
    counts: list[tuple[int, int]] = []
    try:
        for number, words in enumerate(word_counts):
            plan = replace(job.plan, tokens_per_word=1.0, tokens_fixed=0.0)
            prompt = plan.prompt("probe", number, words)
            path, body = path_and_body(job.target, job.workload.api, prompt, 1, job.workload.sampling)
            answer = read_answer(job.target.dialect, await pool.exchange(path, body, job.timeout_s, None))
            if answer.status != "ok" and answer.input_tokens is None:
                return answer.error or "no answer"
            if answer.input_tokens is not None:
                counts.append((words, answer.input_tokens))
    finally:
        pool.close()
    return counts
