"""A tiny random-weight Llama made on the spot: what `model: builtin:tiny` means, for engine checks without a download.

Both engines get the same architecture, size and vocabulary: vLLM a Hugging Face folder without weights (start it with
`--load-format dummy`), Ollama a GGUF file with random weights. The answers are noise; what is real is the engine.

Prompts. Each word of `VOCAB_WORDS`, written with a leading space, is exactly one token in both engines, so
`"".join(" " + word for word in words)` is a prompt of `len(words)` tokens. Neither engine adds a BOS to a raw prompt:
the GGUF says `add_bos_token = false` and the HF tokenizer has no post-processor. Chat prompts gain what the ChatML
template adds, the same in both.

Answers. With dummy weights vLLM can choose any token, the end of text too: send `ignore_eos: true`. The GGUF can only
choose words, so lengths come out as asked (`num_predict`) and no chunk ends inside a UTF-8 character, to which
llama-server answers 500. This is built in, not left to luck: see `_tensors`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Weights = npt.NDArray[np.float32]


VERSION: Final = 1
"""Part of each path: raise it with any change below, and cached models are made anew."""

CONTEXT_TOKENS: Final = 8192
"""The longest sequence, prompt and answer together."""

LAYERS: Final = 4
HIDDEN: Final = 128
FEED_FORWARD: Final = 384
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD_SIZE: Final = HIDDEN // HEADS  # 32: the smallest that vLLM's CPU attention takes
NORM_EPSILON: Final = 1e-5
ROPE_BASE: Final = 10_000.0

SYLLABLES: Final = tuple(map("".join, product("bdmnrstv", "aeio")))
VOCAB_WORDS: Final = tuple(map("".join, product(SYLLABLES, SYLLABLES)))
"""The 1024 ordinary words ("baba" to "vovo"), in the order of their token ids."""

BOS: Final = "<|begin_of_text|>"
EOS: Final = "<|end_of_text|>"  # one of the names by which llama.cpp knows an end of text; it warns of others
PAD: Final = "<|pad|>"
SPECIAL_TOKENS: Final = (BOS, EOS, PAD, "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML in the spelling that Ollama recognises and maps to its own Go template."""

# How Llama 3 splits text before BPE. llama.cpp calls it `llama-bpe`; the HF tokenizer needs the expression itself.
_LLAMA_BPE_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE: Final = "Ġ"  # what a space byte looks like in a GPT-2 style vocabulary
_SEED: Final = 42
_MARK: Final = HIDDEN**0.5  # value of dimension 0 in every embedding: as long as all other dimensions together
_VETO: Final = -1024.0  # output weight of dimension 0 for each token that must never be chosen


def word_ids() -> range:
    """Token ids of `VOCAB_WORDS`, in its order: the ids to use in a prompt given as ids."""
    first = len(_byte_pieces()) + 2 * len(SYLLABLES)
    return range(first, first + len(VOCAB_WORDS))


def vocabulary() -> list[str]:
    """All tokens by id: 256 bytes, syllables bare and after a space, words after a space, special tokens."""
    spaced = [_SPACE + piece for piece in (*SYLLABLES, *VOCAB_WORDS)]
    return [*_byte_pieces(), *SYLLABLES, *spaced, *SPECIAL_TOKENS]


def merges() -> list[tuple[str, str]]:
    """The BPE merges, first ones first: letters to syllables, space to a first syllable, then the second syllable.

    No two merges compete inside a word, so every word has one outcome: a single token.
    """
    letters = [(syllable[0], syllable[1]) for syllable in SYLLABLES]
    starts = [(_SPACE, syllable) for syllable in SYLLABLES]
    words = [(_SPACE + first, second) for first, second in product(SYLLABLES, SYLLABLES)]
    return letters + starts + words


def hf_folder(cache: Path) -> Path:
    """Make, if missing, the Hugging Face folder (configuration and tokenizer, no weights) and return its path.

    Raises OSError if `cache` cannot be written.
    """
    return _made(cache / f"tiny-v{VERSION}-hf", _write_hf)


def gguf_file(cache: Path) -> Path:
    """Make, if missing, the GGUF file (2.3 MB, float16) and return its path.

    Raises OSError if `cache` cannot be written.
    """
    return _made(cache / f"tiny-v{VERSION}-gguf", _write_gguf) / "tiny.gguf"


def _made(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `write` if it was not there; it appears whole or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        aside.chmod(0o755)  # mkdtemp's 0700 would hide the model from a daemon of another user
        write(aside)
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _token(name: str) -> int:
    return vocabulary().index(name)


def _byte_pieces() -> list[str]:
    """The 256 bytes as GPT-2 spells them (openai/gpt-2 `encoder.py`): printable ones as themselves, others from 256."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def _write_hf(folder: Path) -> None:
    files = {
        "config.json": _hf_config(),
        "generation_config.json": {"bos_token_id": _token(BOS), "eos_token_id": _token(EOS)},
        "tokenizer.json": _hf_tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT_TOKENS,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hf_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary()),
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_BASE,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        # Not bfloat16: on a Xeon with AMX, vLLM 0.32's CPU attention kernel dies of SIGILL at the first request.
        "torch_dtype": "float16",
        "bos_token_id": _token(BOS),
        "eos_token_id": _token(EOS),
        "pad_token_id": _token(PAD),
    }


def _hf_tokenizer() -> dict[str, Any]:
    """The content of `tokenizer.json`, by hand: making it must not need the `tokenizers` package."""
    tokens = vocabulary()
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA_BPE_SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokens.index(name), "content": name, **flags} for name in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # as llama.cpp does for `llama-bpe`
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in merges()],
        },
    }


def _write_gguf(folder: Path) -> None:
    import gguf  # here, as it takes 0.3 s and only this one function needs it
    import numpy as np

    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_name(f"enginebench tiny v{VERSION}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(len(vocabulary()))
    _add_gguf_tokenizer(writer, normal=int(gguf.TokenType.NORMAL), control=int(gguf.TokenType.CONTROL))
    for name, weights in _tensors():
        writer.add_tensor(name, weights if weights.ndim == 1 else weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_gguf_tokenizer(writer: Any, normal: int, control: int) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges()])
    writer.add_bos_token_id(_token(BOS))
    writer.add_eos_token_id(_token(EOS))
    writer.add_pad_token_id(_token(PAD))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors() -> Iterator[tuple[str, Weights]]:
    """Yield each tensor by its GGUF name; the same ones each time.

    Dimension 0 is a mark that only the embeddings write: every token sets it to `_MARK`, and no layer adds to it. So it
    reaches the output positive for any text, where the rows of all tokens but the words answer it with `_VETO`: their
    logits lie thousands below those of the words, out of reach of any sampling up to a temperature of 100.
    """
    import numpy as np  # here and below: a run that makes no model does without it

    rng = np.random.default_rng(_SEED)

    def random(rows: int, columns: int, scale: float = 0.5) -> Weights:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale / columns**0.5)

    def into_residual(columns: int) -> Weights:
        weights = random(HIDDEN, columns)
        weights[0] = 0.0
        return weights

    ones = np.ones(HIDDEN, dtype=np.float32)
    embeddings = random(len(vocabulary()), HIDDEN, scale=_MARK)
    embeddings[:, 0] = _MARK
    output = np.zeros((len(vocabulary()), HIDDEN), dtype=np.float32)
    output[:, 0] = _VETO
    output[word_ids()] = random(len(VOCAB_WORDS), HIDDEN, scale=4.0)
    output[word_ids(), 0] = 0.0

    yield "token_embd.weight", embeddings
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", ones
        yield f"{block}.attn_q.weight", random(HIDDEN, HIDDEN)
        yield f"{block}.attn_k.weight", random(KV_HEADS * HEAD_SIZE, HIDDEN)
        yield f"{block}.attn_v.weight", random(KV_HEADS * HEAD_SIZE, HIDDEN)
        yield f"{block}.attn_output.weight", into_residual(HIDDEN)
        yield f"{block}.ffn_norm.weight", ones
        yield f"{block}.ffn_gate.weight", random(FEED_FORWARD, HIDDEN)
        yield f"{block}.ffn_up.weight", random(FEED_FORWARD, HIDDEN)
        yield f"{block}.ffn_down.weight", into_residual(FEED_FORWARD)
    yield "output_norm.weight", ones
    yield "output.weight", output
