"""Memory that Ollama really used, or said it would, beside the prediction.

    python -m tests.benchmarks.accuracy_ollama

The GPU does not matter to what is needed: a large one stands in, so that no layer stays on the CPU.
"""

from __future__ import annotations

import csv
import re
import statistics

from sizing.catalog import hardware, model, quantization
from sizing.memory import GIB
from sizing.memory_llama import OllamaStart, plan_ollama
from tests.benchmarks.rows import FACTS


def main() -> None:
    print("| model | context | slots | version | figure | logged GiB | predicted | error |")
    print("| :-- | --: | --: | :-- | :-- | --: | --: | --: |")
    errors: list[float] = []
    left: list[str] = []
    with (FACTS / "ollama_mem.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figure = "used" if row["actual_vram_gib"] else "estimated"
            size = re.search(r"[\d.]+", row["actual_vram_gib"] or row["est_total_gib"])
            try:
                shape, weights = model(row["model"]), quantization(row["quant"] or "q4_k_m")
            except LookupError as error:
                left.append(f"{row['model']}: {error.args[0][:80]}")
                continue
            if size is None or not row["num_ctx"]:
                left.append(f"{row['model']}: states no size or no context")
                continue
            version = row["engine_version"].split("/")[0] or "0.6"
            start = OllamaStart(int(row["num_ctx"]), int(row["num_parallel"] or 1), version=version)
            plan = plan_ollama(hardware("B300 SXM"), shape, weights, start)
            predicted = (plan.weight_bytes + plan.overhead_bytes + plan.kv_capacity_bytes) / GIB
            logged = float(size[0])
            errors.append(abs(predicted / logged - 1))
            print(
                f"| {row['model']} | {start.num_ctx} | {start.num_parallel} | {version} | {figure} | {logged:.2f} "
                f"| {predicted:.2f} | {predicted / logged - 1:+.1%} |"
            )
    print(f"{len(errors)} rows, median error {statistics.median(errors):.1%}")
    for line in left:
        print(f"  left out: {line}")


if __name__ == "__main__":
    main()
