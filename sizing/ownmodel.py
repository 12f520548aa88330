"""A user's own model: its geometry from its config.json or GGUF header. Pure; `harness.modelfile` reads."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sizing.names import quantization_in
from sizing.shapes import ModelShape, linear_state_bytes, shape_of

_COLUMNS = (
    "name params active_params layers hidden heads kv_heads head_dim vocab ffn max_ctx tie_embeddings n_experts "
    "experts_per_tok moe_ffn attention sliding_window kv_bytes_per_token_fp16 notes source verified"
)


def from_config(name: str, config: Mapping[str, Any], file_bytes: int | None, source: str) -> ModelShape:
    """The shape that a Hugging Face config.json describes. Raises ValueError naming the key that is missing."""
    text = config.get("text_config") or config
    layers = _need(text, "num_hidden_layers", "n_layer", "n_layers")
    hidden = _need(text, "hidden_size", "n_embd", "d_model")
    heads = _need(text, "num_attention_heads", "n_head", "n_heads")
    row = dict.fromkeys(_COLUMNS.split(), "") | {
        "name": name,
        "layers": str(layers),
        "hidden": str(hidden),
        "heads": str(heads),
        "kv_heads": str(_first(text, "num_key_value_heads", "n_head_kv") or heads),
        "head_dim": str(_first(text, "head_dim") or hidden // heads),
        "vocab": str(_need(text, "vocab_size")),
        "ffn": str(_first(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden),
        "max_ctx": str(_first(text, "max_position_embeddings", "n_positions") or ""),
        "tie_embeddings": str(bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))),
        "n_experts": str(_first(text, "num_local_experts", "num_experts", "n_routed_experts") or ""),
        "experts_per_tok": str(_first(text, "num_experts_per_tok", "experts_per_token", "top_k_experts") or ""),
        "moe_ffn": str(_first(text, "moe_intermediate_size", "expert_ffn_hidden_size") or ""),
        "attention": _attention(text, layers),
        "sliding_window": str(_first(text, "sliding_window") or ""),
        "source": source,
        "verified": "config.json",
    }
    return dataclasses.replace(shape_of(row), file_bytes=file_bytes, linear_state_bytes=_linear_state(text))


def from_gguf(name: str, header: Mapping[str, Any], file_bytes: int, params: int, source: str) -> ModelShape:
    """The shape of a GGUF header's values, with bytes and parameters of its tensors counted. Raises ValueError."""
    architecture = str(header.get("general.architecture", ""))
    own = {key.removeprefix(f"{architecture}."): value for key, value in header.items()}
    heads = _need(own, "attention.head_count")
    hidden = _need(own, "embedding_length")
    config = {
        "num_hidden_layers": _need(own, "block_count"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": _first(own, "attention.head_count_kv") or heads,
        "head_dim": _first(own, "attention.key_length") or hidden // heads,
        "vocab_size": _first(own, "vocab_size", "tokenizer.ggml.tokens") or 32000,
        "intermediate_size": _first(own, "feed_forward_length") or 4 * hidden,
        "max_position_embeddings": _first(own, "context_length"),
        "num_experts": _first(own, "expert_count"),
        "num_experts_per_tok": _first(own, "expert_used_count"),
        "moe_intermediate_size": _first(own, "expert_feed_forward_length"),
        "tie_word_embeddings": "output.weight" not in header.get("tensors", ("output.weight",)),
    }
    shape = from_config(name, config, file_bytes, source)
    share = shape.active_params / shape.params if shape.params else 1.0
    return dataclasses.replace(shape, params=params, active_params=round(params * share), verified="GGUF header")


def config_quantization(config: Mapping[str, Any]) -> str:
    """The weight format that a config.json states, `bf16` when it states none."""
    stated = config.get("quantization_config") or {}
    method = str(stated.get("quant_method", ""))
    if method in ("awq", "gptq", "fp8", "mxfp4", "bitsandbytes"):
        return method
    if method:  # compressed-tensors, modelopt: what their groups say
        text = str(stated).lower()
        for words, name in (
            (("nvfp4",), "nvfp4"), (("mxfp4",), "mxfp4"), (("float-quantized", "'fp8'", "e4m3"), "fp8"),
            (("num_bits': 4", "int4"), "int4"), (("num_bits': 8",), "w8a8"),
        ):  # fmt: skip
            if any(word in text for word in words):
                return name
    return quantization_in(method) or str(config.get("torch_dtype", config.get("dtype", "bf16"))).replace(
        "float32", "bf16"
    )


def _first(values: Mapping[str, Any], *keys: str) -> int:
    """The first value that is there, as a number; a list's largest (GGUF has some per layer); 0 without any."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, list | tuple):
            value = len(value) if key.endswith("tokens") else max(value, default=0)
        if value:
            return int(value)
    return 0


def _need(values: Mapping[str, Any], *keys: str) -> int:
    found = _first(values, *keys)
    if not found:
        raise ValueError(f"it lacks {keys[0]}")
    return found


def _linear_state(text: Mapping[str, Any]) -> int:
    """Bytes of a linear-attention layer's state; 0 without such layers."""
    if not text.get("linear_num_value_heads"):
        return 0
    heads, dims = ("linear_num_value_heads", "linear_num_key_heads"), ("linear_value_head_dim", "linear_key_head_dim")
    values, keys = ((_need(text, head), _need(text, dim)) for head, dim in zip(heads, dims, strict=True))
    return linear_state_bytes(*values, *keys, _first(text, "linear_conv_kernel_dim") or 4)


def _attention(text: Mapping[str, Any], layers: int) -> str:
    """The table's words for the kinds of layers."""
    if text.get("kv_lora_rank"):
        return f"MLA kv_lora={int(text['kv_lora_rank'])} rope={int(text.get('qk_rope_head_dim', 64))}"
    if kinds := text.get("layer_types"):
        return str(dict(Counter(map(str, kinds))))
    if (pattern := text.get("sliding_window_pattern")) and text.get("sliding_window"):
        full = layers // int(pattern)
        return str({"sliding_attention": layers - full, "full_attention": full})
    return "GQA"
