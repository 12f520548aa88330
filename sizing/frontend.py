"""The server process in front of an engine: an event loop that takes requests in and gives tokens out.

It goes round: each turn writes the tokens that have come from the engine, and takes every request that is on its way in
one step further. A request needs some steps, so that it is through at once while the loop has nothing else to do, and
late where tokens keep it busy: of 256 requests sent within 0.3 s to a vLLM that streamed 256 answers, the first reached
the scheduler 0.4 s later, when all of them had come (results/reference, 8b-bf16). No clock and no I/O; equal calls give
equal results.
"""

from __future__ import annotations

import math
from collections import deque

TURNS = 10
"""steps that a request takes through vLLM's API server: read, parse, check, route, prepare, hand over"""
Awaited = tuple[int, str, bool]
"""of a token: its place in the step, its request, whether it is the last (else the first)"""

Written = tuple[float, float, float]
"""From when to when so many tokens went out, evenly."""


class Frontend:
    """`request_s` and `token_s` are the process's work for a request and for a token; where both are 0 all passes at
    once. The times given are never before those of the last call."""

    def __init__(self, request_s: float, token_s: float, written: list[Written] | None = None) -> None:
        self.token_s = token_s
        self._written = written
        self._turns = TURNS if request_s else 1
        self._slice_s = request_s / self._turns
        self._turn = 0
        """how many have ended"""
        self._requests: deque[tuple[int, str]] = deque()
        """those of this turn, with the turn at whose end they are through; the first to be through come first"""
        self._came: list[str] = []
        """and those that came during it"""
        self._tokens_s = 0.0
        """work of the tokens that came during this turn"""
        self._awaited: list[tuple[float, str, bool]] = []
        self._writing: deque[tuple[float, str, bool]] = deque()
        self._ends_s: float | None = None
        """when this turn ends; None while the loop sleeps"""

    @property
    def idle(self) -> bool:
        """Whether no request and no awaited token is inside (others may be)."""
        return not (self._requests or self._came or self._awaited or self._writing)

    def take(self, request_id: str, now_s: float) -> None:
        """A request arrives."""
        self._came.append(request_id)
        self._wake(now_s)

    def give(self, tokens: int, awaited: list[Awaited], now_s: float) -> None:
        """A step's tokens come from the engine; `awaited` names those to be told of."""
        before_s = self._tokens_s
        self._awaited.extend((before_s + (place + 1) * self.token_s, name, last) for place, name, last in awaited)
        self._tokens_s += tokens * self.token_s
        if self._written is not None and not self.token_s:
            self._written.append((now_s, now_s, tokens))
        self._wake(now_s)

    def quiet(self, tokens: int, steps: int, started_s: float, ended_s: float) -> None:
        """Steps from one moment to another made `tokens`, none of them awaited; nothing else was inside."""
        left_s = self._tokens_s + (max(0.0, self._ends_s - started_s) if self._ends_s is not None else 0.0)
        made_s, before_s = tokens * self.token_s, self._tokens_s
        self._tokens_s = max(made_s / steps, left_s + made_s - (ended_s - started_s))
        if self._written is not None:
            out = (made_s + before_s - self._tokens_s) / self.token_s if self.token_s else tokens
            self._written.append((started_s, ended_s, out))
        self._ends_s = None
        self._wake(ended_s)

    def next_s(self) -> float:
        """When to look next: infinite while the loop sleeps."""
        if self._writing:
            return self._writing[0][0]
        return math.inf if self._ends_s is None else self._ends_s

    def go_round(self, to_s: float, before_s: float) -> None:
        """Turn until then while nothing comes in and nothing gets out: what `come_through` would do, turn by turn."""
        if self._writing or self._awaited or self._came or self._tokens_s or not self._requests:
            return
        ends_s = self._ends_s
        if ends_s is None:
            return
        turn_s, left = len(self._requests) * self._slice_s, self._requests[0][0] - self._turn - 1
        while left > 0 and ends_s <= to_s and ends_s < before_s:
            ends_s += turn_s
            left -= 1
            self._turn += 1
        self._ends_s = ends_s

    def come_through(self, now_s: float) -> tuple[list[str], list[tuple[str, bool]]]:
        """(requests that reach the engine, (request, last) of awaited tokens that reach their client) at `next_s()`."""
        told: list[tuple[str, bool]] = []
        while self._writing and self._writing[0][0] <= now_s:
            _, name, last = self._writing.popleft()
            told.append((name, last))
        if self._ends_s is None or self._ends_s > now_s:
            return [], told
        self._turn += 1
        ready = []
        while self._requests and self._requests[0][0] == self._turn:
            ready.append(self._requests.popleft()[1])
        self._ends_s = None
        if self._requests or self._came or self._awaited or self._tokens_s:
            self._wake(now_s)
        return ready, told

    def _wake(self, now_s: float) -> None:
        """Begin a turn with what is there, unless one is under way."""
        if self._ends_s is not None:
            return
        if self._came:
            through = self._turn + self._turns
            self._requests.extend([(through, name) for name in self._came])
            self._came = []
        if self._awaited:
            self._writing.extend([(now_s + after_s, name, last) for after_s, name, last in self._awaited])
            self._awaited = []
        if self._written is not None and self._tokens_s:
            self._written.append((now_s, now_s + self._tokens_s, self._tokens_s / self.token_s))
        self._ends_s = now_s + self._tokens_s + len(self._requests) * self._slice_s
        self._tokens_s = 0.0
