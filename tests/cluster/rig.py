"""Hosts on one machine: network namespaces with an address each, time namespaces with a clock of their own, a network
between them that delays unevenly if it is asked to, and a Ray cluster on the first of them.

Needs root, iproute2, util-linux and ray. Whatever happens, `Rig.close` ends what runs inside its namespaces (nothing
else ever does) and removes them; what a killed test left behind is removed by the next rig.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType

RAY = Path(sys.executable).with_name("ray")
NET = "10.77.0"
STORE_BYTES = 100_000_000
READY_S = 90.0
_NUMBERS = count()


def why_not(ray: bool = True) -> str | None:
    """Why there can be no rig here; None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    if missing := [tool for tool in ("ip", "tc", "unshare", "nsenter") if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)} (apt-get install iproute2 util-linux)"
    if ray and not RAY.exists():
        return "needs ray (pip install enginebench[ray])"
    probe = ["unshare", "-n", "-T", "--monotonic", "100", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "network and time namespaces cannot be made here"
    return None


@dataclass(frozen=True)
class Delay:
    """What a host's link adds to each packet, in seconds."""

    out_s: float = 0.0
    in_s: float = 0.0
    jitter_s: float = 0.0


@dataclass
class Host:
    """A namespace: its name, address, and what its monotonic clock is ahead of the machine's, in seconds."""

    name: str
    address: str
    clock_s: int
    delay: Delay
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *words: str | Path) -> list[str]:
        """A command as it runs on this host."""
        inside = ["ip", "netns", "exec", self.name, "unshare", "-T", "--monotonic", str(self.clock_s), "--fork"]
        return [*inside, "--kill-child", *map(str, words)]

    def start(self, *words: str | Path, log: str = "out.log") -> subprocess.Popen[bytes]:
        with open(self.folder / log, "ab") as out:
            process = subprocess.Popen(
                self.command(*words), stdout=out, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            )
        self.processes.append(process)
        return process

    def run(self, *words: str | Path, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False
        )

    def kill(self) -> None:
        """End everything on this host at once, as a power cut would."""
        for _ in range(50):
            pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
            if not pids.stdout.split():
                break
            for pid in map(int, pids.stdout.split()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.processes:
            process.wait()


def environment() -> dict[str, str]:
    """What all commands on the rig get: nothing of Ray reports anywhere, and no colours."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_AUTH_MODE": "disabled"}
    quiet |= {"RAY_enable_metrics_collection": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    return {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, **quiet}


class Rig:
    """`hosts` hosts, the first `ray_nodes` of which are nodes of one Ray cluster. A context manager."""

    def __init__(self, clocks_s: list[int], delays: list[Delay] | None = None, ray_nodes: int = 3) -> None:
        if os.geteuid() == 0:
            sweep()
        self.prefix = f"ebrig{os.getpid()}x{next(_NUMBERS)}"
        self.folder = Path(tempfile.mkdtemp(prefix="ebrig-", dir="/tmp"))
        self.ray_nodes = ray_nodes
        self.delayed = delays is not None
        self.relay: subprocess.Popen[str] | None = None
        self.hosts = []
        for number, clock_s in enumerate(clocks_s):
            folder = self.folder / f"h{number}"
            folder.mkdir()
            delay = delays[number] if delays else Delay()
            self.hosts.append(Host(f"{self.prefix}-{number}", f"{NET}.{number + 1}", clock_s, delay, folder))

    def __enter__(self) -> Rig:
        try:
            self._network()
            if self.ray_nodes:
                self._ray()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- the network ---

    def _network(self) -> None:
        switch = f"{self.prefix}-sw"
        for name in [switch, *(host.name for host in self.hosts)]:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        if self.delayed and not has_netem(switch):
            self._relayed()
        else:
            self._bridged(switch)
        for host in self.hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")

    def _bridged(self, switch: str) -> None:
        """Pairs of veth on one bridge; `netem` at both ends of a link, where a delay is asked for."""
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, host in enumerate(self.hosts):
            port = f"port{number}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            for where, device, wait_s in ((host.name, "eth0", host.delay.out_s), (switch, port, host.delay.in_s)):
                if self.delayed:
                    words = [f"{wait_s * 1e6:.0f}us", f"{host.delay.jitter_s * 1e6:.0f}us"]
                    _run(["tc", "-n", where, "qdisc", "add", "dev", device, "root", "netem", "delay", *words])

    def _relayed(self) -> None:
        """The kernel has no `netem` here: a process of ours carries the packets, and delays them the same way."""
        ways = [f"{h.name}:{h.address}:{h.delay.out_s}:{h.delay.in_s}:{h.delay.jitter_s}" for h in self.hosts]
        command = ["chrt", "-r", "1", sys.executable, "-S", str(Path(__file__).with_name("relay.py")), *ways]
        self.relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.relay.stdout is not None
        if self.relay.stdout.readline().strip() != "ready":
            raise RuntimeError("the relay did not start")

    # --- Ray ---

    def _ray(self) -> None:
        head, *others = self.hosts[: self.ray_nodes]
        self.start_ray(head, "--head", f"--port={self.port}", "--include-dashboard=false")
        self._until_up(head)  # one that asks a head half started is refused
        for host in others:
            self.start_ray(host, f"--address={self.address}")
        self.until_nodes(self.ray_nodes)

    def _until_up(self, host: Host) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and host.processes[-1].poll() is None:
            if "--block" in (host.folder / "ray.log").read_text():  # its last words
                return
            time.sleep(0.1)
        raise RuntimeError(f"Ray did not start: {(host.folder / 'ray.log').read_text()[-800:]}")

    port = 6379

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{self.port}"

    def start_ray(self, host: Host, *words: str) -> None:
        fixed = ["--num-cpus=1", "--disable-usage-stats", f"--object-store-memory={STORE_BYTES}", "--block"]
        where = [f"--node-ip-address={host.address}", f"--temp-dir={host.folder}"]
        host.start(RAY, "start", *words, *fixed, *where, log="ray.log")

    def until_nodes(self, wanted: int) -> None:
        """Wait until the cluster has so many nodes."""
        code = (
            "import sys, time, ray\nfrom ray._raylet import GcsClient\nseen, began = None, time.monotonic()\n"
            f"while time.monotonic() < began + {READY_S}:\n"
            "    time.sleep(0.3)\n"
            "    try:\n"
            f"        nodes = GcsClient(address='{self.address}').get_all_node_info()\n"
            "        seen = sum(node.state == 0 for node in nodes.values())\n"
            "    except Exception as error:\n"
            "        seen = error\n"
            f"    if seen == {wanted}:\n"
            "        sys.exit()\n"
            "sys.exit(str(seen))\n"
        )
        done = self.hosts[0].run(sys.executable, "-c", code, timeout_s=READY_S + 60)
        if done.returncode == 0:
            return
        seen = done.stderr[-600:]
        logs = "\n".join(f"{h.name}: {(h.folder / 'ray.log').read_text()[-800:]}" for h in self.hosts if h.processes)
        raise RuntimeError(f"the cluster has not {wanted} nodes after {READY_S:.0f} s: {seen}\n{logs}")

    def close(self) -> None:
        """End all that runs on the hosts, and take them away."""
        for host in self.hosts:
            host.kill()
        if self.relay is not None:
            self.relay.kill()
            self.relay.wait()
            assert self.relay.stdout is not None
            self.relay.stdout.close()
        remove([f"{self.prefix}-sw", *(host.name for host in self.hosts)])
        shutil.rmtree(self.folder, ignore_errors=True)


def has_netem(namespace: str) -> bool:
    """Whether this kernel can delay packets itself."""
    added = subprocess.run(
        ["tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
        capture_output=True,
        check=False,
    )
    if added.returncode == 0:
        _run(["tc", "-n", namespace, "qdisc", "del", "dev", "lo", "root"])
    return added.returncode == 0


def remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def sweep() -> None:
    """Remove the namespaces of rigs whose process is no more, with what still runs in them."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        owner = name.removeprefix("ebrig").partition("x")[0]
        if name.startswith("ebrig") and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            Host(name, "", 0, Delay(), Path()).kill()
            remove([name])


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
