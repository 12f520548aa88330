"""A small process between the tool and an engine: it owns the engine's whole family and ends it when the tool is gone.

Run as a plain script (`python -I -S guard.py FD JSON`), so that it costs 10 MB and a few milliseconds. FD is the read
end of a pipe whose other end only the tool holds: a byte on it asks for a stop, its end (the tool closed it, or died of
whatever cause, `kill -9` too) means the same with less patience. On Linux the guard is the reaper of all its
descendants, so that a grandchild whose parent died is still found; elsewhere it ends the process group.

JSON: {"command": [...], "stop_command": [...] or null, "grace_s": s}. Exits with the engine's exit status.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ORPHAN_GRACE_S = 1.5  # the tool is gone: nobody waits for a graceful end
LINUX = sys.platform.startswith("linux")


def prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """All processes below this one, from /proc (empty where there is none)."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if LINUX else []:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += level
    return found


def start(command: list[str], control: int) -> int:
    """Fork the engine into a process group of its own; 127 if it cannot be executed.

    A SIGTERM waits until the child has the default answer to it: this process's own would lose it, and a stop right
    after the start would wait for all of its grace.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return pid
    os.setpgid(0, 0)
    os.close(control)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot execute {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def signal_family(main: int, number: int) -> bool:
    """Send a signal to the whole family; whether anybody was there.

    On Linux each descendant gets it once, and nobody else ever does: the number of the process group may belong to
    strangers as soon as its last member is gone.
    """
    found = False
    for pid in descendants() if LINUX else [-main]:
        try:
            os.kill(pid, number)
            found = True
        except OSError:
            continue
    return found


def reap(main: int) -> int | None:
    """Collect the dead; the exit status of the engine's first process if it is among them."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == main:
            status = os.waitstatus_to_exitcode(code)


def end_family(main: int, grace_s: float) -> int | None:
    """SIGTERM, then after the grace SIGKILL until nobody is left. The status of the first process, if seen."""
    status = None
    deadline = time.monotonic() + grace_s
    signal_family(main, signal.SIGTERM)
    while True:
        seen = reap(main)
        status = seen if seen is not None else status
        late = time.monotonic() >= deadline
        if not signal_family(main, signal.SIGKILL if late else 0) or time.monotonic() > deadline + 5:
            return status
        time.sleep(0.02)


def main() -> int:
    control = int(sys.argv[1])
    plan = json.loads(sys.argv[2])
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tool's to answer
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    engine = start(plan["command"], control)
    status, grace_s = None, 2.0
    while True:
        ready, _, _ = select.select([control, wake_read], [], [])
        if wake_read in ready and signal.SIGTERM in os.read(wake_read, 4096):
            break
        status = reap(engine)
        if status is not None:
            break
        if control in ready:
            grace_s = plan["grace_s"] if os.read(control, 1) else ORPHAN_GRACE_S
            break
    if plan.get("stop_command"):
        try:
            subprocess.run(plan["stop_command"], timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as error:  # the family is ended all the same
            print(f"stop_command failed: {error}", file=sys.stderr, flush=True)
    last = end_family(engine, grace_s)
    status = status if status is not None else last
    return 1 if status is None else status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
