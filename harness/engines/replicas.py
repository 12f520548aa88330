"""`replicas: N` of an engine: so many of it, each with its own GPUs, behind a balancer with one address for all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.engines.balancer import Balancer
from harness.engines.base import LOOPBACK, Engine, Say, parallel
from harness.engines.process import claim_port
from harness.errors import EngineError
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.family import ProcessFamilySource
from harness.telemetry.nvidia import devices

SUMMED = ("weights_bytes", "kv_capacity_bytes", "kv_capacity_tokens", "kv_blocks", "max_concurrency", "parallel_slots",
          "graph_bytes", "compute_buffer_bytes", "max_num_seqs")  # fmt: skip


class Replicated:
    """The replicas of one engine as one engine. `make` gives an engine of a spec; `own_gpus`: this machine's are dealt
    out here (and not by who places the replicas)."""

    def __init__(self, spec: Any, make: Callable[[Any, int], Engine], own_gpus: bool = True) -> None:
        self.spec = spec
        self.host = LOOPBACK
        self.engines: list[Engine] = []
        self.gpus = _gpu_shares(spec) if own_gpus else [None] * spec.replicas
        for number, gpus in enumerate(self.gpus):
            env = dict(spec.env) | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None else {})
            update = {"name": f"{spec.name}.{number + 1}", "replicas": 1, "port": None, "env": env}
            self.engines.append(make(spec.model_copy(update=update), number))
        self.simulated = self.engines[0].simulated
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        self.balancer: Balancer | None = None
        self._log: Path | None = None

    def start(self, log: Path) -> None:
        self._log = log
        for number, engine in enumerate(self.engines):
            if getattr(engine, "host", None) == LOOPBACK:  # one of this machine's
                engine.host = self.host  # type: ignore[attr-defined]
            engine.start(log.with_name(f"{log.stem}.{number + 1}.log"))
        self.command, self.environment = self.engines[0].command, self.engines[0].environment

    def ready(self, say: Say) -> dict[str, float | None]:
        """The slowest replica's phases; then the balancer's start."""
        phases: dict[str, float | None] = {}
        for number, engine in enumerate(self.engines):
            for name, value in engine.ready(_numbered(say, number + 1, len(self.engines))).items():
                phases[name] = max((v for v in (phases.get(name), value) if v is not None), default=None)
        say(f"starting {self.spec.balancer}", None)
        assert self._log is not None
        port = claim_port(self.spec.port, self.spec.name, self.host)
        self.balancer = Balancer(self.spec.balancer, self.spec.name, self.host, port)
        self.balancer.start([_root(engine.target()) for engine in self.engines], self._log)
        return phases

    def target(self) -> Target:
        assert self.balancer is not None
        target = self.engines[0].target()
        return replace(target, url=target.url.replace(_root(target), self.balancer.root))

    def facts(self) -> list[Fact]:
        """Of the first replica; capacities are those of all together."""
        every = [{fact.name: fact for fact in engine.facts()} for engine in self.engines]
        balancer = self.balancer
        named = f"{balancer.kind} {balancer.version or ''}".strip() if balancer else None
        rows = [
            Fact("replicas", len(self.engines), "", "configured", "scenario"),
            Fact("balancer", named, "", "measured", "its --version"),
        ]
        if all(gpus is not None for gpus in self.gpus):
            shown = "; ".join(map(str, self.gpus))
            rows.append(Fact("replica_gpus", shown, "", "configured", "CUDA_VISIBLE_DEVICES of each"))
        for name, fact in every[0].items():
            values = [facts[name].value for facts in every if name in facts]
            numbers = [value for value in values if isinstance(value, int | float)]
            if name in SUMMED and len(numbers) == len(self.engines):
                fact = Fact(name, sum(numbers), fact.unit, fact.label, f"{fact.source}, sum of {len(numbers)} replicas")
            rows.append(fact)
        return rows

    def sources(self) -> list[Any]:
        columns = zip(*(engine.sources() for engine in self.engines), strict=False)
        found: list[Any] = [Together(list(column)) for column in columns]
        for engine in self.engines:
            found += getattr(engine, "host_sources", list)()
        if self.balancer is not None:
            family = ProcessFamilySource(self.balancer.pids)
            family.name = "balancer"
            found.append(family)
        return found

    def pids(self) -> list[int]:
        return [pid for engine in self.engines for pid in engine.pids()]

    def fault(self) -> EngineError | None:
        faults = [engine.fault() for engine in self.engines]
        return next((fault for fault in faults if fault), self.balancer.fault() if self.balancer else None)

    def stop(self) -> None:
        if self.balancer is not None:
            self.balancer.stop()
        for engine in self.engines:
            engine.stop()


class Together:
    """The same source of each replica: sums (means of ratios), and each replica's own as `replica1.running`."""

    def __init__(self, sources: list[Any]) -> None:
        self.sources = sources
        self.name, self.period_s = sources[0].name, sources[0].period_s
        self.blocking = bool(getattr(sources[0], "blocking", False))

    def read(self) -> dict[str, float]:
        """What one replica lacks is summed over none: a sum of some would look like a drop."""
        every = [source.read() for source in self.sources]
        values = {}
        for name in every[0]:
            column = [read[name] for read in every if name in read]
            if len(column) == len(every):
                values[name] = sum(column) / (len(column) if name.endswith("_ratio") else 1)
        for number, read in enumerate(every):
            values |= {f"replica{number + 1}.{name}": value for name, value in read.items()}
        return values

    def close(self) -> None:
        for source in self.sources:
            if close := getattr(source, "close", None):
                close()


def gpus_of(spec: Any) -> int:
    """How many GPUs one replica takes."""
    return parallel(getattr(spec, "args", None))


def _gpu_shares(spec: Any) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each replica; None: as it is. Raises EngineError if there are too few."""
    none: list[str | None] = [None] * spec.replicas
    if spec.simulated or "CUDA_VISIBLE_DEVICES" in spec.env:
        return none
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = (
        [str(number) for number, _ in enumerate(devices()[0])] if asked is None else [i for i in asked.split(",") if i]
    )
    if not ids:
        return none
    each = gpus_of(spec)
    if each * spec.replicas > len(ids):
        raise EngineError(
            f"engine {spec.name}: {spec.replicas} replicas of {each} GPUs each, and {len(ids)} GPUs are here",
            "ask for fewer replicas; or give `env: {CUDA_VISIBLE_DEVICES: ...}` to let all of them share",
        )
    return [",".join(ids[number * each : (number + 1) * each]) for number in range(spec.replicas)]


def _root(target: Target) -> str:
    return target.url.removesuffix("/").removesuffix("/v1")


def _numbered(say: Say, number: int, of: int) -> Say:
    return lambda text, share: say(f"replica {number} of {of}: {text}", share)
