"""One short start of a real engine with the built-in tiny model, for `bench calibrate hardware`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.units import show_bytes, show_duration

if TYPE_CHECKING:
    from bench.display import Display
    from harness.records import EngineRun, RunRecord
    from harness.scenario import Scenario
    from reports.rows import Summary

# The quick one first: an Ollama with a tiny model is up in seconds.
REMEDIES = {
    "ollama": "scripts/install-engines ollama, or https://ollama.com/download",
    "vllm": "scripts/install-engines vllm, or set ENGINEBENCH_VLLM_PYTHON to an interpreter that has it",
}
REQUESTS = 20
_ENGINES: dict[str, dict[str, Any]] = {
    "ollama": {"env": {"OLLAMA_NUM_PARALLEL": 4, "OLLAMA_CONTEXT_LENGTH": 2048}},
    "vllm": {
        "args": {"max_model_len": 2048, "enforce_eager": True, "enable_prefix_caching": False},
        "env": {"VLLM_CPU_KVCACHE_SPACE": 1},
    },
}


def installed() -> list[str]:
    """The engines that `bench doctor` finds, too."""
    from harness.locate import ollama_binary, vllm_python

    found = {"ollama": ollama_binary(), "vllm": vllm_python()}
    return [kind for kind in REMEDIES if found[kind] is not None]


def choose(wanted: str | None, there: list[str]) -> str | None:
    """The engine to start: the one wanted, else the first there is, else none.

    Raises:
        InputError: the one that was asked for is not installed.
    """
    if wanted is None:
        return there[0] if there else None
    if wanted not in there:
        raise InputError(f"{wanted} is not installed", REMEDIES[wanted])
    return wanted


def none_there() -> list[str]:
    """What is said where there is no engine."""
    return ["no engine is installed, so none was started; get one:", *(f"  {text}" for text in REMEDIES.values())]


def scenario_of(kind: str) -> Scenario:
    """A closed loop of one stream on the built-in tiny model."""
    from harness.scenario import Scenario

    engine = {"name": kind, "kind": kind, "model": "builtin:tiny", "ready_timeout": "180s", **_ENGINES[kind]}
    return Scenario.model_validate(
        {
            "name": f"calibrate-{kind}",
            "engines": [engine],
            "workload": {"kind": "synthetic", "input_tokens": 64, "output_tokens": 32},
            "load": [{"kind": "concurrency", "levels": [1], "requests": REQUESTS}],
            "warmup": {"requests": 4},
        },
        context=Path.cwd(),
    )


def start(kind: str, display: Display) -> dict[str, Any]:
    """Start it, drive it, stop it; what it taught. The run folder is temporary, and stays where the engine failed.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once everything is stopped.
    """
    from harness.run import run
    from harness.store import RunFolder
    from reports.summary import summarize

    place = Path(tempfile.mkdtemp(prefix="enginebench-calibrate-"))
    failed = False
    try:
        with display:
            folder = RunFolder.create(place / "run")
            folder.lock()
            record = run(scenario_of(kind), folder, display)
            found = taught(record, summarize(folder))
        failed = "error" in found
        return found | ({"log": str(place / "run" / f"{kind}.log")} if failed else {})
    finally:
        if not failed:
            shutil.rmtree(place, ignore_errors=True)


def taught(record: RunRecord, summary: Summary) -> dict[str, Any]:
    """A receipt's values, or `error` with what went wrong.

    Speeds of four random layers say nothing of a real model, so that no ratio of measured to predicted is made of them:
    kept are the time to be ready, the least time per token, and the memory beside weights and KV where both are told.
    """
    engine = record.engines[0]
    if record.status != "done":
        failed = next((point.error for point in record.points if point.error), None)
        return {"engine": engine.kind, "error": engine.error or failed or record.status}
    gpus: list[dict[str, Any]] = record.environment.get("gpus") or []
    token_s = summary.row(engine.name, "c1", "tpot_p50_s").value
    return {
        "engine": engine.kind,
        "version": _fact(engine, "version"),
        "hardware": str(gpus[0]["name"]) if gpus and gpus[0].get("name") else "cpu",
        "model": "builtin:tiny",
        "ready_s": engine.phases_s.get("ready_s"),
        "least_tpot_s": token_s,
        "overhead_bytes": _overhead_bytes(engine),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """What a start taught, for people."""
    if "error" in found:
        where = [f"its log: {found['log']}"] if "log" in found else []
        remedy = f"remedy: see what the log says and `bench doctor`; or install it anew: {REMEDIES[found['engine']]}"
        return [f"{found['engine']} did not run: {found['error']}", *where, remedy]
    said = [
        f"{found['engine']} {found['version'] or 'of unknown version'} on {found['hardware']}, a tiny random model:"
    ]
    for key, what, show in (
        ("ready_s", "ready after", show_duration),
        ("least_tpot_s", "least time per token", show_duration),
        ("overhead_bytes", "memory beside weights and KV", show_bytes),
    ):
        said.append(f"  {what}: {'not told by this engine' if found[key] is None else show(found[key])}")
    return said


def _fact(engine: EngineRun, name: str) -> Any:
    return next((fact.value for fact in engine.facts if fact.name == name), None)


def _overhead_bytes(engine: EngineRun) -> int | None:
    total, weights, kv = (_fact(engine, name) for name in ("memory_bytes", "weights_bytes", "kv_capacity_bytes"))
    if total is None or weights is None or kv is None:
        return None
    return int(total - weights - kv)
