"""What is sampled while a run goes on: host, GPUs and processors from its start, and each engine while it lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from harness.engines.base import Engine
from harness.lines import LineJournal
from harness.records import Fact, RunRecord, TelemetrySample
from harness.telemetry.family import FamilyDetailSource, ProcessFamilySource, disk_read_bytes
from harness.telemetry.host import CoresSource, HostSource
from harness.telemetry.nvidia import Gpu, NvidiaEnergySource, NvidiaSource, nvidia_sources
from harness.telemetry.nvidia_detail import GpuWatch, NvidiaDetailSource, NvidiaPcieSource
from harness.telemetry.rapl import rapl_sources
from harness.telemetry.sampler import Sampler

QUIET_MAX_S = 15.0
EDGE_WAIT_S = 0.1
LOOK_S = 0.1
MEMORY = {("nvidia", "memory_used_bytes"), ("process", "rss_bytes")}
IDLE_S = 6.0  # NVML's power is a mean over a second, and is read twice in one


class Watch:
    """The sampler of one run and all that it reads. Use as a context; times are seconds from the run's start.
    `also` gets every sample, too."""

    def __init__(
        self, journal: LineJournal, record: RunRecord, warn: Callable[[str], None],
        also: Callable[[TelemetrySample], None] | None = None,
    ) -> None:  # fmt: skip
        self._also = also
        self._journal, self._record = journal, record
        self._gpus = GpuWatch(lambda: self.now())
        gpus, no_gpu = nvidia_sources(make=self._of_gpu)
        packages, no_package = rapl_sources()
        # What is read at both ends of a point, too; PCIe's traffic is no counter, and takes 42 ms to ask for.
        self._counters: list[Any] = [*(gpu for gpu in gpus if not isinstance(gpu, NvidiaPcieSource)), *packages]
        self._of_engine: list[Any] = []
        self._idle: list[TelemetrySample] | None = None
        self._now: dict[tuple[str, str], float] = {}
        self._memory: dict[str, float] = {}
        self._loaded = False
        self._edges = 0
        record.environment["energy_sources"] = {
            "gpu": no_gpu or "NVML's energy counter, where the GPU has one, else the integral of the sampled power",
            "cpu": no_package or "RAPL counters of packages and memory",
        }
        sources = [HostSource(), CoresSource(), *gpus, *packages]
        self._sampler = Sampler(sources, self._take, origin_s=record.started_monotonic_s, on_warning=warn)

    def __enter__(self) -> Watch:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.stop()
        self._journal.close()
        self._record.environment |= {
            "telemetry_cost_ratio": self._sampler.cost_ratio, "telemetry_missed": self._sampler.missed,
            "telemetry_paces": self._sampler.paces,
        }  # fmt: skip

    def now(self) -> float:
        return time.monotonic() - self._record.started_monotonic_s

    def idle(self, say: Callable[[], None]) -> None:
        """Before any engine starts: what this machine takes when it does nothing, once a run (`IDLE_S`, and only where
        power can be measured)."""
        if not self._counters or "idle_power_w" in self._record.environment:
            return
        say()
        self._idle = []
        self.refresh()
        from_s = self.now()
        time.sleep(IDLE_S)
        self.refresh()
        samples, self._idle = self._idle, None
        self._record.environment |= {
            "idle_power_w": idle_power_w(samples), "idle_window_s": [from_s, self.now()],
        }  # fmt: skip

    def engine_starts(self, engine: Engine, name: str) -> None:
        """From now on samples carry its name, and what its processes hold on a GPU is its own."""
        self._loaded = False
        self._sampler.set_engine(name)
        self._gpus.engine(engine.pids)

    def engine_started(self, engine: Engine) -> None:
        """It has processes."""
        if engine.command:
            family = ProcessFamilySource(engine.pids)
            self._counters.append(family)  # so that the shortest window has its CPU and memory, too
            self._add([family, FamilyDetailSource(family.members)])

    def engine_ready(self, engine: Engine) -> list[Fact]:
        """It serves: what it says of itself is read, too. What was seen of its start, as facts."""
        sources = engine.sources()
        self._counters += sources
        self._add(sources)
        read_bytes = disk_read_bytes(engine.pids())
        if read_bytes is None:
            return []
        return [Fact("load_disk_read_bytes", read_bytes, "bytes", "measured", "/proc/PID/io once it was ready")]

    def engine_stops(self) -> None:
        """Nothing of it is read any more."""
        for source in self._of_engine:
            self._sampler.remove(source)
        self._counters = [source for source in self._counters if source not in self._of_engine]
        self._of_engine = []
        self._memory.pop("process", None)

    def engine_stopped(self) -> None:
        self._gpus.engine(None)
        self._sampler.set_engine(None)

    def refresh(self) -> float:
        """Read every counter now, so that what it grew by between two such moments is known; when this began."""
        began_s = self.now()
        self._sampler.refresh(self._counters)
        return began_s

    def window(self, open_s: float | None, close_s: float | None) -> None:
        """Told again and again while a load runs when its window opens and closes, as far as that is known: every
        counter is read once each has passed, so that what it grew by inside is not spread over seconds of ramp."""
        passed = sum(at_s is not None and at_s <= self.now() for at_s in (open_s, close_s))
        if passed > self._edges:
            self._sampler.refresh(self._counters, EDGE_WAIT_S)
        self._edges = passed

    def cool_down(self, pause_s: float) -> str | None:
        """Wait until the engine says that nothing is under way (`QUIET_MAX_S` at most), and then `pause_s` if a load
        went before; a warning where it is still at work."""
        give_up_s = self.now() + QUIET_MAX_S
        self._edges = 0
        while (left := self._under_way()) and self.now() < give_up_s:
            time.sleep(LOOK_S)
        if self._loaded:
            time.sleep(pause_s)
        self._loaded = True
        if not left:
            return None
        return (
            f"{left:.0f} requests of the load before, or of another client, were still under way after "
            f"{QUIET_MAX_S:g} s: they slow this one down, and the server counts them with its own"
        )

    def _under_way(self) -> float:
        """Requests that run or wait in the engine now; 0 where it does not say."""
        self._now.clear()
        self._sampler.refresh([source for source in self._of_engine if source in self._counters])
        return sum(self._now.values())

    def memory(self) -> dict[str, float]:
        """What is held now, for a display: `gpu_memory_bytes` of all GPUs, `engine_rss_bytes`, as far as known."""
        held = dict(self._memory)
        of_gpus = [value for source, value in held.items() if source.startswith("nvidia")]
        found = {"gpu_memory_bytes": sum(of_gpus)} if of_gpus else {}
        return found | ({"engine_rss_bytes": held["process"]} if "process" in held else {})

    def strangers(self, since_s: float) -> list[str]:
        """Warnings of other processes that were on a GPU since then."""
        return self._gpus.warnings(since_s, self.now())

    def _of_gpu(self, nvml: Any, gpu: Gpu) -> list[Any]:
        detail = [NvidiaDetailSource(nvml, gpu, self._gpus), NvidiaPcieSource(nvml, gpu)]
        return [NvidiaSource(nvml, gpu), NvidiaEnergySource(nvml, gpu), *detail]

    def _add(self, sources: list[Any]) -> None:
        self._of_engine += sources
        for source in sources:
            self._sampler.add(source)

    def _take(self, sample: TelemetrySample) -> None:
        if sample.metric in ("running", "waiting", "deferred"):
            self._now[sample.source, sample.metric] = sample.value
        elif (sample.source.partition(":")[0], sample.metric) in MEMORY:
            self._memory[sample.source] = sample.value
        self._journal.add(sample)
        if self._also is not None:
            self._also(sample)
        if self._idle is not None:
            self._idle.append(sample)
        if self._journal.due():
            self._journal.flush()


def idle_power_w(samples: list[TelemetrySample]) -> dict[str, float]:
    """The mean power of each device over these samples: by its energy counter where it has one, else of its power."""
    found = {}
    for source in sorted({sample.source for sample in samples}):
        energy = sorted((s.time_s, s.value) for s in samples if (s.source, s.metric) == (source, "energy_j"))
        power = [s.value for s in samples if (s.source, s.metric) == (source, "power_w")]
        span_s = energy[-1][0] - energy[0][0] if energy else 0.0
        if span_s > IDLE_S / 2:
            found[source] = (energy[-1][1] - energy[0][1]) / span_s
        elif power:
            found[source] = sum(power) / len(power)
    return found
