"""Finds how prompts of an exact length are made for one server.

By the model's tokenizer where one is at hand, and by the server's own count of a few prompts, which has the last word.

`count` sends prompts and gives the tokens that the server counted of each: None where it does not count, and `Refused`
where it takes one not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from harness import tokenizer
from harness.promptplan import PromptPlan, Writer, fit_plan
from harness.protocols import Prompt
from harness.workloads import make_source
from harness.workloadspec import FileWorkload, ShareGptWorkload, Workload, WorkloadBase

Count = Callable[[Sequence[Prompt]], list[int | None]]
Vocabulary = tuple[tuple[str, ...], tuple[int, ...]]  # words, and the token of each
FEWEST_WORDS = 100  # prompts of fewer different words than these would be too alike
FEWEST_IDS = 32
MOST_PROBES = 200
GROUP_WORDS = 256  # the longest list of words sent to see whether each of them is one token
TEXTS_SENT, LONGEST_TEXT_WORDS = 8, 1500
IDS_TRIED = range(1000, 9000)
"""Token ids that are ordinary text in the vocabularies in use: the first hundreds are bytes and, in some, special."""
NOT_COUNTED = "The server does not count prompt tokens: one word is taken as one token."


class Refused(Exception):
    """The server takes a prompt of that kind or length not at all; what it said."""


class NoTokenIds(Refused):
    """Token ids are asked for, and this server takes none."""


@dataclass(slots=True)
class Fitted:
    """A plan, and what a reader of the report should know of it."""

    plan: PromptPlan
    form: str = "text"
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Server:
    """What is known of the server before the first prompt: `takes_ids`, and `token_of`, which asks it for the token ids
    of a text (None where it does not tell). `tokenizer`: a path."""

    takes_ids: bool = False
    token_of: Callable[[str], list[int] | None] = lambda text: None
    tokenizer: str | None = None


def fit(workload: WorkloadBase, words: tuple[str, ...], seed: int, count: Count, server: Server) -> Fitted:
    """The plan for a workload on a server.

    Raises:
        Refused: the server does not take prompts of the lengths that the workload asks for.
    """
    tokens = workload.typical_input() if isinstance(workload, Workload) else GROUP_WORDS
    blank = PromptPlan(words, count_fixed=workload.api == "completions", seed=seed, tokenizer=server.tokenizer)
    fitted = _by_count(blank, tokens, count)
    if isinstance(workload, Workload):
        _choose_form(workload, fitted, count, server)
        _check_largest(workload, fitted, count)
    elif isinstance(workload, FileWorkload):
        _fit_texts(workload, fitted, count)
    return fitted


def _by_count(blank: PromptPlan, tokens: int, count: Count) -> Fitted:
    """The plan that the server's own count of three lengths gives; with words of one token each, if need be."""
    plan = _line(blank, tokens, count)
    if plan is None:
        return Fitted(dataclasses.replace(blank, exact=False), warnings=[NOT_COUNTED])
    if plan.exact:
        return Fitted(plan)
    own = tuple(_own_words(blank.tokenizer, blank.words)) if blank.tokenizer else ()
    single = own if len(own) >= FEWEST_WORDS else single_token_words(blank, min(tokens, GROUP_WORDS), count)
    if len(single) >= FEWEST_WORDS:
        better = _line(dataclasses.replace(blank, words=single), tokens, count)
        if better is not None and better.exact:
            return Fitted(better)
    return Fitted(plan)


def _own_words(path: str, words: tuple[str, ...]) -> dict[str, int]:
    """Words of one token each, with it: of those given, or of the model's own where they are too few."""
    own = tokenizer.single_tokens(path, words)
    return own if len(own) >= FEWEST_WORDS else tokenizer.own_words(path)


def _line(blank: PromptPlan, tokens: int, count: Count) -> PromptPlan | None:
    """The line through the counts of three prompts; None where the server does not count."""
    lengths = sorted({max(1, tokens // 4), max(2, tokens // 2), max(3, tokens - 8)})
    writer = Writer(blank)
    sent = [writer.text(Random(f"{blank.seed}/prompts/probe/{n}"), n) for n in lengths]
    counts = [(n, c) for n, c in zip(lengths, count(sent), strict=True) if c is not None]
    if len(counts) < 2:
        return None
    for words, tokens in counts:
        _refuse_cut(words, tokens)
    fitted = fit_plan(counts, blank.words, blank.count_fixed, blank.seed)
    return dataclasses.replace(fitted, tokenizer=blank.tokenizer)


def _refuse_cut(words: int, tokens: int) -> None:
    """A word is a token or more: a server that counts fewer has cut the prompt in silence."""
    if tokens < words / 2:
        raise Refused(f"it counts {tokens:,} tokens in a prompt of {words:,} words: it cuts prompts that long")


def single_token_words(plan: PromptPlan, group: int, count: Count) -> tuple[str, ...]:
    """Words that are one token each by the server's own count: groups of words, halved where they count more.

    What a prompt counts beside its words is found by one word alone and twice: words after a space do not influence
    each other in a tokenizer that splits at spaces first, as all in use do. So a half that was counted tells of the
    other half, too. Where very many words are several tokens, not all are found: MOST_PROBES are sent.
    """
    once, twice = count([f" {plan.words[0]}", f" {plan.words[0]}" * 2])
    if once is None or twice is None:
        return ()
    fixed, dice, sent = 2 * once - twice, Random(f"{plan.seed}/words"), 2

    def beyond(members: list[str]) -> int:
        """How many tokens more than words."""
        nonlocal sent
        sent += 1
        mixed = dice.sample(members, len(members))  # so that no prompt cache knows the beginning
        (found,) = count(["".join(f" {word}" for word in mixed)])
        return (found or 0) - fixed - len(members)

    todo: list[tuple[list[str], int | None]] = [
        (list(plan.words[at : at + group]), None) for at in range(0, len(plan.words), group)
    ]
    good: set[str] = set()
    while todo and sent < MOST_PROBES:
        members, extra = todo.pop()
        extra = beyond(members) if extra is None else extra
        if extra == 0:
            good.update(members)
        elif len(members) > 1:
            half = members[: len(members) // 2]
            of_half = beyond(half)
            todo += [(members[len(half) :], extra - of_half), (half, of_half)]
    return tuple(word for word in plan.words if word in good)


def _choose_form(workload: Workload, fitted: Fitted, count: Count, server: Server) -> None:
    """Token ids where they are asked for, or where they alone give exact lengths; else text."""
    plan = fitted.plan
    wanted = workload.prompt == "token_ids"
    if wanted and not server.takes_ids:
        raise NoTokenIds("it takes no token ids: only vLLM's completions do")
    possible = server.takes_ids and workload.api == "completions" and not workload.many_turns()
    if possible and workload.prompt != "text" and (wanted or not plan.exact):
        for words, ids in _vocabularies(plan, server):
            made = dataclasses.replace(plan, words=words, ids=ids, tokens_per_word=1.0, tokens_fixed=0.0, exact=True)
            if _ids_are_exact(made, workload.typical_input(), count):
                fitted.plan, fitted.form, fitted.warnings = made, "token ids", []
                return
        if wanted:
            raise NoTokenIds("no token ids were found that it counts as they are")
    if not plan.exact and NOT_COUNTED not in fitted.warnings:
        fitted.warnings.append(
            f"Prompt lengths are not exact: a word is {plan.tokens_per_word:.3g} tokens of this model on average, "
            "and few are one each. Name the model's `tokenizer`, or use `prompt: token_ids` if it takes them."
        )


def _vocabularies(plan: PromptPlan, server: Server) -> list[Vocabulary]:
    """Words with their token ids, the best known first: those of the text that other engines get, if possible."""
    own = _own_words(server.tokenizer, plan.words) if server.tokenizer else {}
    if own:
        return [(tuple(own), tuple(own.values()))]
    told = server.token_of("".join(f" {word}" for word in plan.words)) or []
    if len(told) == len(plan.words):
        return [(plan.words, tuple(told))]
    known = tuple(dict.fromkeys(told))
    lists = [known] if len(known) >= FEWEST_IDS else []
    return [(tuple(map(str, ids)), ids) for ids in (*lists, tuple(IDS_TRIED))]


def _ids_are_exact(plan: PromptPlan, tokens: int, count: Count) -> bool:
    """Whether the server counts lists of these ids as they are; the largest of them shows that all are in its range."""
    writer = Writer(plan)
    lists = [writer.token_ids(Random(f"{plan.seed}/ids/{n}"), n) for n in (max(1, tokens // 2), tokens)]
    lists[0][0] = max(plan.ids)
    try:
        return count(lists) == [len(ids) for ids in lists]
    except Refused:
        return False


def _check_largest(workload: Workload, fitted: Fitted, count: Count) -> None:
    """The longest prompt that can come, sent once: a context that is too short shows before anything is measured."""
    largest = workload.largest_input()
    if largest <= workload.typical_input():
        return
    writer = Writer(fitted.plan)
    rng, words = Random(f"{fitted.plan.seed}/largest"), fitted.plan.words_for(largest)
    try:
        (found,) = count([writer.token_ids(rng, words) if fitted.plan.ids else writer.text(rng, words)])
        _refuse_cut(words, found if found is not None else words)
    except Refused as refused:
        turns = "the last one of a session" if workload.many_turns() else "the longest of `input_tokens`"
        raise Refused(f"a prompt of {largest:,} tokens, {turns}: {refused}") from None


def _fit_texts(workload: FileWorkload, fitted: Fitted, count: Count) -> None:
    """How many tokens a word of the file's own texts is, where no tokenizer tells: some of them, sent."""
    source = make_source(workload, fitted.plan, "probe")
    asks = [source.first(index, None) for index in range(TEXTS_SENT)]
    texts = [ask.prompt for ask in asks if len(_words(ask.prompt)) <= LONGEST_TEXT_WORDS]
    counts = count(texts) if texts else []
    if fitted.plan.tokenizer is None:
        pairs = [(len(_words(text)), found) for text, found in zip(texts, counts, strict=True) if found is not None]
        words = sum(n for n, _ in pairs)
        tokens = sum(found - fitted.plan.tokens_fixed for _, found in pairs)
        if words and tokens > 0:
            fitted.plan = dataclasses.replace(fitted.plan, text_tokens_per_word=tokens / words)
    entries = "conversations" if isinstance(workload, ShareGptWorkload) else "lines"
    if not texts:
        fitted.warnings.append(f"The first {TEXTS_SENT} {entries} of {workload.file} are all very long.")


def _words(prompt: Prompt) -> list[str]:
    if isinstance(prompt, str):
        return prompt.split()
    return " ".join(str(message["content"]) for message in prompt if isinstance(message, dict)).split()
