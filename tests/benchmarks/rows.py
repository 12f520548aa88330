"""The measured rows that accuracy is counted on, read from a folder and resolved with the catalogue.

    ENGINEBENCH_FACTS=/path/to/measured python -m tests.benchmarks.accuracy_llamabench

The folder holds `llamabench.csv`, `vllm_kv.csv`, `vllm_throughput.csv` and `ollama_mem.csv`. A row that cannot be
resolved is kept with the reason: an abstention is counted, never dropped in silence.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from sizing.catalog import Hardware, ModelShape, Quantization, hardware, model, native_quantization, stated_quantization


def facts(name: str) -> Path:
    """One table of the folder that `ENGINEBENCH_FACTS` names; ends the process where it is not there."""
    path = Path(os.environ.get("ENGINEBENCH_FACTS", "")) / name
    if "ENGINEBENCH_FACTS" not in os.environ or not path.is_file():
        sys.exit(f"ENGINEBENCH_FACTS has to name the folder that holds {name}; it is not in {path.parent}")
    return path


@dataclass(frozen=True, slots=True)
class Row:
    """A measured row with what the catalogue made of its names."""

    raw: dict[str, str]
    hardware: Hardware
    model: ModelShape
    quantization: Quantization

    def number(self, column: str) -> float | None:
        """A cell as a number, None when it is blank or text."""
        text = self.raw.get(column, "").strip().lstrip("~")
        try:
            return float(text)
        except ValueError:
            return None


def read(name: str, gpu: str, model_column: str, quant: str) -> tuple[list[Row], list[tuple[dict[str, str], str]]]:
    """(resolved rows, rows left out with the reason) of one table."""
    good: list[Row] = []
    left: list[tuple[dict[str, str], str]] = []
    with facts(name).open(newline="", encoding="utf-8") as file:
        for raw in csv.DictReader(file):
            try:
                shape = model(raw[model_column], typical_will_do=True)
                weights = _quantization(raw[quant], raw[model_column], raw.get("engine", "") + raw.get("backend", ""))
                good.append(Row(raw, hardware(raw[gpu]), shape, weights))
            except LookupError as error:
                left.append((raw, str(error.args[0])))
    return good, left


def _quantization(stated: str, model_name: str, engine: str) -> Quantization:
    """As the command line reads it."""
    kind = "llama.cpp" if "llama" in engine else "vllm"
    return stated_quantization(stated, model_name, native_quantization(model_name), kind)


def llamabench(tests: str = r"^tg") -> list[tuple[Row, float, float]]:
    """(row, mean context, tokens/s) of the generation rows whose test matches."""
    found = []
    for row in read("llamabench.csv", "gpu", "model", "quant")[0]:
        test, speed = row.raw["test"], row.number("tps")
        if re.match(tests, test) and speed and row.raw["engine"] != "vllm":
            sizes = re.match(r"tg(\d+)?(?:@d(\d+))?", test)
            made = int(sizes[1] or 128) if sizes else 300
            found.append((row, int(sizes[2] or 0) + made / 2 if sizes else made / 2, speed))
    return found


def devices(row: Row) -> int:
    """GPUs of the row: tensor parallelism, or the number of cards."""
    return int(row.number("tp") or row.number("n_gpu") or 1)
