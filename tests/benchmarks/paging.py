"""Tests the claim that paging wastes little of the KV cache and fixed reservation much: vLLM, Ollama, static batches.

    python -m tests.benchmarks.paging [--out /tmp/paging] [--seconds 30] [--engines vllm-32,ollama-f16]
    python -m tests.benchmarks.paging --show results/reference/8b-bf16       # the table of any run folder

Each engine gets room for the same 8,192 tokens (vLLM in blocks of 32, Ollama as 4 slots of 2,048; the baseline
reserves nothing and pads a batch of 4 to a rectangle) and 16 streams of prompts of 128 to 896 tokens and answers of 16
to 240; `-roomy` is vLLM with four times as much, once in blocks of 128.

At each sample: *reserved*, *taken* (vLLM: blocks in use, Ollama: the whole context of slots at work, the baseline: its
rectangle) and *live* (tokens of running requests by the records). What is taken is wasted by 1 - live / taken; that is
not told where vLLM had to preempt, since who is preempted holds nothing but is still running to its client.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import yaml

from harness.records import EngineRun, PointRun
from harness.units import show
from tests.counted import Counted

TOKENS: Final = 8192
ROOM: Final = TOKENS * 1024  # bytes: the tiny model takes 1,024 a token in 16 bit
SLOTS: Final = 4
STREAMS: Final = 16
SOURCES: Final = ("vllm", "llama-server", "transformers")


def vllm(name: str, block: int, cache_bytes: int, **args: Any) -> dict[str, Any]:
    own = {"max_model_len": 2048, "enforce_eager": True, "enable_prefix_caching": False, "block_size": block,
           "kv_cache_memory_bytes": cache_bytes}  # fmt: skip
    return {"name": name, "kind": "vllm", "model": "builtin:tiny", "args": own | args}


def ollama(name: str, kind: str) -> dict[str, Any]:
    env = {"OLLAMA_NUM_PARALLEL": SLOTS, "OLLAMA_CONTEXT_LENGTH": TOKENS // SLOTS, "OLLAMA_KV_CACHE_TYPE": kind}
    return {"name": name, "kind": "ollama", "model": "builtin:tiny", "env": env}


ENGINES: Final = (
    vllm("vllm-32", 32, ROOM), vllm("vllm-32-roomy", 32, 4 * ROOM), vllm("vllm-128-roomy", 128, 4 * ROOM),
    vllm("vllm-fp8", 32, ROOM // 2, kv_cache_dtype="fp8"),
    ollama("ollama-f16", "f16"), ollama("ollama-q8", "q8_0"),
    {"name": "hf-batch4", "kind": "transformers", "model": "builtin:tiny",
     "args": {"dtype": "float32", "batch": SLOTS}},
)  # fmt: skip


def scenario(names: list[str], seconds: float) -> dict[str, Any]:
    return {
        "name": "paging",
        "engines": [engine for engine in ENGINES if not names or engine["name"] in names],
        "workload": {
            "kind": "synthetic",
            "input_tokens": {"kind": "uniform", "min": 128, "max": 896},
            "output_tokens": {"kind": "uniform", "min": 16, "max": 240},
        },
        "load": [{"kind": "concurrency", "levels": [STREAMS], "duration": f"{seconds:g}s"}],
        "warmup": {"requests": 8},
        "seed": 42,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("/tmp/paging"))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each engine's window")
    parser.add_argument("--engines", default="", help="names, separated by commas; default: all")
    parser.add_argument("--show", type=Path, nargs="+", help="run folders, to make the table of")
    args = parser.parse_args()
    if args.show is None:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / "paging.yaml"
        path.write_text(yaml.safe_dump(scenario([n for n in args.engines.split(",") if n], args.seconds)), "utf-8")
        folder = args.out / f"run-{len(list(args.out.glob('run-*')))}"
        subprocess.run([sys.executable, "-m", "bench", "run", str(path), "--no-report", "--out", str(folder)])
        args.show = [folder]
    for folder in args.show:
        print(*table(Counted.open(folder), folder.name), sep="\n")


HEAD: Final = ("run", "engine", "point", "reserved", "bytes a token", "samples", "at work", "preempted", "taken",
               "live", "live of reserved", "waste of taken")  # fmt: skip


def table(run: Counted, name: str) -> list[str]:
    """A row a point: means over the window's samples at which anything was at work."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    for engine in run.record.engines:
        for point in (p for p in run.record.points if p.engine == engine.name and p.open_s is not None):
            lines.append(f"| {' | '.join([name, engine.name, point.point, *cells(run, engine, point)])} |")
    return lines


def cells(run: Counted, engine: EngineRun, point: PointRun) -> list[str]:
    frame = samples(run, engine, point)
    frame = frame[(frame.taken > 0) & (frame.live > 0)]
    facts = {fact.name: fact.value for fact in engine.facts}
    capacity, per_token = facts.get("kv_capacity_tokens"), facts.get("kv_bytes_per_token")
    reserved = (
        f"{capacity:,.0f} tokens, {show(float(facts['kv_capacity_bytes'] or 0), 'bytes')}" if capacity else "none"
    )
    if frame.empty:
        return [reserved, "", "0", *[""] * 6]
    of_reserved = f"{frame.live.mean() / float(capacity):.1%}" if capacity else "–"
    preempted = run.grown("preemptions_total", point) or 0.0
    waste = "–" if preempted else f"{1 - frame.live.sum() / frame.taken.sum():.1%}"
    return [reserved, f"{float(per_token or 0):,.0f}", str(len(frame)), f"{frame.running.mean():.1f}",
            f"{preempted:,.0f}", f"{frame.taken.mean():,.0f}", f"{frame.live.mean():,.0f}",
            of_reserved, waste]  # fmt: skip


def samples(run: Counted, engine: EngineRun, point: PointRun) -> pd.DataFrame:
    """Tokens taken (by the engine) and live (by the records) at each of the engine's samples in the window."""
    facts = {fact.name: fact.value for fact in engine.facts}
    mine = run.samples[
        (run.samples.engine == engine.name) & run.samples.source.isin(["vllm", "llama-server", "transformers"])
    ]
    wide = mine.pivot_table(index="time_s", columns="metric", values="value")
    wide = wide[(wide.index >= point.open_s) & (wide.index < point.close_s)]
    if engine.kind == "ollama":  # a slot at work has its whole context, nobody else gets any of it
        wide["taken"] = wide.running * float(facts["kv_capacity_tokens"]) / float(facts["parallel_slots"])
    elif "kv_held_tokens" in wide:
        wide["taken"] = wide.kv_held_tokens
    else:
        wide["taken"] = wide.kv_used_ratio * float(facts["kv_capacity_tokens"])
    wide["live"] = live(run.of_point(point), wide.index.to_numpy())
    return wide


def live(requests: pd.DataFrame, times: Any) -> Any:
    """Tokens that running requests held: a prompt from its first token on, and of its answer what had arrived (evenly
    from the first to the last token), until it ended."""
    rows = requests[requests.first_token_s.notna()]
    first, last, end = (rows[c].to_numpy()[:, None] for c in ("first_token_s", "last_token_s", "end_s"))
    made = rows.output_tokens.fillna(0).to_numpy()[:, None]
    share = np.clip((times - first) / np.maximum(last - first, 1e-9), 0, 1)
    held = rows.input_tokens.fillna(0).to_numpy()[:, None] + 1 + share * np.maximum(made - 1, 0)
    return np.where((times >= first) & (times < end), held, 0).sum(axis=0)


if __name__ == "__main__":
    main()
