"""Predictions made before the runs, beside what the runs measured.

    python -m tests.benchmarks.gpu.foretold --write predictions.json [--gpu h200]      # before: every run of two.py
    python -m tests.benchmarks.gpu.foretold predictions.json results/reference/h200-*  # afterwards: the tables

`--write` asks `bench predict SCENARIO.yaml --format json` as a user would, with no receipts, for every scenario of
`two.py` that can be predicted. The file says when, from which commit and with which constants.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.gpu import models, two
from tests.benchmarks.gpu.claims import MODELS

HARDWARE: Final = {"h200": "H200 SXM", "h100": "H100 SXM 80GB"}
FIGURES: Final = {"output_tok_s": 1.0, "ttft_p50_s": 1e3, "ttft_p95_s": 1e3, "tpot_p50_s": 1e3, "tpot_p95_s": 1e3}
UNITS: Final = {"output_tok_s": "tokens/s", "kv_capacity_tokens": "tokens"}
CONSTANTS: Final = Path("sizing/data/constants.json")


def write(path: Path, gpu: str) -> None:
    if not (MODELS / two.HUGE / "config.json").exists():
        models.make_all(MODELS)
    said = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "constants_sha256": hashlib.sha256(CONSTANTS.read_bytes()).hexdigest()[:16],
        "hardware": HARDWARE[gpu],
        "runs": {f"{gpu}-{key}": asked(gpu, key) for key in two.entries() if not key.startswith("hf-")},
    }
    path.write_text(json.dumps(said) + "\n", encoding="utf-8")


def asked(gpu: str, key: str) -> list[dict[str, Any]]:
    """What `bench predict` says of a run's scenario, sources left out."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{gpu}-{key}.yaml"
        file.write_text(two.scenario_text(f"{gpu}-{key}", two.entries()[key][1]), encoding="utf-8")
        command = [sys.executable, "-m", "bench", "predict", str(file), "--hardware", HARDWARE[gpu], "--format", "json"]
        env = os.environ | {"ENGINEBENCH_HOME": folder}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    points: list[dict[str, Any]] = json.loads(done.stdout)["points"]
    for point in points:
        for figure in (*point.get("memory", {}).values(), *point.get("speed", {}).values()):
            figure.pop("sources")
    return points


def tables(path: Path, folders: list[Path]) -> list[str]:
    """A row a figure, and how far off they are together."""
    told = json.loads(path.read_text("utf-8"))
    lines = [
        f"Predicted on {told['at']} (commit {told['commit'][:7]}, constants {told['constants_sha256']}), "
        f"for {told['hardware']}.",
        "",
        "| run | point | figure | predicted | 80 % interval | measured | off by | within |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | :-- |",
    ]
    errors: dict[str, list[tuple[float, bool]]] = {}
    for folder in folders:
        for point, figure, guess, measured in compared(told["runs"].get(folder.name, []), folder):
            factor = FIGURES.get(figure, 1.0)
            off, within = guess["value"] / measured - 1, guess["low"] <= measured <= guess["high"]
            errors.setdefault(figure, []).append((off, within))
            value, low, high, got = (
                f"{x * factor:,.4g}" for x in (guess["value"], guess["low"], guess["high"], measured)
            )
            unit = UNITS.get(figure, "ms")
            cells = [folder.name, point, f"{figure.removesuffix('_s')}, {unit}", value, f"{low} to {high}", got]
            lines.append(f"| {' | '.join(cells)} | {off:+.1%} | {'yes' if within else 'no'} |")
    lines.append("")
    for figure, found in errors.items():
        off, within = [each for each, _ in found], sum(inside for _, inside in found)
        mean, middle = statistics.mean(map(abs, off)), statistics.median(map(abs, off))
        bias = statistics.mean(off)
        lines.append(
            f"- {figure}: {len(found)} figures, {within} within their interval; errors' sizes: mean {mean:.1%}, "
            f"median {middle:.1%}; bias {bias:+.1%}"
        )
    return lines


def compared(points: list[dict[str, Any]], folder: Path) -> list[tuple[str, str, dict[str, Any], float]]:
    """(point, figure, what was predicted, what was measured), where there are both; of simulated engines nothing."""
    from harness.store import RunFolder
    from reports.summary import summarize

    run = RunFolder.open(folder)
    record, summary = run.read_run(), summarize(run)
    engines = {engine.name: engine for engine in record.engines if not engine.simulated}
    found, started = [], set()
    for point in points:
        name = point["engine"]
        if name not in engines or "speed" not in point:
            continue
        kv = next((fact.value for fact in engines[name].facts if fact.name == "kv_capacity_tokens"), None)
        if name not in started and isinstance(kv, int | float):
            started.add(name)
            found.append(("start", "kv_capacity_tokens", point["memory"]["kv_capacity_tokens"], float(kv)))
        for figure in FIGURES:
            measured = summary.row(name, point["point"], figure).value
            if measured is not None and point["speed"][figure]["value"] is not None:
                found.append((point["point"], figure, point["speed"][figure], measured))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--gpu", choices=HARDWARE, default="h200")
    args = parser.parse_args()
    if args.write:
        write(args.write, args.gpu)
    elif args.file:
        print("\n".join(tables(args.file, args.folders)))
    else:
        sys.exit("foretold: --write FILE, or FILE and the run folders")


if __name__ == "__main__":
    main()
