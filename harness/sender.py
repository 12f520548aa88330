"""Sends the requests of one job and records them: what every load shape shares.

While an answer arrives only its reads are stamped and kept; it is read, and its record made, when nothing else is due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import monotonic

from harness.answers import read_answer
from harness.board import PROGRESS, Board
from harness.health import Health
from harness.job import Job, Outcome, Request, make_record
from harness.journal import Journal
from harness.pool import Pool
from harness.protocols import path_and_body
from harness.records import RequestRecord
from harness.stream import Exchange
from harness.workloads import Ask, make_source

FLUSH_S, FLUSH_ROWS = 0.2, 32  # a batch of a second would hold the loop for several milliseconds
UNREAD_MAX = 64  # answers that wait to be read

_DONE, _FAILED, _IN_FLIGHT, _TOKENS, _MEASURED, _TTFT = range(len(PROGRESS))


class Sender:
    """The sending side of one job, or of one process's share of it. `ended` is called when a measured request has."""

    def __init__(self, job: Job, board: Board, ended: Callable[[], None]) -> None:
        self.job, self.board, self.worker, self._ended = job, board, job.worker, ended
        self.health = Health()
        self.journal = Journal(Path(job.journal), "requests", FLUSH_S, FLUSH_ROWS)
        self.pool = Pool(job.target)
        self.source = make_source(job.workload, job.plan, f"{job.point.name}/{job.repeat}")
        self.out = Outcome(self.now(), 0.0)
        self.ids, self.sessions = count(job.worker, job.workers), count(job.worker, job.workers)
        self._reads_done = self._tokens_done = 0
        self._latencies: deque[float] = deque(maxlen=500)
        self._ttfts: deque[float] = deque(maxlen=10_000)
        self._unread: deque[tuple[Request, Exchange]] = deque()
        self._has_unread = asyncio.Event()

    def now(self) -> float:
        """Seconds from the run's start."""
        return monotonic() - self.job.origin_s

    async def send(self, request: Request, slot: int | None = None) -> Exchange:
        """Send one request and wait for its end."""
        job, ask = self.job, request.ask
        path, body = path_and_body(job.target, job.workload.api, ask.prompt, ask.output_tokens, job.workload.sampling)
        if slot is None:
            self.occupy(1)
        self.board.add(self.worker, _IN_FLIGHT)
        x = await self.pool.exchange(path, body, job.timeout_s, slot)
        self.board.add(self.worker, _IN_FLIGHT, -1)
        if slot is None:
            self.occupy(-1)
        return x

    def next(self, request: Request, x: Exchange) -> Ask | None:
        """The turn that follows an answer, if one does.

        Only then is the answer read at once: what is due now is the next request, and the stamps of other streams.
        """
        if not request.ask.last:
            text = self._note(request, x)
            return None if text is None else self.source.follow(request.ask, text)
        self._unread.append((request, x))
        self._has_unread.set()
        if len(self._unread) > UNREAD_MAX:  # more arrives than can be read later: then it is read now
            self._note(*self._unread.popleft())
        return None

    async def read_answers(self) -> None:
        """Read what has arrived, one answer a round of the loop: no stream waits for more than one."""
        while True:
            await self._has_unread.wait()
            self._has_unread.clear()
            while self._unread:
                self._note(*self._unread.popleft())
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
        self._reads_done += len(x.reads)
        self._tokens_done += record.output_tokens or 0
        if record.status == "ok":
            self.out.ok += 1
            board.add(worker, _DONE)
            self._latencies.append((record.end_s or 0.0) - (record.sent_s or 0.0))
            counts = record.phase == "measure" or self.job.warmup
            if counts and record.first_token_s is not None and record.sent_s is not None:
                start_s = record.sent_s if self.job.point.concurrency is not None else record.scheduled_s
                self._ttfts.append(record.first_token_s - start_s)
                board.put(worker, _TTFT, self._ttfts[-1])
        elif record.status != "cancelled":
            self.out.failed += 1
            board.add(worker, _FAILED)
            self.out.first_error = self.out.first_error or record.error
        if record.phase == "measure" or self.job.warmup:
            board.measured(worker)
        if record.phase == "measure":
            self.out.measured_ok += record.status == "ok"
            board.add(worker, _MEASURED)
            self._ended()

    def occupy(self, change: int) -> None:
        """A stream becomes occupied (+1) or free (-1)."""
        self.health.window(self.board.open_s, self.board.close_s)
        self.health.occupy(self.now(), change)

    def tick(self) -> None:
        """The display's figures, and the journal."""
        a_read = self._tokens_done / self._reads_done if self._tokens_done else 1.0  # tokens, as far as is known
        reads = sum(len(x.reads) for _, x in self.pool.under_way())
        self.board.put(self.worker, _TOKENS, self._tokens_done + a_read * reads)
        if self.journal.due():
            self.journal.flush()

    def close(self, read: bool) -> None:
        """No further request. What has arrived is read, unless a fault of ours has made that senseless."""
        self.pool.close()
        while self._unread and read:
            self._note(*self._unread.popleft())
        self.journal.close()

    def outcome(self) -> Outcome:
        """What became of the job."""
        out = self.out
        out.end_s, out.open_s, out.close_s = self.now(), self.board.open_s, self.board.close_s
        if out.open_s is not None and (out.close_s is None or out.cancelled):
            out.close_s = min(out.end_s, out.close_s if out.close_s is not None else out.end_s)
            if out.open_s >= out.close_s:  # it ended before the window began
                out.open_s = out.close_s = None
        out.output_tokens = self._tokens_done
        out.latency_s = sum(self._latencies) / len(self._latencies) if self._latencies else None
        out.ttft_p50_s = sorted(self._ttfts)[len(self._ttfts) // 2] if self._ttfts else None
        self.health.window(out.open_s, out.close_s)
        out.fared = self.health.result(out.end_s)
        out.fared.received, out.fared.stamped = self.pool.received()
        return out
