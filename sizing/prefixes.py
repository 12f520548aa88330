"""Prompt blocks whose KV is (taken to be) still there, least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sizing.memory import BLOCK_TOKENS


class Prefixes:
    """Shared blocks save compute; that they also share memory is not modelled. `capacity` in blocks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._known: OrderedDict[int, None] = OrderedDict()

    def hits(self, keys: Sequence[int], input_tokens: int) -> int:
        """Tokens of the prompt that need not be computed: those of the leading blocks that are known."""
        count = 0
        # The last prompt token is always computed: its output is the first token.
        for key in keys[: (input_tokens - 1) // BLOCK_TOKENS]:
            if key not in self._known:
                break
            self._known.move_to_end(key)
            count += 1
        return count * BLOCK_TOKENS

    def remember(self, keys: Sequence[int]) -> None:
        """These blocks were computed; the least recently used go."""
        for key in keys:
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)
