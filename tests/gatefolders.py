"""Pairs of run folders for the gate: every repeat has its own luck, of known size."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tests.runfolders import Built, Speed, new

MACHINE = {"cpu_model": "Test CPU", "arch": "x86_64", "cores_logical": 8, "cores_allowed": 8.0, "memory_bytes": 2**35}
TTFT_S, GAP_S = 0.05, 0.01


def run(
    repeats: int = 5, slower: float = 1.0, noise: float = 0.01, day: int = 2, engine: str = "vllm", **more: Any
) -> Built:
    """A run of one engine at 8 streams, `repeats` times: 3 s each, about 160 requests. `more`: what `Speed` takes, and
    `status` (of each point), `environment`, `slo`, `window_s`."""
    environment, slo = more.pop("environment", MACHINE), more.pop("slo", None)
    status, window_s = more.pop("status", "done"), more.pop("window_s", 3.0)
    built = new("gated", slo, repeats=repeats, environment=environment)
    built.run.started_at = f"2026-01-{day:02d}T03:04:05+00:00"
    built.engine(engine)
    dice = random.Random(f"{day} {slower}")
    for repeat in range(repeats):
        luck = slower * math.exp(noise * dice.gauss(0, 1))
        speed = Speed(TTFT_S * luck, GAP_S * luck, jitter=0.1, **more)
        built.point(engine, 8, speed, repeat=repeat, window_s=window_s, status=status)
    return built


def pair(path: Path, base: Built, cand: Built) -> tuple[Path, Path]:
    """Both written, as `a` and `b`."""
    return base.write(path / "a").path, cand.write(path / "b").path
