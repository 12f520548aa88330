"""What a run leaves behind, row by row. All times are seconds on one monotonic clock, from the run's start.

The column names and their order are the file format (`SCHEMA_VERSION`); a value that was not measured is None.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

Phase = Literal["warmup", "measure", "cooldown"]
Status = Literal["ok", "error", "timeout", "cancelled"]
TokenSource = Literal["server", "stream", "tokenizer"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, whatever became of it.

    `scheduled_s` is when the load wanted it (closed loop: when the slot came free), `sent_s` when the first
    byte was handed to the socket, `first_token_s`/`last_token_s` the first and last chunk that carried text,
    `end_s` the last byte. `gaps_s` are the times between successive text chunks, `chunks` their number,
    `first_chunk_tokens` the tokens in the first of them (None: unknown). `ttft_s` = first_token_s - sent_s,
    `e2e_s` = last_token_s - sent_s, `tpot_s` = (last - first) / (output_tokens - tokens of the first chunk).
    `worker` is the load process that sent it; `turn` counts the requests of its `session` from 0.
    """

    engine: str
    point: str
    repeat: int
    request_id: int
    phase: Phase
    scheduled_s: float
    sent_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    end_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    token_source: TokenSource | None
    chunks: int
    gaps_s: Sequence[float]
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    status: Status
    http_status: int | None
    error: str | None
    finish_reason: str | None
    asked_input_tokens: int | None = None
    asked_output_tokens: int | None = None
    first_chunk_tokens: int | None = None
    first_answer_s: float | None = None
    worker: int = 0
    session: int | None = None
    turn: int | None = None
    server_timings: dict[str, float] | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TelemetrySample:
    """One sampled value. `source` says where it came from (`host`, `process`, `nvidia:0`, `vllm`, `ollama`)."""

    time_s: float
    engine: str | None
    source: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing an engine said of itself. `label`: measured | logged | configured | derived | simulated.

    Engines use common names (`version`, `weights_bytes`, `kv_capacity_bytes`, `kv_capacity_tokens`,
    `kv_bytes_per_token`, `max_concurrency`, `context_tokens`, `parallel_slots`, `graph_bytes`,
    `compute_buffer_bytes`, `attention_backend`, `model_digest`, ...), so that reports never branch on the engine.
    """

    name: str
    value: str | float | int | bool | None
    unit: str
    label: str
    source: str


@dataclass(slots=True)
class PointRun:
    """One repeat of one load point on one engine, as run.json keeps it.

    `status`: pending | running | done | interrupted | failed | client-limited. The window is [open_s, close_s).
    """

    engine: str
    point: str
    repeat: int
    load: dict[str, Any]
    status: str = "pending"
    start_s: float | None = None
    open_s: float | None = None
    close_s: float | None = None
    end_s: float | None = None
    client: dict[str, float | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class EngineRun:
    """One engine of a run: what was started and what it said."""

    name: str
    kind: str
    model: str
    simulated: bool = False
    status: str = "pending"
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    base_url: str | None = None
    dialect: str | None = None
    phases_s: dict[str, float | None] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    error: str | None = None
    log: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one sweep found on one engine: the highest rate that keeps the SLO (`what`: slo), or the one from which on
    throughput does not grow (saturation). Probably `estimate_rps`, surely from `low_rps` to `high_rps`; None where no
    probe says so, with the reason. `probes`: how many points it rests on."""

    engine: str
    sweep: str
    repeat: int
    what: str
    estimate_rps: float | None
    low_rps: float | None
    high_rps: float | None
    probes: int
    reason: str | None = None


@dataclass(slots=True)
class RunRecord:
    """run.json: everything about a run that is not a request or a sample.

    `status`: running | done | failed | interrupted. `started_at` is UTC, ISO 8601; all other times are seconds
    since `started_monotonic_s` on that host's monotonic clock. `cluster`, of a run on several hosts: `hosts`, `clocks`
    (each host's offset, with its error, at each point) and `gaps` (which host was lost when, and why).
    """

    name: str
    scenario: dict[str, Any]
    scenario_hash: str
    started_at: str
    started_monotonic_s: float
    tool_version: str
    status: str = "running"
    ended_s: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    engines: list[EngineRun] = field(default_factory=list)
    points: list[PointRun] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    resumes: list[float] = field(default_factory=list)
    cluster: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def fingerprint(env: dict[str, Any]) -> str:
    """16 hex digits: two runs with the same ones were made on like hardware, and may be compared without a warning.

    It covers CPU, cores and memory left to the run, GPUs and their driver. Load, versions of the system and of this
    tool are left out: they are shown beside a comparison but do not forbid it. Works on what run.json gives back, too.
    """
    memory = [b for b in (env.get("memory_bytes"), env.get("memory_limit_bytes")) if b]
    gpu_keys = ("name", "memory_bytes", "power_limit_w", "mig")
    what = {
        **{key: env.get(key) for key in ("arch", "cpu_model", "cores_logical", "cores_allowed", "driver")},
        # In whole GiB: kernels keep some MiB for themselves, another number after each update.
        "memory_gib": round(min(memory) / 2**30) if memory else None,
        "gpus": sorted(json.dumps([gpu.get(key) for key in gpu_keys]) for gpu in env.get("gpus") or []),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
