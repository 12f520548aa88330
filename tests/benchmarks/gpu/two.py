"""Carries out what two GPUs of one host are for, and what is left of it on one: a `bench run` an entry, in lanes.

    python -m tests.benchmarks.gpu.two --out /tmp/runs --plan early|two|tp|one [--until 1600] [--gpu h200]
    python -m tests.benchmarks.gpu.two --scenarios FOLDER [--gpu h200]     # only write the scenario files

A plan is stages, one after the other; a stage is lanes at the same time, each with its GPUs and its share of the cores;
a lane is runs, one after the other. What does not fit into what is left is passed over, what takes far too long is
interrupted and keeps what it has, what is done is not made again. `--until`: seconds since the lease began.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.benchmarks.gpu.campaign import MOST_TIMES, figures, said, say, started
from tests.benchmarks.gpu.claims import VARIED, Entry, baseline, closed, entry, smaller, vllm

BEGAN: Final = Path("/tmp/lease-began")
PROBE: Final = Path("/tmp/runs/probe.json")
ENOUGH: Final = 0.75
STOP_S: Final = 40.0  # a run that is interrupted stops its engine and writes its files
BIG, HUGE = "llama-3.1-8b", "llama-3.1-70b"
LEVELS: Final = [1, 16, 64, 256]


@dataclass(frozen=True, slots=True)
class Lane:
    """Runs one after the other, on GPUs as CUDA_VISIBLE_DEVICES names them (None: all) and a share of the cores."""

    runs: tuple[str, ...]
    gpus: str | None = None
    cores: tuple[float, float] = (0.0, 1.0)


LEFT: Final[tuple[float, float]] = (0.0, 0.5)
RIGHT: Final[tuple[float, float]] = (0.5, 1.0)
HF: Final = ("hf-one", "hf-batch64", "hf-batch64-varied")
PLANS: Final[dict[str, list[list[Lane]]]] = {
    # While the rest of the kit travels: the baseline needs nothing of it. On the last GPU, and the upper half of cores.
    "early": [[Lane(HF, "last", RIGHT)]],
    "two": [
        [Lane(("8b-tp2",))],
        [Lane(("8b",), "0", LEFT), Lane(("8b-varied",), "1", RIGHT)],
        [Lane(("8b-replicas",))],
        [Lane(("70b-tp2",))],
        [Lane(("8b-tp2-varied",))],
    ],
    # What two GPUs have to say to each other, alone: for a lease that comes after one in which the rest was made.
    "tp": [[Lane(("8b-tp2", "70b-tp2", "8b-tp2-varied", "8b-replicas"))]],
    "one": [[Lane(("8b", "8b-varied", "70b-fp8", "8b-fp8"))]],
}
TOO_LARGE: Final = {"h100": ("70b-fp8",)}


def burst(requests: int = 256) -> dict[str, Any]:
    return {"kind": "concurrency", "levels": [64], "requests": requests, "start": "burst"}


def tensor_parallel(model: str, ready: str = "240s", **args: Any) -> dict[str, Any]:
    return vllm(model, tensor_parallel_size=2, **args) | {"ready_timeout": ready}


def replicated(model: str) -> dict[str, Any]:
    return vllm(model) | {"name": "vllm-x2", "replicas": 2, "balancer": "nginx"}


def entries() -> dict[str, Entry]:
    """Every run: about how many seconds it takes, and its scenario without the name."""
    long = tensor_parallel(HUGE, "330s") | {"request_timeout": "240s"}
    fp8 = vllm(f"{HUGE}-fp8") | {"ready_timeout": "330s", "request_timeout": "240s"}
    found = {
        "8b-tp2": entry(225, [tensor_parallel(BIG)], [closed(LEVELS, 12), burst()], warmup=16),
        "8b": entry(200, [vllm(BIG)], [closed(LEVELS, 12), burst()], warmup=16),
        "8b-varied": entry(160, [vllm(BIG)], [closed([16, 64, 256], 12)], VARIED, warmup=16),
        # Twice the streams of `8b` each time, and its largest level once more: as many for two as for one.
        "8b-replicas": entry(200, [replicated(BIG)], [closed([2, 32, 128, 512, 256], 12)], warmup=16),
        "70b-tp2": entry(330, [long], [closed(LEVELS, 12), burst(128)], warmup=8),
        "8b-tp2-varied": entry(140, [tensor_parallel(BIG)], [closed([16, 64, 256], 12)], VARIED, warmup=16),
        "70b-fp8": entry(330, [fp8], [closed([1, 16, 64], 12), burst(128)], warmup=8),
        "8b-fp8": entry(200, [vllm(BIG, quantization="fp8")], [closed(LEVELS, 12), burst()], warmup=16),
        "hf-one": entry(65, [baseline("hf-one", BIG, 1)], [closed([1], 15)]),
        "hf-batch64": entry(85, [baseline("hf-64", BIG, 64)], [closed([64], 20)], warmup=8),
        "hf-batch64-varied": entry(110, [baseline("hf-64", BIG, 64)], [closed([64], 30)], VARIED, warmup=8),
    }
    for _, scenario in found.values():
        scenario["order"] = "file"  # what is cut off is then the dearest level, and not any
    return found


class Campaign:
    """The runs of one plan; lanes share it."""

    def __init__(self, out: Path, gpu: str, end_s: float, small: bool) -> None:
        self.out, self.gpu, self.end_s, self.small = out, gpu, end_s, small
        self.without_p2p = (saw := probe()).get("gpus", 2) > 1 and not saw.get("p2p", True)

    def lane(self, lane: Lane) -> None:
        for key in lane.runs:
            if key in TOO_LARGE.get(self.gpu, ()):
                continue
            status = self.attempt(key, lane)
            if status == "failed" and "tp2" in key and not self.without_p2p and not started(self.folder(key)):
                say(f"{self.name(key)}: once more without the GPUs' memory shared between them")
                self.without_p2p = True
                self.attempt(key, lane)

    def name(self, key: str) -> str:
        return f"{self.gpu}-{key}"

    def folder(self, key: str) -> Path:
        return self.out / self.name(key)

    def attempt(self, key: str, lane: Lane) -> str:
        """One run, if there is time for it; how it ended."""
        expected_s, scenario = entries()[key]
        name, folder, left_s = self.name(key), self.folder(key), self.end_s - time.monotonic()
        if said(folder).get("status") == "done":
            say(f"{name}: is there")
            return "done"
        if left_s < ENOUGH * expected_s:  # interrupted before its last, dearest level, it is still worth its start
            return (
                say(f"{name}: passed over, {left_s:.0f} s are left, it takes about {expected_s:.0f}") or "passed over"
            )
        if folder.exists():
            folder.rename(self.out / f"{name}-aside-{time.time():.0f}")
        path = self.out / f"{name}.yaml"
        path.write_text(scenario_text(name, self.adapted(scenario)), encoding="utf-8")
        say(f"{name}: begins, {left_s:.0f} s are left")
        began_s = time.monotonic()
        code = bench_run(path, folder, min(MOST_TIMES * expected_s, left_s), environment(key, lane), cores(lane))
        status = str(said(folder).get("status"))
        say(f"{name}: {status} (exit {code}) after {time.monotonic() - began_s:.0f} s")
        for line in figures(folder) or tail(folder.with_suffix(".said")):
            say(f"  {name} {line}")
        return status

    def adapted(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """Without peer access where that does not work; for a CPU where this is a trial."""
        for engine in scenario["engines"]:
            if self.without_p2p and "tensor_parallel_size" in engine["args"]:
                engine["args"]["disable_custom_all_reduce"] = True
                engine["env"] = {"NCCL_P2P_DISABLE": 1}
        return for_cpu(scenario) if self.small else scenario


def scenario_text(name: str, scenario: dict[str, Any]) -> str:
    return yaml.safe_dump({"name": name, **scenario}, sort_keys=False)


def for_cpu(scenario: dict[str, Any]) -> dict[str, Any]:
    """A trial of all this here: tiny shapes, two cores."""
    _, scenario = smaller((0.0, scenario))
    for engine in scenario["engines"]:
        engine["model"] = engine["model"].removesuffix("-fp8")
        engine["args"] = {key: value for key, value in engine["args"].items() if key != "quantization"}
        if engine["kind"] == "vllm" and ("tensor_parallel_size" in engine["args"] or engine.get("replicas")):
            engine["env"] |= {
                "VLLM_CPU_OMP_THREADS_BIND": "0|1" if "tensor_parallel_size" in engine["args"] else "nobind"
            }
    for load in scenario["load"]:
        if "requests" in load:
            load |= {"requests": 8}
            load.pop("duration")
    return scenario


def bench_run(path: Path, folder: Path, timeout_s: float, env: dict[str, str], cores: str | None) -> int | None:
    """`bench run`, interrupted as by Ctrl-C if it takes too long; what it says goes beside the folder."""
    command = [sys.executable, "-m", "bench", "run", str(path), "--no-report", "--out", str(folder)]
    command = (["taskset", "-c", cores] if cores else []) + command
    with (
        folder.with_suffix(".said").open("ab") as told,
        subprocess.Popen(command, start_new_session=True, env=os.environ | env, stdout=told, stderr=told) as tool,
    ):
        try:
            return tool.wait(timeout_s)
        except subprocess.TimeoutExpired:
            say(f"  {folder.name}: interrupted after {timeout_s:.0f} s")
            os.kill(tool.pid, signal.SIGINT)
        try:
            return tool.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(tool.pid, signal.SIGKILL)  # the guard of the engine ends the engine
            return None


def tail(path: Path, lines: int = 8) -> list[str]:
    """What a run said at last."""
    return path.read_text("utf-8", "replace").splitlines()[-lines:] if path.exists() else []


def environment(key: str, lane: Lane) -> dict[str, str]:
    """Its GPUs, and receipts of its own: what one run teaches must not change what another is predicted. Lanes side by
    side compile the same model at the same time: each into a cache of its own."""
    gpus = str(gpu_count() - 1) if lane.gpus == "last" else lane.gpus
    own = {"ENGINEBENCH_HOME": f"/tmp/eh-{key}", "VLLM_CACHE_ROOT": f"/tmp/vllm-cache-{gpus or 0}"}
    return own | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})


def cores(lane: Lane) -> str | None:
    """A lane's share of this machine's cores as `taskset` takes it; None for all."""
    if lane.cores == (0.0, 1.0):
        return None
    usable = sorted(os.sched_getaffinity(0))
    low, high = (int(share * len(usable)) for share in lane.cores)
    return ",".join(map(str, usable[low:high]))


def gpu_count() -> int:
    return max(1, len(gpu_names()))


def gpu_names() -> list[str]:
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def short_name() -> str:
    """`h200`, `h100`; `cpu` where there is none."""
    names = " ".join(gpu_names()).lower().split()
    return next((word for word in names if word in ("h100", "h200")), "gpu" if names else "cpu")


def probe() -> dict[str, Any]:
    """What `probe.py` found of the GPUs' ways to each other."""
    return dict(json.loads(PROBE.read_text("utf-8"))) if PROBE.exists() else {}


def together(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plan", choices=PLANS, default="two")
    parser.add_argument("--until", type=float, default=1600.0, help="seconds since the lease began")
    parser.add_argument("--gpu", default=None, help="the runs' names begin with it")
    parser.add_argument("--small", action="store_true", help="a trial on a CPU")
    parser.add_argument("--scenarios", type=Path, help="only write the scenarios there")
    args = parser.parse_args()
    gpu = args.gpu or short_name()
    if args.scenarios:
        args.scenarios.mkdir(parents=True, exist_ok=True)
        for key, (_, scenario) in entries().items():
            (args.scenarios / f"{gpu}-{key}.yaml").write_text(scenario_text(f"{gpu}-{key}", scenario), encoding="utf-8")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    began = float(BEGAN.read_text()) if BEGAN.exists() else time.time()
    end_s = time.monotonic() + args.until - (time.time() - began)
    campaign = Campaign(args.out, gpu, end_s, args.small)
    say(f"campaign {args.plan}: {end_s - time.monotonic():.0f} s are left, probe {probe() or 'none'}")
    for stage in PLANS[args.plan]:
        together([lambda lane=lane: campaign.lane(lane) for lane in stage])  # type: ignore[misc]
    say(f"campaign {args.plan}: ended")


if __name__ == "__main__":
    main()
