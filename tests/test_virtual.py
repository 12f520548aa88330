"""The way of a request through the server process in front, and through a scheduler that works a step ahead."""

from __future__ import annotations

import dataclasses

import pytest

from sizing.catalog import hardware, model, quantization
from sizing.constants import vllm_constants
from sizing.engine import Setup, memory_plan, policy, step_time
from sizing.frontend import TURNS, Frontend
from sizing.loads import Met, Offered, meet, stagger_s
from sizing.simulate import Scheduler
from sizing.speed import StepWork
from sizing.virtual import Path, SimRequest, Timeline, run_closed_loop, run_open_loop

H100, LLAMA = hardware("H100 SXM 80GB"), model("Llama-3.1-8B-Instruct")
SETUP = Setup(version="0.24.0")
PLAN = memory_plan(H100, LLAMA, quantization("bf16"), SETUP)
TIMES, RULES = step_time(H100, LLAMA, quantization("bf16"), SETUP, PLAN), policy(H100, PLAN, SETUP)


def _through(front: Frontend, until_s: float = 100.0) -> list[tuple[float, str]]:
    """(when, who) of everything that comes out."""
    found: list[tuple[float, str]] = []
    while (at_s := front.next_s()) <= until_s:
        ready, told = front.come_through(at_s)
        found += [(at_s, name) for name in ready] + [(at_s, name) for name, _ in told]
    return found


def test_a_request_alone_takes_its_own_work_and_many_at_once_come_through_together() -> None:
    alone = Frontend(0.001, 0.0)
    alone.take("a", 5.0)
    assert _through(alone) == [(pytest.approx(5.001), "a")]
    many = Frontend(0.001, 0.0)
    for index in range(64):
        many.take(str(index), 0.0)
    out = _through(many)
    assert len(out) == 64
    # The first woke the loop by itself; the others went round with each other.
    assert out[1][0] > 0.05
    assert out[-1][0] == pytest.approx(0.064)
    assert many.idle


def test_tokens_keep_a_request_waiting_and_are_written_in_turn() -> None:
    front = Frontend(0.001, 1e-4)
    front.give(100, [(9, "first", False), (99, "last", True)], 0.0)
    front.take("new", 0.0)
    out: list[tuple[float, str]] = []
    for step in range(1, 3 * TURNS):  # tokens for 10 ms come every 10 ms: the loop has time for nothing else
        out += _through(front, 0.01 * step - 1e-9)
        front.give(100, [], 0.01 * step)
    (busy_s,) = [at_s for at_s, name in out if name == "new"]
    assert busy_s > 0.01 * TURNS
    quick = Frontend(0.001, 1e-4)
    quick.give(100, [(9, "first", False), (99, "last", True)], 0.0)
    assert _through(quick) == [(pytest.approx(0.001), "first"), (pytest.approx(0.01), "last")]


def test_without_work_the_front_end_lets_all_pass_at_once() -> None:
    front = Frontend(0.0, 0.0)
    front.take("a", 1.0)
    front.give(8, [(3, "b", True)], 1.0)
    assert sorted(_through(front)) == [(1.0, "a"), (1.0, "b")]


def test_a_scheduler_that_works_ahead_takes_a_request_one_step_later() -> None:
    def second_token_steps(ahead: bool) -> int:
        scheduler = Scheduler(dataclasses.replace(RULES, scheduled_ahead=ahead), TIMES)
        scheduler.submit("old", 100, 50, 0.0)
        now_s = scheduler.step(0.0).ended_s
        result = scheduler.step(now_s)
        scheduler.submit("new", 100, 50, now_s + 1e-4)  # while that step runs
        for count in range(1, 9):
            result = scheduler.step(result.ended_s)
            if "new" in result.first_tokens:
                return count
        raise AssertionError("it never ran")

    assert second_token_steps(False) == 1
    assert second_token_steps(True) == 2  # so that its token is the third to come, counting the step under way
    assert not policy(H100, PLAN, Setup(version="0.13.0")).scheduled_ahead
    assert RULES.scheduled_ahead


def test_a_step_that_is_scheduled_after_the_last_one_waits_for_the_host() -> None:
    """results/reference/8b-ahead-or-not: 8.6 ms a token at 8 streams without, 6.9 ms with; 37 and 29 ms at 128."""
    shape, weights, fitted = model("Llama-3.1-8B-Instruct"), quantization("bf16"), vllm_constants()
    ahead, after = (step_time(H100, shape, weights, Setup(async_scheduling=on)) for on in (True, False))
    work = StepWork(0, 0, 8, 8 * 1000, 8)
    more_s = after.seconds(work) - ahead.seconds(work)
    assert more_s == pytest.approx(fitted.serial_s + 8 * fitted.serial_sequence_s)
    assert step_time(H100, shape, weights, Setup(version="0.13.0")) == after
    assert policy(H100, PLAN, Setup(version="0.13.0", async_scheduling=True)).scheduled_ahead


def test_a_server_process_that_is_full_limits_the_tokens_not_the_engine() -> None:
    def tok_s(token_s: float) -> float:
        load = [SimRequest(str(i), 64, 64) for i in range(256)]
        done = run_closed_loop(Scheduler(RULES, TIMES), load, 64, path=Path(0.0, 0.0, token_s))
        return 256 * 64 / max(t.last_token_s for t in done)

    assert tok_s(1e-3) == pytest.approx(1000, rel=0.05)
    assert tok_s(0.0) > 3000


def test_quiet_steps_count_as_their_tokens_would() -> None:
    """A lone stream leaps over its decodes: its times are those of one whose every step is looked at."""

    def run(watched: bool) -> Timeline:
        scheduler = Scheduler(RULES, TIMES)
        if watched:
            scheduler.quiet_steps = lambda: 0  # type: ignore[method-assign]
        (found,) = run_open_loop(scheduler, [SimRequest("a", 300, 90)], Path(0.002, 0.001, 1e-5))
        return found

    leapt, stepped = run(False), run(True)
    assert leapt.first_token_s == pytest.approx(stepped.first_token_s)
    assert leapt.last_token_s == pytest.approx(stepped.last_token_s, rel=1e-3)


def _met(concurrency: int, **other: float) -> Met:
    return meet(TIMES, RULES, Offered(512, 128, concurrency, **other))  # type: ignore[arg-type]


def test_a_closed_loop_of_equal_requests_falls_into_step_where_the_server_is_full() -> None:
    """results/reference: TTFT of the 8B at 16 streams 32 ms, at 256 streams 1.8 s; evenly spread it would be 0.1 s."""
    few, many = _met(16), _met(256)
    assert few.ttft_p50_s < 0.05
    assert many.ttft_p50_s > 0.4
    varied = _met(256, length_spread=0.5)
    assert varied.ttft_p50_s < many.ttft_p50_s  # lengths that vary break the step
    assert stagger_s(TIMES, RULES, Offered(512, 128, 256)) < many.request_s / 2


def test_a_window_is_measured_as_bench_run_measures_it() -> None:
    by_time, by_count = _met(16, duration_s=15.0), _met(16, measured=200)
    assert by_time.output_tok_s == pytest.approx(by_count.output_tok_s, rel=0.05)
    # Little's law: tokens that arrive in the window are of as many streams as there are.
    assert by_time.output_tok_s * by_time.request_s / 128 == pytest.approx(16, rel=0.05)
    alone = _met(1)
    assert alone.output_tok_s == pytest.approx(128 / alone.request_s, rel=0.05)


@pytest.mark.parametrize("path", [Path(), Path(front_request_s=0.0014, front_token_s=7e-5)])
def test_every_token_is_written_once(path: Path) -> None:
    written: list[tuple[float, float, float]] = []
    requests = [SimRequest(str(i), 64, 16 + i) for i in range(40)]
    done = run_closed_loop(Scheduler(RULES, TIMES, named=False), requests, 8, 0.01, path, written=written)
    assert sum(tokens for _, _, tokens in written) == pytest.approx(sum(r.output_tokens for r in requests))
    assert max(to_s for _, to_s, _ in written) <= max(t.last_token_s for t in done) + 1e-9
