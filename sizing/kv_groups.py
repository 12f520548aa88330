"""vLLM's pool of KV blocks where layers differ in kind: full attention, sliding window, linear attention.

Layers of a kind are split into groups of equal size; every group draws blocks from one pool, a block being the pages of
its group's layers. A request takes the blocks of all groups, and what the log calls the size of the cache follows from
how many requests of the longest length that is. Read in `v1/core/kv_cache_utils.py` and `v1/kv_cache_interface.py`; the
start of a Qwen3.8-27B-FP8 (4.99 GiB, 302,921 tokens, measured/vllm_kv.csv) comes out to the token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sizing.catalog import ModelShape
from sizing.memory import BLOCK_TOKENS

# The hybrid allocator; before, layers with a window took KV like full ones. UNVERIFIED: it came with gpt-oss.
HYBRID_ALLOCATOR = (0, 10)
# Until here the log divided the blocks evenly over the groups (vllm-project/vllm#40691, of 0.19.0) and a sequence
# held one state of linear attention, as prefix caching was off for such models (UNVERIFIED beyond 0.19).
LONGEST_REQUESTS_LOGGED = (0, 20)
# Groups of unlike size are padded to the larger one below this ratio.
PADDED_BELOW = 1.5


@dataclass(frozen=True, slots=True)
class Pool:
    """How a request of the longest length takes blocks, on one device."""

    block_bytes: float
    block_tokens: int
    blocks_per_request: int
    groups: int

    def tokens(self, capacity_bytes: float, context_tokens: int, version: tuple[int, int]) -> int:
        """What the log of that version says."""
        blocks = int(capacity_bytes / self.block_bytes)
        if version < LONGEST_REQUESTS_LOGGED:
            return blocks // self.groups * self.block_tokens
        return int(blocks / self.blocks_per_request * context_tokens)

    def bytes_per_token(self, context_tokens: int) -> float:
        """Of a request of that length."""
        return self.blocks_per_request * self.block_bytes / context_tokens


def pool_of(
    model: ModelShape,
    context_tokens: int,
    page_token_bytes: float,
    tensor_parallel: int,
    start: tuple[int, tuple[int, int]],
) -> Pool | None:
    """The pool of a model whose layers differ; None where all grow with the context.

    `page_token_bytes` are of one token in one attention layer on one device; `start` is (tokens that may be under way
    beside a sliding window, version). A linear layer's state fills a page: blocks hold as many tokens as that takes.
    """
    scheduled_tokens, version = start
    sliding = model.sliding_layers if version >= HYBRID_ALLOCATOR else 0
    full = model.full_layers + model.sliding_layers - sliding
    counts = [count for count in (full, sliding, model.linear_layers) if count]
    state_bytes = model.linear_state_bytes / tensor_parallel
    alike = not model.sliding_layers and not model.linear_layers
    if alike or (model.linear_layers and not state_bytes) or not page_token_bytes:
        return None
    size = max(counts) if max(counts) < PADDED_BELOW * min(counts) else min(counts)
    tokens = BLOCK_TOKENS * max(1, math.ceil(state_bytes / page_token_bytes / BLOCK_TOKENS))
    windowed = min(model.sliding_window_tokens - 1 + scheduled_tokens, context_tokens)
    states = 2 if version >= LONGEST_REQUESTS_LOGGED else 1
    per_group = (
        (full, math.ceil(context_tokens / tokens)),
        (sliding, math.ceil(windowed / tokens) + 1),
        (model.linear_layers, states),
    )
    groups = [(math.ceil(count / size), blocks) for count, blocks in per_group if count]
    return Pool(
        block_bytes=size * tokens * page_token_bytes,
        block_tokens=tokens,
        blocks_per_request=sum(number * blocks for number, blocks in groups),
        groups=sum(number for number, _ in groups),
    )
