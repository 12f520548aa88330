"""The only file that imports Ray: finds the cluster's hosts, and puts what the run needs on them."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harness import environment
from harness.cluster.agent import LoadHost
from harness.cluster.echo import Asker
from harness.cluster.enginehost import EngineHost, RemoteEngine
from harness.cluster.load import ClusterLoad
from harness.cluster.node import HostLost, LoadNode
from harness.engines import make_engine
from harness.engines.base import Engine
from harness.engines.replicas import Replicated, gpus_of
from harness.errors import InputError, RunError
from harness.records import TelemetrySample
from harness.scenario import Scenario

START_S = 60.0


@dataclass(frozen=True, slots=True)
class Host:
    """A node of the cluster that lives. `address` is the one its other nodes know it by."""

    id: str
    address: str
    cores: float
    gpus: float
    resources: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A cluster that runs already; this process leaves it at the end, and everything that it put there ends with it.

    Raises:
        InputError: Ray is not installed, or no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--cluster needs Ray", "pip install 'enginebench[ray]', on every host alike") from None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            "start one: `ray start --head` on a host, `ray start --address=HOST:6379` on the others (docs/cluster.md), "
            "and run this on one of its hosts",
        ) from None
    for number, handler in handlers.items():  # Ray takes SIGTERM for itself; Ctrl-C and SIGTERM are the tool's
        signal.signal(number, handler)
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


class Cluster:
    """The hosts of a Ray cluster, as this run may use them."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.address: str = ray.util.get_node_ip_address()

    def hosts(self) -> list[Host]:
        """All that live, in the order of their addresses."""
        found = []
        for node in self._ray.nodes():
            if node["Alive"]:
                resources = dict(node["Resources"])
                cores, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
                labels = dict(node.get("Labels") or {})
                found.append(Host(node["NodeID"], node["NodeManagerAddress"], cores, gpus, resources, labels))
        return sorted(found, key=lambda host: _numbers(host.address))

    def load_hosts(self, scenario: Scenario) -> tuple[list[Host], str | None]:
        """The hosts that make the load: those that serve no engine. A warning, where all do."""
        every = self.hosts()
        serving = {address for spec in scenario.engines if (address := _address_of(spec, self.address))}
        serving |= {host.address for spec in scenario.engines for host in self.engine_hosts(spec)}
        away = [host for host in every if host.address not in serving]
        if away:
            return away, None
        return every, "every host of the cluster serves an engine: load and engine share one, and disturb each other"

    def engine_hosts(self, spec: Any) -> list[Host]:
        """A host for each replica of an engine that is placed over the cluster (`on`, or several replicas); empty for
        one that is not.

        Raises:
            InputError: too few hosts have what it needs.
        """
        if not getattr(spec, "on", None) and getattr(spec, "replicas", 1) == 1:
            return []
        every = self.hosts()
        fit = [host for host in every if fits(host, spec.on)]
        need = gpus_of(spec) if any(host.gpus for host in every) and not spec.simulated else 0
        places = [host for host in fit for _ in range(int(host.gpus // need) if need else 1)]
        if len(places) < spec.replicas:
            raise InputError(
                f"engine {spec.name}: {spec.replicas} replicas ({need} GPUs each), room for {len(places)} on hosts "
                f"with {spec.on or 'anything'}",
                "ask for fewer, or for what `ray status` shows",
            )
        return places[: spec.replicas]

    def engine(self, spec: Any) -> Engine:
        """The engine of a scenario: on the hosts that fit it, or here, on this host's cluster address."""
        hosts = self.engine_hosts(spec)
        if not hosts:
            return make_engine(spec, self.address)
        need = float(gpus_of(spec)) if hosts[0].gpus and not spec.simulated else 0.0

        def remote(one: Any, number: int) -> Engine:
            host = hosts[number]
            actor = self.place(EngineHost, host, 0.0, one, host.address, gpus=need)
            return RemoteEngine(one, actor, f"engine{number + 1}", host.address)

        if spec.replicas == 1:
            return remote(spec, 0)
        replicated = Replicated(spec, remote, own_gpus=False)
        replicated.host = self.address
        return replicated

    def place(self, kind: type, host: Host, cores: float, *args: Any, gpus: float = 0.0) -> Actor:
        """Start an object of `kind` in a process of its own on that host."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {"num_cpus": cores, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        where = NodeAffinitySchedulingStrategy(node_id=host.id, soft=False)
        return Actor(self._ray, self._ray.remote(kind).options(scheduling_strategy=where, **options).remote(*args))

    @contextmanager
    def load(
        self, scenario: Scenario, workers: Callable[[int], int], origin_s: float,
        sample: Callable[[TelemetrySample], None], warn: Callable[[str], None], names: dict[str, str],
    ) -> Iterator[ClusterLoad]:  # fmt: skip
        """The load processes: `workers` gives how many a host of so many cores is to have, `names` what hosts were
        called before, by address.

        Raises:
            RunError: no host could be made ready.
        """
        hosts, warning = self.load_hosts(scenario)
        if warning:
            warn(warning)
        counts = [workers(int(host.cores)) for host in hosts]
        nodes = []
        free = (name for n in itertools.count(1) if (name := f"load{n}") not in names.values())
        for host, count in zip(hosts, counts, strict=True):
            actor = self.place(LoadHost, host, min(count, host.cores), host.address, count, sum(counts))
            nodes.append(LoadNode(names.get(host.address) or next(free), host.address, actor, count))
        load = ClusterLoad(nodes, origin_s, sample, warn)
        try:
            _make_ready(load)
            yield load
        finally:
            load.close()


def checked(node: LoadNode, warn: Callable[[str], None], timeout_s: float = START_S) -> None:
    """Wait until a host is ready, see that it has the same tool, and how its clock is best asked for.

    Raises:
        HostLost: it is not ready in time.
        InputError: it has another version.
    """
    node.about = node.remote.answer(node.remote.ask("about"), timeout_s)
    if node.about["tool_version"] != environment.tool_version():
        raise InputError(
            f"{node.address} has enginebench {node.about['tool_version']}, this host {environment.tool_version()}",
            "install the same version on every host",
        )
    asker = Asker(*node.remote.answer(node.remote.ask("where"), START_S))
    if any(asker.ask() for _ in range(3)):
        node.asker = asker
    else:
        asker.close()
        warn(f"no UDP packet comes back from {node.address}: its clock is asked for through Ray, less exactly")


def _make_ready(load: ClusterLoad) -> None:
    give_up_s = time.monotonic() + START_S
    for node in load.nodes:  # they have all been starting since they were placed
        try:
            checked(node, load.warn, max(give_up_s - time.monotonic(), 1.0))
        except HostLost as lost:
            load.lose(node, f"it was not ready in {START_S:.0f} s: {lost}")
    if not load.alive:
        raise RunError(
            f"no load host could be made ready: {load.nodes[0].lost if load.nodes else 'the cluster has no host'}",
            "is `enginebench[ray]` installed on each host, and are its cores free? `ray status` shows them",
        )


class Actor:
    """Something in a Ray actor, as `load.Remote` wants it."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle

    def ask(self, method: str, *args: Any) -> Any:
        return getattr(self._handle, method).remote(*args)

    def answer(self, asked: Any, timeout_s: float) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(asked, timeout=timeout_s)
        except errors.GetTimeoutError:
            raise HostLost(f"no answer for {timeout_s:.0f} s") from None
        except (errors.ActorDiedError, errors.ActorUnavailableError, errors.RayActorError) as error:
            raise HostLost(_first_line(error)) from None
        except errors.RayTaskError as error:
            raise RunError(f"on another host: {_last_line(error)}", "please report this") from None
        except errors.RayError as error:
            raise HostLost(_first_line(error)) from None

    def end(self) -> None:
        self._ray.kill(self._handle)


def fits(host: Host, wanted: dict[str, Any]) -> bool:
    """Whether a host has all that is wanted: `accelerator_type: H100`, `GPU: 2` or any resource, a label, `address`."""
    for key, value in wanted.items():
        amount = host.resources.get(key, 0.0)
        enough = isinstance(value, int | float) and not isinstance(value, bool) and amount >= value
        named = f"{key}:{value}" in host.resources or host.labels.get(key) == str(value)
        if not (enough or named or (key, value) == ("address", host.address)):
            return False
    return True


def _address_of(spec: Any, own: str) -> str | None:
    """The address of the host that serves an engine, as far as the scenario tells."""
    if getattr(spec, "on", None) or getattr(spec, "replicas", 1) > 1:
        return None  # placed over the cluster
    url = getattr(spec, "base_url", None)
    name = urlsplit(url).hostname if url else None
    return own if name in (None, "localhost", "127.0.0.1") else name


def _numbers(address: str) -> tuple[Any, ...]:
    parts = address.split(".")
    return (0, *map(int, parts)) if all(part.isdigit() for part in parts) else (1, address)


def _first_line(error: BaseException) -> str:
    """The first line of Ray's text that says something, without identifiers and advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = re.sub(r"\s*\b[0-9a-f]{24,}\b", "", lines[0]).partition(" The task may or may not")[0]
    return environment.masked(text[:300])


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return environment.masked(lines[-1][:300]) if lines else type(error).__name__
