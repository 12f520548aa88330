"""Requests and how they are served: a batch after the other, each to its end, padded to its longest prompt."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

Step = Callable[[list[int]], list[bool]]


@dataclass(slots=True, eq=False)
class Job:
    """One request under way. `sink` is told, in the loop's thread, each token (None: it failed) and why it ended."""

    prompt: list[int]
    max_tokens: int
    ignore_eos: bool
    sampling: tuple[float, float, int, int | None]  # temperature, top_p, top_k, seed: equal in all of a batch
    sink: Any
    made: int = 0
    done: bool = False
    gone: bool = False  # the client left: nothing is written any more, and a batch of gone ones alone ends


@dataclass(slots=True)
class Counters:
    """What `/metrics` says. The cache is a rectangle: rows x (padded prompt + tokens so far); live is what of it holds
    tokens of answers that still run."""

    waiting: int = 0
    running: int = 0
    batches_total: int = 0
    finished_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    kv_held_tokens: int = 0
    kv_live_tokens: int = 0
    own: dict[str, float] = field(default_factory=dict)

    def page(self) -> str:
        rows = {name: getattr(self, name) for name in self.__slots__ if name != "own"} | self.own
        return "".join(f"transformers:{name} {value}\n" for name, value in rows.items())


class Model(Protocol):
    """What generates: `step` is called with each step's tokens, one a row, and says which rows are done with."""

    eos: set[int]
    context_tokens: int
    vocabulary: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def generate(self, jobs: list[Job], step: Step) -> None: ...

    def facts(self) -> list[tuple[str, Any, str, str]]: ...

    def memory(self) -> dict[str, float]: ...


class Batcher(threading.Thread):
    """Takes what waits, a batch at a time, and runs it to its end in this thread."""

    def __init__(self, model: Model, loop: asyncio.AbstractEventLoop, batch: int, wait_s: float) -> None:
        super().__init__(daemon=True, name="generate")
        self.model, self.loop, self.batch, self.wait_s = model, loop, batch, wait_s
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.held: list[Job] = []  # taken from the queue, but of another sampling than the batch before
        self.counters = Counters()

    def run(self) -> None:
        while True:
            jobs = self.gather()
            try:
                self.serve(jobs)
            except Exception as error:  # out of memory, for example: these requests fail, the server lives
                print(f"transformersserver: a batch of {len(jobs)} failed: {error!r}", flush=True)
                self.tell([(job, None, f"{type(error).__name__}: {error}") for job in jobs if not job.done])
            finally:
                self.counters.running = self.counters.kv_held_tokens = self.counters.kv_live_tokens = 0

    def gather(self) -> list[Job]:
        """The next batch: the first that waits, and those of the same sampling that wait or come within `wait_s`."""
        first = self.held.pop(0) if self.held else self.jobs.get()
        while first.gone:
            first = self.held.pop(0) if self.held else self.jobs.get()
        taken = [first]
        until_s = time.monotonic() + (self.wait_s if self.batch > 1 else 0.0)
        for job in list(self.held):
            if job.sampling == first.sampling and len(taken) < self.batch:
                self.held.remove(job)
                taken.append(job)
        while len(taken) < self.batch:
            try:
                job = self.jobs.get(timeout=max(until_s - time.monotonic(), 0.0))
            except queue.Empty:
                break
            (taken if job.sampling == first.sampling else self.held).append(job)
        return [job for job in taken if not job.gone] or self.gather()

    def serve(self, jobs: list[Job]) -> None:
        counters, padded = self.counters, max(len(job.prompt) for job in jobs)
        counters.batches_total += 1
        counters.running = len(jobs)
        counters.prompt_tokens_total += sum(len(job.prompt) for job in jobs)
        steps = 0

        def step(tokens: list[int]) -> list[bool]:
            nonlocal steps
            steps += 1
            news = [event for job, token in zip(jobs, tokens, strict=True) if (event := self.advance(job, token))]
            counters.running = sum(not job.done for job in jobs)
            counters.kv_held_tokens = len(jobs) * (padded + steps)
            counters.kv_live_tokens = sum(len(job.prompt) + job.made for job in jobs if not job.done)
            self.tell(news)
            return [job.done for job in jobs]

        self.model.generate(jobs, step)

    def advance(self, job: Job, token: int) -> tuple[Job, int, str | None] | None:
        """Count one token to its request; None where the request is done with already."""
        if job.gone:
            job.done = True
        if job.done:
            return None
        job.made += 1
        self.counters.generation_tokens_total += 1
        ended = not job.ignore_eos and token in self.model.eos
        reason = "stop" if ended else "length" if job.made >= job.max_tokens else None
        job.done = reason is not None
        self.counters.finished_total += job.done
        return job, token, reason

    def tell(self, news: list[tuple[Job, Any, Any]]) -> None:
        if news:
            self.loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: list[tuple[Job, Any, Any]]) -> None:
    for job, token, reason in news:
        if not job.gone:
            job.sink(token, reason)
