"""`bench calibrate hardware`: what this machine really gives, kept as receipts that later predictions read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bench.scored import Scored


def hardware(
    run: Annotated[
        Path | None, typer.Option(help="Learn from this finished run instead: its start and its speeds.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=120, help="How long to measure the host.")] = 5.0,
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
) -> None:
    """Measure the host's memory bandwidth and arithmetic, or learn from a run: predictions against measurements.

    A GPU is learnt from a run: `bench run` with a small model, then this with --run. Simulated engines teach nothing.

    Example: bench calibrate hardware --run results/20260102T030405Z-ollama-vs-vllm
    """
    found = _from_run(run) if run is not None else _host(seconds)
    if format == "json":
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in found["lines"]:
        typer.echo(line)
    typer.echo(f"kept in {found['receipts']}" if found["receipts"] else "nothing to keep")


def _host(seconds: float) -> dict[str, Any]:
    from harness.hostspeed import measure
    from harness.receipts import add

    speed = measure(seconds)
    path = add("host", {"bandwidth_gbs": speed.bandwidth_gbs, "gflops": speed.gflops})
    lines = [
        f"memory: {speed.bandwidth_gbs:.1f} GB/s copied and read (best of {speed.repeats})",
        f"arithmetic: {speed.gflops:.0f} GFLOP/s in 32 bits",
        "a GPU is learnt from a run: bench calibrate hardware --run DIR",
    ]
    return {"bandwidth_gbs": speed.bandwidth_gbs, "gflops": speed.gflops, "lines": lines, "receipts": str(path)}


def _from_run(folder: Path) -> dict[str, Any]:
    from bench.scored import keep, score

    scored = score(folder)
    path = keep(scored)
    return {
        "points": [vars_of(item) for item in scored],
        "lines": [line(item) for item in scored] or ["no engine of this run was real: nothing to learn"],
        "receipts": str(path) if path else None,
    }


def vars_of(item: Scored) -> dict[str, Any]:
    """A scored figure as plain values."""
    return {key: getattr(item, key) for key in item.__slots__ if key != "query"}


def line(item: Scored) -> str:
    """`engine point figure: predicted x, measured y (+12 %)`."""
    error = f" ({item.predicted / item.measured - 1:+.0%})" if item.predicted and item.measured else ""
    shown = "–" if item.predicted is None else f"{item.predicted:.4g}"
    return f"{item.engine} {item.point} {item.figure}: predicted {shown}, measured {item.measured:.4g}{error}"
