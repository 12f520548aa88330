"""`bench ARGS` in processes of their own that need not import everything anew: most of a short command's time is that.

A server that has all modules loaded, and has done nothing else, forks for each command. Tests that end a command by a
signal, or look at what is imported, start a real one instead (`cli.started`).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO


class Server:
    """The process that forks. One command at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1], start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self, args: list[str], env: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """`bench ARGS` in this directory to its end; raises subprocess.TimeoutExpired."""
        with tempfile.TemporaryDirectory(prefix="enginebench-cli-") as work:
            said = [Path(work) / name for name in ("stdout", "stderr")]
            _tell(self.process.stdin, {"args": args, "env": env, "cwd": os.getcwd(), "said": [str(p) for p in said]})
            assert self.process.stdout is not None
            pid, late = int(self.process.stdout.readline()), threading.Event()

            def end() -> None:
                late.set()
                os.kill(pid, 9)

            timer = threading.Timer(timeout_s, end)
            timer.start()
            code = int(self.process.stdout.readline())
            timer.cancel()
            timer.join()
            out, err = (path.read_text(encoding="utf-8", errors="replace") for path in said)
        if late.is_set():
            raise subprocess.TimeoutExpired(args, timeout_s, out, err)
        return subprocess.CompletedProcess(args, code, out, err)


@functools.cache
def server() -> Server:
    return Server()


def _tell(pipe: IO[str] | None, message: object) -> None:
    assert pipe is not None
    pipe.write(f"{json.dumps(message)}\n")
    pipe.flush()


def main() -> None:
    """The server: a JSON line in, the pid and then the exit code out."""
    for package in ("bench", "harness", "reports", "sizing"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__") and "ray" not in module.name:
                importlib.import_module(module.name)
    for line in sys.stdin:
        wanted = json.loads(line)
        if (pid := os.fork()) == 0:
            _command(wanted)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _command(wanted: dict[str, list[str]]) -> None:
    """In the child: what a fresh interpreter would do from here on."""
    from bench.app import main as bench

    for fd, path in enumerate([os.devnull, *wanted["said"]]):
        opened = os.open(path, os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), "rww")
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(str(wanted["cwd"]))
    sys.argv = ["bench", *wanted["args"]]
    code = 0
    try:
        bench()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
