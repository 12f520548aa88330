"""A steppable model of an engine's scheduler, with no clock and no I/O.

The driver owns time: it calls `step(now_s)`, which schedules one engine step, advances the state, and says how long the
step lasts and which requests get a token at its end. `sizing.virtual` loops it in virtual time, the embedded engine
(`harness.simserver`) in wall time. Equal calls give equal results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sizing.decoding import Decoding
from sizing.memory import BLOCK_TOKENS
from sizing.policy import Policy
from sizing.prefixes import Prefixes
from sizing.queued import Gauges, Request, StepResult
from sizing.speed import StepTime, StepWork

__all__ = ["Gauges", "QueueFullError", "Scheduler", "StepResult"]


class QueueFullError(Exception):
    """The waiting queue holds its maximum: a real Ollama answers 503."""


class Scheduler:
    """The state of one engine: a queue, running sequences and KV blocks. With `named` a step lists who got a token."""

    def __init__(self, policy: Policy, step_time: StepTime, named: bool = True) -> None:
        self.policy = policy
        self._step_time = step_time
        self._named = named
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}
        """in order of admission"""
        self._decoding = Decoding()
        """those that only decode"""
        self._others: list[Request] = []
        """and those that do not yet, in order of admission"""
        self._known: dict[str, Request] = {}
        self._capacity_blocks = policy.kv_capacity_tokens // BLOCK_TOKENS
        self._used_blocks = 0
        self._preemptions = 0
        self._last_start_s = 0.0
        self._prefixes = Prefixes(self._capacity_blocks)

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
        request = Request(request_id, input_tokens, output_tokens, now_s, tuple(prefix_keys))
        self._known[request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str) -> bool:
        """Forget a request and free what it holds; False when it is unknown (or finished)."""
        request = self._known.pop(request_id, None)
        if request is None:
            return False
        if request_id in self._running:
            self._drop(request)
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
            kv_live_tokens=self._decoding.context_tokens + sum(request.computed for request in self._others),
            kv_capacity_tokens=self._capacity_blocks * BLOCK_TOKENS,
            preemptions=self._preemptions,
            prefix_queried_tokens=self._prefixes.queried_tokens,
            prefix_hit_tokens=self._prefixes.hit_tokens,
        )

    def step(self, now_s: float) -> StepResult:
        """Schedule one step that starts at `now_s`. Without work it lasts 0 s and lists nothing."""
        preempted = self._make_room()
        decodes = self._schedule_decodes()
        scheduled, more = self._schedule_others(self.policy.step_tokens - decodes)
        preempted += more
        admitted: list[str] = []
        if not preempted:
            # As vLLM does: after a preemption nothing new is admitted, or the two would take turns.
            admitted = self._admit(scheduled, self._seen_until_s(now_s), decodes)
        self._last_start_s = now_s
        work = self._work(scheduled, decodes)
        duration_s = self._step_time.seconds(work) if work.sequences else 0.0
        running, kv_used = len(self._running), self._used_blocks * BLOCK_TOKENS
        made = list(self._decoding_names(decodes))
        finished = self._decoding.advance(1) if decodes else []
        first: list[str] = []
        count = decodes
        for request, tokens in scheduled:
            request.computed += tokens
            if request.pending:
                continue
            count += 1
            made.append(request.request_id)
            if not request.generated:
                first.append(request.request_id)
                if self.policy.prefix_caching:
                    self._prefixes.remember(request.prefix_keys)
            request.generated += 1
            if request.generated == request.output_tokens:
                finished.append(request)
            else:
                self._others.remove(request)
                self._decoding.add(request)
        for request in finished:
            self._drop(request)
            del self._known[request.request_id]
        return StepResult(
            started_s=now_s,
            duration_s=duration_s,
            token_count=count,
            tokens=tuple(made) if self._named else (),
            first_tokens=tuple(first),
            finished=tuple(request.request_id for request in finished),
            admitted=tuple(admitted),
            preempted=tuple(preempted),
            running=running,
            kv_used_tokens=kv_used,
        )

    def quiet_steps(self) -> int:
        """How many of the coming steps are sure to be decodes of the same sequences, none finishing, none joining."""
        if self._others or not self._decoding.count:
            return 0
        if self._waiting and len(self._running) < self.policy.max_sequences and self._head_fits():
            return 0
        count = self._decoding.steps_to_end() - 1
        if count < 1 or self._decoding.count > self.policy.step_tokens:
            return 0
        return count if self._new_blocks(count) <= self._free_blocks() else 0

    def slowest_step_s(self, count: int) -> float:
        """Duration of the last of `count` quiet steps, which is the longest of them."""
        running = self._decoding.count
        return self._step_time.seconds(
            StepWork(0, 0, running, self._decoding.context_tokens + running * count, running)
        )

    def leap(self, count: int) -> float:
        """Take `count` quiet steps at once, and say how long they last together. The same state as stepping leaves."""
        running, context = self._decoding.count, self._decoding.context_tokens
        # A step's time is linear in the live KV between two events, but for a window's edge: the ends give the sum.
        ends = [StepWork(0, 0, running, context + running * at, running) for at in (1, count)]
        self._used_blocks += self._new_blocks(count)
        self._decoding.advance(count)
        return count * sum(map(self._step_time.seconds, ends)) / 2

    # ------------------------------------------------------------------------------------------ one step's parts

    def _free_blocks(self) -> int:
        return self._capacity_blocks - self._used_blocks

    def _blocks_for(self, request: Request, count: int) -> int:
        """Blocks that the request holds once `count` more tokens are computed."""
        return -(-max(request.computed + count, self.policy.reserved_tokens) // BLOCK_TOKENS)

    def _new_blocks(self, steps: int) -> int:
        """Blocks that the decoding sequences take in so many steps; a slot that was reserved has them already."""
        return 0 if self.policy.reserved_tokens else self._decoding.new_blocks(steps)

    def _head_fits(self) -> bool:
        head = self._waiting[0]
        count = min(head.pending, self.policy.step_tokens)
        return self._blocks_for(head, count) - head.blocks <= self._free_blocks()

    def _make_room(self) -> list[str]:
        """Preempt the last admitted until the rest can decode; where all of them decode no other order matters."""
        preempted: list[str] = []
        if self._others or self._decoding.count > self.policy.step_tokens:
            return preempted
        while self._new_blocks(1) > self._free_blocks():
            victim = next(reversed(self._running.values()))
            self._preempt(victim)
            preempted.append(victim.request_id)
        return preempted

    def _schedule_decodes(self) -> int:
        """Take all decoding sequences into the step and say how many; 0 where room or budget may be short: they are
        then looked at one by one."""
        budget, need = self.policy.step_tokens - self._decoding.count, self._new_blocks(1)
        for request in self._others:
            count = max(0, min(request.pending, budget))
            need += max(0, self._blocks_for(request, count) - request.blocks) if count else 0
            budget -= count
        if budget < 0 or need > self._free_blocks():
            for request in self._running.values():
                if request in self._decoding:
                    self._decoding.remove(request)
                    request.blocks = self._blocks_for(request, 0)
            self._others = list(self._running.values())
            return 0
        self._used_blocks += self._new_blocks(1)
        return self._decoding.count

    def _schedule_others(self, budget: int) -> tuple[list[tuple[Request, int]], list[str]]:
        """Tokens for the sequences that are not known to decode, preempting the last admitted for room.

        In order of admission decodes come before prefill: an unfinished prefill takes all the budget that is left, so
        that nothing is admitted behind it. A victim is therefore never one that this step already scheduled.
        """
        scheduled: list[tuple[Request, int]] = []
        preempted: list[str] = []
        for request in tuple(self._others):
            count = min(request.pending, budget)
            while count and request.request_id not in preempted and not self._grow(request, count):
                victim = next(reversed(self._running.values()))
                self._preempt(victim)
                preempted.append(victim.request_id)
            if count and request.request_id not in preempted:
                scheduled.append((request, count))
                budget -= count
        return scheduled, preempted

    def _decoding_names(self, decodes: int) -> list[str]:
        """Who decodes, in order of admission, where names are wanted."""
        if not self._named or not decodes:
            return []
        return [name for name, request in self._running.items() if request in self._decoding]

    def _seen_until_s(self, now_s: float) -> float:
        """Until when requests came that this step can take: one that was scheduled ahead knows of those that were there
        when the step before it began."""
        return self._last_start_s if self.policy.scheduled_ahead and self._running else now_s

    def _admit(self, scheduled: list[tuple[Request, int]], seen_s: float, decodes: int) -> list[str]:
        """Move waiting requests in, first come first served, while sequences, budget and KV last."""
        budget = self.policy.step_tokens - decodes - sum(count for _, count in scheduled)
        admitted: list[str] = []
        while self._waiting and len(self._running) < self.policy.max_sequences and budget > 0:
            request = self._waiting[0]
            if request.submitted_s > seen_s:
                break
            caching = self.policy.prefix_caching
            hit_tokens = self._prefixes.hits(request.prefix_keys, request.input_tokens) if caching else 0
            count = min(request.pending - hit_tokens, budget)
            request.computed = hit_tokens
            if not self._grow(request, count):
                request.computed = 0
                break
            if caching and not request.generated:
                self._prefixes.queried_tokens += request.input_tokens
                self._prefixes.hit_tokens += hit_tokens
            self._waiting.popleft()
            self._running[request.request_id] = request
            self._others.append(request)
            scheduled.append((request, count))
            admitted.append(request.request_id)
            budget -= count
        return admitted

    def _work(self, scheduled: list[tuple[Request, int]], decodes: int) -> StepWork:
        prefill_tokens = prefill_pairs = 0
        sequences, context = decodes + len(scheduled), decodes + (self._decoding.context_tokens if decodes else 0)
        for request, count in scheduled:
            if count == 1 and request.generated:
                decodes += 1
                context += request.computed + count
            else:
                prefill_tokens += count
                # Token i of the chunk attends to what is stored and to the i tokens up to itself.
                prefill_pairs += count * request.computed + count * (count + 1) // 2
        return StepWork(prefill_tokens, prefill_pairs, decodes, context, sequences)

    def _grow(self, request: Request, count: int) -> bool:
        """Give the request KV for `count` more tokens; False, and nothing changed, when there is none."""
        tokens = max(request.computed + count, self.policy.reserved_tokens)
        more = -(-tokens // BLOCK_TOKENS) - request.blocks
        if more > self._capacity_blocks - self._used_blocks:
            return False
        if more > 0:
            request.blocks += more
            self._used_blocks += more
        return True

    def _drop(self, request: Request) -> None:
        """It runs no more, and holds nothing."""
        del self._running[request.request_id]
        if request in self._decoding:
            self._decoding.remove(request)
        elif request in self._others:
            self._others.remove(request)
        # Blocks that it took while it decoded were counted for all together.
        held = max(request.blocks, self._blocks_for(request, 0))
        self._used_blocks -= held
        request.blocks = 0

    def _preempt(self, victim: Request) -> None:
        self._drop(victim)
        victim.computed = 0  # recomputed on return, its generated tokens too
        self._waiting.appendleft(victim)
        self._preemptions += 1

    def _free_slots(self) -> int:
        # A request that the next step will admit does not queue, although `step` has not run yet.
        return self.policy.max_sequences - len(self._running)
