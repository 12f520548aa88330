"""`bench predict`: memory and speed of one model on one hardware under one load, without running it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.formats import Format

if TYPE_CHECKING:
    from sizing.predict import Query


class Engine(StrEnum):
    """Whose memory and scheduling are meant."""

    vllm = "vllm"
    ollama = "ollama"
    llama_cpp = "llama.cpp"


class Start(StrEnum):
    """How the closed loop begins."""

    staggered = "staggered"
    burst = "burst"


def predict(
    scenario: Annotated[
        str | None, typer.Argument(metavar="[SCENARIO]", help="A scenario file: predicts each of its points.")
    ] = None,
    hardware: Annotated[str, typer.Option(help="A name, a YAML file of your own, or auto: this machine.")] = "auto",
    model: Annotated[str | None, typer.Option(help="A name, a folder with config.json, or a .gguf file.")] = None,
    quantization: Annotated[str | None, typer.Option(help="fp8, awq, Q4_K_M, ... Default: the model's own.")] = None,
    engine: Annotated[Engine, typer.Option(help="vllm, ollama or llama.cpp.")] = Engine.vllm,
    engine_version: Annotated[str | None, typer.Option(help="Memory rules differ between versions.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, max=64, help="GPUs that the model is spread over.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="vLLM's share.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="vLLM: tokens of the longest request.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="vLLM: requests that run at once.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="vLLM: tokens of a step.")] = None,
    num_ctx: Annotated[int | None, typer.Option(min=1, help="Ollama: tokens of a slot.")] = None,
    num_parallel: Annotated[int | None, typer.Option(min=1, help="Ollama: slots.")] = None,
    kv_cache_type: Annotated[str, typer.Option(help="auto, fp8, f16, q8_0, q4_0.")] = "auto",
    flash_attention: Annotated[bool | None, typer.Option(help="Ollama: default by version.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory that a process sees, such as 22GiB.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=4096, help="Requests in flight.")] = None,
    rate: Annotated[str | None, typer.Option(help="Instead: Poisson arrivals, such as 8/s.")] = None,
    input_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    start: Annotated[Start, typer.Option(help="A steady loop, or all requests at once.")] = Start.staggered,
    requests: Annotated[int | None, typer.Option(min=1, help="With --start burst: how many.")] = None,
    length_spread: Annotated[
        float, typer.Option(min=0, max=0.9, help="Lengths vary by up to this share of them, up and down.")
    ] = 0.0,
    kv_overhead: Annotated[
        str | None, typer.Option(help="vLLM: memory besides weights and KV as a start logged it, such as 2.1GiB.")
    ] = None,
    format: Annotated[Format, typer.Option(help="For people, or for programs.")] = Format.table,
) -> None:
    """Predict memory and speed: each figure with an 80 % interval and how it was come by.

    It means a steady closed loop with staggered starts; `--start burst --requests N` sends N requests at once.
    What cannot be known is left empty, with the reason.

    Example: bench predict --hardware "H100 SXM 80GB" --model Llama-3.1-8B-Instruct --quantization fp8 --concurrency 16
    """
    from bench.predicted import Asked, print_points, print_prediction, query_of, scenario_queries
    from harness.errors import InputError

    if scenario is not None:
        if model is not None:
            raise InputError("a scenario names its own models", "leave out --model, or the scenario")
        print_points(scenario_queries(scenario, hardware, memory), format is Format.json)
        return
    if model is None:
        raise InputError("no model was given", "add --model NAME, or name a scenario file")
    if start is Start.burst and requests is None:
        raise InputError("--start burst needs --requests", "say how many requests start at once")
    if concurrency is not None and rate is not None:
        raise InputError("--concurrency and --rate exclude each other", "give one of them")
    settings: dict[str, Any] = {
        "engine": engine.value, "version": engine_version, "gpu_memory_utilization": gpu_memory_utilization,
        "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens, "kv_cache_type": kv_cache_type,
        "flash_attention": flash_attention, "devices": tp, "max_model_len": max_model_len, "num_ctx": num_ctx,
        "num_parallel": num_parallel, "overhead": kv_overhead,
    }  # fmt: skip
    asked = Asked(
        hardware, model, quantization, memory, input_tokens, output_tokens, concurrency, rate,
        length_spread=length_spread,
    )  # fmt: skip
    burst = requests if start is Start.burst else None
    query: Query = query_of(asked, settings, burst)
    print_prediction(query, format is Format.json)
