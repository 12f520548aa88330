"""`bench predict`: memory and speed of one model on one hardware under one load, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from bench.options import FORMAT, ONE_OR_MORE, Format, one_of

if TYPE_CHECKING:
    from sizing.predict import Query

Engine = Literal["vllm", "ollama", "llama.cpp"]
Start = Literal["staggered", "burst"]
SPREAD = "Lengths vary by up to this share of them, up and down."
OVERHEAD = "vLLM: memory besides weights and KV as a start logged it, such as 2.1GiB."


@click.command
@click.argument("scenario", required=False, help="A scenario file: predicts each of its points.")
@click.option("--hardware", default="auto", help="A name, a YAML file of your own, or auto: this machine.")
@click.option("--model", help="A name, a folder with config.json, or a .gguf file.")
@click.option("--quantization", help="fp8, awq, Q4_K_M, ... Default: the model's own.")
@click.option("--engine", type=one_of(Engine), default="vllm", help="Whose memory and scheduling are meant.")
@click.option("--engine-version", "version", help="Memory rules differ between versions.")
@click.option("--tp", "devices", type=click.IntRange(1, 64), help="GPUs that the model is spread over.")
@click.option("--gpu-memory-utilization", type=click.FloatRange(0.01, 1.0), help="vLLM's share.")
@click.option("--max-model-len", type=ONE_OR_MORE, help="vLLM: tokens of the longest request.")
@click.option("--max-num-seqs", type=ONE_OR_MORE, help="vLLM: requests that run at once.")
@click.option("--max-num-batched-tokens", type=ONE_OR_MORE, help="vLLM: tokens of a step.")
@click.option("--num-ctx", type=ONE_OR_MORE, help="Ollama: tokens of a slot.")
@click.option("--num-parallel", type=ONE_OR_MORE, help="Ollama: slots.")
@click.option("--kv-cache-type", default="auto", help="auto, fp8, f16, q8_0, q4_0.")
@click.option("--flash-attention/--no-flash-attention", default=None, help="Ollama: default by version.")
@click.option("--memory", help="Memory that a process sees, such as 22GiB.")
@click.option("--concurrency", type=click.IntRange(1, 4096), help="Requests in flight.")
@click.option("--rate", help="Instead: Poisson arrivals, such as 8/s.")
@click.option("--input-tokens", type=ONE_OR_MORE, default=512, help="Tokens of a prompt.")
@click.option("--output-tokens", type=ONE_OR_MORE, default=128, help="Tokens of an answer.")
@click.option("--start", type=one_of(Start), default="staggered", help="A steady loop, or all requests at once.")
@click.option("--requests", type=ONE_OR_MORE, help="With --start burst: how many.")
@click.option("--length-spread", type=click.FloatRange(0, 0.9), default=0.0, help=SPREAD)
@click.option("--kv-overhead", "overhead", help=OVERHEAD)
@FORMAT
def predict(
    scenario: str | None,
    hardware: str,
    model: str | None,
    quantization: str | None,
    memory: str | None,
    concurrency: int | None,
    rate: str | None,
    input_tokens: int,
    output_tokens: int,
    start: Start,
    requests: int | None,
    length_spread: float,
    format: Format,
    **settings: Any,
) -> None:
    """Predict memory and speed: each figure with an 80 % interval and how it was come by.

    It means a steady closed loop with staggered starts; `--start burst --requests N` sends N requests at once.
    What cannot be known is left empty, with the reason.

    \b
    Example: bench predict --hardware "H100 SXM 80GB" \\
      --model Llama-3.1-8B-Instruct --quantization fp8 --concurrency 16
    """
    from bench.predicted import Asked, print_points, print_prediction, query_of, scenario_queries
    from harness.errors import InputError

    if scenario is not None:
        if model is not None:
            raise InputError("a scenario names its own models", "leave out --model, or the scenario")
        print_points(scenario_queries(scenario, hardware, memory), format == "json")
        return
    if model is None:
        raise InputError("no model was given", "add --model NAME, or name a scenario file")
    if start == "burst" and requests is None:
        raise InputError("--start burst needs --requests", "say how many requests start at once")
    if concurrency is not None and rate is not None:
        raise InputError("--concurrency and --rate exclude each other", "give one of them")
    asked = Asked(
        hardware, model, quantization, memory, input_tokens, output_tokens, concurrency, rate,
        length_spread=length_spread,
    )  # fmt: skip
    burst = requests if start == "burst" else None
    query: Query = query_of(asked, settings, burst)
    print_prediction(query, format == "json")
