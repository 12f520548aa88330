"""How long `bench --help` takes beside a bare typer app, side by side in one run: medians and their ratio.

python tests/benchmarks/help_time.py [--runs 21]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = """
import typer
app = typer.Typer(add_completion=False)
@app.command()
def one(name: str = typer.Option("x", help="A name.")) -> None:
    "A command."
@app.command()
def two() -> None:
    "Another."
app()
"""


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    commands = {
        "bare typer": [sys.executable, "-c", BARE, "--help"],
        "bench": [sys.executable, "-c", "from bench.app import main; main()", "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(runs + 1):  # the first of each warms the page cache
        for name, command in commands.items():
            took = seconds(command)
            if run:
                times[name].append(took)
    bare, ours = (statistics.median(times[name]) for name in commands)
    print(f"bare typer {bare * 1e3:.0f} ms, bench {ours * 1e3:.0f} ms, ratio {ours / bare:.2f} (medians of {runs})")


if __name__ == "__main__":
    main()
