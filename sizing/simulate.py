"""A steppable model of an engine's scheduler, with no clock and no I/O.

The driver owns time: it calls `step(now_s)`, which schedules one engine step, advances the state, and says how long the
step lasts and which requests get a token at its end. `sizing.virtual` loops it in virtual time, the embedded engine
(`harness.simserver`) in wall time. Equal calls give equal results.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from sizing.memory import BLOCK_TOKENS
from sizing.policy import Policy
from sizing.speed import StepTime, StepWork


class QueueFullError(Exception):
    """The waiting queue holds its maximum: a real Ollama answers 503."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One engine step. Every listed request gets its token at `ended_s`."""

    started_s: float
    duration_s: float
    tokens: tuple[str, ...]
    """requests that get one token each, in order of admission"""
    first_tokens: tuple[str, ...]
    """those of `tokens` for which it is the first"""
    finished: tuple[str, ...]
    """those of `tokens` for which it is the last; their slots and KV are free for the next step"""
    admitted: tuple[str, ...]
    """requests that left the queue at the start of this step"""
    preempted: tuple[str, ...]
    """requests that lost their KV and went back to the head of the queue"""
    running: int
    """sequences in this step, those that it finishes included"""
    kv_used_tokens: int
    """KV in use during this step"""

    @property
    def ended_s(self) -> float:
        """When the step ends and its tokens arrive."""
        return self.started_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Gauges:
    """The scheduler's state between steps, and its counters since the start."""

    running: int
    waiting: int
    kv_used_tokens: int
    """allocated: whole blocks, or whole slots"""
    kv_live_tokens: int
    """holding tokens of running requests"""
    kv_capacity_tokens: int
    preemptions: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int


@dataclass(slots=True, eq=False)
class _Request:
    request_id: str
    input_tokens: int
    output_tokens: int
    submitted_s: float
    prefix_keys: tuple[int, ...]
    computed: int = 0
    """tokens whose KV is stored"""
    generated: int = 0
    blocks: int = 0

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one comes out: 1 while decoding, more in prefill (and after preemption)."""
        return self.input_tokens + self.generated - self.computed


class Scheduler:
    """The state of one engine: a queue, running sequences and KV blocks."""

    def __init__(self, policy: Policy, step_time: StepTime) -> None:
        self.policy = policy
        self._step_time = step_time
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._known: dict[str, _Request] = {}
        self._capacity_blocks = policy.kv_capacity_tokens // BLOCK_TOKENS
        self._used_blocks = 0
        self._preemptions = 0
        self._last_start_s = 0.0
        # Keys of prompt blocks whose KV is (taken to be) still there, least recently used first. Shared blocks save
        # compute; that they also share memory is not modelled.
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._prefix_queried = 0
        self._prefix_hits = 0

    def submit(
        self,
        request_id: str,
        input_tokens: int,
        output_tokens: int,
        now_s: float,
        prefix_keys: Sequence[int] = (),
    ) -> None:
        """Queue a request that will take part from the next step on.

        `prefix_keys` has one key for each full block of 16 prompt tokens, each standing for all tokens up to its end (a
        running hash): requests that share leading keys share that prefix. Raises QueueFullError, and ValueError for a
        request that could never run.
        """
        if request_id in self._known:
            raise ValueError(f"request {request_id!r} is already known")
        if input_tokens < 1 or output_tokens < 1:
            raise ValueError("a request has at least one input and one output token")
        total = input_tokens + output_tokens
        if total > min(self.policy.context_tokens, self._capacity_blocks * BLOCK_TOKENS):
            raise ValueError(f"{total} tokens exceed the context of {self.policy.context_tokens} or the KV capacity")
        if self.policy.max_queue is not None and len(self._waiting) >= self.policy.max_queue + self._free_slots():
            raise QueueFullError(f"maximum pending requests ({self.policy.max_queue}) exceeded")
        request = _Request(request_id, input_tokens, output_tokens, now_s, tuple(prefix_keys))
        self._known[request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free what it holds; False when it is unknown (or finished)."""
        request = self._known.pop(request_id, None)
        if request is None:
            return False
        if request in self._running:
            self._release(request)
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        return True

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._known)

    def gauges(self) -> Gauges:
        """The state now."""
        return Gauges(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_used_tokens=self._used_blocks * BLOCK_TOKENS,
            kv_live_tokens=sum(request.computed for request in self._running),
            kv_capacity_tokens=self._capacity_blocks * BLOCK_TOKENS,
            preemptions=self._preemptions,
            prefix_queried_tokens=self._prefix_queried,
            prefix_hit_tokens=self._prefix_hits,
        )

    def step(self, now_s: float) -> StepResult:
        """Schedule one step that starts at `now_s`. Without work it lasts 0 s and lists nothing."""
        scheduled, preempted = self._schedule_running()
        admitted: list[str] = []
        if not preempted:
            # As vLLM does: after a preemption nothing new is admitted, or the two would take turns.
            admitted = self._admit(scheduled, self._seen_until_s(now_s))
        self._last_start_s = now_s
        duration_s = self._step_time.seconds(self._work(scheduled)) if scheduled else 0.0
        running, kv_used = len(self._running), self._used_blocks * BLOCK_TOKENS
        tokens: list[str] = []
        first: list[str] = []
        finished: list[_Request] = []
        for request, count in scheduled.values():
            request.computed += count
            if request.pending:
                continue
            tokens.append(request.request_id)
            if not request.generated:
                first.append(request.request_id)
                self._remember_prefix(request)
            request.generated += 1
            if request.generated == request.output_tokens:
                finished.append(request)
        for request in finished:
            self._release(request)
            del self._known[request.request_id]
        if finished:
            self._running = [request for request in self._running if request.request_id in self._known]
        return StepResult(
            started_s=now_s,
            duration_s=duration_s,
            tokens=tuple(tokens),
            first_tokens=tuple(first),
            finished=tuple(request.request_id for request in finished),
            admitted=tuple(admitted),
            preempted=tuple(preempted),
            running=running,
            kv_used_tokens=kv_used,
        )

    def quiet_steps(self) -> int:
        """How many of the coming steps are sure to be decodes of the same sequences, none finishing, none joining."""
        if not self._running or any(r.pending != 1 or not r.generated for r in self._running):
            return 0
        if self._waiting and len(self._running) < self.policy.max_sequences and self._head_fits():
            return 0
        count = min(request.output_tokens - request.generated for request in self._running) - 1
        if count < 1 or len(self._running) > self.policy.step_tokens:
            return 0
        more = sum(max(0, self._blocks_for(request, count) - request.blocks) for request in self._running)
        return count if more <= self._capacity_blocks - self._used_blocks else 0

    def slowest_step_s(self, count: int) -> float:
        """Duration of the last of `count` quiet steps, which is the longest of them."""
        running, context = len(self._running), sum(request.computed for request in self._running)
        return self._step_time.seconds(StepWork(0, 0, running, context + running * count, running))

    def leap(self, count: int) -> float:
        """Take `count` quiet steps at once, and say how long they last together. The same state as stepping leaves."""
        running, context = len(self._running), sum(request.computed for request in self._running)
        # A step's time is linear in the live KV between two events, but for a window's edge: the ends give the sum.
        ends = [StepWork(0, 0, running, context + running * at, running) for at in (1, count)]
        for request in self._running:
            request.computed += count
            request.generated += count
            more = max(0, self._blocks_for(request, 0) - request.blocks)
            request.blocks += more
            self._used_blocks += more
        return count * sum(map(self._step_time.seconds, ends)) / 2

    # ------------------------------------------------------------------------------------------ one step's parts

    def _blocks_for(self, request: _Request, count: int) -> int:
        """Blocks that the request holds once `count` more tokens are computed."""
        return -(-max(request.computed + count, self.policy.reserved_tokens) // BLOCK_TOKENS)

    def _head_fits(self) -> bool:
        head = self._waiting[0]
        count = min(head.pending, self.policy.step_tokens)
        return self._blocks_for(head, count) - head.blocks <= self._capacity_blocks - self._used_blocks

    def _schedule_running(self) -> tuple[dict[str, tuple[_Request, int]], list[str]]:
        """Tokens for the running sequences, preempting the last admitted for room.

        In order of admission decodes come before prefill: an unfinished prefill takes all the budget that is left, so
        that nothing is admitted behind it. A victim is therefore never one that this step already scheduled.
        """
        scheduled: dict[str, tuple[_Request, int]] = {}
        preempted: list[str] = []
        budget = self.policy.step_tokens
        for request in tuple(self._running):
            count = min(request.pending, budget)
            while count and request.request_id not in preempted and not self._grow(request, count):
                victim = self._running.pop()
                self._preempt(victim)
                preempted.append(victim.request_id)
            if count and request.request_id not in preempted:
                scheduled[request.request_id] = (request, count)
                budget -= count
        return scheduled, preempted

    def _seen_until_s(self, now_s: float) -> float:
        """Until when requests came that this step can take: one that was scheduled ahead knows of those that were there
        when the step before it began."""
        return self._last_start_s if self.policy.scheduled_ahead and self._running else now_s

    def _admit(self, scheduled: dict[str, tuple[_Request, int]], seen_s: float) -> list[str]:
        """Move waiting requests in, first come first served, while sequences, budget and KV last."""
        budget = self.policy.step_tokens - sum(count for _, count in scheduled.values())
        admitted: list[str] = []
        while self._waiting and len(self._running) < self.policy.max_sequences and budget > 0:
            request = self._waiting[0]
            if request.submitted_s > seen_s:
                break
            hit_tokens = self._prefix_hit_tokens(request)
            count = min(request.pending - hit_tokens, budget)
            request.computed = hit_tokens
            if not self._grow(request, count):
                request.computed = 0
                break
            if self.policy.prefix_caching and not request.generated:
                self._prefix_queried += request.input_tokens
                self._prefix_hits += hit_tokens
            self._running.append(self._waiting.popleft())
            scheduled[request.request_id] = (request, count)
            admitted.append(request.request_id)
            budget -= count
        return admitted

    def _work(self, scheduled: dict[str, tuple[_Request, int]]) -> StepWork:
        prefill_tokens = prefill_pairs = decodes = context = 0
        for request, count in scheduled.values():
            if count == 1 and request.generated:
                decodes += 1
                context += request.computed + count
            else:
                prefill_tokens += count
                # Token i of the chunk attends to what is stored and to the i tokens up to itself.
                prefill_pairs += count * request.computed + count * (count + 1) // 2
        return StepWork(prefill_tokens, prefill_pairs, decodes, context, len(scheduled))

    def _grow(self, request: _Request, count: int) -> bool:
        """Give the request KV for `count` more tokens; False, and nothing changed, when there is none."""
        tokens = max(request.computed + count, self.policy.reserved_tokens)
        more = -(-tokens // BLOCK_TOKENS) - request.blocks
        if more > self._capacity_blocks - self._used_blocks:
            return False
        if more > 0:
            request.blocks += more
            self._used_blocks += more
        return True

    def _release(self, request: _Request) -> None:
        self._used_blocks -= request.blocks
        request.blocks = 0

    def _preempt(self, victim: _Request) -> None:
        self._release(victim)
        victim.computed = 0  # recomputed on return, its generated tokens too
        self._waiting.appendleft(victim)
        self._preemptions += 1

    def _free_slots(self) -> int:
        # A request that the next step will admit does not queue, although `step` has not run yet.
        return self.policy.max_sequences - len(self._running)

    def _prefix_hit_tokens(self, request: _Request) -> int:
        if not self.policy.prefix_caching:
            return 0
        hits = 0
        # The last prompt token is always computed: its output is the first token.
        for key in request.prefix_keys[: (request.input_tokens - 1) // BLOCK_TOKENS]:
            if key not in self._prefixes:
                break
            self._prefixes.move_to_end(key)
            hits += 1
        return hits * BLOCK_TOKENS

    def _remember_prefix(self, request: _Request) -> None:
        if not self.policy.prefix_caching:
            return
        for key in request.prefix_keys:
            self._prefixes[key] = None
            self._prefixes.move_to_end(key)
        while len(self._prefixes) > self._capacity_blocks:
            self._prefixes.popitem(last=False)
