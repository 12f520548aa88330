"""Advice as Markdown and JSON, and the facts that a terminal and a page show: the same in each."""

from __future__ import annotations

import shlex
from typing import Any

from harness.units import show, significant
from sizing.advise import Advice, Choice, memory_bar
from sizing.estimate import Estimate

_SPEED = (
    ("output_tok_s", "tok/s", "tok/s"), ("ttft_p95_s", "TTFT p95", "s"), ("tpot_p95_s", "TPOT p95", "s"),
)  # fmt: skip
_BAR_WIDTH = 40
_MARKS = {"weights": "█", "KV": "▓", "activations": "▒", "graphs": "░", "other": "·", "free": " "}


def to_dict(advice: Advice, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """All of it as plain values."""
    return {
        "hardware": advice.hardware.name,
        "devices": advice.count,
        "want": _want(advice),
        "screened": advice.screened,
        "recommendation": _choice(advice.best) | {"commands": commands(advice.best)} if advice.best else None,
        "ranked": [_choice(choice) for choice in advice.ranked],
        "why_the_runner_up_lost": advice.why_runner_up or None,
        "binds": advice.binding,
        "relax": advice.relax,
        "currency": advice.currency or None,
        "pareto": [
            {"name": name, "output_tok_s": speed, "nats": nats, "front": front}
            for name, speed, nats, front in advice.scatter
        ],
        "notes": list(notes),
    }


def _want(advice: Advice) -> dict[str, Any]:
    want = advice.want
    return {key: getattr(want, key) for key in want.__slots__ if key != "learnt"}


def _choice(choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    candidate = choice.candidate
    return {
        "model": candidate.model.name,
        "quantization": candidate.quantization.name,
        "engine": candidate.setup.engine,
        "settings": settings(choice),
        "memory_gib": {name: round(size, 3) for name, size in memory_bar(choice)},
        "quality_nats": candidate.nats,
        "users_within_targets": choice.users,
        "joule_per_token": choice.joule_per_token.to_dict(),
        "cost_per_million_tokens": choice.cost_per_million.to_dict(),
        **choice.prediction.to_dict(),
    }


def settings(choice: Choice) -> dict[str, Any]:
    """The engine's own settings, by its own names."""
    setup = choice.candidate.setup
    if setup.engine == "vllm":
        return {
            "tensor_parallel_size": setup.devices,
            "max_model_len": setup.max_model_len,
            "gpu_memory_utilization": setup.gpu_memory_utilization or 0.92,
            "max_num_seqs": setup.max_num_seqs,
            "kv_cache_dtype": setup.kv_cache_type,
        }
    layers = choice.candidate.plan.gpu_layers
    return {
        "num_ctx": setup.num_ctx,
        "OLLAMA_NUM_PARALLEL": setup.num_parallel,
        "OLLAMA_KV_CACHE_TYPE": "f16" if setup.kv_cache_type == "auto" else setup.kv_cache_type,
        "layers_on_the_gpu": choice.candidate.model.layers + 1 if layers is None else layers,
    }


def commands(choice: Choice) -> list[str]:
    """What to type. A format that the catalogue has no repository of is named as a file to be put there."""
    candidate, given = choice.candidate, settings(choice)
    name = candidate.model.name
    if candidate.setup.engine == "vllm":
        words = ["vllm", "serve", name]
        if candidate.quantization.name == "fp8":
            words += ["--quantization", "fp8"]  # vLLM quantizes a 16-bit checkpoint itself
        for key, value in given.items():
            words += [f"--{key.replace('_', '-')}", str(value)]
        made = [shlex.join(words)]
        if candidate.quantization.name in ("awq", "gptq", "int4", "nvfp4"):
            made.insert(
                0, f"# a checkpoint of {name} in {candidate.quantization.name} takes the place of the name below"
            )
        return made
    bare = name.rpartition("/")[2]
    file = f"{bare}-{candidate.quantization.name.upper()}.gguf"
    env = f"OLLAMA_CONTEXT_LENGTH={given['num_ctx']} OLLAMA_NUM_PARALLEL={given['OLLAMA_NUM_PARALLEL']}"
    return [
        f"{env} OLLAMA_KV_CACHE_TYPE={given['OLLAMA_KV_CACHE_TYPE']} ollama serve",
        f"printf 'FROM ./{file}\\n' > Modelfile && ollama create {bare.lower()} -f Modelfile",
        f"ollama run {bare.lower()}",
    ]


def headline(advice: Advice) -> str:
    """One sentence: the recommendation, or that nothing fits."""
    best = advice.best
    count = f"{advice.count} x " if advice.count > 1 else ""
    if best is None:
        return (
            f"Nothing in the catalogue holds these wishes on {count}{advice.hardware.name} "
            f"({advice.screened} ways were screened)."
        )
    candidate = best.candidate
    return (
        f"Run {candidate.model.name} in {candidate.quantization.name} on {candidate.setup.engine} "
        f"({count}{advice.hardware.name})."
    )


def rows(advice: Advice, most: int = 10) -> list[list[str]]:
    """The ranked table as text."""
    found = []
    for rank, choice in enumerate(advice.ranked[:most], 1):
        candidate = choice.candidate
        # Middles alone: the intervals of the first stand below, those of all are in the JSON.
        cells = [value(choice.prediction.speed[key], unit).partition(" (")[0] for key, _, unit in _SPEED]
        users = "–" if choice.users is None else str(choice.users)
        model = candidate.model.name.rpartition("/")[2]
        found.append(
            [
                str(rank),
                model,
                candidate.quantization.name,
                candidate.setup.engine,
                f"{candidate.nats:.3f}",
                *cells,
                users,
            ]
        )
    return found


TITLES = ("", "model", "format", "engine", "nats", *(title for _, title, _ in _SPEED), "users")


def value(estimate: Estimate, unit: str) -> str:
    """A figure with its interval; `–` where there is none."""
    if estimate.value is None:
        return "–"
    middle, low, high = (
        significant(float(number or 0)) if unit == "tok/s" else show(float(number or 0), unit)
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{middle} ({low}–{high})"


def bar_line(choice: Choice) -> str:
    """The memory plan as a bar of forty characters."""
    parts = memory_bar(choice)
    total = sum(size for _, size in parts) or 1.0
    return "".join(_MARKS[name] * round(size / total * _BAR_WIDTH) for name, size in parts)


def bar_legend(choice: Choice) -> str:
    """What the bar's marks stand for, in GiB."""
    return ", ".join(f"{_MARKS[name].strip() or '_'} {name} {size:.2f}" for name, size in memory_bar(choice)) + " GiB"


def facts(advice: Advice) -> list[tuple[str, str]]:
    """What stands below the table: settings, users, energy, cost, what binds, what would loosen it."""
    best = advice.best
    found: list[tuple[str, str]] = []
    if best is not None:
        answer = best.prediction
        found += [
            ("settings", ", ".join(f"{key} {item}" for key, item in settings(best).items())),
            ("memory", f"[{bar_line(best)}]"),
            ("", bar_legend(best)),
            ("TTFT p50, p95", f"{value(answer.speed['ttft_p50_s'], 's')}, {value(answer.speed['ttft_p95_s'], 's')}"),
            ("TPOT p50, p95", f"{value(answer.speed['tpot_p50_s'], 's')}, {value(answer.speed['tpot_p95_s'], 's')}"),
            ("label", f"{answer.speed['output_tok_s'].label}: intervals hold 80 %"),
        ]
        if best.users is not None:
            found.append(("users", f"{best.users} within the targets"))
        tokens = f"{advice.currency} per million tokens".strip()
        for title, estimate, unit in (
            ("energy", best.joule_per_token, "J/token"),
            ("cost", best.cost_per_million, tokens),
        ):
            if estimate.value is not None:
                ends = f"{significant(float(estimate.low or 0))}–{significant(float(estimate.high or 0))}"
                found.append((title, f"{significant(float(estimate.value))} ({ends}) {unit}, {estimate.label}"))
        found.append(("runner-up", advice.why_runner_up))
    found += [("binds", advice.binding), ("to loosen it", advice.relax)]
    return found


def markdown(advice: Advice, notes: tuple[str, ...] = ()) -> str:
    """A whole document, ending in a newline."""
    parts = [f"## {headline(advice)}"]
    if advice.ranked:
        table = [list(TITLES), [":--"] * 4 + ["--:"] * (len(TITLES) - 4), *rows(advice)]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in table))
    parts.append("\n".join(f"- {title}: {text}" if title else f"  {text}" for title, text in facts(advice)))
    if advice.best:
        parts.append("```bash\n" + "\n".join(commands(advice.best)) + "\n```")
    if notes:
        parts.append("\n".join(f"- note: {note}" for note in notes))
    return "\n\n".join(parts) + "\n"
