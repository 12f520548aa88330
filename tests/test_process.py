"""The process family: nobody outlives a stop, a crash, or the tool's own death; and nobody else is touched."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.engines import guard, process
from harness.engines.process import Child, claim_port, free_port, log_tail, trim_log, wait_until
from harness.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard finds a family in /proc")

# Writes `role pid` for each member: a child in the first one's group; a grandchild in a session of its own whose parent
# is gone; and one in a session of its own that ignores SIGTERM, if it is asked for.
FAMILY = """
import os, signal, sys, time
def member(role):
    with open(sys.argv[1], "a") as file:
        file.write(f"{role} {os.getpid()}\\n")
    time.sleep(120)
    os._exit(0)
open(sys.argv[1], "a").close()
if os.fork() == 0:
    member("child")
if (parent := os.fork()) == 0:
    os.setsid()
    if os.fork() == 0:
        member("orphan")
    os._exit(0)
os.waitpid(parent, 0)
if "stubborn" in sys.argv and os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    member("stubborn")
if "crash" in sys.argv:
    while len(open(sys.argv[1]).readlines()) < 2:
        time.sleep(0.01)
    print("\\x1b[31mfatal\\x1b[0m: no memory", flush=True)
    os._exit(7)
member("first")
"""
PYTHON = [sys.executable, "-I", "-S"]


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Family:
    """The family's script, and who of it has said its number."""

    def __init__(self, folder: Path, *roles: str) -> None:
        script, self._said = folder / "family.py", folder / "family.txt"
        script.write_text(FAMILY)
        self.command = [*PYTHON, str(script), str(self._said), *roles]
        self.size = 2 + ("stubborn" in roles) + ("crash" not in roles)

    def pids(self) -> dict[str, int]:
        """Waits until each has said its number."""
        assert _until(lambda: self._said.exists() and len(self._said.read_text().splitlines()) == self.size)
        return {role: int(pid) for role, pid in map(str.split, self._said.read_text().splitlines())}

    def end(self) -> None:
        if self._said.exists():
            for line in self._said.read_text().splitlines():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[1]), signal.SIGKILL)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that is no engine's."""
    with subprocess.Popen(["sleep", "120"], start_new_session=True) as other:
        yield other
        assert other.poll() is None, "a process outside of the family was ended"
        other.kill()


def _child(tmp_path: Path, command: list[str], stop_command: list[str] | None = None) -> Child:
    child = Child(command, dict(os.environ), tmp_path / "engine.log", stop_command)
    child.start()
    return child


@pytest.mark.usefixtures("bystander")
def test_stop_ends_the_whole_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    family = Family(tmp_path, "stubborn")
    child = _child(tmp_path, family.command)
    members = family.pids()
    assert set(members) == {"first", "child", "orphan", "stubborn"}
    assert sorted(child.pids()) == sorted(members.values())
    assert child.alive
    assert child.exit_code is None
    child.stop()
    assert not any(map(_lives, members.values()))
    assert not child.alive
    assert child.exit_code == 128 + signal.SIGTERM
    assert child.pids() == []
    child.stop()


def test_sigterm_comes_first_and_the_exit_status_is_the_engines(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(5))\nprint('up', flush=True)\ntime.sleep(99)"
    )
    child = _child(tmp_path, [*PYTHON, "-c", code])
    assert _until(lambda: child.tail() == "up")
    began = time.monotonic()
    child.stop()
    assert child.exit_code == 5
    assert time.monotonic() - began < process.GRACE_S  # it did not wait for its grace to pass


@pytest.mark.usefixtures("bystander")
def test_a_crash_of_the_first_leaves_nobody(tmp_path: Path) -> None:
    family = Family(tmp_path, "crash")
    child = _child(tmp_path, family.command)
    members = family.pids()
    assert _until(lambda: not child.alive)
    assert child.exit_code == 7
    assert not any(map(_lives, members.values()))
    child.stop()
    assert child.tail() == "fatal: no memory"


@pytest.mark.usefixtures("bystander")
def test_kill_9_of_the_tool_leaves_nobody(tmp_path: Path) -> None:
    family, done = Family(tmp_path, "stubborn"), tmp_path / "stopped"
    code = f"""
import os, time
from pathlib import Path
from harness.engines.process import Child
Child({family.command!r}, dict(os.environ), Path({str(tmp_path / "engine.log")!r}), ["touch", {str(done)!r}]).start()
time.sleep(120)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1]) as owner:
        members = family.pids()
        owner.kill()
    gone = _until(lambda: not any(map(_lives, members.values())), 5.0)
    family.end()
    assert gone, "within 5 s"
    assert done.exists(), "stop_command did not run"


def test_killing_the_guard_ends_the_first_at_once_and_the_others_at_stop(tmp_path: Path) -> None:
    """The kernel ends the first process with the guard; `stop` ends the others, who belong to nobody, as last seen."""
    family = Family(tmp_path, "stubborn")
    child = _child(tmp_path, family.command)
    try:
        members = family.pids()
        assert len(child.pids()) == 4
        assert child._guard is not None
        child._guard.kill()
        assert _until(lambda: not _lives(members["first"]), 5.0)
        assert not child.alive
        assert child.pids() == []
        child.stop()
        assert not any(map(_lives, members.values()))
    finally:
        family.end()


def test_a_guard_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(tmp_path)
    child = _child(tmp_path, family.command)
    try:
        members = family.pids()
        assert child._guard is not None
        os.kill(child._guard.pid, signal.SIGSTOP)
        wait = child._guard.wait
        monkeypatch.setattr(child._guard, "wait", lambda timeout=None: wait(timeout and 0.2))
        child.stop()
        assert not any(map(_lives, members.values()))
    finally:
        family.end()


# --- whom the guard may touch --------------------------------------------------------------------


def test_signals_go_to_descendants_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the first process may be a stranger's by now, and so may that of its group."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(guard, "descendants", lambda: [41, 42])
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr("os.killpg", lambda *_: pytest.fail("killpg"))
    assert guard.signal_family(7, signal.SIGKILL)
    assert sent == [(41, signal.SIGKILL), (42, signal.SIGKILL)]
    monkeypatch.setattr(guard, "descendants", list)
    assert not guard.signal_family(7, signal.SIGKILL)


def test_descendants_are_ours_alone(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 120 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        found = guard.descendants()
        assert {shell.pid, grandchild, bystander.pid} <= set(found)
        assert not {os.getpid(), os.getppid(), 1, 0} & set(found)
        os.kill(grandchild, signal.SIGKILL)


def test_an_engine_inherits_no_descriptor_of_ours(tmp_path: Path) -> None:
    code = "import os\nprint(sorted(os.listdir('/proc/self/fd')), os.getpgrp() == os.getpid(), flush=True)"
    child = _child(tmp_path, [*PYTHON, "-c", code])
    assert _until(lambda: not child.alive)
    child.stop()
    assert child.tail() == "['0', '1', '2', '3'] True"  # 3: the listing itself


def test_starts_leak_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for child in [_child(tmp_path, ["true"]) for _ in range(10)]:
        child.stop()
        assert not child.alive
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_guard_that_cannot_be_started_leaks_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = Child(["true"], {}, tmp_path / "no" / "such" / "folder.log")
    with pytest.raises(EngineError, match="true could not be started"):
        child.start()
    assert len(os.listdir("/proc/self/fd")) == before
    child.stop()
    assert not child.alive


# --- stop_command --------------------------------------------------------------------------------


def test_stop_command_runs_once_while_the_engine_is_alive(tmp_path: Path) -> None:
    pid, seen = tmp_path / "pid", tmp_path / "seen"
    stop = ["sh", "-c", f"kill -0 $(cat {pid}) && echo it lives >>{seen}"]
    child = _child(tmp_path, ["sh", "-c", f"echo $$ >{pid}.part; mv {pid}.part {pid}; exec sleep 120"], stop)
    assert _until(pid.exists)
    child.stop()
    child.stop()
    assert seen.read_text() == "it lives\n"
    assert not _lives(int(pid.read_text()))


def test_stopped_before_it_is_up(tmp_path: Path) -> None:
    family = Family(tmp_path)
    child = _child(tmp_path, family.command)
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < process.GRACE_S, "the SIGTERM found nobody"
    assert not child.alive
    assert not any(family.command[3] in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


@pytest.mark.parametrize("command", [["/no/such/program"], ["sh", "-c", "exit 3"]])
def test_a_stop_command_that_fails_leaves_nobody(tmp_path: Path, command: list[str]) -> None:
    family = Family(tmp_path)
    child = _child(tmp_path, family.command, command)
    try:
        members = family.pids()
        child.stop()
        assert not any(map(_lives, members.values()))
        assert child.exit_code == 128 + signal.SIGTERM
        assert ("stop_command failed" in child.tail()) == (command == ["/no/such/program"])
    finally:
        family.end()


# --- what is said about it -----------------------------------------------------------------------


def test_an_engine_that_dies_at_start_is_explained_by_its_log(tmp_path: Path) -> None:
    code = "for i in range(40): print(f'\\x1b[1;31mline {i}\\x1b[0m   ')\nraise SystemExit(3)"
    child = _child(tmp_path, [*PYTHON, "-c", code])
    with pytest.raises(EngineError, match="engine v ended at start with exit code 3") as caught:
        wait_until(child, lambda: False, 30, "engine v")
    child.stop()
    assert caught.value.log_tail.splitlines() == [f"line {i}" for i in range(25, 40)]
    assert str(tmp_path / "engine.log") in caught.value.remedy


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    child = _child(tmp_path, ["/no/such/engine"])
    with pytest.raises(EngineError, match="exit code 127") as caught:
        wait_until(child, lambda: False, 30, "engine v")
    child.stop()
    assert caught.value.log_tail == "cannot execute /no/such/engine: No such file or directory"


def test_a_killed_engine_has_a_shells_exit_code(tmp_path: Path) -> None:
    child = _child(tmp_path, ["sh", "-c", "kill -SEGV $$"])
    assert _until(lambda: not child.alive)
    child.stop()
    assert child.exit_code == 128 + signal.SIGSEGV


def test_an_engine_that_is_never_ready(tmp_path: Path) -> None:
    child = _child(tmp_path, ["sh", "-c", "echo loading; sleep 120"])
    assert _until(lambda: child.tail() == "loading")
    with pytest.raises(EngineError, match=r"engine v was not ready after 0 s") as caught:
        wait_until(child, lambda: False, 0.2, "engine v")
    child.stop()
    assert caught.value.log_tail == "loading"
    assert "ready_timeout" in caught.value.remedy


def test_a_stranger_that_answers_for_a_dead_engine_is_not_believed(tmp_path: Path) -> None:
    """Another server took the port first: the engine dies of it, and the stranger's answers are not the engine's."""
    child = _child(tmp_path, ["sh", "-c", "echo address in use; exit 1"])
    assert _until(lambda: not child.alive)
    with pytest.raises(EngineError, match="exit code 1") as caught:
        wait_until(child, lambda: True, 30, "engine v")
    child.stop()
    assert caught.value.log_tail == "address in use"


def test_ready_tells_how_long_it_took(tmp_path: Path) -> None:
    child = _child(tmp_path, ["sleep", "120"])
    answers = iter([False, False, True])
    assert 0.2 <= wait_until(child, lambda: next(answers), 30, "engine v") < 10
    child.stop()


def test_log_tail_shows_text_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_tail(log) == ""
    log.write_bytes(b"\x1b[?25l\x1b[2K\x1b[1Gpulling\r\x1b[38;5;1mdone\x1b[0m\n\n  \n\xff broken \n")
    assert log_tail(log).splitlines() == ["pulling", "done", "\ufffd broken"]
    log.write_text("x" * 200_000 + "\n" + "".join(f"{i}\n" for i in range(20)))
    assert log_tail(log, 3) == "17\n18\n19"


def test_a_long_log_loses_its_middle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 5000 + b"b" * 90_000 + b"c" * 5000)
    trim_log(log, 5000)
    text = log.read_bytes()
    assert text.startswith(b"a" * 5000 + b"\n[enginebench cut 90000 bytes here]\n")
    assert text.endswith(b"\n" + b"c" * 5000)
    trim_log(log, 5000)
    assert log.read_bytes() == text
    trim_log(tmp_path / "none")


# --- ports ---------------------------------------------------------------------------------------


def test_a_port_in_use_names_who_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(EngineError, match=f"engine v: port {port} cannot be used") as caught:
            claim_port(port, "v")
    assert f"(pid {os.getpid()}) listens on it" in str(caught.value)
    assert caught.value.remedy
    assert claim_port(port, "v") == port
    assert claim_port(None, "v") > 1023


def test_a_server_on_all_addresses_takes_the_port_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server, pytest.raises(EngineError):
        claim_port(server.getsockname()[1], "v")


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
