"""Prompts: seeded, of a stated length in tokens, and none of them sharing a prefix unless that is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from harness.words import WORDS

FIRST_WORDS = 16


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How a prompt of so many tokens is made of words, as a probe of the server's own count found it.

    Tokens of n words = `tokens_fixed` + `tokens_per_word` * n. With words that are one token each the slope is 1 and
    the constant what the server adds (a BOS, or a chat template's tokens).
    """

    words: tuple[str, ...] = WORDS
    tokens_per_word: float = 1.0
    tokens_fixed: float = 0.0
    count_fixed: bool = True
    seed: int = 0

    def words_for(self, tokens: int) -> int:
        """How many words give `tokens`. The fixed part counts as input only if `count_fixed` (not for chat)."""
        fixed = self.tokens_fixed if self.count_fixed else 0.0
        return max(1, round((tokens - fixed) / self.tokens_per_word))

    def prompt(self, stream: str, index: int, tokens: int) -> str:
        """The text of prompt `index` of a stream of prompts (engine-independent, so that engines get the same).

        Its first words are drawn at random, so that two prompts of a run share no more than a word or two at their
        start and no prompt cache, which goes from the start, finds anything. The rest is a piece of one long text, cut
        at random: a draw of every word would cost the load generator more than the sending does.
        """
        count = self.words_for(tokens)
        rng = random.Random(f"{self.seed}/prompts/{stream}/{index}")
        first = rng.choices(self.words, k=min(count, FIRST_WORDS))
        head = "".join(f" {word}" for word in first)
        rest = count - len(first)
        if rest == 0:
            return head
        text, ends = _long_text(self.words, self.seed, 1 << max(14, (2 * rest).bit_length()))
        start = rng.randrange(len(ends) - rest)
        return head + text[ends[start] : ends[start + rest]]


@lru_cache(maxsize=4)
def _long_text(words: tuple[str, ...], seed: int, count: int) -> tuple[str, list[int]]:
    """`count` random words in one string, each after a space, and where each of them begins (and the last ends)."""
    drawn = random.Random(f"{seed}/text").choices(words, k=count)
    return "".join(f" {word}" for word in drawn), [0, *accumulate(len(word) + 1 for word in drawn)]


def fit_plan(counts: Sequence[tuple[int, int]], words: tuple[str, ...], count_fixed: bool, seed: int) -> PromptPlan:
    """The plan from probes: pairs of (words sent, tokens that the server counted), of two lengths at least."""
    n = len(counts)
    mean_x = sum(x for x, _ in counts) / n
    mean_y = sum(y for _, y in counts) / n
    spread = sum((x - mean_x) ** 2 for x, _ in counts)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in counts) / spread
    slope = 1.0 if abs(slope - 1.0) < 0.005 else slope
    return PromptPlan(words, slope, mean_y - slope * mean_x, count_fixed, seed)
