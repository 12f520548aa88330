"""The cluster's parts without Ray: clocks, the board across hosts, the load of two hosts that are both this machine.

What needs a real cluster is in `tests/cluster`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cluster.agent import LoadHost
from harness.cluster.board import SharedBoard, Told
from harness.cluster.clock import Clock
from harness.cluster.connect import _first_line
from harness.cluster.echo import Asker, Echo
from harness.cluster.load import ClusterLoad
from harness.cluster.node import HostLost, LoadNode
from harness.errors import RunError
from harness.job import Job, Outcome
from harness.judge import judge
from harness.protocols import Target
from harness.records import TelemetrySample
from harness.scenario import Point, Workload
from harness.tables import read_journal
from harness.workloads import PromptPlan
from tests.rawserver import reference_server, server_stats

# --- clocks ---


def pinged(clock: Clock, seed: int, offset_s: float, drift: float, seconds: float, asymmetry: float) -> None:
    """Pings each 0.1 s of a clock that is `offset_s` ahead at 0 and runs fast by `drift`; ways of uneven delay."""
    rng = random.Random(seed)
    for step in range(int(seconds * 10)):
        sent = step / 10
        out, back = (rng.expovariate(1 / 0.001) + 0.0002 for _ in range(2))
        arrived = sent + out * asymmetry
        clock.add(sent, arrived * (1 + drift) + offset_s, arrived + back)


@pytest.mark.parametrize("asymmetry", [1.0, 8.0])
@pytest.mark.parametrize("drift", [0.0, 5e-5, -9e-5])
def test_the_truth_is_always_within_the_stated_error(asymmetry: float, drift: float) -> None:
    for seed in range(20):
        clock = Clock()
        pinged(clock, seed, 1234.5, drift, 6.0, asymmetry)
        for at in (0.0, 2.5, 6.0):
            offset = clock.at(at)
            assert offset is not None
            assert abs(offset.offset_s - (1234.5 + drift * at)) <= offset.error_s
            assert offset.error_s < 0.01
        used = 1234.5  # measured at the start, and used to the end
        error = clock.error_of(used, 0.0, 6.0)
        assert error is not None
        assert error >= abs(drift) * 6.0


def test_a_clock_that_was_set_is_found_and_no_ping_is_no_offset() -> None:
    clock = Clock()
    assert (clock.at(1.0), clock.round_trip_s, clock.error_of(0.0, 0.0, 1.0)) == (None, None, None)
    clock.add(1.0, 101.0, 1.001)
    clock.add(2.0, 102.5, 2.001)
    assert clock.at(2.0) is None
    assert clock.error_of(100.0, 1.0, 2.0) is None


def test_a_clock_answers_only_who_knows_the_secret() -> None:
    echo = Echo("127.0.0.1")
    asker, stranger = Asker(echo.place, echo.secret), Asker(echo.place, b"x" * 16)
    answer = asker.ask()
    assert answer is not None
    assert answer[0] <= answer[1] <= answer[2]
    assert stranger.ask() is None
    echo.close()
    assert asker.ask() is None
    asker.close()
    stranger.close()


# --- the board ---


def test_a_board_knows_the_others_by_what_it_is_told() -> None:
    board = SharedBoard(3)
    board.deal(3, [0, 2])
    board.ready(0)
    board.ready(2)
    assert not board.all_ready
    assert board.say().ready
    board.hear(Told(ready=True, pending=4.0, start_s=1.5))
    assert board.all_ready
    assert (board.pending, board.start_s) == (4, 1.5)
    assert board.admit(0, 2.0, 1, 0.0)
    assert board.admit(0, 2.0, 1, 0.0)  # nobody here can tell how many the others have sent
    assert (board.say().pending, board.say().drawn, board.pending) == (2, 2, 6)
    board.hear(Told(ready=True, pending=0.0, close_s=3.0, start_s=9.0))
    assert board.admit(0, 2.9, 1, 0.0)
    assert not board.admit(2, 3.0, 1, 0.0)
    assert (board.pending, board.start_s, board.close_s) == (3, 1.5, 3.0)  # what is settled stays
    board.deal(1, [0])  # a job of this host alone is counted here
    assert board.admit(0, 2.0, 1, 0.0)
    assert not board.admit(0, 2.1, 1, 0.0)


# --- two hosts ---


class Direct:
    """A LoadHost in this process, as a `Remote`; from its `dies`-th sync on it answers no more."""

    def __init__(self, host: LoadHost) -> None:
        self.host, self.dies, self.syncs = host, 10**9, 0

    def ask(self, method: str, *args: Any) -> Any:
        self.syncs += method == "sync"
        return None if self.syncs >= self.dies else getattr(self.host, method)(*args)

    def answer(self, asked: Any, timeout_s: float) -> Any:
        if self.syncs >= self.dies:
            raise HostLost("no answer")
        return asked

    def end(self) -> None:
        if self.syncs >= self.dies:
            self.host.close()


Two = SimpleNamespace


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[LoadHost]]:
    made = [LoadHost("127.0.0.1", workers, 3) for workers in (2, 1)]
    yield made
    for host in made:
        host.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with reference_server("--ttft", "0.03s", "--gap", "0.002s") as url:
        yield url


@pytest.fixture
def two(hosts: list[LoadHost]) -> Iterator[Two]:
    samples: list[TelemetrySample] = []
    warnings: list[str] = []
    nodes = [
        LoadNode(f"load{n + 1}", f"10.0.0.{n}", Direct(host), 2 - n, asker=Asker(*host.where()))
        for n, host in enumerate(hosts)
    ]
    load = ClusterLoad(nodes, monotonic() - 100.0, samples.append, warnings.append)
    yield Two(load=load, samples=samples, warnings=warnings, nodes=nodes)
    for node in nodes:
        if node.asker is not None:
            node.asker.close()


def drive(two: Two, folder: Path, url: str, point: Point, **more: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    server_stats(url, reset=True)
    job = Job("ref", point, 0, Target(f"{url}/v1", "openai", "reference"), Workload(input_tokens=8, output_tokens=8),
              PromptPlan(seed=3), two.load.origin_s, latency_s=0.05, timeout_s=20.0)  # fmt: skip
    journals = [str(folder / f"requests-{n:04}.arrows") for n in range(min(two.load.workers, point.concurrency or 3))]
    for path in journals:
        Path(path).touch()
    out = two.load.run(job, journals, more.get("watch", lambda figures: True))
    rows = [row for path in journals for batch in read_journal(Path(path)) for row in batch.to_pylist()]
    assert len({row["request_id"] for row in rows}) == len(rows)
    return out, rows


def of(rows: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["phase"] == phase]


def test_an_open_loop_from_two_hosts_is_one_arrival_process(two: Two, tmp_path: Path, server: str) -> None:
    seen: list[dict[str, float]] = []
    out, rows = drive(two, tmp_path, server, Point("p", "poisson", duration_s=1.0, rate_rps=60.0),
                      watch=lambda figures: seen.append(figures) is None)  # fmt: skip
    measured = of(rows, "measure")
    assert {row["worker"] for row in measured} == {0, 1, 2}
    assert out.open_s is not None
    assert out.close_s == pytest.approx(out.open_s + 1.0)
    assert all(out.open_s <= row["scheduled_s"] < out.close_s for row in measured)
    assert out.measured_ok == len(measured) == sum(row["status"] == "ok" for row in measured)
    stats = server_stats(server)
    assert stats["finished"] + stats["aborted"] == len([row for row in rows if row["sent_s"] is not None])
    assert max(figures["done"] for figures in seen) > 0
    assert {sample.source.partition("/")[0] for sample in two.samples} == {"load1", "load2"}
    assert all(90.0 < sample.time_s < 200.0 for sample in two.samples)  # on the run's clock
    assert {clock["host"] for clock in two.load.clocks} == {"load1", "load2"}
    assert out.client["clock_error_s"] == max(clock["error_s"] for clock in two.load.clocks)
    assert judge(SimpleNamespace(point=Point("p", "poisson", rate_rps=60.0), workload=None), out, None, None)[0] in (  # type: ignore[arg-type]
        "done",
        "client-limited",
    )


def test_a_window_of_requests_holds_as_many_and_a_few_more(two: Two, tmp_path: Path, server: str) -> None:
    out, rows = drive(two, tmp_path, server, Point("c3", "concurrency", requests=60, concurrency=3))
    measured = of(rows, "measure")
    assert 60 <= len(measured) <= 60 + 3 * 30  # the end is settled 0.12 s ahead; a round of talk takes a while
    assert out.open_s is not None
    assert out.close_s is not None
    error_s = (out.client["clock_error_s"] or 0.0) + 1e-3  # a time of another host is known as well as its clock
    assert all(out.open_s - error_s <= row["sent_s"] < out.close_s + error_s for row in measured)
    assert {row["status"] for row in measured} == {"ok"}
    assert {row["worker"] for row in measured} == {0, 1, 2}
    assert out.failed == 0


def test_one_stream_is_one_host_and_counts_exactly(two: Two, tmp_path: Path, server: str) -> None:
    point = Point("c1", "concurrency", requests=6, concurrency=1)
    _, rows = drive(two, tmp_path, server, point)
    assert len(of(rows, "measure")) == 6


def test_a_lost_host_ends_the_point_and_what_was_measured_stays(two: Two, tmp_path: Path, server: str) -> None:
    two.nodes[1].remote.dies = 50
    out, rows = drive(two, tmp_path, server, Point("p", "poisson", duration_s=60.0, rate_rps=40.0))
    assert out.lost is not None
    assert "load2" in out.lost
    status, error, _ = judge(SimpleNamespace(), out, None, None)  # type: ignore[arg-type]
    assert (status, error) == ("failed", out.lost)
    assert {row["worker"] for row in of(rows, "measure")} == {0, 1, 2}  # of the lost one, too
    assert [(gap["host"], gap["reason"]) for gap in two.load.gaps] == [("load2", "no answer")]
    assert two.load.workers == 2
    assert any("load2" in text for text in two.warnings)
    two.nodes[0].remote.dies = 0
    out, _ = drive(two, tmp_path, server, Point("c1", "concurrency", requests=6, concurrency=1))
    assert (out.ok, two.load.workers) == (0, 0)
    assert "load1" in (out.lost or "")
    with pytest.raises(RunError, match="no load host is left"):
        drive(two, tmp_path, server, Point("c1", "concurrency", requests=6, concurrency=1))


def test_a_reason_is_told_without_identifiers() -> None:
    text = (
        "The actor d3e3ddf3e5cb38f24da38c0f01000000 is unavailable: RpcError: Connection reset by peer rpc_code: 14. "
        "The task may or may not have been executed on the actor.\nmore"
    )
    assert _first_line(Exception(text)) == "The actor is unavailable: RpcError: Connection reset by peer rpc_code: 14."
    assert _first_line(ValueError()) == "ValueError"


def test_nobody_imports_ray_who_did_not_ask_for_a_cluster() -> None:
    code = (
        "import sys, harness.run, harness.cluster.load, harness.cluster.connect, bench.run; print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
