"""What starts and runs on a machine taught of it, as predictions take it: read once, asked for every candidate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Learnt:
    """Of one hardware. Empty: nothing was seen."""

    extra_bytes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """what vLLM needed of each GPU beyond the formula, by model and GPUs"""
    ratios: tuple[tuple[str, str | None, float], ...] = ()
    """(engine, quantization or None for any, measured over predicted time per token) of each run"""
    source: str = ""
    """where it is kept"""

    def scale(self, engine: str, quantization: str) -> tuple[float, tuple[str, ...]]:
        """(median ratio of step times, sources); (1, ()) where nothing was seen of that engine and format."""
        mine = [ratio for of, format_, ratio in self.ratios if of == engine and format_ in (None, quantization)]
        if not mine:
            return 1.0, ()
        return statistics.median(mine), (f"{len(mine)} receipts in {self.source}",)


NOTHING = Learnt()
