"""The sequences that do nothing but decode, counted together: a step costs the same however many they are."""

from __future__ import annotations

from sizing.memory import BLOCK_TOKENS
from sizing.queued import Request


class Decoding:
    """Each of them computes and makes one token a step. Their own counts stand still meanwhile: `remove` and `advance`
    bring them up to date as they leave."""

    def __init__(self) -> None:
        self.count = 0
        self.context_tokens = 0
        """their live tokens together"""
        self._step = 0
        self._since: dict[str, int] = {}
        self._phases = [0] * BLOCK_TOKENS
        """by the step (modulo a block's tokens) at which a new block begins"""
        self._ends: dict[int, dict[str, Request]] = {}
        self._soonest = 0

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._since

    def add(self, request: Request) -> None:
        """It has a token, and more to make."""
        self.count += 1
        self.context_tokens += request.computed
        self._since[request.request_id] = self._step
        self._phases[(self._step - request.computed) % BLOCK_TOKENS] += 1
        end = self._step + request.output_tokens - request.generated
        self._ends.setdefault(end, {})[request.request_id] = request
        self._soonest = min(self._soonest, end) if self.count > 1 else end

    def remove(self, request: Request) -> None:
        """It leaves; its counts are true again."""
        end = self._step + request.output_tokens - request.generated - (self._step - self._since[request.request_id])
        del self._ends[end][request.request_id]
        if not self._ends[end]:
            del self._ends[end]
            self._soonest = min(self._ends, default=0)
        self._take_out(request)

    def advance(self, steps: int) -> list[Request]:
        """Let them all make so many tokens; those that made their last one leave. No end lies before the last step."""
        self._step += steps
        self.context_tokens += self.count * steps
        if not self.count or self._soonest > self._step:
            return []
        ended = list(self._ends.pop(self._step).values())
        for request in ended:
            self._take_out(request)
        self._soonest = min(self._ends, default=0)
        return ended

    def steps_to_end(self) -> int:
        """Steps until the first of them ends."""
        return self._soonest - self._step

    def new_blocks(self, steps: int) -> int:
        """KV blocks that so many steps take in addition."""
        if steps == 1:
            return self._phases[self._step % BLOCK_TOKENS]
        whole, rest = divmod(steps, BLOCK_TOKENS)
        begun = sum(self._phases[(self._step + at) % BLOCK_TOKENS] for at in range(rest))
        return whole * self.count + begun

    def _take_out(self, request: Request) -> None:
        made = self._step - self._since.pop(request.request_id)
        self._phases[(self._step - made - request.computed) % BLOCK_TOKENS] -= 1
        request.computed += made
        request.generated += made
        self.count -= 1
        self.context_tokens -= request.computed
