"""What the baseline's server says of itself on its `/metrics` page (`harness.transformersserver`)."""

from __future__ import annotations

import math
from typing import Final

from harness.http import get_text
from harness.telemetry.prometheus import parse

PERIOD_S: Final = 1.0
TIMEOUT_S: Final = 3.0
_PREFIX: Final = "transformers:"


def read_metrics(text: str) -> dict[str, float]:
    """The page's metrics: `running`, `waiting`, counters, `kv_held_tokens` (the cache as it is: rows x padded length),
    `kv_live_tokens` (what of it holds tokens of answers that still run), and torch's memory on a GPU."""
    return {
        sample.name.removeprefix(_PREFIX): sample.value
        for sample in parse(text)
        if sample.name.startswith(_PREFIX) and math.isfinite(sample.value)
    }


class TransformersSource:
    """The baseline's queue, batch and counters; read in the thread for sources that wait (see `Sampler`)."""

    name = "transformers"
    period_s = PERIOD_S
    blocking = True

    def __init__(self, metrics_url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.metrics_url = metrics_url
        self.timeout_s = timeout_s

    def read(self) -> dict[str, float]:
        """Raises HttpError: the server is gone, hangs, or refuses."""
        return read_metrics(get_text(self.metrics_url, self.timeout_s))
