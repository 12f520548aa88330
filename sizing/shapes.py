"""The geometry of a model, from a row of `data/models.csv` and `data/models_more.csv`.

Every row names its own source and keeps its mark (UNVERIFIED, ...) in `verified`. What the table lacks and the geometry
gives is computed here, and its name is listed in `ModelShape.derived`. Names are found in `sizing.models`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

from sizing.names import parse_model
from sizing.tables import read_rows, to_int


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
    """layers with a constant state and no KV"""
    sliding_window_tokens: int
    mla_dim: int
    """kv_lora + rope dimensions of multi-head latent attention, 0 for other kinds"""
    n_experts: int
    experts_per_token: int
    max_context_tokens: int | None
    derived: tuple[str, ...]
    source: str
    verified: str
    ffn: int = 0
    """width of the feed-forward layers that one token passes through: of the dense one, or of its chosen experts"""
    vocab: int = 0
    tied: bool = False
    """the output head is the input embedding"""
    linear_state_bytes: int = 0
    """of one layer of linear attention and one sequence; 0 where the table does not know it"""
    vision_params: int = 0
    """parameters of the vision tower and its projector, in `params`: loaded in 16 bits, not read by a token"""
    file_bytes: int | None = None
    """bytes of all tensors as read from the model's own files; None for a row of the table"""
    file_format: str = ""
    """the weight format of those files; in another one their bytes say nothing"""

    @property
    def layers(self) -> int:
        """All layers, of whatever kind."""
        return self.full_layers + self.sliding_layers + self.linear_layers

    @property
    def moe(self) -> bool:
        """Whether a router picks experts for each token."""
        return self.n_experts > 0

    @property
    def expert_params(self) -> float:
        """Parameters of all routed experts."""
        share = self.experts_per_token / self.n_experts if self.n_experts else 1.0
        # active = rest + experts x share, all = rest + experts: two equations.
        return (self.params - self.vision_params - self.active_params) / (1.0 - share) if share < 1.0 else 0.0

    @property
    def lookup_params(self) -> int:
        """The input embedding where the head is another table: a step reads one row of it for a token."""
        return 0 if self.tied else self.embedding_params // 2

    @property
    def known_geometry(self) -> bool:
        """False for a shape that only a size in a name gave: KV and attention are then a typical model's."""
        return "geometry" not in self.derived


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


def shape_of(row: dict[str, str]) -> ModelShape:
    """The geometry of one row of the table (or of a config.json brought into its columns)."""
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
    full, sliding, linear, window = _layer_kinds(row)
    if "params" in derived and linear and (stated_params := parse_model(row["name"]).params):
        # A layer of linear attention is larger than the geometry tells: the name is nearer.
        params = round(stated_params)
    vision, counted = _vision().get(row["name"], (0, True))
    params += 0 if counted else vision
    experts, per_token = to_int(row["n_experts"]), to_int(row["experts_per_tok"])
    if not active:
        stated = parse_model(row["name"]).active_params
        active = round(stated) if stated else params - vision - one_expert * (experts - per_token)
        if experts:
            derived.append("active_params")
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
        ffn=(to_int(row["moe_ffn"]) or to_int(row["ffn"])) * per_token if experts else to_int(row["ffn"]),
        vocab=to_int(row["vocab"]),
        tied=tied,
        vision_params=vision,
        linear_state_bytes=_known_states().get(_family(row["name"]), 0) if linear else 0,
    )


def linear_state_bytes(value_heads: int, value_dim: int, key_heads: int, key_dim: int, conv: int) -> int:
    """A gated delta layer's state: a matrix a head in 32 bits, and the last inputs of its convolution in 16."""
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return value_heads * value_dim * key_dim * 4 + (conv - 1) * channels * 2


@cache
def _vision() -> dict[str, tuple[int, bool]]:
    """Parameters of vision towers by model, and whether the model's own count has them."""
    return {row["name"]: (int(row["params"]), row["counted"] == "1") for row in read_rows("vision.csv")}


@cache
def _known_states() -> dict[str, int]:
    sizes = ("value_heads", "value_dim", "key_heads", "key_dim", "conv")
    return {
        row["name"]: linear_state_bytes(*(int(row[size]) for size in sizes)) for row in read_rows("linear_states.csv")
    }


def _family(name: str) -> str:
    """The model's name without its maker and its format."""
    return re.sub(r"-(fp8|nvfp4|awq|gptq|int4|base|instruct).*$", "", name.rsplit("/", 1)[-1].lower())


def lack(row: dict[str, str]) -> str:
    """Why a row cannot be sized, or an empty string."""
    if row["n_experts"] and not row["experts_per_tok"] and not row["active_params"]:
        return "the table lacks its experts per token"
    if not (row["params"] or row["ffn"] or row["moe_ffn"]):
        return "the table lacks its parameters and its FFN width"
    stated = parse_model(row["name"]).params
    shape = shape_of(row)
    if "params" in shape.derived and stated and abs(shape.params - stated) > 0.15 * stated:
        # Mamba hybrids and models with experts in every other layer: their rows do not describe them fully.
        return f"its geometry adds up to {shape.params / 1e9:.0f}B parameters, unlike its name"
    return ""
