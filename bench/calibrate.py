"""`bench calibrate`: learn what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bench.calibrate_hardware import hardware
from bench.options import FORMAT, Format, Group

if TYPE_CHECKING:
    from harness.calibration import Calibration, Level


@click.command(short_help="Find how much load this machine's client can make.")
@FORMAT
def client(format: Format) -> None:
    """Find how much load this machine's client can make before its own figures suffer, and keep it for `bench run`.

    A reference server that answers at exactly known times is driven with more and more streams until the client or the
    server gives in. Takes under a minute; stop what else runs here before.

    Example: bench calibrate client
    """
    import dataclasses
    import json

    from harness.calibrate import calibrate_client
    from harness.calibration import store
    from harness.errors import InputError

    table = format == "table"
    if table:
        click.echo("  streams   chunks/s   TTFT: client   server    error   client CPU   server late p99")
    found = calibrate_client(lambda level: click.echo(_row(level)) if table else None)
    try:
        path = store(found) if found.ceiling_chunks_s is not None else None  # a busy minute replaces no good one
    except OSError as error:
        raise InputError(f"the result cannot be kept: {error}", "set ENGINEBENCH_HOME to a folder of yours") from None
    if table:
        click.echo(_verdict(found))
        click.echo(f"kept in {path}; `bench run` judges by it" if path else "nothing is kept")
    else:
        click.echo(json.dumps({**dataclasses.asdict(found), "limit_chunks_s": found.limit_chunks_s}, indent=2))


def _row(level: Level) -> str:
    def ms(value: float | None, digits: int = 1) -> str:
        return "-" if value is None else f"{value * 1e3:.{digits}f} ms"

    def percent(value: float | None, sign: str = "+") -> str:
        return "-" if value is None else f"{value * 100:{sign}.1f} %"

    why = "" if level.good else "   off by more than 5 %" + (", and so was the server" if level.server_late else "")
    return (
        f"{level.streams:9,d}{level.chunks_s:11,.0f}{ms(level.ttft_mean_s):>15}{ms(level.server_ttft_mean_s):>9}"
        f"{percent(level.ttft_error):>9}{percent(level.cpu_ratio, ''):>13}{ms(level.server_late_p99_s, 2):>18}{why}"
    )


def _verdict(found: Calibration) -> str:
    if found.ceiling_chunks_s is None:
        return (
            "No level counted: even a light load was late. The machine is busy, or has too few cores. Stop what else "
            "runs here, and calibrate again."
        )
    ceiling = f"{found.ceiling_chunks_s:,.0f} chunks/s on one core with a mean TTFT within 5 %"
    if found.first == "client":
        return f"The client takes {ceiling}; beyond that it gave in first. Points above it will be client-limited."
    if found.first == "server":
        return f"The client takes at least {ceiling}; beyond that the reference server gave in first."
    return f"The client takes at least {ceiling}; neither side gave in."


calibrate = Group(
    "calibrate",
    help="Learn what this machine can do: `client` for the load generator, `hardware` for predictions.",
    epilog="Example: bench calibrate client",
    commands=[client, hardware],
)
