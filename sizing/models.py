"""Models by any of the names that people give them.

The tables' own names come first, then the aliases of `data/model_aliases.csv`, then a name of the same words, then one
that adds words to it. A name that only states a size gives a typical model of that size, and says so in `derived`.
"""

from __future__ import annotations

import re
from functools import cache

from sizing.names import ModelName, parse_model
from sizing.shapes import ModelShape, lack, shape_of
from sizing.tables import closest, read_rows

# A dense model of today by its size in 1e9 parameters: layers, hidden, heads, KV heads, head_dim, FFN. The middle of
# the families in models.csv; used only for names that state nothing but a size.
_TYPICAL = (
    (0.5, 24, 1024, 16, 4, 64, 3072),
    (1.5, 28, 1792, 14, 4, 128, 7168),
    (3.0, 30, 2816, 24, 8, 128, 8192),
    (8.0, 33, 4096, 32, 8, 128, 13824),
    (14.0, 42, 5120, 40, 8, 128, 16384),
    (32.0, 60, 5888, 48, 8, 128, 25600),
    (70.0, 80, 8192, 64, 8, 128, 28672),
    (405.0, 126, 16384, 128, 8, 128, 53248),
)


@cache
def _rows() -> dict[str, dict[str, str]]:
    # The second table fills what the first one lacks: its rows win.
    return {row["name"]: row for table in ("models.csv", "models_more.csv") for row in read_rows(table)}


@cache
def _spelt() -> dict[str, str]:
    """The tables' names in lower case, with and without their owner, to the name; the first row wins."""
    found: dict[str, str] = {}
    for name in _rows():
        lower = name.lower()
        found.setdefault(lower, name)
        found.setdefault(lower.rpartition("/")[2], name)
    return found


@cache
def _aliases() -> dict[tuple[str, ...], str]:
    return {parse_model(row["alias"]).dated: row["name"] for row in read_rows("model_aliases.csv")}


@cache
def _by_words() -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for name, row in _rows().items():
        if not lack(row):
            found.setdefault(parse_model(name).words, []).append(name)
    for names in found.values():
        # Same words: the one with a stated parameter count, then the shorter name.
        names.sort(key=lambda name: (not _rows()[name]["params"], len(name)))
    return found


def model_names() -> list[str]:
    """All names of the tables that can be sized."""
    return [name for name, row in _rows().items() if not lack(row)]


def advised_names() -> list[str]:
    """Those that advice may name: not the ones that their own makers have followed up (`data/superseded.csv`).

    Size says how good a model may be among those of one time: by it alone a 65B of 2023 ranks above a 32B of 2025.
    """
    old = {row["name"] for row in read_rows("superseded.csv")}
    return [name for name in model_names() if name not in old]


def model(name: str, typical_will_do: bool = False) -> ModelShape:
    """The shape of a model by its Hugging Face id, its Ollama tag, its file name or the words of any of them.

    With `typical_will_do` a name that only states a size gives a typical model of it.
    Raises LookupError naming the close matches, or what the table lacks.
    """
    wanted = name.strip().rstrip("/").lower()
    if known := _spelt().get(wanted):
        row = _rows()[known]
        if reason := lack(row):
            raise LookupError(f"model {known!r} cannot be sized: {reason}")
        return shape_of(row)
    parsed = parse_model(name)
    if found := _match(parsed):
        return shape_of(_rows()[found])
    if typical_will_do and parsed.params and len(parsed.words) > 1:
        return typical(name, parsed.params, parsed.active_params)
    bare = {known.rpartition("/")[2]: known for known in _rows()}
    raise LookupError(f"unknown model {name!r}; {closest(wanted.rpartition('/')[2], list(bare))}")


def _match(parsed: ModelName) -> str | None:
    """The table's name for these words, None when none or several differ."""
    if not parsed.words:
        return None
    if alias := _aliases().get(parsed.dated) or _aliases().get(parsed.words):
        return alias
    if names := _by_words().get(parsed.words):
        return names[0]
    wanted = set(parsed.words)
    # Words that only the table has ("distill", "small"): good when one geometry is left. The size must be stated alike,
    # and a number more is another version: Falcon 3 is not Falcon.
    wider = [
        (len(words) - len(wanted), names[0])
        for words, names in _by_words().items()
        if wanted < set(words)
        and parse_model(names[0]).params == parsed.params
        and len(wanted) >= 2
        and not any(re.fullmatch(r"v?[\d.]+", word) for word in set(words) - wanted)
    ]
    nearest = [name for more, name in wider if more == min(wider)[0] and more <= 2]
    return nearest[0] if len(nearest) == 1 else None


def typical(name: str, params: float, active_params: float | None = None) -> ModelShape:
    """A typical model of that many parameters: its weights are a guess of a few percent, its KV of a factor of two.

    A mixture of experts counts as 128 experts of which each token takes what makes up its active parameters.
    """
    _, layers, hidden, heads, kv_heads, head_dim, ffn = min(
        _TYPICAL, key=lambda row: abs(row[0] - params / 1e9) / row[0]
    )
    dense_share = 0.05
    experts = 128 if active_params else 0
    per_token = 0
    if active_params:
        per_token = max(1, round(experts * max(active_params / params - dense_share, 1 / experts) / (1 - dense_share)))
    vocab = 128_256
    return ModelShape(
        name=name,
        params=round(params),
        active_params=round(active_params or params),
        embedding_params=2 * vocab * hidden if params > 4e9 else vocab * hidden,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        full_layers=layers,
        sliding_layers=0,
        linear_layers=0,
        sliding_window_tokens=0,
        mla_dim=0,
        n_experts=experts,
        experts_per_token=per_token,
        max_context_tokens=None,
        derived=("geometry", "params"),
        source="a typical model of the size in its name",
        verified="DERIVED",
        ffn=ffn,
        vocab=vocab,
        tied=params <= 4e9,
    )


def shortest_names(names: list[str]) -> list[str]:
    """One name of each set of words: the tables hold some models twice, in several formats."""
    found: dict[tuple[str, ...], str] = {}
    for name in names:
        words = parse_model(name).words
        if words not in found or len(name) < len(found[words]):
            found[words] = name
    return list(found.values())
