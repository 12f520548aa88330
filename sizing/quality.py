"""What a quantization costs in quality: measured perplexity where there is some, shrunk across sizes elsewhere.

The scale is nats per token: ln(perplexity in this format / perplexity in 16 bits). Between models of different size the
scale is that of a published scaling law, in the same unit, so that "bigger, fewer bits" and "smaller, more bits" can be
compared within a family. Between families it says nothing: training differs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from sizing.catalog import ModelShape, Quantization, quantization
from sizing.estimate import Estimate
from sizing.tables import read_rows

# Kaplan et al. 2020 (arXiv 2001.08361), equation 1.1: loss in nats = (8.8e13 / parameters)^0.076.
_SCALE, _POWER = 8.8e13, 0.076
# What evidence of one other size is worth against the line through all formats: one row each.
_PRIOR_ROWS = 1.0
_PARAMS = {"Llama-3-8B": 8.03e9, "Llama-3-70B": 70.6e9, "Llama-2-70B": 69.0e9}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured perplexity against the same model's in 16 bits."""

    params: float
    format: str
    bits: float
    loss_nats: float
    source: str


@cache
def evidence() -> tuple[Evidence, ...]:
    """The rows of quant_quality.csv that hold a perplexity and its baseline; opinions of peers are left out."""
    found: list[Evidence] = []
    for row in read_rows("quant_quality.csv"):
        base = re.search(r"(?:F16|fp16)(?: ppl)? (\d+\.\d+)", row["baseline"])
        if row["metric"] not in ("ppl_wikitext2", "ppl_wikitest", "ppl") or row["model"] not in _PARAMS or not base:
            continue
        name = row["quant"].replace("(imatrix)", "").strip()
        try:
            known = quantization(name)
        except LookupError:
            continue
        ratio = float(row["value"]) / float(base[1])
        if known.quantized and ratio > 1.0:
            found.append(
                Evidence(
                    _PARAMS[row["model"]], known.name.upper(), known.bits_per_weight, math.log(ratio), row["source"]
                )
            )
    return tuple(found)


@cache
def _line() -> tuple[float, float, float, float]:
    """(intercept, slope per bit, slope per ln(parameters), spread) of ln(loss) through all evidence: least squares."""
    rows = [((1.0, e.bits, math.log(e.params / 8e9)), math.log(e.loss_nats)) for e in evidence()]
    # Normal equations of three unknowns, solved by elimination: numpy would cost more to import than all the rest.
    system = [
        [sum(x[i] * x[j] for x, _ in rows) for j in range(3)] + [sum(x[i] * y for x, y in rows)] for i in range(3)
    ]
    for i in range(3):
        system[i] = [value / system[i][i] for value in system[i]]
        for j in range(3):
            if j != i:
                system[j] = [a - system[j][i] * b for a, b in zip(system[j], system[i], strict=True)]
    found = [line[3] for line in system]
    errors = [y - sum(a * b for a, b in zip(found, x, strict=True)) for x, y in rows]
    spread = math.sqrt(sum(error * error for error in errors) / (len(errors) - 3))
    return found[0], found[1], found[2], spread


@cache
def _of_format(name: str) -> tuple[Evidence, ...]:
    return tuple(e for e in evidence() if e.format == name)


def loss_nats(model: ModelShape, weights: Quantization) -> Estimate:
    """Nats per token that the format costs this model. Measured ones are moved to its size and shrunk to the line."""
    if not weights.quantized:
        return Estimate(0.0, 0.0, 0.0, "derived", ("16 bits is the reference",))
    intercept, per_bit, per_size, spread = _line()
    at = intercept + per_bit * weights.bits_per_weight + per_size * math.log(model.params / 8e9)
    own = _of_format(weights.name.upper())
    if own:
        # Each row moved from its own size to this one along the common slope.
        moved = [math.log(e.loss_nats) + per_size * math.log(model.params / e.params) for e in own]
        at = (sum(moved) + _PRIOR_ROWS * at) / (len(moved) + _PRIOR_ROWS)
        spread /= math.sqrt(1 + len(own) / _PRIOR_ROWS)
    sources = tuple(sorted({e.source for e in own})) or ("the line through all formats of quant_quality.csv",)
    same = [e for e in own if abs(math.log(model.params / e.params)) < 0.1]
    label = "measured" if same and "llama-3" in model.name.lower() else "derived"
    return Estimate(math.exp(at), math.exp(at - 1.28 * spread), math.exp(at + 1.28 * spread), label, sources)


def expected_nats(model: ModelShape, weights: Quantization) -> Estimate:
    """Nats per token of a model of this size in this format: lower is better. A mixture counts between its sizes.

    Its size is the geometric mean of all and active parameters: a rule of thumb, UNVERIFIED.
    """
    size = math.sqrt(float(model.params) * model.active_params)
    base = (_SCALE / size) ** _POWER
    loss = loss_nats(model, weights)
    return Estimate(
        base + float(loss.value or 0), base + float(loss.low or 0), base + float(loss.high or 0), "derived",
        ("arXiv 2001.08361, equation 1.1", *loss.sources),
    )  # fmt: skip
