"""Prompts of so many tokens, made of words or of their token ids, as a probe of the server's own count found it."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

from harness.words import WORDS

FIRST_WORDS = 8  # 10^22 beginnings: more would only cost time
SHORTEST_TEXT_WORDS = 1 << 14
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How a prompt of so many tokens is made of words.

    Tokens of n words = `tokens_fixed` + `tokens_per_word` * n. With words that are one token each the slope is 1 and
    the constant what the server adds (a BOS, or a chat template's tokens). `ids`: the token of each word; given,
    prompts are lists of them. `exact`: the probe found no difference. `text_tokens_per_word`: of the words in a
    workload's own texts, None where that was not measured; `tokenizer`: the path of the model's tokenizer.json, where
    one is at hand.
    """

    words: tuple[str, ...] = WORDS
    tokens_per_word: float = 1.0
    tokens_fixed: float = 0.0
    count_fixed: bool = True
    seed: int = 0
    ids: tuple[int, ...] = ()
    exact: bool = True
    text_tokens_per_word: float | None = None
    tokenizer: str | None = None

    def words_for(self, tokens: int) -> int:
        """How many words give `tokens`. The fixed part counts as input only if `count_fixed` (not for chat)."""
        fixed = self.tokens_fixed if self.count_fixed else 0.0
        return max(1, round((tokens - fixed) / self.tokens_per_word))

    def counted(self, tokens: int) -> int:
        """What the server counts of a prompt of `tokens`: with a chat's template, where there is one."""
        return tokens if self.count_fixed else tokens + round(self.tokens_fixed)

    def prompt(self, stream: str, index: int, tokens: int) -> str:
        """The text of prompt `index` of a stream of prompts (engine-independent, so that engines get the same)."""
        rng = random.Random(f"{self.seed}/prompts/{stream}/{index}")
        return _cached_writer(self).text(rng, self.words_for(tokens))


class Writer:
    """Draws texts, or lists of token ids, of a given number of words. Of equal random sources come equal texts."""

    def __init__(self, plan: PromptPlan) -> None:
        self.plan = plan
        self._spaced = tuple(f" {word}" for word in plan.words)
        self._text, self._ends, self._ids = "", array("q"), [0]

    def text(self, rng: random.Random, count: int) -> str:
        """`count` words, each after a space.

        The first ones are drawn at random, so that two texts of a run share no more than a word or two at their start
        and no prompt cache, which goes from the start, finds anything. The rest is a piece of one long text, cut at
        random: a draw of every word would cost the load generator more than the sending does.
        """
        head = "".join(self._first(rng, count, self._spaced))
        start, rest = self._piece(rng, count)
        return head + self._text[self._ends[start] : self._ends[start + rest]] if rest else head

    def token_ids(self, rng: random.Random, count: int) -> list[int]:
        """The tokens of the text that `text` would draw."""
        head = self._first(rng, count, self.plan.ids)
        start, rest = self._piece(rng, count)
        return head + self._ids[start : start + rest] if rest else head

    def _first(self, rng: random.Random, count: int, things: Sequence[T]) -> list[T]:
        chance, most = rng.random, len(things)
        return [things[int(chance() * most)] for _ in range(min(count, FIRST_WORDS))]

    def _piece(self, rng: random.Random, count: int) -> tuple[int, int]:
        """Where in the long text the rest of a text of `count` words begins, and how many words it has."""
        rest = count - FIRST_WORDS
        if rest <= 0:
            return 0, 0
        # Its size depends on this text alone: what was drawn before must not change what comes.
        size = max(SHORTEST_TEXT_WORDS, 1 << (2 * rest).bit_length())
        if size >= len(self._ends):
            self._lengthen(size)
        return int(rng.random() * (size - rest)), rest

    def _lengthen(self, count: int) -> None:
        chance, most = random.Random(f"{self.plan.seed}/text").random, len(self._spaced)
        drawn = [int(chance() * most) for _ in range(count)]  # a longer one begins like a shorter one
        self._text = "".join(self._spaced[index] for index in drawn)
        self._ends = array("q", accumulate((len(self._spaced[index]) for index in drawn), initial=0))
        if self.plan.ids:
            self._ids = [self.plan.ids[index] for index in drawn]


@lru_cache(maxsize=4)
def _cached_writer(plan: PromptPlan) -> Writer:
    return Writer(plan)


def fit_plan(counts: Sequence[tuple[int, int]], words: tuple[str, ...], count_fixed: bool, seed: int) -> PromptPlan:
    """The plan from probes: pairs of (words sent, tokens that the server counted), of two lengths at least.

    It is `exact` if the line through them misses none by half a token.
    """
    n = len(counts)
    mean_x = sum(x for x, _ in counts) / n
    mean_y = sum(y for _, y in counts) / n
    spread = sum((x - mean_x) ** 2 for x, _ in counts)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in counts) / spread
    slope = 1.0 if abs(slope - 1.0) < 0.005 else slope
    fixed = mean_y - slope * mean_x
    exact = slope == 1.0 and all(abs(fixed + slope * x - y) < 0.5 for x, y in counts)
    return PromptPlan(words, slope, fixed, count_fixed, seed, exact=exact)
