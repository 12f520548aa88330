"""The table of docs/metrics.md from `harness/metrics.py`: prints the page with it made anew.

python -m tests.benchmarks.metrics_table > /tmp/metrics.md && mv /tmp/metrics.md docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness.metrics import METRICS

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
HEAD = "| key | unit | better | meaning |\n| --- | --- | --- | --- |\n"


def rows() -> str:
    """One row a metric; the statistics of one quantity share one."""
    lines = []
    for key, metric in METRICS.items():
        if metric.stat not in (None, "mean"):
            continue
        names = f"`{key}`" + ("".join(f", `_{q}_s`" for q in ("p50", "p90", "p95", "p99")) if metric.stat else "")
        lines.append(f"| {names} | {metric.unit} | {metric.better or '-'} | {metric.help} |\n")
    return HEAD + "".join(lines)


def page(text: str) -> str:
    """The page with its table replaced."""
    return re.sub(re.escape(HEAD) + r"(?:\|.*\n)*", lambda _: rows(), text)


if __name__ == "__main__":
    sys.stdout.write(page(PAGE.read_text("utf-8")))
