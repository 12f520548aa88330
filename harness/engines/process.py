"""A child process and its whole family: started under a guard, logged to a file, ended to the last."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from harness.errors import EngineError

_GUARD = Path(__file__).with_name("guard.py")
TAIL_LINES = 15
GRACE_S = 10.0  # from SIGTERM to SIGKILL


class Child:
    """An engine's processes. None of them outlives `stop`, the tool's end by any means, or the engine's own crash."""

    def __init__(
        self, command: list[str], env: dict[str, str], log: Path, stop_command: list[str] | None = None
    ) -> None:
        self.command = command
        self.env = env
        self.log = log
        self.stop_command = stop_command
        self._guard: subprocess.Popen[bytes] | None = None
        self._control: int | None = None
        self._family: list[psutil.Process] = []

    def start(self) -> None:
        """Start the engine; its output is appended to the log.

        Raises:
            EngineError: the guard itself could not be started.
        """
        plan = json.dumps({"command": self.command, "stop_command": self.stop_command, "grace_s": GRACE_S})
        read_end, self._control = os.pipe()
        try:
            with open(self.log, "ab") as log:
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_GUARD), str(read_end), plan],
                    env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    pass_fds=[read_end], start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            os.close(self._control)
            self._control = None
            raise EngineError(
                f"{self.command[0]} could not be started: {error}",
                f"is {self.log.parent} there, and can it be written to?",
            ) from None
        finally:
            os.close(read_end)

    @property
    def alive(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._guard.poll() if self._guard else None

    def pids(self) -> list[int]:
        """The engine's processes, without the guard."""
        if self._guard is None or not self.alive:
            return []
        try:
            self._family = psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.Error:
            return []
        return [process.pid for process in self._family]

    def stop(self) -> None:
        """End the whole family and wait until it is gone. Can be called twice."""
        self.pids()
        if self._control is not None:
            with contextlib.suppress(OSError):
                os.write(self._control, b"s")
            os.close(self._control)
            self._control = None
        if self._guard is not None:
            try:
                self._guard.wait(timeout=30 if self.stop_command is None else 90)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()
            if self._guard.returncode < 0:
                self._end_orphans()
        trim_log(self.log)

    def _end_orphans(self) -> None:
        """The guard itself was killed: the engine's first process died with it, the others, as last seen, here.
        A number that belongs to another process by now is left alone."""
        for process in self._family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(self._family, timeout=5)

    def tail(self, lines: int = TAIL_LINES) -> str:
        return log_tail(self.log, lines)


def log_tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without colour codes; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text)
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def trim_log(path: Path, keep_bytes: int = 2 * 2**20) -> None:
    """Cut the middle out of a long log: an Ollama runner writes 12 KB a request."""
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        if size > 2 * keep_bytes + 4096:
            with open(path, "r+b") as file:
                file.seek(size - keep_bytes)
                end = file.read()
                file.seek(keep_bytes)
                file.write(b"\n[enginebench cut %d bytes here]\n" % (size - 2 * keep_bytes) + end)
                file.truncate()


def wait_until(child: Child, answers: Callable[[], bool], timeout_s: float, name: str) -> float:
    """Poll until the engine answers; the seconds it took.

    Raises:
        EngineError: it died (with its exit code and the log's last lines), or the time is over.
    """
    began = time.monotonic()
    while True:
        if answers() and child.alive:  # a server that answers for a dead child is a stranger on its port
            return time.monotonic() - began
        if not child.alive:
            raise EngineError(
                f"{name} ended at start with exit code {child.exit_code}",
                f"the reason is in its log: {child.log}",
                child.tail(),
            )
        if time.monotonic() - began > timeout_s:
            raise EngineError(
                f"{name} was not ready after {timeout_s:.0f} s",
                f"see its log {child.log}, or give it more time: ready_timeout: {2 * timeout_s:.0f}s",
                child.tail(),
            )
        time.sleep(0.1)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment, on loopback or another address of this machine."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def claim_port(wanted: int | None, name: str, host: str = "127.0.0.1") -> int:
    """The port to use.

    Raises:
        EngineError: the wanted one is in use; says by whom where that can be seen.
    """
    if wanted is None:
        return free_port(host)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            raise EngineError(
                f"engine {name}: port {wanted} cannot be used ({error.strerror}){_owner(wanted)}",
                "end that process, or leave out `port` and a free one is taken",
            ) from None
    return wanted


def _owner(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f"; {psutil.Process(connection.pid).name()} (pid {connection.pid}) listens on it"
    return ""
