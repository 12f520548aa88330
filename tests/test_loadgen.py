"""How a load process serves jobs: one after the other, each told apart from what the one before left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from harness import loadgen

WAITING = threading.Event()


class Cycle:
    """What only a collection frees, as the streams of a job are."""

    def __init__(self) -> None:
        self.itself = self


async def work(message: Any, left: Any, loaded: Any) -> Any:
    """In place of a job: leaves garbage behind, tells whether it is still there, fails, or waits to be cancelled."""
    if message[0] == "leave":
        left.append(weakref.ref(Cycle()))
    elif message[0] == "fail":
        raise ValueError("no such prompt")
    elif message[0] == "wait":
        WAITING.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "cut off"
    return [ref() is None for ref in left]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The other end of a load process's pipe; it must end with its pipe."""
    monkeypatch.setattr(loadgen, "_work", work)
    monkeypatch.setattr(loadgen, "_load", lambda: None)
    WAITING.clear()
    threshold = gc.get_threshold()
    ours, its = Pipe()
    board: Any = []
    serving = threading.Thread(target=lambda: asyncio.run(loadgen._serve(its, board)), daemon=True)
    serving.start()
    yield ours
    ours.close()
    serving.join(20)
    gc.set_threshold(*threshold)
    gc.unfreeze()
    assert not serving.is_alive(), "it outlives its pipe"


def ask(pipe: Any, *message: str) -> Any:
    pipe.send(message)
    assert pipe.poll(20)
    return pipe.recv()


def test_what_a_job_leaves_behind_is_gone_before_the_next(served: Any) -> None:
    ask(served, "leave")
    assert ask(served, "look") == ("done", [True])


def test_a_job_that_fails_is_answered_and_the_next_is_served(served: Any) -> None:
    assert ask(served, "fail") == ("failed", "ValueError: no such prompt")
    assert ask(served, "look") == ("done", [])


def test_a_job_that_is_cancelled_still_answers(served: Any) -> None:
    served.send(("wait",))
    assert WAITING.wait(20)
    served.send(("cancel",))
    assert served.poll(20)
    assert served.recv() == ("done", "cut off")
    assert ask(served, "look") == ("done", [])


def test_a_job_that_is_cancelled_before_it_has_begun_still_answers(served: Any) -> None:
    for _ in range(20):  # the two may come in one turn of the loop, or in two
        served.send(("wait",))
        served.send(("cancel",))
        assert served.poll(20)
        assert served.recv() == ("done", "cut off")
    assert ask(served, "look") == ("done", [])


def test_a_job_that_is_cancelled_while_its_libraries_load_is_ended_by_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Driver:
        def __init__(self, *_: Any) -> None: ...

        async def run(self) -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "cut off"
            return "done"

    monkeypatch.setattr("harness.driver.Driver", Driver)
    monkeypatch.setattr(loadgen, "_load", lambda: time.sleep(0.05))
    board: Any = SimpleNamespace(join=lambda workers: None)

    async def cancelled() -> Any:
        message = ("job", SimpleNamespace(workers=1, warmup=False))
        job = asyncio.create_task(loadgen._work(message, board, loadgen._Libraries()))
        await asyncio.sleep(0)
        job.cancel()
        return await asyncio.wait_for(job, 20)

    assert asyncio.run(cancelled()) == "cut off"
