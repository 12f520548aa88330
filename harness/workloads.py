"""Prompts: seeded, of a stated length in tokens, and none of them sharing a prefix unless that is asked for.

A workload is a class with `first` and `follow`, and a row in SOURCES; its part of the scenario is in `workloadspec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from harness import tokenizer
from harness.arrivals import Size
from harness.lengths import pause_s, sampler
from harness.promptplan import PromptPlan, Writer, fit_plan
from harness.protocols import Prompt
from harness.workloadspec import FileWorkload, JsonlWorkload, ShareGptWorkload, Workload, WorkloadBase

__all__ = ["Ask", "PromptPlan", "Source", "fit_plan", "make_source"]

BLOCK_TOKENS = 512
"""Tokens that one of a trace's block ids stands for: Mooncake's published traces (FAST'25) hash blocks of 512."""
MARK_WORDS = 4  # in front of a prompt from a file, which may come again: there are 10^11 such marks
COUNTED_AHEAD = 500  # sessions whose lengths are counted before the clock starts


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks for. `prompt` is a text, token ids, or the messages of a chat; `input_tokens` is what the
    server should count of it, None where nobody can say: in a later turn, which holds answers of the model that the
    server reads anew, and in a file's text without a tokenizer. Sent `think_s` after the turn before it ended; the
    session goes on unless it is `last`."""

    prompt: Prompt
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


class Synthetic:
    """Prompts of an exact length that share no prefix, but for those where `shared_prefix` asks for it, and for the
    blocks that a trace names. A later turn adds exactly `input_tokens` of new text to what was said."""

    def __init__(self, workload: Workload, plan: PromptPlan, stream: str) -> None:
        self._workload, self._plan = workload, plan
        self._input, self._output = sampler(workload.input_tokens), sampler(workload.output_tokens)
        self._turns = sampler(workload.turns) if workload.many_turns() else None
        self._key = f"{plan.seed}/prompts/{stream}/"
        self._writer = Writer(plan)
        self._write: Callable[[Random, int], Any] = self._writer.token_ids if plan.ids else self._writer.text
        self._common: dict[tuple[str, int], Any] = {}  # texts that several prompts begin with, by (name, words)

    def first(self, index: int, size: Size | None) -> Ask:
        rng = Random(f"{self._key}{index}")
        last = self._turns is None or self._turns(rng) == 1
        tokens, output = self._input(rng), self._output(rng)
        if size is not None:
            tokens, output = size.input_tokens, size.output_tokens
        if size is not None and size.blocks:
            prompt = self._of_blocks(rng, tokens, size.blocks)
        elif self._workload.shared_prefix is not None:
            prompt = self._prefixed(rng, tokens)
        else:
            prompt = self._write(rng, self._plan.words_for(tokens))
        return Ask(prompt, self._plan.counted(tokens), output, index, last=last)

    def follow(self, ask: Ask, answer: str) -> Ask:
        assert self._turns is not None
        turn = ask.turn + 1
        turns = self._turns(Random(f"{self._key}{ask.session}"))
        rng = Random(f"{self._key}{ask.session}/{turn}")
        tokens, output = self._input(rng), self._output(rng)
        think_s = pause_s(self._workload.think_time, rng)
        text = self._writer.text(rng, max(1, round(tokens / self._plan.tokens_per_word)))
        prompt = gone_on(ask.prompt, answer, text, self._workload.api)
        return Ask(prompt, None, output, ask.session, turn, think_s, turn + 1 >= turns)

    def _prefixed(self, rng: Random, tokens: int) -> Any:
        """A prompt that may begin with a shared text, whose length is a part of `tokens`."""
        shared, count = self._workload.shared_prefix, self._plan.words_for(tokens)
        if shared is None or rng.random() >= shared.share:
            return self._write(rng, count)
        words = self._plan.words_for(shared.tokens)
        head = self._shared(f"prefix/{rng.randrange(shared.prefixes)}", words)
        return head + self._write(rng, count - words) if count > words else head

    def _of_blocks(self, rng: Random, tokens: int, blocks: tuple[int, ...]) -> Any:
        """A prompt of a trace's blocks: equal ids are equal text, in one repeat of one point. The last may be cut."""
        wanted, done = self._plan.words_for(tokens), 0
        parts = []
        for number, block in enumerate(blocks, 1):
            upto = min(wanted, self._plan.words_for(number * BLOCK_TOKENS))
            if upto > done:
                parts.append(self._shared(f"{self._key}block/{block}", upto - done))
                done = upto
        if wanted > done:  # the trace names fewer blocks than the prompt is long
            parts.append(self._write(rng, wanted - done))
        return [token for part in parts for token in part] if self._plan.ids else "".join(parts)

    def _shared(self, name: str, words: int) -> Any:
        found = self._common.get((name, words))
        if found is None:
            if len(self._common) > 4096:  # 12 MB of text: blocks that came once and never again
                self._common.clear()
            found = self._common[name, words] = self._write(Random(f"{self._plan.seed}/{name}"), words)
        return found


class _FromFile:
    """What sources of a file share: the order, the mark in front of a prompt, the lengths of answers."""

    def __init__(self, workload: FileWorkload, plan: PromptPlan, stream: str, count: int) -> None:
        self._api, self._plan, self._unique = workload.api, plan, workload.unique
        self._output = sampler(workload.output_tokens) if workload.output_tokens is not None else None
        self._key = f"{plan.seed}/prompts/{stream}/"
        self._writer = Writer(plan)
        self._order = list(range(count))
        if workload.order == "shuffled":
            Random(f"{self._key}order").shuffle(self._order)

    def _place(self, index: int) -> int:
        """Which entry of the file session `index` is; after the last one comes the first again."""
        return self._order[index % len(self._order)]

    def _asked(self, rng: Random, size: Size | None, answer: str | None, told: int | None = None) -> int:
        """How long an answer is to be: as the load, the scenario or the file says."""
        drawn = self._output(rng) if self._output is not None else None
        if size is not None:
            return size.output_tokens
        return drawn if drawn is not None else told if told is not None else self._tokens(answer or "")

    def _tokens(self, text: str) -> int:
        return max(1, tokenizer.tokens_in(text, self._plan.tokenizer, self._plan.text_tokens_per_word))

    def _mark(self, rng: Random) -> str:
        return self._writer.text(rng, MARK_WORDS)[1:] + "\n" if self._unique else ""

    def _counted(self, mark: str, text: str, told: int | None = None) -> int | None:
        """What the server should count of a prompt: with the model's tokenizer, or by what the file says."""
        path = self._plan.tokenizer
        plain = told if told is not None else self._tokens(text) if path is not None else None
        if plain is None:
            return None
        marked = 0 if not mark else MARK_WORDS + 1 if path is None else tokenizer.count(mark, path)
        return plain + marked + round(self._plan.tokens_fixed)

    def _count_ahead(self, texts: Callable[[int], list[str]]) -> None:
        """Count what the first sessions need, so that no request waits for it. `texts`: those of one entry."""
        if self._plan.tokenizer is not None:
            for place in self._order[:COUNTED_AHEAD]:
                for text in texts(place):
                    self._tokens(text)


class Conversations(_FromFile):
    """The conversations of a ShareGPT file, a turn at a time, with the model's own answers in place of the file's."""

    def __init__(self, workload: ShareGptWorkload, plan: PromptPlan, stream: str) -> None:
        most, found = workload.turns, []
        for conversation in workload.conversations():
            turns = list(conversation.turns[:most])
            if workload.output_tokens is None:  # the file must say how long each answer is to be
                known = [turn.answer is not None for turn in turns]
                turns = turns[: known.index(False)] if False in known else turns
            if turns:
                found.append((conversation.system, turns))
        super().__init__(workload, plan, stream, len(found))
        self._found, self._think = found, workload.think_time
        self._count_ahead(lambda place: [said for turn in found[place][1] for said in (turn.user, turn.answer or "")])

    def first(self, index: int, size: Size | None) -> Ask:
        rng = Random(f"{self._key}{index}")
        mark = self._mark(rng)
        system, turns = self._found[self._place(index)]
        output = self._asked(rng, size, turns[0].answer)
        text, prompt = turns[0].user, mark + turns[0].user
        last = len(turns) == 1
        if system is None:
            return Ask(prompt, self._counted(mark, text), output, index, last=last)
        if self._api == "chat":
            said = [{"role": "system", "content": mark + system}, {"role": "user", "content": text}]
            return Ask(said, None, output, index, last=last)
        whole = f"{system}\n\n{text}"
        return Ask(mark + whole, self._counted(mark, whole), output, index, last=last)

    def follow(self, ask: Ask, answer: str) -> Ask:
        turn = ask.turn + 1
        _, turns = self._found[self._place(ask.session)]
        rng = Random(f"{self._key}{ask.session}/{turn}")
        output = self._asked(rng, None, turns[turn].answer)
        text = turns[turn].user if self._api == "chat" else f"\n\n{turns[turn].user}"
        prompt = gone_on(ask.prompt, answer, text, self._api)
        return Ask(prompt, None, output, ask.session, turn, pause_s(self._think, rng), turn + 1 >= len(turns))


class Lines(_FromFile):
    """The requests of a JSONL file, each a session of one."""

    def __init__(self, workload: JsonlWorkload, plan: PromptPlan, stream: str) -> None:
        self._lines = workload.lines()
        super().__init__(workload, plan, stream, len(self._lines))
        self._count_ahead(lambda place: [self._lines[place].answer or "", *_plain(self._lines[place].prompt)])

    def first(self, index: int, size: Size | None) -> Ask:
        rng = Random(f"{self._key}{index}")
        mark = self._mark(rng)
        line = self._lines[self._place(index)]
        output = self._asked(rng, size, line.answer, line.output_tokens)
        if isinstance(line.prompt, str):
            return Ask(mark + line.prompt, self._counted(mark, line.prompt, line.input_tokens), output, index)
        first, *others = line.prompt
        marked = [first | {"content": mark + first["content"]}, *others]
        return Ask(marked, None, output, index)

    def follow(self, ask: Ask, answer: str) -> Ask:
        raise NotImplementedError("a line of a JSONL file is a session of one turn")


def _plain(prompt: Prompt) -> list[str]:
    return [prompt] if isinstance(prompt, str) else []


def gone_on(prompt: Prompt, answer: str, text: str, api: str) -> Prompt:
    """What was said with the model's answer and what is said next: messages of a chat, else one text."""
    if api != "chat":
        return f"{prompt}{answer}{text}"
    said: list[Any] = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return [*said, {"role": "assistant", "content": answer}, {"role": "user", "content": text}]


SOURCES: dict[type[WorkloadBase], Callable[[Any, PromptPlan, str], Source]] = {
    Workload: Synthetic,
    ShareGptWorkload: Conversations,
    JsonlWorkload: Lines,
}


def make_source(workload: WorkloadBase, plan: PromptPlan, stream: str) -> Source:
    """The prompts of one repeat of one point; `stream` sets them apart from those of all others."""
    return SOURCES[type(workload)](workload, plan, stream)
