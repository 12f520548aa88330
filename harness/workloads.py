"""Prompts: seeded, of a stated length in tokens, and none of them sharing a prefix unless that is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

from harness.arrivals import Size
from harness.scenario import Workload
from harness.words import WORDS

FIRST_WORDS = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks for. `prompt` is a text, token ids, or the messages of a chat; `input_tokens` is None where
    nobody says how long it is. Sent `think_s` after the turn before it ended; the session goes on unless it is `last`.
    """

    prompt: str | list[int] | list[dict[str, str]]
    input_tokens: int | None
    output_tokens: int
    session: int
    turn: int = 0
    think_s: float = 0.0
    last: bool = True


class Source(Protocol):
    """Where prompts come from. Each call is a pure function of the seed and its arguments, so that several load
    processes, and a resumed run, make the same prompts."""

    def first(self, index: int, size: Size | None) -> Ask:
        """The first request of session `index`; of the given size, where the load says one."""

    def follow(self, ask: Ask, answer: str) -> Ask:
        """The next turn of a session that goes on, after the model's answer."""


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


class Synthetic:
    """Prompts of an exact length that share no prefix."""

    def __init__(self, workload: Workload, plan: PromptPlan, stream: str) -> None:
        self._workload, self._plan, self._stream = workload, plan, stream

    def first(self, index: int, size: Size | None) -> Ask:
        tokens = size.input_tokens if size else self._workload.input_tokens
        output = size.output_tokens if size else self._workload.output_tokens
        return Ask(self._plan.prompt(self._stream, index, tokens), tokens, output, index)

    def follow(self, ask: Ask, answer: str) -> Ask:
        raise NotImplementedError("a session of one turn has no next one")


def make_source(workload: Workload, plan: PromptPlan, stream: str) -> Source:
    """The prompts of one repeat of one point; `stream` sets them apart from those of all others."""
    return Synthetic(workload, plan, stream)
