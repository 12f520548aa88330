"""The driver against a reference server of known pace: phases, windows, both clocks, faults, cancelling."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from harness.arrivals import schedule
from harness.board import Board
from harness.driver import TAIL_S, Driver
from harness.job import Job, Outcome, merged
from harness.probe import probe
from harness.protocols import Target
from harness.scenario import Point, Workload
from harness.tables import read_journal
from harness.workloads import Ask, PromptPlan, fit_plan
from tests.rawserver import END, RESET, RawServer, chunked, plain, reference_server, server_stats

TTFT_S, GAP_S, TOKENS = 0.03, 0.005, 8
LATENCY_S = TTFT_S + (TOKENS - 1) * GAP_S
Rows = list[SimpleNamespace]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with reference_server("--ttft", f"{TTFT_S}s", "--gap", f"{GAP_S}s") as url:
        yield url


def make_job(folder: Path, url: str, point: Point, **more: Any) -> Job:
    values: dict[str, Any] = {
        "engine": "ref", "point": point, "repeat": 0, "target": Target(f"{url}/v1", "openai", "reference"),
        "workload": Workload(input_tokens=16, output_tokens=TOKENS), "plan": PromptPlan(seed=5),
        "origin_s": monotonic(), "journal": str(folder / "requests-0000.arrows"), "latency_s": LATENCY_S,
        "timeout_s": 60.0,
    }  # fmt: skip
    return Job(**(values | more))


def rows_of(job: Job) -> Rows:
    rows = [SimpleNamespace(**row) for batch in read_journal(Path(job.journal)) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: row.sent_s if row.sent_s is not None else row.scheduled_s)


def drive(job: Job) -> tuple[Outcome, Rows]:
    board = Board()
    out = merged(job.point, [uvloop.run(Driver(job, board).run())])
    rows = rows_of(job)
    assert board.figures()["in_flight"] == 0
    assert [row.request_id for row in sorted(rows, key=lambda row: row.request_id)] == list(range(len(rows)))
    return out, rows


def phase(rows: Rows, name: str) -> Rows:
    return [row for row in rows if row.phase == name]


def check_phases(out: Outcome, rows: Rows) -> Rows:
    """Phases come in their order, and the window holds the sends of the measured ones and no others; those."""
    order = ["warmup", "measure", "cooldown"]
    assert [row.phase for row in rows] == sorted((row.phase for row in rows), key=order.index)
    assert out.open_s is not None
    assert out.close_s is not None
    for row in rows:
        assert (out.open_s <= row.sent_s < out.close_s) == (row.phase == "measure")
    return phase(rows, "measure")


def most_in_flight(rows: Rows) -> int:
    """The largest number of requests under way at a time; one that ends as another begins makes no two."""
    steps = sorted([(row.sent_s, 1) for row in rows] + [(row.end_s, -1) for row in rows], key=lambda s: (s[0], s[1]))
    level = most = 0
    for _, step in steps:
        level += step
        most = max(most, level)
    return most


# --- closed loops ---


def test_a_closed_loop_of_requests(tmp_path: Path, server: str) -> None:
    server_stats(server, reset=True)
    slots, wanted = 4, 40
    out, rows = drive(make_job(tmp_path, server, Point("c4", "concurrency", requests=wanted, concurrency=slots)))
    measured = check_phases(out, rows)
    assert len(measured) == wanted
    assert {row.status for row in measured} == {"ok"}
    assert {row.status for row in phase(rows, "warmup")} == {"ok"}
    assert len(phase(rows, "warmup")) >= slots
    for row in measured:
        assert row.sent_s >= row.scheduled_s
        assert (row.output_tokens, row.chunks, row.token_source) == (TOKENS, TOKENS, "server")
        assert row.ttft_s == pytest.approx(row.first_token_s - row.sent_s)
        assert row.ttft_s >= TTFT_S
        assert row.e2e_s >= LATENCY_S
        assert row.tpot_s == pytest.approx((row.last_token_s - row.first_token_s) / (TOKENS - 1))
        assert len(row.gaps_s) == TOKENS - 1
        assert sum(row.gaps_s) == pytest.approx(row.last_token_s - row.first_token_s, abs=1e-4)
    assert most_in_flight(rows) <= slots
    assert out.open_s is not None
    assert out.close_s is not None
    busy_s = sum(row.e2e_s for row in measured)
    assert busy_s - slots * max(row.e2e_s for row in measured) <= slots * (out.close_s - out.open_s), (
        "more throughput than concurrency / mean latency"
    )
    stats = server_stats(server)
    done = [row for row in rows if row.status == "ok"]
    assert stats["finished"] >= len(done)
    assert sum(row.ttft_s for row in done) / len(done) >= TTFT_S
    assert (out.ok, out.failed, out.cancelled, out.first_error) == (len(done), 0, False, None)
    assert out.latency_s is not None
    assert out.latency_s >= LATENCY_S
    assert out.ttft_p50_s is not None
    assert out.ttft_p50_s >= TTFT_S


def test_the_load_is_kept_up_until_the_last_measured_one_ends(tmp_path: Path, server: str) -> None:
    slots = 4
    workload = Workload(input_tokens=16, output_tokens=40)
    point = Point("c4", "concurrency", requests=10, concurrency=slots)
    out, rows = drive(make_job(tmp_path, server, point, workload=workload))
    last = max(row.end_s for row in check_phases(out, rows))
    assert out.close_s is not None
    held = sum(max(0.0, min(row.end_s, last) - max(row.sent_s, out.close_s)) for row in rows)
    assert held / (last - out.close_s) > 0.7 * slots
    cooldown = phase(rows, "cooldown")
    assert cooldown
    assert {row.status for row in cooldown} <= {"ok", "cancelled"}
    cut = [row for row in cooldown if row.status == "cancelled"]
    assert all(row.error == "cancelled" and row.end_s >= last for row in cut)
    assert out.failed == 0


def test_a_closed_loop_of_a_duration(tmp_path: Path, server: str) -> None:
    out, rows = drive(make_job(tmp_path, server, Point("c3", "concurrency", duration_s=0.5, concurrency=3)))
    measured = check_phases(out, rows)
    assert out.open_s is not None
    assert out.close_s == pytest.approx(out.open_s + 0.5)
    assert measured
    assert {row.status for row in measured} == {"ok"}, "they are followed to their end"
    assert out.client["load_delivered_ratio"] is not None
    assert out.client["load_delivered_ratio"] <= 1.0 + 1e-9
    assert out.client["in_flight_mean"] == pytest.approx(3 * out.client["load_delivered_ratio"])


def test_a_burst_measures_all_from_the_first(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.sender.UNREAD_MAX", 0)  # each answer is read as it comes
    out, rows = drive(make_job(tmp_path, server, Point("c5", "concurrency", 12, concurrency=5, start="burst")))
    assert len(check_phases(out, rows)) == len(rows) == 12
    assert most_in_flight(rows) <= 5
    first = [row.sent_s for row in rows[:5]]
    assert max(first) < min(row.end_s for row in rows), "all slots start at once"


def test_a_warmup_job_measures_nothing(tmp_path: Path, server: str) -> None:
    out, rows = drive(make_job(tmp_path, server, Point("warmup", "concurrency", 5, concurrency=2), warmup=True))
    assert Counter(row.phase for row in rows) == {"warmup": 5}
    assert (out.open_s, out.ok) == (None, 5)
    assert out.latency_s is not None
    assert out.latency_s >= LATENCY_S
    assert out.ttft_p50_s is not None
    assert TTFT_S <= out.ttft_p50_s < out.latency_s  # what tells whether the warm-up has settled


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_all_four_apis(tmp_path: Path, server: str, api: str, dialect: Any) -> None:
    target = Target(f"{server}/v1" if dialect == "openai" else server, dialect, "reference", token_ids=True)
    workload = Workload.model_validate({"input_tokens": 16, "output_tokens": TOKENS, "api": api})
    point = Point("c2", "concurrency", 4, concurrency=2)
    _, rows = drive(make_job(tmp_path, server, point, target=target, workload=workload, save_text=True))
    assert len(phase(rows, "measure")) == 4
    for row in phase(rows, "measure"):
        assert (row.status, row.output_tokens, row.input_tokens, row.chunks) == ("ok", TOKENS, 16, TOKENS)
        assert row.text == " the" * TOKENS
        assert TTFT_S <= row.ttft_s <= row.e2e_s


# --- open loops ---


@pytest.mark.parametrize("kind", ["poisson", "constant"])
def test_an_open_loop_sends_all_that_is_due(tmp_path: Path, server: str, kind: Any) -> None:
    out_point = Point(f"{kind}-80rps", kind, requests=60, rate_rps=80.0)
    out, rows = drive(make_job(tmp_path, server, out_point))
    due = schedule(out_point, 1.0, TAIL_S, f"5/arrivals/{kind}-80rps/0").due_s
    assert out.open_s is not None
    rows.sort(key=lambda row: row.scheduled_s)
    assert [row.scheduled_s - out.open_s for row in rows] == pytest.approx(due[: len(rows)], abs=1e-6)
    measured = phase(rows, "measure")
    assert len(measured) == 60
    assert out.open_s is not None
    assert out.close_s is not None
    for row in rows:
        assert (out.open_s <= row.scheduled_s < out.close_s) == (row.phase == "measure")
        assert row.sent_s >= row.scheduled_s, "never before it is due"
    assert {row.status for row in measured} == {"ok"}
    assert out.client["load_delivered_ratio"] is not None
    assert 0 < out.client["load_delivered_ratio"] <= 1


def test_an_open_loop_of_a_duration_without_arrivals_after_it(tmp_path: Path, server: str) -> None:
    point = Point("constant-2rps", "constant", duration_s=1.2, rate_rps=2.0)
    out, rows = drive(make_job(tmp_path, server, point))
    assert out.open_s is not None
    assert out.close_s == pytest.approx(out.open_s + 1.2)
    assert out.end_s >= out.close_s
    assert len(phase(rows, "measure")) == 3, "due at 1.0, 1.5 and 2.0 s, the window at 1.0 to 2.2 s"


def test_a_stalled_server_cannot_hide_from_the_due_clock(tmp_path: Path) -> None:
    stall_s = 0.5
    with reference_server("--ttft", "30ms", "--gap", "5ms", "--stall-at", "1.4s", "--stall-for", f"{stall_s}s") as url:
        _, rows = drive(make_job(tmp_path, url, Point("c", "constant", duration_s=1.4, rate_rps=40.0)))
    measured = phase(rows, "measure")
    due_clock = [row.first_token_s - row.scheduled_s for row in measured]
    assert max(due_clock) >= stall_s, "one falls due in its first 1/40 s, and then takes the TTFT"
    assert sum(latency > 0.1 for latency in due_clock) >= 10, "each that fell due in the stall shows its share of it"
    assert any(max(row.gaps_s) >= stall_s - 0.1 for row in rows if row.gaps_s is not None and len(row.gaps_s))


# --- several load processes ---


def together(jobs: list[Job]) -> list[Outcome]:
    """Shares of one job, each with its driver, as if each were a process."""
    board = Board(len(jobs))

    async def main() -> list[Outcome]:
        return list(await asyncio.gather(*(Driver(job, board).run() for job in jobs)))

    return uvloop.run(main())


@pytest.mark.parametrize(
    "point",
    [
        Point("c5", "concurrency", requests=41, concurrency=5),
        Point("c5", "concurrency", duration_s=0.7, concurrency=5),
        Point("c5", "concurrency", requests=41, concurrency=5, start="burst"),
        Point("p", "poisson", requests=41, rate_rps=80.0),
    ],
    ids=["requests", "duration", "burst", "open"],
)
def test_two_workers_are_one_load(tmp_path: Path, server: str, point: Point) -> None:
    base = make_job(tmp_path, server, point)
    jobs = [replace(base, worker=n, workers=2, journal=str(tmp_path / f"requests-{n:04d}.arrows")) for n in (0, 1)]
    outcomes = together(jobs)
    out = merged(point, outcomes)
    shares = [rows_of(job) for job in jobs]
    rows = sorted(shares[0] + shares[1], key=lambda row: row.sent_s)
    assert [{row.worker for row in share} for share in shares] == [{0}, {1}]
    assert len({row.request_id for row in rows}) == len(rows), "ids are dealt out"
    assert outcomes[0].open_s == outcomes[1].open_s
    assert point.start == "burst" or outcomes[0].close_s == outcomes[1].close_s
    measured = phase(rows, "measure")
    assert {row.status for row in measured} == {"ok"}
    if point.requests:
        assert len(measured) == point.requests, "the count is everybody's"
    if point.rate_rps:
        plan = schedule(point, 1.0, TAIL_S, "5/arrivals/p/0")
        assert out.open_s is not None
        due = sorted(row.scheduled_s - out.open_s for row in measured)
        assert due == pytest.approx([at for at in plan.due_s if 0 <= at < plan.close_s], abs=1e-6)
    elif point.start != "burst":
        check_phases(out, rows)
        assert most_in_flight(rows) <= 5
        assert out.client["load_delivered_ratio"] == pytest.approx(1.0, abs=0.1)
        assert out.client["little_ratio"] is not None
        assert out.client["little_limit"] is not None
        assert 0.5 < out.client["little_ratio"] <= out.client["little_limit"]
    assert out.client["workers"] == 2
    assert out.measured_ok == len(measured)


# --- sessions ---


class Talk:
    """Sessions of three turns, each half again as late as asked."""

    def first(self, index: int, size: Any) -> Ask:
        return Ask(f"hello {index}", 2, TOKENS, index, last=False)

    def follow(self, ask: Ask, answer: str) -> Ask:
        assert answer, "the model's own words"
        prompt = f"{ask.prompt}{answer} and?"
        return replace(ask, prompt=prompt, turn=ask.turn + 1, think_s=0.05, last=ask.turn == 1)


@pytest.mark.parametrize(
    "point",
    [Point("c3", "concurrency", requests=24, concurrency=3), Point("p", "constant", duration_s=1.5, rate_rps=8.0)],
    ids=["closed", "open"],
)
def test_sessions_think_and_go_on(tmp_path: Path, server: str, point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.sender.make_source", lambda *_: Talk())
    out, rows = drive(make_job(tmp_path, server, point))
    sessions: dict[int, Rows] = {}
    for row in rows:
        sessions.setdefault(row.session, []).append(row)
    for turns in sessions.values():
        assert [row.turn for row in turns] == list(range(len(turns)))
        for before, after in pairwise(turns):
            assert before.status == "ok"
            assert after.scheduled_s >= before.end_s + 0.05, "the user thinks"
            assert after.status == "cancelled" or after.input_tokens > before.input_tokens
            assert before.text is None, "texts are not kept unless asked"
    assert sum(len(turns) == 3 for turns in sessions.values()) >= 4
    measured = phase(rows, "measure")
    assert len(measured) == (point.requests or len(measured))
    assert out.client["load_delivered_ratio"] is not None
    assert out.client["load_delivered_ratio"] > 0.9, "a thinking user is part of the load"


# --- prompts ---


def whole_answer(tokens: int = 2) -> bytes:
    said = b'data: {"choices":[{"index":0,"text":" a","finish_reason":"length"}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chunked(*[said] * tokens, b"data: [DONE]\n\n") + END


async def drive_raw(job: Job, server: RawServer) -> Outcome:
    target = Target(f"http://127.0.0.1:{server.port}/v1", "openai", "m")
    changed = {name: getattr(job, name) for name in Job.__dataclass_fields__} | {"target": target}
    return await Driver(Job(**changed), Board()).run()


def test_prompts_are_unique_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    async def prompts(name: str, seed: int, repeat: int = 0) -> list[str]:
        async with RawServer([whole_answer()]) as raw:
            point = Point("c3", "concurrency", requests=20, concurrency=3, start="burst")
            job = make_job(tmp_path, "", point, plan=PromptPlan(seed=seed), repeat=repeat, journal=str(tmp_path / name))
            await drive_raw(job, raw)
            return sorted(json.loads(request.partition(b"\r\n\r\n")[2])["prompt"] for request in raw.requests)

    async def main() -> list[list[str]]:
        return [await prompts("a", 1), await prompts("b", 1), await prompts("c", 2), await prompts("d", 1, repeat=1)]

    first, same, other_seed, other_repeat = uvloop.run(main())
    assert first == same
    assert len(set(first + other_seed + other_repeat)) == 60
    assert {len(prompt.split()) for prompt in first} == {16}
    starts = Counter(" ".join(prompt.split()[:3]) for prompt in first + other_seed + other_repeat)
    assert max(starts.values()) == 1, "no shared prefix that a cache could use"


def test_plans_from_probes(tmp_path: Path, server: str) -> None:
    words = PromptPlan().words
    plan = fit_plan([(10, 12), (110, 112)], words, True, 1)
    assert (plan.tokens_per_word, plan.tokens_fixed, plan.words_for(100)) == (1.0, 2.0, 98)
    assert fit_plan([(10, 25), (110, 225)], words, False, 1).words_for(100) == 50
    job = make_job(tmp_path, server, Point("probe", "concurrency", requests=1, concurrency=1))
    assert uvloop.run(probe(job, [job.plan.prompt("probe", 0, n) for n in (4, 14)])) == [4, 14]


# --- faults ---


@pytest.mark.parametrize("fault", ["500", "reset", "refused"])
def test_a_failing_server_gives_error_records_and_is_not_stormed(tmp_path: Path, fault: str) -> None:
    async def main(job: Job) -> Outcome:
        script: list[Any] = [RESET] if fault == "reset" else [plain(b'{"error":"no"}', b"HTTP/1.1 500 -")]
        async with RawServer(script) as raw:
            if fault == "refused":
                return await Driver(job, Board()).run()
            return await drive_raw(job, raw)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        job = make_job(tmp_path, url, Point("c4", "concurrency", duration_s=0.5, concurrency=4))
        out = uvloop.run(main(job))
    rows = rows_of(job)
    assert out.ok == 0
    assert phase(rows, "measure")
    assert {row.status for row in phase(rows, "measure")} == {"error"}
    want = {"500": "HTTP 500: no", "reset": "connection", "refused": "cannot connect"}[fault]
    assert out.first_error is not None
    assert out.first_error.startswith(want)
    assert all(row.first_token_s is None and row.ttft_s is None and row.output_tokens is None for row in rows)
    assert len(rows) < 4 * 10, "a slot waits 0.05, 0.1, 0.2 ... s after its failures"


def test_retry_after_is_obeyed(tmp_path: Path) -> None:
    async def main(job: Job) -> list[float]:
        busy = plain(b"{}", b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1")
        async with RawServer([busy], [whole_answer()]) as raw:
            await drive_raw(job, raw)
            return raw.arrived_s

    job = make_job(tmp_path, "", Point("c1", "concurrency", 2, concurrency=1, start="burst"))
    first, second = uvloop.run(main(job))
    assert second - first >= 1.0
    assert [(row.status, row.http_status) for row in rows_of(job)] == [("error", 429), ("ok", 200)]


@pytest.mark.parametrize(
    "point",
    [
        Point("c2", "concurrency", 4, concurrency=2),
        Point("c2", "concurrency", 4, concurrency=2, start="burst"),
        Point("p", "constant", 4, rate_rps=50.0),
    ],
    ids=["closed", "burst", "open"],
)
def test_a_fault_of_our_own_is_seen(tmp_path: Path, server: str, point: Point) -> None:
    async def main() -> None:
        driver = Driver(make_job(tmp_path, server, point), Board())

        def broken(*_: object) -> None:
            raise ArithmeticError("a fault of ours")

        driver.sender._count = broken  # type: ignore[method-assign]
        await driver.run()

    with pytest.raises(ArithmeticError):
        uvloop.run(main())


# --- cancelling ---


@pytest.mark.parametrize(
    "point",
    [
        Point("c4", "concurrency", requests=1000, concurrency=4),
        Point("c4", "concurrency", requests=1000, concurrency=4, start="burst"),
        Point("p", "poisson", duration_s=60.0, rate_rps=60.0),
    ],
    ids=["closed", "burst", "open"],
)
def test_cancelling_keeps_what_was_recorded(tmp_path: Path, server: str, point: Point) -> None:
    async def main() -> Outcome:
        driver = Driver(job, Board())
        task = asyncio.ensure_future(driver.run())
        while driver.sender.out.ok < 10 or all(x.began_answering for _, x in driver.sender.pool.under_way()):
            await asyncio.sleep(0.01)
            assert not task.done()
        task.cancel()
        return await task

    job = make_job(tmp_path, server, point, workload=Workload(input_tokens=16, output_tokens=40))
    out = uvloop.run(main())
    rows = rows_of(job)
    states = Counter(row.status for row in rows)
    assert out.cancelled
    assert states["ok"] == out.ok >= 10
    assert states["cancelled"] >= 1, "what was under way is recorded as cancelled"
    assert set(states) == {"ok", "cancelled"}
    assert out.failed == 0
    assert (out.open_s is None) == (out.close_s is None)
    if out.close_s is not None:
        assert out.close_s <= out.end_s
