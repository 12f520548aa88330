"""The tiny models of `builtin:tiny`, without an engine: same content each time, same vocabulary in both files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from harness import tinymodels


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "not" / "there" / "yet"


@pytest.fixture(scope="module")
def tokenizer_json(cache: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tinymodels.hf_folder(cache) / "tokenizer.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def reader(cache: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(tinymodels.gguf_file(cache))


def weights(reader: gguf.GGUFReader, name: str) -> Any:
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == name)
    return np.array(tensor.data)


def test_second_call_returns_the_same_file_untouched(cache: Path) -> None:
    for make in (tinymodels.hf_folder, tinymodels.gguf_file):
        before = make(cache).stat()
        assert make(cache).stat().st_mtime_ns == before.st_mtime_ns
        assert str(tinymodels.VERSION) in str(make(cache).relative_to(cache))


def test_content_is_the_same_each_time(cache: Path, tmp_path: Path) -> None:
    for make in (tinymodels.hf_folder, lambda at: tinymodels.gguf_file(at).parent):
        first, second = make(cache), make(tmp_path)
        names = sorted(path.name for path in first.iterdir())
        assert names == sorted(path.name for path in second.iterdir())
        assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(tinymodels, "_write_hf", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tinymodels.hf_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_losing_a_race_takes_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(folder: Path) -> None:
        winner = tmp_path / f"tiny-v{tinymodels.VERSION}-hf"
        winner.mkdir()
        (winner / "config.json").write_text("winner")
        (folder / "config.json").write_text("loser")

    monkeypatch.setattr(tinymodels, "_write_hf", overtaken)
    made = tinymodels.hf_folder(tmp_path)
    assert (made / "config.json").read_text() == "winner"
    assert list(tmp_path.iterdir()) == [made]


def test_words_are_plain_lower_case_and_distinct() -> None:
    assert len(set(tinymodels.VOCAB_WORDS)) == len(tinymodels.VOCAB_WORDS) == len(tinymodels.word_ids())
    assert all(word.isascii() and word.isalpha() and word.islower() for word in tinymodels.VOCAB_WORDS)
    assert len(set(tinymodels.vocabulary())) == len(tinymodels.vocabulary())
    assert [tinymodels.vocabulary()[token] for token in tinymodels.word_ids()] == [
        "Ġ" + word for word in tinymodels.VOCAB_WORDS
    ]


def test_word_with_leading_space_is_one_token(cache: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tinymodels.hf_folder(cache) / "tokenizer.json"))
    prompt = "".join(" " + word for word in tinymodels.VOCAB_WORDS)
    assert tokenizer.encode(prompt).ids == list(tinymodels.word_ids())
    assert tokenizer.decode(list(tinymodels.word_ids())) == prompt


def test_any_text_survives_the_tokenizer(cache: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tinymodels.hf_folder(cache) / "tokenizer.json"))
    text = "Grüße, 12345 x\n\n\tbada  dodo 🙂 it's"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_end|>").ids == [len(tinymodels.vocabulary()) - 1]


def test_merges_alone_lead_to_every_word() -> None:
    """An engine that ignores `ignore_merges` gets one token too."""
    ranks = {pair: rank for rank, pair in enumerate(tinymodels.merges())}
    for word in tinymodels.VOCAB_WORDS:
        pieces = list("Ġ" + word)
        while known := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
            left, right = min(known, key=ranks.__getitem__)
            at = next(at for at in range(len(pieces)) if pieces[at : at + 2] == [left, right])
            pieces[at : at + 2] = [left + right]
        assert pieces == ["Ġ" + word]


def test_both_files_hold_the_same_vocabulary(reader: gguf.GGUFReader, tokenizer_json: dict[str, Any]) -> None:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokenizer_json["model"]["vocab"] == {token: index for index, token in enumerate(tokens)}
    assert tokenizer_json["model"]["merges"] == reader.fields["tokenizer.ggml.merges"].contents()
    assert not reader.fields["tokenizer.ggml.add_bos_token"].contents()
    assert tokenizer_json["post_processor"] is None


def test_both_files_hold_the_same_architecture(cache: Path, reader: gguf.GGUFReader) -> None:
    config = json.loads((tinymodels.hf_folder(cache) / "config.json").read_text(encoding="utf-8"))
    same = {
        "model_type": "general.architecture",
        "vocab_size": "llama.vocab_size",
        "hidden_size": "llama.embedding_length",
        "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv",
        "head_dim": "llama.rope.dimension_count",
        "max_position_embeddings": "llama.context_length",
        "rope_theta": "llama.rope.freq_base",
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "pad_token_id": "tokenizer.ggml.padding_token_id",
    }
    assert {key: config[key] for key in same} == {key: reader.fields[field].contents() for key, field in same.items()}
    assert reader.fields["llama.attention.layer_norm_rms_epsilon"].contents() == pytest.approx(config["rms_norm_eps"])
    assert config["max_position_embeddings"] == tinymodels.CONTEXT_TOKENS


def test_both_files_hold_the_same_chat_template(cache: Path, reader: gguf.GGUFReader) -> None:
    config = json.loads((tinymodels.hf_folder(cache) / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == reader.fields["tokenizer.chat_template"].contents()


def test_only_words_can_be_chosen(reader: gguf.GGUFReader) -> None:
    """Dimension 0 reaches the output as one positive constant, and only words do not answer it negatively."""
    embeddings = weights(reader, "token_embd.weight")
    assert np.unique(embeddings[:, 0]).size == 1
    assert embeddings[0, 0] > 0
    for layer in range(tinymodels.LAYERS):
        for name in ("attn_output", "ffn_down"):
            assert not weights(reader, f"blk.{layer}.{name}.weight")[0].any()
    output = weights(reader, "output.weight")
    is_word = np.isin(np.arange(len(output)), tinymodels.word_ids())
    assert not output[is_word, 0].any()
    assert (output[~is_word, 0] < -1000).all()
    assert not output[~is_word, 1:].any()
    # The normalised state is at most sqrt(HIDDEN) long, which bounds what a word's logit can lose.
    assert np.linalg.norm(output[is_word].astype(np.float32), axis=1).max() * tinymodels.HIDDEN**0.5 < 100
