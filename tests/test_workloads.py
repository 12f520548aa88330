"""Sources of prompts: pure in seed and arguments, of exact lengths, sharing what is asked for and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter

from harness import tokenizer
from harness.arrivals import Size
from harness.promptplan import PromptPlan, Writer
from harness.tinymodels import VOCAB_WORDS, hf_folder
from harness.words import WORDS
from harness.workloads import BLOCK_TOKENS, Ask, Source, make_source
from harness.workloadspec import AnyWorkload, WorkloadBase

WORKLOAD: TypeAdapter[Any] = TypeAdapter(AnyWorkload)
IDS = tuple(range(1000, 1000 + len(WORDS)))


def workload(folder: Path | None = None, **keys: Any) -> WorkloadBase:
    made: WorkloadBase = WORKLOAD.validate_python(keys, context=folder)
    return made


def source(plan: PromptPlan | None = None, stream: str = "c4/0", folder: Path | None = None, **keys: Any) -> Source:
    return make_source(workload(folder, **keys), plan or PromptPlan(seed=3), stream)


def words(ask: Ask) -> list[str]:
    assert isinstance(ask.prompt, str)
    return ask.prompt.split()


def shared(a: list[Any], b: list[Any]) -> int:
    """How many words two prompts have in common at their start."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- one prompt ---


def test_prompts_have_the_asked_length_and_share_nothing() -> None:
    made = source(input_tokens=40, output_tokens=7)
    asks = [made.first(index, None) for index in range(300)]
    assert {len(words(ask)) for ask in asks} == {40}
    assert {(ask.input_tokens, ask.output_tokens, ask.turn, ask.last) for ask in asks} == {(40, 7, 0, True)}
    assert [ask.session for ask in asks] == list(range(300))
    assert max(Counter(tuple(words(ask)[:3]) for ask in asks).values()) == 1


def test_a_source_is_a_pure_function_of_seed_stream_and_index() -> None:
    keys: dict[str, Any] = {"input_tokens": {"kind": "uniform", "min": 5, "max": 60}, "turns": 2}
    one, other = source(**keys), source(**keys)
    backwards = {index: other.first(index, None) for index in reversed(range(20))}
    for index in range(20):
        ask = one.first(index, None)
        assert ask == backwards[index]
        assert one.follow(ask, "yes") == other.follow(ask, "yes")
    assert one.first(0, None) != source(stream="c4/1", **keys).first(0, None)
    assert one.first(0, None) != source(PromptPlan(seed=4), **keys).first(0, None)


def test_long_prompts_made_before_change_nothing() -> None:
    """The long text that prompts are cut from grows with the longest of them; a shorter one must not notice."""
    fresh, used = Writer(PromptPlan(seed=1)), Writer(PromptPlan(seed=1))
    used.text(Random("long"), 40_000)
    assert used.text(Random("x"), 200) == fresh.text(Random("x"), 200)
    assert len(used.text(Random("x"), 40_000).split()) == 40_000


def test_lengths_are_the_same_for_engines_whose_words_count_otherwise() -> None:
    law = {"kind": "lognormal", "median": 60, "p95": 200, "min": 10, "max": 400}
    one = source(PromptPlan(seed=3), input_tokens=law, output_tokens=law)
    other = source(
        PromptPlan(words=WORDS[:200], tokens_per_word=1.0, tokens_fixed=3.0, seed=3),
        input_tokens=law,
        output_tokens=law,
    )
    for index in range(50):
        a, b = one.first(index, None), other.first(index, None)
        assert (a.input_tokens, a.output_tokens) == (b.input_tokens, b.output_tokens)
        assert len(words(a)) == len(words(b)) + 3


def test_a_chats_template_counts_as_asked() -> None:
    plan = PromptPlan(tokens_fixed=16.0, count_fixed=False, seed=1)
    ask = source(plan, api="chat", input_tokens=48).first(0, None)
    assert (len(words(ask)), ask.input_tokens) == (48, 64)
    with_bos = PromptPlan(tokens_fixed=1.0, seed=1)
    ask = source(with_bos, input_tokens=48).first(0, None)
    assert (len(words(ask)), ask.input_tokens) == (47, 48)


def test_token_ids_are_those_of_the_text() -> None:
    asked: dict[str, Any] = {"input_tokens": 100, "shared_prefix": {"tokens": 30}}
    text = source(PromptPlan(seed=3), **asked)
    ids = source(PromptPlan(seed=3, ids=IDS), prompt="token_ids", **asked)
    for index in range(5):
        prompt = ids.first(index, None).prompt
        assert isinstance(prompt, list)
        assert [WORDS[int(token) - 1000] for token in prompt] == words(text.first(index, None))


# --- what is shared ---


def test_a_shared_prefix_is_exact_and_of_the_asked_share() -> None:
    made = source(input_tokens=64, shared_prefix={"tokens": 40, "share": 0.5, "prefixes": 2})
    prompts = [words(made.first(index, None)) for index in range(400)]
    assert {len(prompt) for prompt in prompts} == {64}
    starts = Counter(tuple(prompt[:40]) for prompt in prompts)
    common = {start: count for start, count in starts.items() if count > 1}
    assert len(common) == 2
    assert sum(common.values()) / 400 == pytest.approx(0.5, abs=5 * 0.025)
    behind = Counter(tuple(prompt[40:43]) for prompt in prompts if tuple(prompt[:40]) in common)
    assert max(behind.values()) == 1, "the rest is each one's own"
    again = source(stream="c64/2", input_tokens=64, shared_prefix={"tokens": 40})
    assert tuple(words(again.first(0, None))[:40]) in {**common, **starts}


def test_a_traces_blocks_are_shared_as_the_trace_says() -> None:
    made = source()
    sizes = [
        Size(1200, 5, (7, 8, 9)), Size(1100, 6, (7, 8, 10)), Size(BLOCK_TOKENS, 7, (7,)), Size(700, 8, (11,)),
        Size(100, 9, (12, 13, 14)),
    ]  # fmt: skip
    asks = [made.first(index, size) for index, size in enumerate(sizes)]
    assert [len(words(ask)) for ask in asks] == [1200, 1100, 512, 700, 100]
    assert [(ask.input_tokens, ask.output_tokens) for ask in asks] == [(s.input_tokens, s.output_tokens) for s in sizes]
    assert shared(words(asks[0]), words(asks[1])) in range(1024, 1030)
    assert shared(words(asks[0]), words(asks[2])) == 512
    assert shared(words(asks[0]), words(asks[3])) < 3
    assert words(source(stream="c4/1").first(0, sizes[0]))[:3] != words(asks[0])[:3], "another repeat has other text"
    with_bos = make_source(workload(), PromptPlan(tokens_fixed=1.0, seed=3), "c4/0")
    first, second = (words(with_bos.first(index, size)) for index, size in enumerate(sizes[:2]))
    assert shared(first, second) in range(1023, 1030), "a BOS is a part of the first block"
    ids = make_source(workload(), PromptPlan(seed=3, ids=IDS), "c4/0").first(0, sizes[0]).prompt
    assert len(ids) == 1200


# --- sessions ---


def test_a_session_of_completions_goes_on_with_what_was_said() -> None:
    made = source(input_tokens=10, output_tokens=5, turns=3, think_time="2s")
    first = made.first(4, None)
    assert (first.turn, first.last, first.think_s) == (0, False, 0.0)
    second = made.follow(first, " one two")
    third = made.follow(second, " three")
    assert (second.turn, second.last, second.think_s, second.session) == (1, False, 2.0, 4)
    assert (third.turn, third.last, third.input_tokens) == (2, True, None)
    assert words(second)[:12] == [*words(first), "one", "two"]
    assert len(words(second)) == 22
    assert words(third)[: len(words(second)) + 1] == [*words(second), "three"]
    assert len(words(third)) == 33


def test_a_session_of_a_chat_is_messages_with_roles() -> None:
    made = source(input_tokens=10, turns=3, api="chat")
    first = made.first(0, None)
    third = made.follow(made.follow(first, "A"), "B")
    assert isinstance(third.prompt, list)
    assert [m["role"] for m in third.prompt] == ["user", "assistant", "user", "assistant", "user"]
    said = [m["content"] for m in third.prompt]
    assert (said[0], said[1], said[3]) == (first.prompt, "A", "B")
    assert [len(text.split()) for text in said[::2]] == [10, 10, 10]


def test_sessions_of_varying_length_end_when_they_say() -> None:
    made = source(input_tokens=5, turns={"kind": "uniform", "min": 1, "max": 4})
    lengths = Counter()
    for index in range(200):
        ask = made.first(index, None)
        while not ask.last:
            ask = made.follow(ask, " x")
        lengths[ask.turn + 1] += 1
    assert set(lengths) == {1, 2, 3, 4}
    assert min(lengths.values()) > 25


# --- files ---


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    def talk(number: int) -> dict[str, Any]:
        turns = [("human", f"question {number} a"), ("gpt", "one two three"), ("human", f"b{number}"), ("gpt", "four"),
                 ("human", "never answered")]  # fmt: skip
        system = [("system", "Be brief.")] if number == 3 else []
        return {"conversations": [{"from": role, "value": text} for role, text in [*system, *turns]]}

    (tmp_path / "talks.json").write_text(json.dumps([talk(number) for number in range(4)]))
    return tmp_path


def test_conversations_are_asked_turn_by_turn(talks: Path) -> None:
    made = source(folder=talks, kind="sharegpt", file="talks.json", order="file", unique=False, think_time="1s")
    first = made.first(5, None)
    assert (first.prompt, first.output_tokens, first.last, first.input_tokens) == ("question 1 a", 3, False, None)
    second = made.follow(first, " the model's own")
    assert second.prompt == "question 1 a the model's own\n\nb1"
    assert (second.output_tokens, second.last, second.think_s) == (1, True, 1.0), "the third question has no answer"


def test_conversations_of_a_chat_keep_their_system_message(talks: Path) -> None:
    made = source(folder=talks, kind="sharegpt", file="talks.json", order="file", api="chat", output_tokens=9, turns=2)
    first = made.first(3, None)
    assert isinstance(first.prompt, list)
    system = first.prompt[0]
    assert (system["role"], system["content"].split("\n")[1]) == ("system", "Be brief.")
    second = made.follow(first, "ok")
    assert [m["role"] for m in second.prompt] == ["system", "user", "assistant", "user"]
    assert (second.output_tokens, second.last) == (9, True)


def test_a_file_is_gone_through_once_in_each_round_and_never_begins_alike(talks: Path) -> None:
    made = source(folder=talks, kind="sharegpt", file="talks.json")
    asked = [str(made.first(index, None).prompt) for index in range(12)]
    for start in (0, 4, 8):
        assert len({prompt.split("\n")[1] for prompt in asked[start : start + 4] if "Be brief" not in prompt}) == 3
    assert len({prompt.split("\n")[0] for prompt in asked}) == 12
    other = source(stream="c4/1", folder=talks, kind="sharegpt", file="talks.json")
    assert str(other.first(0, None).prompt).split("\n")[0] != asked[0].split("\n")[0]


def test_lines_of_a_file(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e f"}]
    (tmp_path / "p.jsonl").write_text(
        '{"q": "a b c", "n": 5, "input_tokens": 3}\n' + json.dumps({"messages": talk}) + "\n"
    )
    keys: dict[str, Any] = {"kind": "jsonl", "file": "p.jsonl", "fields": {"prompt": "q", "output_tokens": "n"}}
    made = source(folder=tmp_path, api="chat", order="file", unique=False, **keys)
    first, second = made.first(0, None), made.first(1, None)
    assert (first.prompt, first.input_tokens, first.output_tokens, first.last) == ("a b c", 3, 5, True)
    assert (second.prompt, second.output_tokens) == ([{"role": "user", "content": "d"}], 2)
    marked = source(folder=tmp_path, api="chat", order="file", **keys)
    assert str(marked.first(0, None).prompt).endswith("\na b c")
    assert marked.first(0, None).input_tokens == 3 + 5
    assert marked.first(0, Size(9, 77)).output_tokens == 77


def test_words_are_counted_by_what_a_word_was_measured_to_be(talks: Path) -> None:
    plan = PromptPlan(seed=3, text_tokens_per_word=2.0)
    made = source(plan, folder=talks, kind="sharegpt", file="talks.json", order="file")
    assert made.first(0, None).output_tokens == 6


@pytest.mark.parametrize("unique", [True, False])
def test_with_a_tokenizer_the_asked_length_is_that_of_the_whole_prompt(talks: Path, unique: bool) -> None:
    path = str(hf_folder(talks / "models") / "tokenizer.json")
    plan = PromptPlan(words=VOCAB_WORDS, seed=3, tokenizer=path)
    made = source(plan, folder=talks, kind="sharegpt", file="talks.json", order="file", unique=unique)
    for index in range(4):
        ask = made.first(index, None)
        assert ask.input_tokens == tokenizer.count(str(ask.prompt), path)
        assert ask.output_tokens == tokenizer.count("one two three", path)
    with_bos = source(
        replace(plan, tokens_fixed=1.0), folder=talks, kind="sharegpt", file="talks.json", order="file", unique=unique
    )
    assert with_bos.first(0, None).input_tokens == (made.first(0, None).input_tokens or 0) + 1
