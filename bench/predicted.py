"""What `bench predict` asks of `sizing`, and how its answer is printed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.scenario import Scenario
    from sizing.engine import Setup
    from sizing.predict import Prediction, Query

Named = tuple[str, str, "Query | str"]
"""engine, point, and its query or why there is none"""

DRAWN = 500
"""lengths that stand for a law"""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that name things."""

    hardware: str
    model: str
    quantization: str | None
    memory: str | None
    input_tokens: int
    output_tokens: int
    concurrency: int | None
    rate: str | None
    duration_s: float | None = None
    """of the measured window of a closed loop"""
    measured: int | None = None
    """requests of it, in place of a duration"""
    length_spread: float = 0.0
    """lengths vary by up to this share of them, up and down"""
    drawn: tuple[tuple[int, int], ...] = ()
    """lengths of requests as a scenario's workload draws them"""
    replicas: int = 1


def query_of(asked: Asked, settings: dict[str, Any], burst: int | None) -> Query:
    """The question in the terms of `sizing`.

    Raises:
        InputError: a name or a value that nothing is known of.
    """
    from harness.machine import find_machine
    from harness.modelfile import find_model
    from harness.receipts import step_scale, vllm_extra_bytes
    from harness.units import parse_rate_rps, parse_size_bytes
    from sizing.catalog import in_format, stated_quantization
    from sizing.loads import Offered
    from sizing.predict import Query

    machine = find_machine(asked.hardware, asked.memory)
    if settings["devices"] and 1 < machine.count < settings["devices"]:
        raise InputError(
            f"--tp {settings['devices']} asks for more than the {machine.count} GPUs that --hardware states",
            "let them agree, or name one GPU and give --tp",
        )
    shape, own = find_model(asked.model)
    try:
        weights = stated_quantization(asked.quantization, asked.model, own, settings["engine"])
        rate = parse_rate_rps(asked.rate) if asked.rate is not None else None
        if settings.get("overhead"):
            parse_size_bytes(settings["overhead"])  # a wrong one is refused here
    except LookupError as error:
        raise InputError(str(error.args[0]), "see `bench advise --list quantizations`") from None
    except ValueError as error:
        raise InputError(str(error), "write for example --rate 8/s") from None
    shape = in_format(shape, weights)
    if rate is not None and rate <= 0:
        raise InputError("--rate must be above 0", "write for example --rate 8/s")
    concurrency = asked.concurrency or (burst if burst is not None else 1)
    name, devices = machine.hardware.name, settings["devices"] or machine.count
    extra_bytes = vllm_extra_bytes(name, shape.name, settings["version"], devices)
    setup = _setup(asked, settings, devices, extra_bytes)
    try:
        setup.kv_bytes_per_element  # noqa: B018  a name that no engine has is refused here
    except LookupError as error:
        raise InputError(str(error.args[0]), "give one of them") from None
    if setup.vllm and shape.known_geometry and shape.heads % setup.devices:
        raise InputError(
            f"vLLM cannot spread the {shape.heads} heads of {shape.name} over {setup.devices} GPUs",
            "give a --tp that divides them",
        )
    scale, sources = step_scale(name, setup.engine, weights.name)
    offered = Offered(
        asked.input_tokens, asked.output_tokens, concurrency, rate, burst, asked.duration_s, asked.measured,
        asked.length_spread, asked.drawn,
    )  # fmt: skip
    return Query(machine.hardware, shape, weights, setup, offered, scale, sources, asked.replicas, rhythm=True)


def _setup(asked: Asked, settings: dict[str, Any], devices: int, extra_bytes: int | None) -> Setup:
    """The engine's settings; lengths that the load needs where none are stated."""
    from harness.units import parse_size_bytes
    from sizing.engine import Setup

    total = math.ceil((asked.input_tokens + asked.output_tokens) * (1 + asked.length_spread))
    total = max((sum(each) for each in asked.drawn), default=total)
    return Setup(
        engine=settings["engine"],
        version=settings["version"],
        devices=devices,
        gpu_memory_utilization=settings["gpu_memory_utilization"],
        max_model_len=settings["max_model_len"] or max(8192, total),
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        max_num_seqs=settings["max_num_seqs"],
        num_ctx=settings["num_ctx"] or max(4096, total),
        num_parallel=settings["num_parallel"] or 1,
        kv_cache_type=settings["kv_cache_type"],
        flash_attention=settings["flash_attention"],
        async_scheduling=settings.get("async_scheduling"),
        overhead_bytes=parse_size_bytes(settings["overhead"]) if settings.get("overhead") else None,
        overhead_extra_bytes=extra_bytes,
    )


def scenario_queries(file: str, hardware: str, memory: str | None) -> list[Named]:
    """Every point of a scenario as a query. An engine that attaches to a server states too little: it says so.

    Raises:
        InputError: the file is wrong.
    """
    from bench.run import find_scenario
    from harness.scenariofile import load_scenario

    return queries_of(load_scenario(find_scenario(file)), hardware, memory)


def queries_of(
    scenario: Scenario, hardware: str, memory: str | None, versions: dict[str, str] | None = None
) -> list[Named]:
    """Every engine and point of a scenario that was read; `versions` of the engines by name, where they are known."""
    found: list[Named] = []
    for engine in scenario.engines:
        where = (hardware, memory, (versions or {}).get(engine.name))
        for point in scenario.points():
            try:
                found.append((engine.name, point.name, _point_query(scenario, engine, point, where)))
            except InputError as error:
                found.append((engine.name, point.name, f"{error}; {error.remedy}"))
    return found


def _point_query(scenario: Scenario, engine: Any, point: Any, where: tuple[str, str | None, str | None]) -> Query:
    if engine.kind == "openai":
        raise InputError(
            "an openai engine states neither hardware nor format", "predict it with --model and --hardware"
        )
    if engine.kind == "transformers":
        raise InputError("the baseline is measured, not predicted", "bench run measures it")
    args = dict(getattr(engine, "args", {}) or {})
    settings: dict[str, Any] = dict.fromkeys(
        ("version", "gpu_memory_utilization", "max_num_batched_tokens", "flash_attention", "devices", "max_model_len",
         "num_ctx", "num_parallel", "overhead", "async_scheduling")
    )  # fmt: skip
    settings |= {"max_num_seqs": None, "kv_cache_type": "auto", "engine": engine.kind, "version": where[2]}
    hardware, quantization = where[0], None
    if engine.kind == "sim":
        hardware, quantization = engine.hardware, engine.quantization
        settings |= {"engine": engine.policy, "gpu_memory_utilization": 0.9, "num_parallel": 4}
    if engine.kind == "ollama":
        env, options = dict(engine.env), dict(engine.options)
        settings["num_parallel"] = int(env.get("OLLAMA_NUM_PARALLEL", 1))
        settings["num_ctx"] = options.get("num_ctx") or env.get("OLLAMA_CONTEXT_LENGTH")
        settings["kv_cache_type"] = str(env.get("OLLAMA_KV_CACHE_TYPE", "auto"))
    renamed = {"tensor_parallel_size": "devices", "kv_cache_dtype": "kv_cache_type", "quantization": "quantization"}
    for key, value in args.items():
        name = renamed.get(key.replace("-", "_"), key.replace("-", "_"))
        if name == "quantization":
            quantization = str(value)
        elif name in settings and name != "engine":
            settings[name] = value
    sent, made, drawn = _lengths(engine.workload or scenario.workload, scenario.seed)
    rate = f"{point.rate_rps}/s" if point.rate_rps else None
    burst = None
    if point.start == "burst":
        burst = point.requests or 10 * (point.concurrency or 1)
    asked = Asked(
        hardware, engine.model, quantization, where[1], sent, made, point.concurrency, rate,
        point.duration_s, None if burst is not None else point.requests, drawn=drawn,
        replicas=getattr(engine, "replicas", 1),
    )  # fmt: skip
    return query_of(asked, settings, burst)


def _lengths(workload: Any, seed: int) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Typical tokens of a prompt and an answer, and what the workload's laws draw where lengths vary.

    Raises:
        InputError: the workload's prompts come from a file, or its sessions have several turns.
    """
    from random import Random

    from harness.lengths import sampler

    if getattr(workload, "typical_input", None) is None:
        raise InputError(
            "its prompts come from a file, of lengths that are not known", "predict it with --input-tokens"
        )
    if workload.many_turns():
        raise InputError("sessions of several turns are not predicted", "predict one turn with --input-tokens")
    laws = (workload.input_tokens, workload.output_tokens)
    if all(isinstance(law, int) for law in laws):
        return workload.typical_input(), workload.typical_output(), ()
    rng, (sent, made) = Random(seed), map(sampler, laws)
    drawn = tuple((sent(rng), made(rng)) for _ in range(DRAWN))
    return round(sum(x for x, _ in drawn) / DRAWN), round(sum(y for _, y in drawn) / DRAWN), drawn


def print_prediction(query: Query, as_json: bool) -> None:
    """One answer."""
    from sizing.predict import predict

    answer = predict(query)
    if as_json:
        print(json.dumps({"query": described(query)} | answer.to_dict(), ensure_ascii=False))
        return
    from rich.console import Console

    from reports.prediction import table

    console = Console(highlight=False)
    console.print(_title(query), markup=False, soft_wrap=True)
    console.print(table(answer))
    for note in answer.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def print_points(named: list[Named], as_json: bool) -> None:
    """A scenario's points, one after the other."""
    from sizing.predict import predict

    answers: list[tuple[str, str, Query | str, Prediction | None]] = [
        (engine, point, query, None if isinstance(query, str) else predict(query)) for engine, point, query in named
    ]
    if as_json:
        points = [
            {"engine": engine, "point": point}
            | ({"reason": query} if isinstance(query, str) else {"query": described(query)})
            | (answer.to_dict() if answer else {})
            for engine, point, query, answer in answers
        ]
        print(json.dumps({"points": points}, ensure_ascii=False))
        return
    from rich.console import Console

    from reports.prediction import points_table

    console = Console(highlight=False)
    console.print(points_table([(engine, point, answer) for engine, point, _, answer in answers]))
    for engine, point, query, _ in answers:
        if isinstance(query, str):
            click.echo(f"{engine} {point}: {query}")


def described(query: Query) -> dict[str, Any]:
    """The question as it was understood."""
    setup, offered = query.setup, query.offered
    return {
        "hardware": query.hardware.name,
        "devices": setup.devices,
        "replicas": query.replicas,
        "model": query.model.name,
        "quantization": query.quantization.name,
        "engine": setup.engine,
        "engine_version": setup.version,
        "input_tokens": offered.input_tokens,
        "output_tokens": offered.output_tokens,
        "concurrency": offered.concurrency if offered.rate_rps is None else None,
        "rate_rps": offered.rate_rps,
        "start": "burst" if offered.burst_requests is not None else "staggered",
    }


def _title(query: Query) -> str:
    setup, offered = query.setup, query.offered
    count = f"{setup.devices} x " if setup.devices > 1 else ""
    load = f"{offered.rate_rps:g} requests/s" if offered.rate_rps else f"{offered.concurrency} in flight"
    if offered.burst_requests is not None:
        load = f"a burst of {offered.burst_requests}, {load}"
    return (
        f"{query.model.name} {query.quantization.name} on {count}{query.hardware.name}, {setup.engine}: "
        f"{offered.input_tokens} in, {offered.output_tokens} out, {load}"
    )
