"""Model shapes by name, from `data/models.csv`.

Every row names its own source and keeps its mark (UNVERIFIED, ...) in `verified`. What the table lacks and the geometry
gives is computed here, and its name is listed in `ModelShape.derived`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

from sizing.tables import closest, read_rows, to_int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The geometry that memory and speed follow from."""

    name: str
    params: int
    active_params: int
    """parameters that one token passes through; equals params for a dense model"""
    embedding_params: int
    """input embedding plus output head, kept at 16 bit by int4, int8 and fp8 formats; 0 when the sizes are unknown"""
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    full_layers: int
    """layers whose KV grows with every token"""
    sliding_layers: int
    """layers whose KV stops growing at sliding_window_tokens"""
    linear_layers: int
    """layers with a constant state and no KV (its size is in no table: counted as 0)"""
    sliding_window_tokens: int
    mla_dim: int
    """kv_lora + rope dimensions of multi-head latent attention, 0 for other kinds"""
    n_experts: int
    experts_per_token: int
    max_context_tokens: int | None
    derived: tuple[str, ...]
    source: str
    verified: str


def _layer_kinds(row: dict[str, str]) -> tuple[int, int, int, int]:
    """(full, sliding, linear layers, window tokens) from the table's `attention` text."""
    attention, layers = row["attention"], to_int(row["layers"])
    if attention.startswith("{"):
        kinds: dict[str, int] = ast.literal_eval(attention)
        window = to_int(row["sliding_window"])
        return (
            kinds.get("full_attention", 0),
            kinds.get("sliding_attention", 0),
            kinds.get("linear_attention", 0),
            window,
        )
    if "SWA" in attention and attention.startswith("MHA"):
        return 0, layers, 0, to_int(re.findall(r"SWA (\d+)", attention)[0])
    if "SWA" in attention:
        # The table's KV bytes of these rows count the growing layers only, so that they say how many there are.
        full = to_int(row["kv_bytes_per_token_fp16"]) // (4 * to_int(row["kv_heads"]) * to_int(row["head_dim"]))
        windows = re.findall(r"SWA (\d+)|window (\d+)", attention)[0]
        window = 512 if row["name"].endswith("gemma-3-1b-it") else int(windows[0] or windows[1])
        return full, layers - full, 0, window
    # "GQA" with a window in its config.json (Qwen2.5-7B: 131072, unused) counts as full attention: the upper bound.
    return layers, 0, 0, 0


def _derived_sizes(row: dict[str, str], hidden: int) -> tuple[int, int]:
    """(parameters of attention and dense or routed FFN, parameters of one expert in all layers), from the geometry."""
    layers, head_dim = to_int(row["layers"]), to_int(row["head_dim"])
    attention = layers * 2 * hidden * head_dim * (to_int(row["heads"]) + to_int(row["kv_heads"]))
    experts = to_int(row["n_experts"])
    width = to_int(row["moe_ffn"]) or to_int(row["ffn"]) if experts else to_int(row["ffn"])
    one_ffn = layers * 3 * hidden * width
    return attention + one_ffn * max(experts, 1), one_ffn if experts else 0


def _shape(row: dict[str, str]) -> ModelShape:
    derived: list[str] = []
    hidden = to_int(row["hidden"])
    if not hidden:
        hidden = to_int(row["heads"]) * to_int(row["head_dim"])
        derived.append("hidden")
    body, one_expert = _derived_sizes(row, hidden)
    table = to_int(row["vocab"]) * hidden
    params, active = to_int(row["params"]), to_int(row["active_params"])
    tied = row["tie_embeddings"] == "True"
    if not row["tie_embeddings"] and params and table:
        # What the layers do not account for is one or two embedding tables.
        tied = round((params - body) / table) <= 1
    embedding = table * (1 if tied else 2)
    if not params:
        params = body + embedding
        derived.append("params")
    experts, per_token = to_int(row["n_experts"]), to_int(row["experts_per_tok"])
    if not active:
        _, active_in_name = _sizes_in_name(row["name"])
        active = active_in_name or params - one_expert * (experts - per_token)
        if experts:
            derived.append("active_params")
    full, sliding, linear, window = _layer_kinds(row)
    mla = re.findall(r"kv_lora=(\d+) rope=(\d+)", row["attention"])
    return ModelShape(
        name=row["name"],
        params=params,
        active_params=active,
        embedding_params=embedding,
        hidden=hidden,
        heads=to_int(row["heads"]),
        kv_heads=to_int(row["kv_heads"]),
        head_dim=to_int(row["head_dim"]),
        full_layers=full,
        sliding_layers=sliding,
        linear_layers=linear,
        sliding_window_tokens=window,
        mla_dim=sum(map(int, mla[0])) if mla else 0,
        n_experts=experts,
        experts_per_token=per_token,
        max_context_tokens=to_int(row["max_ctx"]) or None,
        derived=tuple(derived),
        source=row["source"],
        verified=row["verified"],
    )


def _sizes_in_name(name: str) -> tuple[int, int]:
    """(all, active) parameters that a name such as "Qwen3-30B-A3B" states, 0 where it states none."""
    total = re.findall(r"-(\d+(?:\.\d+)?)b(?![a-z0-9])", name.lower())
    active = re.findall(r"-a(\d+(?:\.\d+)?)b(?![a-z0-9])", name.lower())
    return (round(float(total[0]) * 1e9) if total else 0, round(float(active[0]) * 1e9) if active else 0)


def _lack(row: dict[str, str]) -> str:
    """Why a row cannot be sized, or an empty string."""
    if row["n_experts"] and not row["experts_per_tok"] and not row["active_params"]:
        return "the table lacks its experts per token"
    if not (row["params"] or row["ffn"] or row["moe_ffn"]):
        return "the table lacks its parameters and its FFN width"
    stated, _ = _sizes_in_name(row["name"])
    shape = _shape(row)
    if "params" in shape.derived and stated and abs(shape.params - stated) > 0.15 * stated:
        # Mamba hybrids and models with experts in every other layer: their rows do not describe them fully.
        return f"its geometry adds up to {shape.params / 1e9:.0f}B parameters, unlike its name"
    return ""


@cache
def _model_rows() -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in read_rows("models.csv")}


def model_names() -> list[str]:
    """All names that `model` knows and can size."""
    return [name for name, row in _model_rows().items() if not _lack(row)]


def model(name: str) -> ModelShape:
    """The shape of a model by its Hugging Face id, or the bare last part of it; upper and lower case are alike.

    Raises LookupError naming the close matches, or what the table lacks.
    """
    rows = _model_rows()
    wanted = name.strip().rstrip("/").lower()
    for known, row in rows.items():
        if wanted in (known.lower(), known.lower().rpartition("/")[2]):
            if lack := _lack(row):
                raise LookupError(f"model {known!r} cannot be sized: {lack}")
            return _shape(row)
    bare = {known.rpartition("/")[2]: known for known in rows}
    raise LookupError(f"unknown model {name!r}; {closest(wanted.rpartition('/')[2], list(bare))}")
