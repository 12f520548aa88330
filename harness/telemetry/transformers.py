"""What the baseline's server says of itself on its `/metrics` page (`harness.transformersserver`)."""

from __future__ import annotations

import math
from typing import Final

from harness.telemetry.prometheus import PageSource, parse

_PREFIX: Final = "transformers:"


def read_metrics(text: str) -> dict[str, float]:
    """The page's metrics: `running`, `waiting`, counters, `kv_held_tokens` (the cache as it is: rows x padded length),
    `kv_live_tokens` (what of it holds tokens of answers that still run), and torch's memory on a GPU."""
    return {
        sample.name.removeprefix(_PREFIX): sample.value
        for sample in parse(text)
        if sample.name.startswith(_PREFIX) and math.isfinite(sample.value)
    }


def transformers_source(url: str) -> PageSource:
    """The baseline's queue, batch and counters."""
    return PageSource("transformers", url, read_metrics)
