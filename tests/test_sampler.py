"""The sampler: its deadlines on a fake clock, and in real threads."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise

import pytest

from harness.records import TelemetrySample
from harness.telemetry import sampler as sampling
from harness.telemetry.sampler import Sampler
from tests.sources import Clock, Counting, Scripted


def _drive(sampler: Sampler, clock: Clock, until_s: float) -> None:
    """What the threads do, without them: go from deadline to deadline."""
    while clock() < until_s:
        dues = [due for lane in sampler._lanes if (due := lane.run_due()) is not None]
        clock.now_s = max(clock.now_s, min(dues))


def test_deadlines_are_absolute_and_lateness_never_adds_up() -> None:
    clock = Clock()
    quick, slow = Scripted(clock, 1.0, 0.3, "quick"), Scripted(clock, 2.5, 0.0, "slow")
    samples: list[TelemetrySample] = []
    sampler = Sampler([quick, slow], samples.append, clock)
    _drive(sampler, clock, 110.0)
    assert quick.reads_s == pytest.approx([100.0 + k for k in range(10)])
    assert [sample.time_s for sample in samples if sample.source == "quick"][:3] == pytest.approx([0.15, 1.15, 2.15])
    assert slow.reads_s == pytest.approx([100.3, 102.5, 105.3, 107.5])  # after quick, where both are due at once
    assert sampler.missed == 0


def test_a_late_source_skips_what_it_missed() -> None:
    clock = Clock()
    source = Scripted(clock, 1.0, 2.2)
    sampler = Sampler([source], lambda sample: None, clock)
    _drive(sampler, clock, 109.0)
    assert source.reads_s == pytest.approx([100.0, 103.0, 106.0])
    assert sampler.missed == 6


def test_a_broken_source_is_reported_once_and_tried_ever_more_slowly() -> None:
    clock = Clock()
    source, other = Scripted(clock), Scripted(clock, name="other")
    source.answer = OSError("gone")
    warnings: list[str] = []
    samples: list[TelemetrySample] = []
    sampler = Sampler([source, other], samples.append, clock, on_warning=warnings.append)
    _drive(sampler, clock, 200.0)
    assert [b - a for a, b in pairwise(source.reads_s)] == [2, 4, 8, 16, 30, 30]
    assert len(other.reads_s) == 100
    assert len(warnings) == 1
    assert warnings[0].startswith("telemetry s: gone")

    source.answer = {"x": 1.0}
    tried = len(source.reads_s)
    _drive(sampler, clock, 250.0)
    assert {round(b - a) for a, b in pairwise(source.reads_s[tried:])} == {1}
    source.answer = OSError("gone again")
    _drive(sampler, clock, 255.0)
    assert len(warnings) == 1


def test_what_all_takes_too_much_is_read_less_often() -> None:
    clock, cpu = Clock(), Clock(0.0)

    class Dear(Scripted):
        def read(self) -> dict[str, float]:
            cpu.now_s += {"dear": 0.035, "cheap": 0.003}[self.name]
            return super().read()

    dear, cheap = Dear(clock, name="dear"), Dear(clock, name="cheap")
    warnings: list[str] = []
    sampler = Sampler([dear, cheap], lambda sample: None, clock, on_warning=warnings.append, cpu_clock=cpu)
    _drive(sampler, clock, 200.0)
    # 3.8 % of a core: the dear one every 2 s, every 4 s (1.2 % in all), then every 8 s (0.7 %), and no further.
    assert {b - a for a, b in pairwise(dear.reads_s[-10:])} == {8.0}
    assert {b - a for a, b in pairwise(cheap.reads_s)} == {1.0}
    assert sampler.paces["dear"] == {"period_s": 8.0, "read_cpu_s": pytest.approx(0.035)}
    (text,) = warnings
    assert text.startswith("telemetry dear: a read takes 35.0 ms of CPU; it is read only every 8 s or less often")


def test_a_read_that_was_disturbed_slows_nothing_down() -> None:
    clock, cpu = Clock(), Clock(0.0)

    class Disturbed(Scripted):
        def read(self) -> dict[str, float]:
            cpu.now_s += 5.0 if len(self.reads_s) % 8 == 0 else 0.001  # the first one, too
            return super().read()

    source = Disturbed(clock)
    sampler = Sampler([source], lambda sample: None, clock, cpu_clock=cpu)
    _drive(sampler, clock, 150.0)
    assert sampler.paces["s"]["period_s"] == 1.0


def test_samples_are_labelled_and_never_not_a_number() -> None:
    clock = Clock()
    source = Scripted(clock)
    source.answer = {"x": 2.0, "nan": math.nan, "inf": math.inf}
    samples: list[TelemetrySample] = []
    sampler = Sampler([source], samples.append, clock, origin_s=90.0)
    _drive(sampler, clock, 101.0)
    sampler.set_engine("a")
    _drive(sampler, clock, 102.0)
    assert samples == [TelemetrySample(10.0, None, "s", "x", 2.0), TelemetrySample(11.0, "a", "s", "x", 2.0)]


def test_sources_come_and_go() -> None:
    clock = Clock()
    first, second = Scripted(clock), Scripted(clock)
    sampler = Sampler([first], lambda sample: None, clock)
    _drive(sampler, clock, 102.0)
    clock.now_s = 102.4
    sampler.add(second)
    _drive(sampler, clock, 104.0)
    sampler.remove(first)
    _drive(sampler, clock, 106.0)
    assert first.reads_s == pytest.approx([100, 101, 102.4, 103])
    assert second.reads_s == pytest.approx([102.4, 103.4, 104.4, 105.4])
    sampler.stop()
    assert (first.closed, second.closed) == (False, True)


def test_threads_read_stop_and_count_their_cost() -> None:
    local, http = Counting("local", 20), Counting("http", 20, blocking=True)
    samples: list[TelemetrySample] = []
    sampler = Sampler([local], samples.append)
    sampler.start()
    sampler.add(http)
    assert local.done.wait(10)
    assert http.done.wait(10)
    sampler.stop()
    seen = len(samples)
    assert len(local.threads) == len(http.threads) == 1
    assert local.threads != http.threads
    assert [s.value for s in samples if s.source == "local"] == [float(k + 1) for k in range(local.reads)]
    times = [s.time_s for s in samples if s.source == "local"]
    assert times == sorted(times)
    assert 0 < sampler.cost_ratio < 1
    time.sleep(0.03)
    assert len(samples) == seen
    sampler.stop()


def test_a_source_is_read_once_more_when_that_is_asked_for() -> None:
    sources = counter, broken, other = (
        Counting("counter", 1, blocking=True),
        Counting("broken", 1),
        Counting("other", 1),
    )
    for source in sources:
        source.period_s = 30.0  # no deadline comes in this test
    samples: list[TelemetrySample] = []
    sampler = Sampler(sources, samples.append)
    sampler.start()
    assert all(source.done.wait(10) for source in sources)

    def fail() -> dict[str, float]:
        raise OSError("gone")

    broken.read = fail  # type: ignore[method-assign]
    before_s = time.monotonic()
    sampler.refresh([counter, broken])
    sampler.refresh([counter, broken])  # one that failed is asked again, and waited for no longer than its answer takes
    assert time.monotonic() - before_s < sampling.REFRESH_S
    assert (counter.reads, other.reads, sampler.missed) == (3, 1, 0)
    assert (samples[-1].source, samples[-1].value) == ("counter", 3.0)
    sampler.stop()
    sampler.refresh([counter])
    assert counter.reads == 3


def test_a_hanging_source_delays_neither_the_others_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "STOP_S", 0.2)
    release = threading.Event()
    hanging, local = Counting("http", 1, blocking=True, hang=release), Counting("local", 20)
    samples: list[TelemetrySample] = []
    sampler = Sampler([hanging, local], samples.append)
    sampler.start()
    assert hanging.done.wait(10)
    assert local.done.wait(10)
    began_s = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began_s < 10
    release.set()
    sampler._lanes[1].thread.join(10)
    assert {sample.source for sample in samples} == {"local"}  # what came after the end is not passed on
