"""Synthetic run folders with known answers, written through the store as a real run writes them.

Times are exact: a request sent at `sent_s` with a TTFT of 0.1 s has its first token at `sent_s + 0.1`. All of a point
lies on one clock, and points follow each other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.journal import Journal
from harness.records import EngineRun, Fact, Phase, PointRun, RequestRecord, RunRecord, TelemetrySample
from harness.store import RunFolder

WORKLOAD = {
    "kind": "synthetic", "input_tokens": 32, "output_tokens": 11, "api": "completions", "prompt": "auto",
    "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": None, "stop": []},
}  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """How an engine answers at one point. `jitter` spreads TTFT and gaps by that share, seeded; 0: exact."""

    ttft_s: float
    gap_s: float
    tokens: int = 11
    jitter: float = 0.0
    error_ratio: float = 0.0
    error: str = "HTTP 503: queue full"


@dataclass
class Built:
    """A run being made: `run` goes to run.json, the lists to the journal."""

    run: RunRecord
    requests: list[RequestRecord] = field(default_factory=list)
    telemetry: list[TelemetrySample] = field(default_factory=list)
    clock_s: float = 1.0

    def engine(self, name: str, **more: Any) -> Built:
        """Add an engine; `facts` by name to (value, unit)."""
        facts = [Fact(k, v, unit, "logged", "engine log") for k, (v, unit) in more.pop("facts", {}).items()]
        given = {"kind": "vllm", "model": "org/model-8b", "status": "done"} | more
        self.run.engines.append(EngineRun(name=name, facts=facts, **given))
        spec = {"name": name, "kind": given["kind"], "model": given["model"], "workload": None}
        self.run.scenario["engines"].append(spec)
        return self

    def point(self, engine: str, concurrency: int, speed: Speed, *, repeat: int = 0, window_s: float = 10.0,
              status: str = "done", **more: Any) -> Built:  # fmt: skip
        """A closed loop: each of `concurrency` streams sends back to back, from 1 s before the window to 0.5 s after.
        Only a request sent inside the window has the phase `measure`."""
        load = {"name": f"c{concurrency}", "kind": "concurrency", "requests": None, "duration_s": window_s,
                "concurrency": concurrency, "rate_rps": None, "start": "staggered"}  # fmt: skip
        start = self.clock_s
        open_s, close_s = start + 1.0, start + 1.0 + window_s
        point = PointRun(engine, f"c{concurrency}", repeat, load, status, start, open_s, close_s, close_s + 1.0, **more)
        dice = random.Random(f"{engine}{concurrency}{repeat}")
        number = 0
        for stream in range(concurrency):
            now = start + (stream + 0.5) / concurrency * min(1.0, speed.ttft_s + speed.gap_s * (speed.tokens - 1))
            while now < close_s + 0.5:
                phase: Phase = "warmup" if now < open_s else "measure" if now < close_s else "cooldown"
                made = one(engine, point.point, repeat, number, now, speed, dice, phase=phase)
                self.requests.append(made)
                now, number = (made.end_s or now) + 1e-4, number + 1
        self.run.points.append(point)
        self.clock_s = close_s + 2.0
        return self

    def rate(self, engine: str, rate_rps: float, speed: Speed, *, repeat: int = 0, window_s: float = 10.0,
             queue_s: float = 0.0, **more: Any) -> Built:  # fmt: skip
        """An open loop of evenly spaced requests, each sent `queue_s` after it was due."""
        name = f"constant-{rate_rps:g}rps"
        load = {"name": name, "kind": "constant", "requests": None, "duration_s": window_s, "concurrency": None,
                "rate_rps": rate_rps, "start": "staggered"}  # fmt: skip
        start = self.clock_s
        dice = random.Random(f"{engine}{rate_rps}{repeat}")
        for number in range(int(rate_rps * window_s)):
            due = start + number / rate_rps
            self.requests.append(one(engine, name, repeat, number, due + queue_s, speed, dice, due_s=due))
        self.run.points.append(
            PointRun(engine, name, repeat, load, "done", start, start, start + window_s, start + window_s + 1, **more)
        )
        self.clock_s = start + window_s + 2.0
        return self

    def sample(self, engine: str | None, source: str, metric: str, values: list[tuple[float, float]]) -> Built:
        """Telemetry: (time, value) pairs."""
        self.telemetry += [TelemetrySample(time, engine, source, metric, value) for time, value in values]
        return self

    def write(self, path: Path, *, compact: bool = True, torn: bool = False) -> RunFolder:
        """Write the folder. `compact=False` leaves the journal, as a kill does; `torn` cuts its last batch in two."""
        folder = RunFolder.create(path)
        self.run.ended_s = None if self.run.status == "running" else self.clock_s
        self.append(folder)
        if torn:
            stream = folder.journal_path / "requests-0000.arrows"
            stream.write_bytes(stream.read_bytes()[:-400])
        elif compact:
            folder.compact()
        return folder

    def append(self, folder: RunFolder) -> None:
        """Add it all to a folder's run.json and journal, as a run under way does."""
        folder.write_run(self.run)
        self._journal(Journal(folder.new_journal("requests"), "requests"), self.requests)
        self._journal(Journal(folder.new_journal("telemetry"), "telemetry"), self.telemetry)

    def _journal(self, journal: Journal, rows: Sequence[RequestRecord | TelemetrySample]) -> None:
        for index, row in enumerate(rows):
            journal.add(row)
            if index % 200 == 199:
                journal.flush()
        journal.close()


def new(name: str = "test-run", slo: dict[str, float] | None = None, **more: Any) -> Built:
    """A run without engines or points."""
    scenario: dict[str, Any] = {"name": name, "engines": [], "workload": WORKLOAD, "slo": slo or {}}
    scenario |= {"repeats": more.pop("repeats", 1), "seed": 42}
    given = {"status": "done", "environment": {"cpu": "Test CPU", "cores": 2, "gpus": []}} | more
    return Built(RunRecord(name, scenario, "0123456789abcdef", "2026-01-02T03:04:05Z", 100.0, "0.1.0", **given))


def one(engine: str, point: str, repeat: int, number: int, sent_s: float, speed: Speed, dice: random.Random, *,
        phase: Phase = "measure", due_s: float | None = None) -> RequestRecord:  # fmt: skip
    """One request; due when it was sent, unless told."""
    if speed.jitter:
        around = [1 + speed.jitter * abs(dice.gauss(0, 1)) for _ in range(speed.tokens)]
        ttft, gaps = speed.ttft_s * around[0], [speed.gap_s * by for by in around[1:]]
    else:
        ttft, gaps = speed.ttft_s, [speed.gap_s] * (speed.tokens - 1)
    failed = speed.error_ratio > 0 and dice.random() < speed.error_ratio
    first = None if failed else sent_s + ttft
    last = None if first is None else first + sum(gaps)
    return RequestRecord(
        engine=engine, point=point, repeat=repeat, request_id=number, phase=phase,
        scheduled_s=sent_s if due_s is None else due_s, sent_s=sent_s, first_token_s=first, last_token_s=last,
        end_s=sent_s + 0.05 if failed else last,
        input_tokens=None if failed else 32, output_tokens=None if failed else speed.tokens,
        token_source=None if failed else "server", chunks=0 if failed else speed.tokens,
        gaps_s=[] if failed else gaps, ttft_s=None if failed else ttft,
        tpot_s=None if failed or not gaps else sum(gaps) / len(gaps),
        e2e_s=None if failed else ttft + sum(gaps), status="error" if failed else "ok",
        http_status=503 if failed else 200, error=speed.error if failed else None,
        finish_reason=None if failed else "length", asked_input_tokens=32, asked_output_tokens=speed.tokens,
        first_chunk_tokens=None if failed else 1,
    )  # fmt: skip


def two_engines(repeats: int = 3, hostile: bool = False, window_s: float = 6.0) -> Built:
    """A full comparison: two engines, three levels and one rate, telemetry, facts, an SLO, some failed requests."""
    bad = "<script>alert('x')</script>"
    built = new("ollama-vs-vllm", {"ttft_p95": 0.5, "tpot_p95": 0.05}, repeats=repeats)
    engines = {
        "vllm-bf16": (1.0, 16.0, "org/model-8b" + (bad if hostile else "")),
        "ollama-q4": (2.4, 5.0, "model:8b-instruct-q4_K_M"),
    }
    for name, (slow, weights_gib, model) in engines.items():
        built.engine(
            name, kind=name.split("-")[0], model=model, command=["serve", model],
            facts={
                "version": ("1.2.3" + (bad if hostile else ""), ""), "weights_bytes": (weights_gib * 2**30, "bytes"),
                "kv_capacity_bytes": (int(4 * 2**30 / slow), "bytes"), "kv_bytes_per_token": (2**20, "bytes"),
                "quantization": (name.split("-")[1], ""), "context_tokens": (8192, "tok"),
            },
        )  # fmt: skip
        begun = built.clock_s
        for repeat in range(repeats):
            for level in (1, 4, 16):
                gap = 0.008 * slow * (1 + level / (60 / slow)) * (1 + 0.01 * repeat)
                errors = 0.02 if level == 16 and slow > 1 else 0.0
                speed = Speed(0.05 * slow * level**0.45, gap, 24, 0.25, errors, bad if hostile else "queue full")
                health = {"loop_lag_p99_s": 0.0004, "cpu_ratio": 0.11, "send_delay_p99_s": 0.0002}
                built.point(name, level, speed, repeat=repeat, window_s=window_s, client=health)
            built.rate(name, 8.0, Speed(0.06 * slow, 0.009 * slow, 24, 0.25), repeat=repeat, window_s=window_s)
        _sample_all(built, name, begun)
    if hostile:
        built.run.warnings.append(f"a server said {bad}")
    return built


def _sample_all(built: Built, engine: str, begun: float) -> None:
    times = [begun + i * 0.25 for i in range(int((built.clock_s - begun) * 4))]
    dice = random.Random(engine)

    def series(low: float, high: float) -> list[tuple[float, float]]:
        return [(t, low + (high - low) * dice.random()) for t in times]

    built.sample(engine, "process", "cpu_cores", series(0.8, 2.0))
    built.sample(engine, "process", "rss_bytes", series(3e9, 3.4e9))
    built.sample(None, "host", "cpu_cores", series(1.5, 3.0))
    built.sample(None, "host", "memory_used_bytes", series(9e9, 9.6e9))
    built.sample(None, "nvidia:0", "utilization_ratio", series(0.7, 1.0))
    built.sample(None, "nvidia:0", "memory_used_bytes", series(60e9, 60.1e9))
    built.sample(None, "nvidia:0", "power_w", series(250, 420))
    if engine.startswith("vllm"):
        built.sample(engine, "vllm", "running", series(10, 16))
        built.sample(engine, "vllm", "waiting", series(0, 4))
