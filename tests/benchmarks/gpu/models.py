"""Model folders of real shapes without weights, for vLLM's `--load-format dummy`.

    python -m tests.benchmarks.gpu.models FOLDER [--small]

Llama-3.1-8B-Instruct and Llama-3.2-1B-Instruct as their `config.json` was published; memory and speed are those of the
real models, the text means nothing. The tokenizer is the tiny model's, padded to the real 128,256 tokens: each common
word of `harness.words` and of `harness.tinymodels`, after a space, is one token, so that prompts are exact as text and
as token ids. `--small` makes the same with two narrow layers in float16: for a trial on a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, Final

from harness import tinymodels
from harness.words import WORDS

VOCABULARY: Final = 128_256
FIRST_SPECIAL: Final = 128_000  # as in Llama 3: the 256 special tokens are the last ones

_COMMON: Final = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128_000,
    "eos_token_id": [128_001, 128_008, 128_009],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500_000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def _rope(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "llama-3.1-8b": {
        **_COMMON, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "head_dim": 128, "rope_scaling": _rope(8.0), "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        **_COMMON, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "head_dim": 64, "rope_scaling": _rope(32.0), "tie_word_embeddings": True,
    },
    "llama-3.1-70b": {
        **_COMMON, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "head_dim": 128, "rope_scaling": _rope(8.0), "tie_word_embeddings": False,
    },
    # The sizes that the guides' figures are of: Llama 1, whose 13B and 30B (32.5 billion) have a KV head for each head.
    # With the vocabulary of the others, 2.0 and 2.6 GB larger in bf16 than with its own of 32,000.
    "llama-13b": {
        **_COMMON, "hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40, "head_dim": 128, "tie_word_embeddings": False,
        "max_position_embeddings": 2048, "rope_theta": 10_000.0,
    },
    "llama-30b": {
        **_COMMON, "hidden_size": 6656, "intermediate_size": 17_920, "num_hidden_layers": 60,
        "num_attention_heads": 52, "num_key_value_heads": 52, "head_dim": 128, "tie_word_embeddings": False,
        "max_position_embeddings": 2048, "rope_theta": 10_000.0,
    },
}  # fmt: skip

# As an FP8 checkpoint says of itself (RedHatAI's "FP8-dynamic"). Of the 8B: the fallback, should vLLM's own
# quantization at load (`quantization: fp8` over the bf16 folder) not start. Of the 70B: no bf16 weights on the way.
_EIGHT_BITS: Final = {"num_bits": 8, "symmetric": True, "type": "float"}
FP8_DYNAMIC: Final = {
    "config_groups": {
        "group_0": {
            "input_activations": {"dynamic": True, "strategy": "token", **_EIGHT_BITS},
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {"dynamic": False, "strategy": "channel", **_EIGHT_BITS},
        }
    },
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}  # fmt: skip

IN_FP8: Final = ("llama-3.1-8b", "llama-3.1-70b")

SMALL: Final = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 32, "torch_dtype": "float16"}  # fmt: skip


def parameters(config: dict[str, Any]) -> int:
    """How many parameters a Llama of this configuration has."""
    hidden, head, ffn = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    layer = 2 * hidden * head * (heads + kv_heads) + 3 * hidden * ffn + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + hidden)


def make_all(folder: Path, small: bool = False) -> list[Path]:
    """Write every model folder; their paths."""
    tokenizer = {file: _json(content) for file, content in padded_tokenizer().items()}
    fp8 = {f"{name}-fp8": {**CONFIGS[name], "quantization_config": FP8_DYNAMIC} for name in IN_FP8}
    variants = CONFIGS | fp8
    made = []
    for name, config in variants.items():
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        files = {"config.json": _json(config | (SMALL if small else {})), "generation_config.json": _json(generation)}
        for file, text in (files | tokenizer).items():
            (path / file).write_text(text, encoding="utf-8")
        made.append(path)
    return made


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def padded_tokenizer() -> dict[str, dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`: the tiny model's ordinary tokens, the common words, made-up words
    up to the wanted number, and the special tokens where Llama 3 has them."""
    with tempfile.TemporaryDirectory() as cache:
        tiny = tinymodels.hf_folder(Path(cache))
        tokenizer, config = (json.loads((tiny / f"{name}.json").read_text("utf-8")) for name in NAMES)
    ordinary = tinymodels.vocabulary()[: -len(tinymodels.SPECIAL_TOKENS)]
    made_up = ("".join(syllables) for n in (3, 4) for syllables in product(tinymodels.SYLLABLES, repeat=n))
    tokens = dict.fromkeys(chain(ordinary, (f"Ġ{word}" for word in chain(WORDS, made_up))))
    vocabulary = {token: index for index, token in enumerate(islice(tokens, FIRST_SPECIAL))}
    special = [*tinymodels.SPECIAL_TOKENS]
    special += [f"<|reserved_special_token_{n}|>" for n in range(VOCABULARY - FIRST_SPECIAL - len(special))]
    flags = {key: value for key, value in tokenizer["added_tokens"][0].items() if key not in ("id", "content")}
    tokenizer["added_tokens"] = [
        {"id": FIRST_SPECIAL + index, "content": name, **flags} for index, name in enumerate(special)
    ]
    tokenizer["model"]["vocab"] = vocabulary | {name: FIRST_SPECIAL + index for index, name in enumerate(special)}
    config["model_max_length"] = 131_072
    return dict(zip((f"{name}.json" for name in NAMES), (tokenizer, config), strict=True))


NAMES: Final = ("tokenizer", "tokenizer_config")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="two narrow layers in float16, for a CPU")
    args = parser.parse_args()
    for path in make_all(args.folder, args.small):
        print(path)


if __name__ == "__main__":
    main()
