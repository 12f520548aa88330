"""`bench advise`: which model size and quantization for this hardware, with evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bench.options import ONE_OR_MORE, PATH, one_of

if TYPE_CHECKING:
    from sizing.advise import Advice
    from sizing.candidates import Want

# Five tokens a second is about as fast as people read; a first word after ten seconds is about as long as they wait.
READING_SLO = "ttft_p95=10s,tpot_p95=200ms"


Format = Literal["table", "json", "md", "html"]
Listed = Literal["hardware", "models", "quantizations"]
QUALITY = "The most nats per token that the format may cost, such as 0.02."


@click.command
@click.option("--hardware", default="auto", help="A name, a YAML file of your own, or auto: this machine.")
@click.option("--models", multiple=True, help="Only these (names, folders, .gguf files).")
@click.option("--users", type=click.IntRange(1, 2048), default=1, help="Requests in flight.")
@click.option("--rate", help="Instead of users: arrivals, such as 2/s.")
@click.option("--input-tokens", type=ONE_OR_MORE, default=512, help="Tokens of a prompt.")
@click.option("--output-tokens", type=ONE_OR_MORE, default=256, help="Tokens of an answer.")
@click.option("--context", default="8k", help="Tokens of the longest request, such as 8k.")
@click.option("--slo", help="Targets, such as ttft_p95=500ms,tpot_p95=50ms; or none.")
@click.option("--min-quality", type=click.FloatRange(min=0), help=QUALITY)
@click.option("--price", help="Cost of the hardware per hour: 2, $2/h or '2 USD/h'.")
@click.option("--gpus", type=click.IntRange(1, 16), help="How many of the hardware there are.")
@click.option("--memory", help="Memory that a process sees, such as 22GiB.")
@click.option("--write-scenario", type=PATH, help="Write a scenario that verifies the advice.")
@click.option("--list", "listed", type=one_of(Listed), help="Only list what the catalogue knows.")
@click.option("--format", type=one_of(Format), default="table", help="For people, or for programs.")
def advise(
    hardware: str,
    models: tuple[str, ...],
    users: int,
    rate: str | None,
    input_tokens: int,
    output_tokens: int,
    context: str,
    slo: str | None,
    min_quality: float | None,
    price: str | None,
    gpus: int | None,
    memory: str | None,
    write_scenario: Path | None,
    listed: Listed | None,
    format: Format,
) -> None:
    """Recommend a model, its quantization, the engine and its settings; with intervals, and what binds.

    Nothing is run and nothing is fetched. When nothing fits it says so and gives no number; exit code 3.

    \b
    Example: bench advise --hardware "RTX 4090" --users 4 --context 8k \\
      --slo ttft_p95=1s,tpot_p95=50ms
    """
    if listed is not None:
        _print_list(listed)
        return
    from harness.errors import InputError
    from harness.machine import find_machine
    from harness.modelfile import find_model
    from harness.receipts import learnt
    from sizing.advise import advise as recommend
    from sizing.candidates import catalogue

    machine = find_machine(hardware, memory)
    shapes = [find_model(name)[0] for name in models] if models else catalogue()
    want = _want(users, rate, (input_tokens, output_tokens), context, slo, min_quality)
    want = replace(want, learnt=learnt(machine.hardware.name))
    amount, currency = _priced(price)
    try:
        advice = recommend(machine.hardware, gpus or machine.count, shapes, want, amount)
    except ValueError as error:
        raise InputError(str(error), "state it: --memory 64GiB") from None
    advice = replace(advice, currency=currency)
    notes = machine.notes + ((machine.hardware.note,) if machine.hardware.note else ())
    if slo is None:
        notes += (f"no --slo was given: {READING_SLO} is taken, for someone who reads along (--slo none: no target)",)
    if write_scenario is not None and advice.best is not None:
        _write_scenario(write_scenario, advice)
    _print(advice, notes, format)
    if advice.best is None:
        raise SystemExit(3)


def _priced(text: str | None) -> tuple[float | None, str]:
    from harness.errors import InputError
    from harness.units import parse_hourly

    try:
        return parse_hourly(text) if text is not None else (None, "")
    except ValueError as error:
        raise InputError(f"--price: {error}", "mind the quotes: a shell takes $2 for its own") from None


def _want(
    users: int, rate: str | None, lengths: tuple[int, int], context: str, slo: str | None, min_quality: float | None
) -> Want:
    from harness.errors import InputError
    from harness.units import parse_duration_s, parse_rate_rps
    from sizing.candidates import Want

    targets: dict[str, float] = {}
    for part in (READING_SLO if slo is None else slo).split(","):
        if part.strip() in ("", "none"):
            continue
        key, _, text = part.partition("=")
        if key.strip() not in ("ttft_p95", "tpot_p95"):
            raise InputError(f"--slo: unknown target '{key.strip()}'", "write for example ttft_p95=500ms,tpot_p95=50ms")
        try:
            targets[key.strip() + "_s"] = parse_duration_s(text.strip())
        except ValueError as error:
            raise InputError(f"--slo {key}: {error}", "write for example ttft_p95=500ms") from None
    try:
        rate_rps = parse_rate_rps(rate) if rate is not None else None
        tokens = _tokens(context)
    except ValueError as error:
        raise InputError(str(error), "write for example --context 8k, --rate 2/s") from None
    if rate_rps is not None and rate_rps <= 0:
        raise InputError("--rate must be above 0", "write for example --rate 2/s")
    if sum(lengths) > tokens:
        raise InputError(
            f"{lengths[0]} tokens in and {lengths[1]} out exceed the context of {tokens}", "raise --context"
        )
    return Want(users, rate_rps, *lengths, tokens, targets.get("ttft_p95_s"), targets.get("tpot_p95_s"), min_quality)


def _tokens(text: str) -> int:
    """`8k` is 8192, `1m` 1048576; a bare number is tokens. Raises ValueError."""
    lower = text.strip().lower()
    times = {"k": 1024, "m": 1024**2}.get(lower[-1:], 1)
    try:
        number = float(lower if times == 1 else lower[:-1]) * times
    except ValueError:
        raise ValueError(f"--context {text}: not a number of tokens") from None
    if not 1 <= number <= 2**24:
        raise ValueError(f"--context {text}: not between 1 and 16M tokens")
    return int(number)


def _write_scenario(path: Path, advice: Advice) -> None:
    from harness.errors import InputError
    from reports.advice_scenario import scenario_yaml

    if path.exists():
        raise InputError(f"{path} exists", "give another name")
    try:
        path.write_text(scenario_yaml(advice), "utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "give another path") from None


def _print(advice: Advice, notes: tuple[str, ...], format: Format) -> None:
    import json

    from reports import advice as shown

    if format == "json":
        print(json.dumps(shown.to_dict(advice, notes), ensure_ascii=False))
        return
    if format == "md":
        print(shown.markdown(advice, notes), end="")
        return
    if format == "html":
        from reports.advicepage import page

        print(page(advice, notes))
        return
    from rich.console import Console

    from reports.advice_text import render

    Console(highlight=False).print(render(advice, notes))


def _print_list(what: Listed) -> None:
    from sizing.catalog import hardware_names, model_names, quantization_names

    found = {"hardware": hardware_names, "models": model_names, "quantizations": quantization_names}[what]()
    click.echo("\n".join(found))
