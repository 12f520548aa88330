"""Carries out what `docs/claims.md` needs on a GPU: one `bench run` an entry, most telling first, within a time.

    python -m tests.benchmarks.gpu.claims --out /tmp/runs [--runs claims-8b-one,...] [--seconds 780] [--small]
    python -m tests.benchmarks.gpu.claims --show results/reference/claims-*       # the tables, from the folders

The baseline (Hugging Face `generate`, one request at a time and in batches of 16 and 64) and vLLM get the same
requests: 512 tokens in and 128 out, or lengths that vary around these, where a batch waits for its longest.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Final

import yaml

from tests.benchmarks.gpu.campaign import MOST_TIMES, bench_run, figures, said, say

MODELS: Final = Path("/tmp/models")
EQUAL: Final[dict[str, Any]] = {"kind": "synthetic", "prompt": "token_ids", "input_tokens": 512, "output_tokens": 128}
VARIED: Final[dict[str, Any]] = EQUAL | {
    "input_tokens": {"kind": "uniform", "min": 128, "max": 896},
    "output_tokens": {"kind": "uniform", "min": 16, "max": 240},
}


def baseline(name: str, model: str, batch: int, **args: Any) -> dict[str, Any]:
    given = {"load": "dummy", "batch": batch, "batch_wait": "50ms", "dtype": "bfloat16"}
    return {"name": name, "kind": "transformers", "model": str(MODELS / model), "ready_timeout": "300s",
            "args": given | args}  # fmt: skip


def vllm(model: str, **args: Any) -> dict[str, Any]:
    given = {"load_format": "dummy", "dtype": "bfloat16", "gpu_memory_utilization": 0.9, "max_model_len": 8192,
             "enable_prefix_caching": False}  # fmt: skip
    return {"name": "vllm", "kind": "vllm", "model": str(MODELS / model), "ready_timeout": "300s",
            "request_timeout": "120s", "args": given | args}  # fmt: skip


def closed(levels: list[int], duration_s: float, **more: Any) -> dict[str, Any]:
    return {"kind": "concurrency", "levels": levels, "duration": f"{duration_s:g}s", **more}


Entry = tuple[float, dict[str, Any]]


def entry(seconds: float, engines: list[Any], load: list[Any], workload: Any = EQUAL, warmup: int = 2) -> Entry:
    """About how many seconds a run takes with its starts, and its scenario without the name."""
    scenario = {"engines": engines, "workload": workload, "load": load, "warmup": {"requests": warmup}, "seed": 42}
    return seconds, scenario


def runs(big: str = "llama-3.1-8b", small: str = "llama-3.2-1b") -> dict[str, Entry]:
    """Every run, the most telling first."""
    table = {
        "claims-8b-one": entry(65, [baseline("hf-one", big, 1)], [closed([1], 15)]),
        "claims-8b-batch16": entry(70, [baseline("hf-16", big, 16)], [closed([16], 15)], warmup=8),
        "claims-8b-batch64-varied": entry(110, [baseline("hf-64", big, 64)], [closed([64], 30)], VARIED, warmup=8),
        "claims-8b-vllm-varied": entry(230, [vllm(big)], [closed([16, 64, 256], 12)], VARIED, warmup=16),
        "claims-8b-vllm-steps": entry(
            200, [vllm(big)],
            [closed([1], 10), closed([64, 256], 10), closed([64, 256], 10, start="burst")], warmup=16,
        ),
        "claims-8b-batch64": entry(85, [baseline("hf-64", big, 64)], [closed([64], 20)], warmup=8),
        "claims-1b-one": entry(45, [baseline("hf-one", small, 1)], [closed([1], 12)]),
        "claims-1b-batch16": entry(50, [baseline("hf-16", small, 16)], [closed([16], 12)], warmup=8),
        "claims-8b-batch16-varied": entry(85, [baseline("hf-16", big, 16)], [closed([16], 20)], VARIED, warmup=8),
    }  # fmt: skip
    # What the first campaign had: torch's own choice of attention on a Hopper GPU.
    table["claims-8b-one-cudnn"] = entry(65, [baseline("hf-one", big, 1, attn="cudnn")], [closed([1], 15)])
    for size in ("13b", "30b"):  # asked for by name, where a lease has time left (30b: a GPU of 100 GB or more)
        name = f"llama-{size}"
        table[f"claims-{size}-hf"] = entry(
            120, [baseline("hf-one", name, 1), baseline("hf-16", name, 16)], [closed([1, 16], 15)]
        )
        table[f"claims-{size}-vllm"] = entry(220, [vllm(name, max_model_len=2048)], [closed([1, 16, 64], 12)])
    return table


ASKED_BY_NAME: Final = ("13b", "30b", "cudnn")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=780.0, help="for all of them")
    parser.add_argument("--small", action="store_true", help="on a CPU: float32, short, and the tiny shapes")
    parser.add_argument("--show", type=Path, nargs="+", help="run folders, to make the tables of")
    args = parser.parse_args()
    if args.show:
        print("\n".join(tables(args.show)))
        return
    if args.out is None:
        sys.exit("claims: --out FOLDER or --show FOLDERS is needed")
    every = {name: smaller(run) if args.small else run for name, run in runs().items()}
    wanted = args.runs.split(",") if args.runs else [n for n in every if not any(part in n for part in ASKED_BY_NAME)]
    end_s = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        attempt(name, every[name], args.out, end_s)
    say("campaign: ended")


def attempt(name: str, run: Entry, out: Path, end_s: float) -> None:
    """One run, if there is time for it; what is done is not made again."""
    expected_s, scenario = run
    folder, left_s = out / name, end_s - time.monotonic()
    if said(folder).get("status") == "done":
        say(f"{name}: is there")
        return
    if left_s < expected_s:
        say(f"{name}: passed over, {left_s:.0f} s are left and it takes about {expected_s:.0f}")
        return
    if folder.exists():
        folder.rename(out / f"{name}-aside-{time.time():.0f}")
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **scenario}, sort_keys=False), encoding="utf-8")
    say(f"{name}: begins, {left_s:.0f} s are left")
    began_s = time.monotonic()
    code = bench_run(path, folder, min(MOST_TIMES * expected_s, left_s))
    say(f"{name}: {said(folder).get('status')} (exit {code}) after {time.monotonic() - began_s:.0f} s")
    for line in figures(folder):
        say(f"  {line}")


def smaller(run: Entry) -> Entry:
    """The same on a CPU: float32 for the baseline, what vLLM's CPU build needs, windows of 4 s, at most 8 streams."""
    seconds, scenario = run
    for engine in scenario["engines"]:
        cpu = {"dtype": "float32"} if engine["kind"] == "transformers" else {"dtype": "float16", "enforce_eager": True}
        engine["args"] = {k: v for k, v in engine["args"].items() if k != "gpu_memory_utilization"} | cpu
        engine["args"] |= {"batch": min(engine["args"]["batch"], 4)} if engine["kind"] == "transformers" else {}
        engine["env"] = {"VLLM_CPU_KVCACHE_SPACE": 1} if engine["kind"] == "vllm" else {}
        engine["model"] = "/tmp/models-small/" + Path(engine["model"]).name
    for load in scenario["load"]:
        load |= {"levels": sorted({min(level, 8) for level in load["levels"]}), "duration": "4s"}
    return seconds, scenario


# --- the tables ---

COLUMNS: Final = ("output_tok_s", "request_s", "ttft_mean_s", "tpot_mean_s", "kv_live_bytes", "gpu_memory_bytes",
                  "error_ratio")  # fmt: skip


def tables(folders: list[Path]) -> list[str]:
    """What each run came to, a row a point."""
    from harness.store import RunFolder
    from harness.units import show
    from reports.summary import summarize

    lines = ["| run | engine | point | " + " | ".join(COLUMNS) + " |", "|" + " --- |" * (3 + len(COLUMNS))]
    for folder in folders:
        rows = summarize(RunFolder.open(folder)).rows
        for engine, point in dict.fromkeys((e, p) for e, p, _ in rows):
            found = [rows.get((engine, point, metric)) for metric in COLUMNS]
            cells = ["" if row is None or row.value is None else show(row.value, row.unit) for row in found]
            lines.append(f"| {folder.name} | {engine} | {point} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
