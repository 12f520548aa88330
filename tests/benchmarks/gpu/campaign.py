"""Carries out the measurements of issue "On a GPU host", one `bench run` and one engine start after the other.

    python -m tests.benchmarks.gpu.campaign --out /tmp/runs [--runs 1b-bf16,8b-bf16,...] [--seconds 1300]

Each run is a folder of its own under `--out`, so that one that fails loses nothing of the others; one that is there and
done is not made again. A run that does not fit into what is left of `--seconds` is passed over, and said. The open
loop's rate should be 70 % of saturation: where a run before tells it, the scenario's own estimate is corrected by it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
SATURATED: Final = "c256"
SHARE: Final = 0.7

# Run: about how many seconds it takes with its start, and the run before whose saturation tells its rate.
RUNS: Final[dict[str, tuple[float, str | None]]] = {
    "1b-bf16": (300.0, None),
    "8b-bf16": (310.0, None),
    "8b-fp8": (310.0, "8b-bf16"),
    "1b-bf16-util06": (200.0, "1b-bf16"),
}
FALLBACK: Final = {"8b-fp8": "8b-fp8-checkpoint"}
MOST_TIMES: Final = 1.6  # a run that takes so many times what was expected is interrupted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--seconds", type=float, default=1300.0, help="for all of them")
    args = parser.parse_args()
    end_s = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.runs.split(","):
        status = attempt(name, args.out, end_s)
        if status != "done" and name in FALLBACK and not started(args.out / name):
            attempt(FALLBACK[name], args.out, end_s)
    say("campaign: ended")


def attempt(name: str, out: Path, end_s: float) -> str:
    """One run, if there is time for it; how it ended."""
    folder = out / name
    if said(folder).get("status") == "done":
        say(f"{name}: is there")
        return "done"
    expected_s = RUNS.get(name, RUNS["8b-fp8"])[0]
    left_s = end_s - time.monotonic()
    if left_s < expected_s:
        say(f"{name}: passed over, {left_s:.0f} s are left and it takes about {expected_s:.0f}")
        return "passed over"
    if folder.exists():
        folder.rename(out / f"{name}-aside-{time.time():.0f}")
    scenario = out / f"{name}.yaml"
    scenario.write_text(with_rate((HERE / f"{name}.yaml").read_text("utf-8"), rate_for(name, out)), encoding="utf-8")
    say(f"{name}: begins, {left_s:.0f} s are left")
    began_s = time.monotonic()
    code = bench_run(scenario, folder, min(MOST_TIMES * expected_s, left_s))
    status = str(said(folder).get("status"))
    say(f"{name}: {status} (exit {code}) after {time.monotonic() - began_s:.0f} s")
    for line in figures(folder):
        say(f"  {line}")
    return status


def bench_run(scenario: Path, folder: Path, timeout_s: float) -> int | None:
    """`bench run`, interrupted as by Ctrl-C if it takes too long (it then stops its engine and keeps what it has)."""
    command = [sys.executable, "-m", "bench", "run", str(scenario), "--no-report", "--out", str(folder)]
    with subprocess.Popen(command, start_new_session=True) as tool:
        try:
            return tool.wait(timeout_s)
        except subprocess.TimeoutExpired:
            say(f"  interrupted after {timeout_s:.0f} s")
            os.kill(tool.pid, signal.SIGINT)
        try:
            return tool.wait(60.0)
        except subprocess.TimeoutExpired:
            os.killpg(tool.pid, signal.SIGKILL)  # the guard of the engine ends the engine
            return None


def rate_for(name: str, out: Path) -> float | None:
    """70 % of saturation as far as an earlier run tells; None: the scenario's own estimate stands."""
    other = RUNS.get(name, (0.0, "8b-bf16"))[1]
    served = saturation_rps(out / other) if other else None
    if other is None or served is None:
        return None
    own, others = (estimate(HERE / f"{which}.yaml") for which in (name, other))
    return SHARE * served * own / others  # of the same model, the estimates are equal


def estimate(scenario: Path) -> float:
    found = re.search(r"rate: ([\d.]+)/s", scenario.read_text("utf-8"))
    if found is None:
        raise ValueError(f"{scenario} has no rate")
    return float(found[1])


def with_rate(text: str, rate_rps: float | None) -> str:
    """A scenario with another rate, of three digits at most."""
    return text if rate_rps is None else re.sub(r"rate: [\d.]+/s", f"rate: {float(f'{rate_rps:.3g}'):g}/s", text)


def saturation_rps(folder: Path) -> float | None:
    """Requests that ended well in the window of the largest level, a second."""
    return next((rps for point, rps, _ in served(folder) if point == SATURATED), None)


def served(folder: Path) -> list[tuple[str, float, Any]]:
    """Of each point: its name, requests that ended well inside the window a second, and the records of the window."""
    path = folder / "requests.parquet"
    if not path.exists():
        return []
    import pyarrow.parquet as pq

    columns = ["point", "phase", "status", "end_s", "ttft_s", "tpot_s", "asked_output_tokens", "output_tokens",
               "asked_input_tokens", "input_tokens"]  # fmt: skip
    frame = pq.read_table(path, columns=columns).to_pandas()
    found = []
    for point in said(folder)["points"]:
        if point["open_s"] is None or point["close_s"] is None:
            continue
        mine = frame[(frame.point == point["point"]) & (frame.status == "ok")]
        inside = mine[(mine.end_s >= point["open_s"]) & (mine.end_s < point["close_s"])]
        span_s = point["close_s"] - point["open_s"]
        found.append((point["point"], len(inside) / span_s, mine[mine.phase == "measure"]))
    return found


def figures(folder: Path) -> list[str]:
    """What a run came to, a line a point, for who watches."""
    status = {point["point"]: point["status"] for point in said(folder).get("points", [])}
    lines = []
    for point, rps, rows in served(folder):
        exact = (rows.output_tokens == rows.asked_output_tokens) & (rows.input_tokens == rows.asked_input_tokens)
        lines.append(
            f"{point}: {status[point]}, {rps:.1f} requests/s, n {len(rows)}, TTFT p50 {rows.ttft_s.median() * 1e3:.0f} "
            f"ms, TPOT mean {rows.tpot_s.mean() * 1e3:.2f} ms, lengths {'exact' if exact.all() else 'NOT EXACT'}"
        )
    lines += [f"error: {engine['error']}" for engine in said(folder).get("engines", []) if engine["error"]]
    return lines + [f"warning: {text.splitlines()[0]}" for text in said(folder).get("warnings", [])]


def said(folder: Path) -> dict[str, Any]:
    """run.json, empty where there is none yet."""
    path = folder / "run.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def started(folder: Path) -> bool:
    """Whether the engine of a run came up: then another way to start it helps nothing."""
    return (
        any(point["status"] != "failed" for point in said(folder).get("points", []))
        and (folder / "requests.parquet").exists()
    )


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
