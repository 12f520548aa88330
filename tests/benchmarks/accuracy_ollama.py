"""Memory that Ollama really used, or said it would, beside the prediction, and how often its interval holds.

    python -m tests.benchmarks.accuracy_ollama

The GPU does not matter to what is needed: a large one stands in, so that no layer stays on the CPU. Intervals: as they
ship, and with the factor of the buffers taken from the other models alone, each left out in turn.
"""

from __future__ import annotations

import csv
import re
import statistics
from dataclasses import dataclass

from sizing.catalog import hardware, model, quantization
from sizing.engine import Setup
from sizing.loads import Offered
from sizing.memory import GIB
from sizing.predict import WEIGHT_SHARE, Query, predict
from tests.benchmarks.intervals import spread
from tests.benchmarks.rows import facts


@dataclass(frozen=True, slots=True)
class Start:
    """A start of Ollama: what it needed, and what is predicted, in GiB."""

    name: str
    setup: Setup
    figure: str
    """used, or only estimated by Ollama itself"""
    logged: float
    weights: float
    kv: float
    overhead: float
    shipped: tuple[float, float]
    """what the buffers are within, as it ships"""

    @property
    def predicted(self) -> float:
        return self.weights + self.kv + self.overhead

    @property
    def rest(self) -> float:
        """What was logged besides the predicted weights and KV."""
        return self.logged - self.weights - self.kv

    def held(self, ends: tuple[float, float]) -> bool:
        """Whether what was logged is within the need, its buffers between these ends and its weights within theirs."""
        base, off = self.weights + self.kv, WEIGHT_SHARE["gguf"] * self.weights
        return base - off + ends[0] <= self.logged <= base + off + ends[1]


def starts() -> tuple[list[Start], list[str]]:
    """The rows that state a size and a context; and why others are left out."""
    found: list[Start] = []
    left: list[str] = []
    with facts("ollama_mem.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            size = re.search(r"[\d.]+", row["actual_vram_gib"] or row["est_total_gib"])
            try:
                shape, weights = model(row["model"]), quantization(row["quant"] or "q4_k_m")
            except LookupError as error:
                left.append(f"{row['model']}: {error.args[0][:80]}")
                continue
            if size is None or not row["num_ctx"]:
                left.append(f"{row['model']}: states no size or no context")
                continue
            setup = Setup(
                engine="ollama", version=row["engine_version"].split("/")[0] or "0.6",
                num_ctx=int(row["num_ctx"]), num_parallel=int(row["num_parallel"] or 1),
            )  # fmt: skip
            memory = predict(Query(hardware("B300 SXM"), shape, weights, setup, Offered(8, 2, 1))).memory
            parts = [
                float(memory[key].value or 0) / GIB for key in ("weights_bytes", "kv_capacity_bytes", "overhead_bytes")
            ]
            ends = (float(memory["overhead_bytes"].low or 0) / GIB, float(memory["overhead_bytes"].high or 0) / GIB)
            figure = "used" if row["actual_vram_gib"] else "estimated"
            found.append(Start(row["model"], setup, figure, float(size[0]), *parts, ends))
    return found, left


def main() -> None:
    found, left = starts()
    print(
        "| model | context | slots | version | figure | logged GiB | predicted | error | held, as it ships | left out |"
    )
    print("| :-- | --: | --: | :-- | :-- | --: | --: | --: | :-- | :-- |")
    factors = {
        name: spread([(s.name, s.overhead, s.rest) for s in found if s.name != name])
        for name in {s.name for s in found}
    }
    shipped = others = 0
    for s in found:
        low, high = factors[s.name]
        holds = s.held(s.shipped), s.held((s.overhead * low, s.overhead * high))
        shipped, others = shipped + holds[0], others + holds[1]
        cells = [s.name, s.setup.num_ctx, s.setup.num_parallel, s.setup.version, s.figure, f"{s.logged:.2f}"]
        cells += [
            f"{s.predicted:.2f}",
            f"{s.predicted / s.logged - 1:+.1%}",
            *("yes" if held else "no" for held in holds),
        ]
        print(f"| {' | '.join(map(str, cells))} |")
    error = statistics.median(abs(s.predicted / s.logged - 1) for s in found)
    print(f"{len(found)} rows, {len(factors)} models, median error {error:.1%}; within the interval: {shipped} as it "
          f"ships, {others} with the model left out")  # fmt: skip
    low, high = spread([(s.name, s.overhead, s.rest) for s in found])
    print(f"buffers are {low:.2f} to {high:.2f} times the predicted ones (80 % of all rows)")
    for line in left:
        print(f"  left out: {line}")


if __name__ == "__main__":
    main()
