"""The model's own tokenizer, where one is at hand: a tokenizer.json, and the optional package `tokenizers`."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.tinymodels import hf_folder

SPACES = ("\u0120", "\u2581")  # how byte-level BPE and SentencePiece write the space in front of a word
SHORTEST_WORD, MOST_WORDS = 3, 2000
TEXTS_KEPT = 100_000  # whose lengths are remembered; the texts themselves are in memory anyway


def can_read() -> bool:
    """Whether the package is installed (`pip install enginebench[tokenizers]`)."""
    return importlib.util.find_spec("tokenizers") is not None


def find(model: str, named: str | None, tiny: Path | None) -> Path | None:
    """The tokenizer.json of a model: the one named in the scenario, that in the model's folder, or that in the hub's
    cache on this machine. `tiny`: where the tiny model lies, if it is that one. None: none is at hand."""
    if named is not None:
        return Path(named).expanduser()
    if tiny is not None:
        return hf_folder(tiny) / "tokenizer.json"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _there(folder / "tokenizer.json")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    snapshots = hub.expanduser() / f"models--{model.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.glob("*/tokenizer.json"), key=lambda path: path.parent.stat().st_mtime)
    return _there(found[-1]) if found else None


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


@lru_cache(maxsize=2)
def load(path: str) -> Any:
    """The tokenizer. Raises ValueError where the file is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{path}: not a tokenizer: {error}") from None


def tokens_in(text: str, path: str | None, per_word: float | None) -> int:
    """How many tokens a text is: by the tokenizer (once for each text of a file: they come again), else its words times
    what a word was measured to be (else 1)."""
    if path is not None:
        return _counted(path, text)
    return round(len(text.split()) * (per_word or 1.0))


def count(text: str, path: str) -> int:
    """How many tokens a text is, counted anew."""
    return len(load(path).encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=TEXTS_KEPT)
def _counted(path: str, text: str) -> int:
    return count(text, path)


def single_tokens(path: str, words: tuple[str, ...]) -> dict[str, int]:
    """Those of the words that, after a space, are one token each; with that token."""
    encoded = load(path).encode_batch([f" {word}" for word in words], add_special_tokens=False)
    return {word: found.ids[0] for word, found in zip(words, encoded, strict=True) if len(found.ids) == 1}


def own_words(path: str) -> dict[str, int]:
    """Plain words of the vocabulary itself that, after a space, are one token each; with that token. In the order of
    their tokens, which in a vocabulary made of merges is about that of how often they come."""
    vocabulary = load(path).get_vocab(with_added_tokens=False)
    spaced = sorted((token, text[1:]) for text, token in vocabulary.items() if text[:1] in SPACES)
    words = [word for _, word in spaced if word.isascii() and word.isalpha() and len(word) >= SHORTEST_WORD]
    return single_tokens(path, tuple(dict.fromkeys(words[:MOST_WORDS])))
