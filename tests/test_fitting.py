"""Exact lengths on servers of every kind: what adds a BOS, a template, splits words, does not count, refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from harness import tokenizer
from harness.fitting import NOT_COUNTED, Refused, Server, fit
from harness.protocols import Prompt
from harness.tinymodels import VOCAB_WORDS, hf_folder, word_ids
from harness.words import WORDS
from harness.workloads import make_source
from harness.workloadspec import AnyWorkload, WorkloadBase

WORKLOAD: TypeAdapter[Any] = TypeAdapter(AnyWorkload)


class Fake:
    """A server that counts `fixed` and, for each word, one token or (of `split`) two; ids up to `first_bad_id`."""

    def __init__(
        self, fixed: int = 0, split: Sequence[str] = (), context: int = 10**9, first_bad_id: int = 10**9
    ) -> None:
        self.fixed, self.split, self.context, self.first_bad_id = fixed, set(split), context, first_bad_id
        self.sent = 0

    def size(self, prompt: Prompt) -> int:
        if isinstance(prompt, str):
            return self.fixed + sum(2 if word in self.split else 1 for word in prompt.split())
        if any(isinstance(token, int) and token >= self.first_bad_id for token in prompt):
            raise Refused("Token id is out of vocabulary")
        return len(prompt)

    def count(self, prompts: Sequence[Prompt]) -> list[int | None]:
        sizes: list[int | None] = [self.size(prompt) for prompt in prompts]
        self.sent += len(sizes)
        if any(size is not None and size > self.context for size in sizes):
            raise Refused("longer than the context")
        return sizes


def workload(folder: Path | None = None, **keys: Any) -> WorkloadBase:
    made: WorkloadBase = WORKLOAD.validate_python(keys, context=folder)
    return made


def got(fake: Fake, made: WorkloadBase, fitted: Any, count: int = 20) -> list[tuple[int | None, int]]:
    """Asked and counted input tokens of some first requests."""
    source = make_source(made, fitted.plan, "c1/0")
    asks = [source.first(index, None) for index in range(count)]
    return [(ask.input_tokens, fake.size(ask.prompt)) for ask in asks]


@pytest.mark.parametrize("fixed", [0, 1, 3])
@pytest.mark.parametrize(
    "split", [(), WORDS[::40], WORDS[::3]], ids=["one token a word", "few of two", "a third of two"]
)
def test_lengths_are_exact_by_the_servers_count_alone(fixed: int, split: tuple[str, ...]) -> None:
    fake = Fake(fixed, split)
    made = workload(input_tokens={"kind": "uniform", "min": 20, "max": 400})
    fitted = fit(made, WORDS, 1, fake.count, Server())
    assert (fitted.plan.exact, fitted.form, fitted.warnings) == (True, "text", [])
    assert not set(fitted.plan.words) & set(split)
    assert all(asked == counted for asked, counted in got(fake, made, fitted))
    assert fake.sent < 210


def test_of_a_chat_the_template_comes_on_top() -> None:
    fake = Fake(16)
    made = workload(input_tokens=48, api="chat")
    fitted = fit(made, WORDS, 1, fake.count, Server())
    assert set(got(fake, made, fitted)) == {(64, 64)}


def test_where_every_word_is_two_tokens_text_is_not_exact_and_says_so() -> None:
    fake = Fake(1, WORDS)
    made = workload(input_tokens=101)
    fitted = fit(made, WORDS, 1, fake.count, Server())
    assert not fitted.plan.exact
    assert "2 tokens of this model" in fitted.warnings[0]
    assert all(abs(counted - 101) <= 1 for _, counted in got(fake, made, fitted))


def test_auto_takes_ids_where_text_is_not_exact() -> None:
    fake = Fake(1, WORDS)
    made = workload(input_tokens=101)
    fitted = fit(made, WORDS, 1, fake.count, Server(takes_ids=True))
    assert (fitted.form, fitted.warnings) == ("token ids", [])
    assert set(got(fake, made, fitted)) == {(101, 101)}
    plain = fit(made, WORDS, 1, Fake().count, Server(takes_ids=True))
    assert plain.form == "text", "text that is exact goes through the engine's tokenizer, as that of others does"


def test_ids_are_the_words_own_where_the_server_tells_them() -> None:
    ids = {f" {word}": 5000 + at for at, word in enumerate(WORDS)}
    server = Server(takes_ids=True, token_of=lambda text: [ids[f" {word}"] for word in text.split()])
    fitted = fit(workload(input_tokens=64, prompt="token_ids"), WORDS, 1, Fake(1).count, server)
    assert (fitted.plan.words, fitted.plan.ids) == (WORDS, tuple(range(5000, 5000 + len(WORDS))))
    assert fitted.plan.tokens_fixed == 0, "a server adds no BOS to ids"


def test_ids_told_of_words_that_are_several_tokens_are_used_as_they_come() -> None:
    server = Server(takes_ids=True, token_of=lambda text: [7000 + at for at in range(2 * len(text.split()))])
    fitted = fit(workload(input_tokens=64), WORDS, 1, Fake(0, WORDS).count, server)
    assert (fitted.form, min(fitted.plan.ids), len(fitted.plan.ids)) == ("token ids", 7000, 2 * len(WORDS))


def test_ids_that_cannot_be_had() -> None:
    with pytest.raises(Refused, match="it takes no token ids"):
        fit(workload(prompt="token_ids"), WORDS, 1, Fake().count, Server(takes_ids=False))
    with pytest.raises(Refused, match="no token ids were found"):
        fit(workload(prompt="token_ids"), WORDS, 1, Fake(first_bad_id=500).count, Server(takes_ids=True))


def test_a_server_that_does_not_count() -> None:
    fitted = fit(workload(input_tokens=64), WORDS, 1, lambda prompts: [None] * len(prompts), Server())
    assert fitted.warnings == [NOT_COUNTED]
    assert fitted.plan.words_for(64) == 64


def test_a_server_that_cuts_prompts_in_silence() -> None:
    def cut(prompts: Sequence[Prompt]) -> list[int | None]:
        return [min(2048, len(prompt.split())) for prompt in prompts if isinstance(prompt, str)]

    with pytest.raises(Refused, match=r"it counts 2,048 tokens in a prompt of 25,000 words: it cuts prompts that long"):
        fit(workload(input_tokens=100_000), WORDS, 1, cut, Server())
    with pytest.raises(Refused, match=r"the last one of a session: it counts 2,048 tokens"):
        fit(workload(input_tokens=1000, turns=9), WORDS, 1, cut, Server())


def test_a_session_that_outgrows_the_context_is_found_before_it_is_measured() -> None:
    made = workload(input_tokens=100, output_tokens=50, turns=4)
    assert made.largest_input() == 550
    fit(made, WORDS, 1, Fake(context=550).count, Server())
    with pytest.raises(Refused, match=r"a prompt of 550 tokens, the last one of a session: longer"):
        fit(made, WORDS, 1, Fake(context=549).count, Server())


def test_the_models_own_tokenizer(tmp_path: Path) -> None:
    """The tiny model's: the common English words are several tokens each, its own are one."""
    path = str(hf_folder(tmp_path) / "tokenizer.json")
    own = tokenizer.single_tokens(path, VOCAB_WORDS)
    assert tuple(own.values()) == tuple(word_ids())
    assert len(tokenizer.single_tokens(path, WORDS)) < 20
    assert tokenizer.tokens_in(" baba bade", path, None) == 2
    fake = Fake()
    fitted = fit(
        workload(input_tokens=64, prompt="token_ids"),
        VOCAB_WORDS,
        1,
        fake.count,
        Server(takes_ids=True, tokenizer=path),
    )
    assert set(fitted.plan.ids) == set(word_ids())
    foreign = fit(
        workload(input_tokens=64), WORDS, 1, Fake(0, sorted({*WORDS} - {*VOCAB_WORDS})).count, Server(tokenizer=path)
    )
    assert foreign.plan.exact, "where the usual words are several tokens, the model's own are taken"
    assert set(foreign.plan.words) <= set(VOCAB_WORDS)
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        tokenizer.single_tokens(str(broken), WORDS)


def test_where_a_tokenizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert tokenizer.find("org/model", None, None) is None
    snapshot = tmp_path / "hf" / "hub" / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    assert tokenizer.find("org/model", None, None) == snapshot / "tokenizer.json"
    assert tokenizer.find(str(snapshot), None, None) == snapshot / "tokenizer.json"
    assert tokenizer.find(str(tmp_path), None, None) is None
    assert tokenizer.find("x", "/named/tokenizer.json", None) == Path("/named/tokenizer.json")


def test_texts_of_a_file_are_measured(tmp_path: Path) -> None:
    lines = [{"prompt": " ".join(WORDS[at : at + 20])} for at in range(0, 200, 20)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = workload(tmp_path, kind="jsonl", file="p.jsonl", output_tokens=5, unique=False)
    fitted = fit(made, VOCAB_WORDS, 1, Fake(2, WORDS).count, Server())
    assert fitted.plan.text_tokens_per_word == pytest.approx(2.0)
