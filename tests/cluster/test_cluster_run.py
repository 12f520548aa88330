"""A real Ray cluster of three nodes and a reference server on a fourth host: load, clocks, a lost node, resuming.

Each host is a network namespace with an address, and a time namespace with a monotonic clock of its own; links delay
unevenly. Run with `pytest -m cluster`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.locate import nginx_binary
from harness.store import RunFolder
from reports import hosts
from tests.cluster.rig import Delay, Host, Rig, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(280),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or ""),
]

CLOCKS_S = [1000, 5000, 300, 70]
DELAYS = [Delay(0.001, 0.0002, 0.0002), Delay(0.003, 0.0005, 0.001), Delay(0.0, 0.002, 0.0002), Delay()]
SCENARIO = """
name: far
engines:
  - {{name: ref, kind: openai, model: reference, base_url: "http://{server}:8000/v1"}}
workload: {{kind: synthetic, input_tokens: 16, output_tokens: 16}}
load: [{load}]
warmup: {{requests: 4}}
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig(CLOCKS_S, DELAYS) as made:
        server = made.hosts[3]
        words = ["--host", server.address, "--port", "8000", "--ttft", "20ms", "--gap", "2ms"]
        server.start(sys.executable, "-m", "harness.refserver", *words)
        until_said(server, "ready")
        yield made


def until_said(host: Host, word: str = "") -> str:
    """What a host's program printed, once there is something with `word` in it."""
    deadline = time.monotonic() + 30
    log = host.folder / "out.log"
    while time.monotonic() < deadline:
        if (said := log.read_text()) and word in said:
            return said
        time.sleep(0.05)
    raise AssertionError(f"nothing of {word!r}: {log.read_text()}")


def scenario(rig: Rig, folder: Path, load: str) -> Path:
    path = folder / "far.yaml"
    path.write_text(SCENARIO.format(server=rig.hosts[3].address, load=load))
    return path


def bench(rig: Rig, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`bench run` on the head node."""
    return rig.hosts[0].run(sys.executable, "-m", "bench", "run", *words, "--no-report", "--cluster", rig.address)


def stats(rig: Rig) -> dict[str, Any]:
    code = (
        "import json; from tests.rawserver import server_stats as s;"
        f"print(json.dumps(s('http://{rig.hosts[3].address}:8000', reset=True)))"
    )
    found: dict[str, Any] = json.loads(rig.hosts[0].run(sys.executable, "-c", code).stdout)
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = RunFolder.open(folder).requests().to_pylist()
    return rows


def check_clocks(record: dict[str, Any]) -> None:
    """What was stated of each host's clock, against what the rig set."""
    truth = {f"10.77.0.{n + 1}": clock - CLOCKS_S[0] for n, clock in enumerate(CLOCKS_S)}
    assert record["cluster"]["clocks"]
    for stated in record["cluster"]["clocks"]:
        off_s = abs(stated["offset_s"] - truth[stated["address"]])
        assert off_s <= stated["error_s"] < 0.05, stated


def test_records_of_three_hosts_are_one_run(rig: Rig, tmp_path: Path) -> None:
    load = "{kind: poisson, rate: 60, duration: 5s}, {kind: concurrency, levels: [6], requests: 120}"
    stats(rig)
    done = bench(rig, scenario(rig, tmp_path, load), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert {point["status"] for point in record["points"]} <= {"done", "client-limited"}
    check_clocks(record)
    rows = rows_of(tmp_path / "run")
    served = stats(rig)
    probes = 2  # no server of vLLM's: two prompts tell how it counts; they are no part of the load
    sent = sum(row["sent_s"] is not None for row in rows)
    assert sent <= served["finished"] + served["aborted"] <= sent + 4 * probes
    keys = Counter((row["point"], row["request_id"]) for row in rows)
    assert set(keys.values()) == {1}  # every request once
    for point in record["points"]:
        measured = [row for row in rows if (row["point"], row["phase"]) == (point["point"], "measure")]
        assert {row["worker"] for row in measured} == {0, 1, 2}
        assert all(point["open_s"] <= row["scheduled_s"] < point["close_s"] for row in measured)
        assert point["client"]["clock_error_s"] < 0.05
    ids = sorted(row["request_id"] for row in rows if (row["point"], row["phase"]) == ("poisson-60rps", "measure"))
    assert ids == list(range(ids[0], ids[0] + len(ids)))  # the union is the asked arrival process, without a hole
    sources = {row["source"] for row in RunFolder.open(tmp_path / "run").telemetry().to_pylist()}
    assert {"host", "load1/host", "load2/host", "load3/host"} <= sources


def test_without_delay_and_with_it_the_stated_clock_error_holds(tmp_path: Path) -> None:
    """No Ray in this one: the clock question alone, between namespaces."""
    code = (
        "import sys, time\nfrom harness.cluster.echo import Echo\n"
        "echo = Echo(sys.argv[1])\nprint(echo.place[1], echo.secret.hex(), flush=True)\ntime.sleep(60)"
    )
    asks = (
        "import sys, json, time\nfrom harness.cluster.echo import Asker\nfrom harness.cluster.clock import Clock\n"
        "clock, asker = Clock(), Asker((sys.argv[1], int(sys.argv[2])), bytes.fromhex(sys.argv[3]))\n"
        "found = []\n"
        "for _ in range(25):\n"
        "    clock.pings.clear()\n"
        "    for _ in range(60):\n        clock.add(*asker.ask())\n"
        "    offset = clock.at(time.monotonic())\n    found.append((offset.offset_s, offset.error_s))\n"
        "print(json.dumps(found))"
    )
    for delays in (None, [Delay(0.0, 0.0004, 0.0003), Delay(0.002, 0.0001, 0.001)]):
        with Rig([200, 900], delays, ray_nodes=0) as rig:
            here, there = rig.hosts
            there.start(sys.executable, "-c", code, there.address)
            done = here.run(sys.executable, "-c", asks, there.address, *until_said(there).split())
            assert done.returncode == 0, done.stderr
            trials = json.loads(done.stdout)
        covered = sum(abs(offset - 700) <= error for offset, error in trials)
        assert covered >= 0.95 * len(trials), trials
        if delays is None:
            assert all(error < 1e-3 for _, error in trials), trials


MATRIX = """
name: grid
engines:
  - {name: one, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, args: {time_scale: 0.5}}
  - {name: two, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, policy: ollama, args: {time_scale: 0.5}}
matrix: {quantization: [bf16, fp8]}
workload: {kind: synthetic, input_tokens: 16, output_tokens: 16}
load: [{kind: concurrency, levels: [2], requests: 40}]
warmup: {requests: 2}
"""


def finished(folder: Path) -> dict[str, Any]:
    """Points that are done, by engine."""
    path = folder / "run.json"
    points = json.loads(path.read_text())["points"] if path.exists() else []
    return {point["engine"]: point for point in points if point["status"] in ("done", "client-limited")}


def test_a_matrix_over_the_cluster_is_killed_and_goes_on(rig: Rig, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "grid.yaml"
    file.write_text(MATRIX)
    words = ["run", file, "--out", folder, "--no-report", "--cluster", rig.address]
    process = rig.hosts[0].start(sys.executable, "-m", "bench", *words, log="grid.log")
    deadline = time.monotonic() + 120
    while not finished(folder) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.kill()  # unshare --kill-child: `bench` dies with it, as of kill -9
    process.wait()
    before = finished(folder)
    assert 1 <= len(before) <= 4, (rig.hosts[0].folder / "grid.log").read_text()
    rows_before = [row for row in rows_of(folder) if row["engine"] in before]
    if len(before) < 4:
        done = bench(rig, "--resume", folder)
        assert done.returncode == 0, done.stdout + done.stderr
    after = finished(folder)
    assert sorted(after) == ["one-bf16", "one-fp8", "two-bf16", "two-fp8"]
    assert {name: after[name] for name in before} == before  # not measured twice
    rows = rows_of(folder)
    assert [row for row in rows if row["engine"] in before] == rows_before
    for engine, point in after.items():
        measured = [row for row in rows if (row["engine"], row["phase"]) == (engine, "measure")]
        assert len(measured) == 40
        assert len({row["request_id"] for row in measured}) == 40
        assert all(point["open_s"] <= row["sent_s"] < point["close_s"] for row in measured)
    record = json.loads((folder / "run.json").read_text())
    assert {engine["status"] for engine in record["engines"]} == {"done"}
    assert len({clock["address"] for clock in record["cluster"]["clocks"]}) >= 2  # several at a time
    check_clocks(record)


REPLICAS = """
name: spread
engines:
  - {name: two, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, replicas: 2, on: {CPU: 1}, args: {time_scale: 0.5}}
workload: {kind: synthetic, input_tokens: 16, output_tokens: 16}
load: [{kind: concurrency, levels: [4], requests: 80}]
warmup: {requests: 4}
"""


@pytest.mark.skipif(nginx_binary() is None, reason="apt-get install nginx-light")
def test_replicas_on_two_hosts_behind_one_address(rig: Rig, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "spread.yaml"
    file.write_text(REPLICAS)
    done = bench(rig, file, "--out", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder.open(folder)
    record, telemetry = run.read_run(), run.telemetry()
    assert {host["address"] for host in record.cluster["hosts"]} == {rig.hosts[2].address}  # away from the engines
    facts = {fact.name: fact.value for fact in record.engines[0].facts}
    assert facts["replicas"] == 2
    assert {"engine1/host", "engine2/host", "balancer", "vllm", "process"} <= set(telemetry["source"].to_pylist())
    shares = [int(row[4]) for row in hosts.balance(record, telemetry)]
    assert len(shares) == 2
    assert max(shares) - min(shares) <= 2  # in turn
    assert {path.name for path in folder.glob("*.log")} >= {"two.log", "two.1.log", "two.2.log"}
    assert "Model loading" in (folder / "two.2.log").read_text()


def test_a_node_that_dies_in_mid_run_leaves_a_run_that_goes_on(rig: Rig, tmp_path: Path) -> None:
    load = "{kind: concurrency, levels: [3], requests: 60}, {kind: poisson, rate: 30, duration: 9s}"
    folder = tmp_path / "run"
    words = ["run", scenario(rig, tmp_path, load), "--out", folder, "--no-report", "--cluster", rig.address]
    process = rig.hosts[0].start(sys.executable, "-m", "bench", *words, log="bench.log")
    log = rig.hosts[0].folder / "bench.log"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        points = json.loads((folder / "run.json").read_text())["points"] if (folder / "run.json").exists() else []
        if len(points) == 2 and points[1]["status"] == "running":
            break
        time.sleep(0.2)
    time.sleep(4)
    rig.hosts[2].kill()
    assert process.wait(60) == 1, log.read_text()
    record = json.loads((folder / "run.json").read_text())
    first, second = record["points"]
    assert first["status"] in ("done", "client-limited")
    assert second["status"] == "failed"
    assert "load3 was lost" in second["error"]
    (gap,) = record["cluster"]["gaps"]
    assert gap["host"] == "load3"
    assert gap["reason"]
    assert second["start_s"] < gap["from_s"] < second["end_s"] + 20
    rows = rows_of(folder)
    before = [row for row in rows if row["point"] == second["point"] and row["phase"] == "measure"]
    assert {row["worker"] for row in before} == {0, 1, 2}  # what the lost one had measured is there
    counted = sum(row["point"] == first["point"] for row in rows)

    refused = rig.hosts[0].run(sys.executable, "-m", "bench", "run", "--resume", folder)
    assert refused.returncode == 2
    assert "--cluster" in refused.stderr
    done = bench(rig, "--resume", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "run.json").read_text())
    assert {point["status"] for point in record["points"]} <= {"done", "client-limited"}
    # Asked again where Ray did not know yet that it was gone: then that is a gap, too.
    assert {gap["host"] for gap in record["cluster"]["gaps"]} == {"load3"}
    assert {host["name"]: bool(host["lost"]) for host in record["cluster"]["hosts"]} == {
        "load1": False, "load2": False, "load3": True
    }  # fmt: skip
    rows = rows_of(folder)
    assert sum(row["point"] == first["point"] for row in rows) == counted  # finished points are not run again
    assert {row["worker"] for row in rows if row["point"] == second["point"]} == {0, 1}
    check_clocks(record)
