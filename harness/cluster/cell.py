"""One engine of a run, measured whole on another host: engine, load and telemetry there, as in a run of one machine.

A `Cell` lives in a Ray actor, and only looks after a process of its own (this file run as a module): in that there is
no Ray, and load processes are forked as ever. Its run folder goes home as it grows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cluster.agent import about
from harness.cluster.echo import Echo
from harness.engines.process import Child
from harness.errors import BenchError, InputError
from harness.records import RunRecord
from harness.scenario import from_resolved
from harness.store import RunFolder

GIVEN = "ENGINEBENCH_CELL"
"""The scenario, with what a run folder must not hold, reaches the process by its environment."""


@dataclass(slots=True)
class Taken:
    """What is new of a cell. `streams`: new bytes of its journals by name; `record`: what it says of itself, once all
    rows of what it calls finished are in the streams; `tables`: at its end, its Parquet files, instead of streams."""

    record: RunRecord | None = None
    streams: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)
    ended: bool = False
    said: str = ""


class Cell:
    """One engine's part of a run, on this host. `address`: by which the cluster knows it."""

    def __init__(self, address: str) -> None:
        self.echo = Echo(address)
        self.folder = Path(tempfile.mkdtemp(prefix="enginebench-"))
        self.child: Child | None = None
        self._read: dict[str, int] = {}

    def clock(self) -> float:
        return time.monotonic()

    def where(self) -> tuple[tuple[str, int], bytes]:
        """See `LoadHost.where`."""
        return self.echo.place, self.echo.secret

    def about(self) -> dict[str, Any]:
        """See `LoadHost.about`."""
        return about()

    def begin(self, scenario: dict[str, Any], record: RunRecord, origin_s: float) -> None:
        """Start to measure what is pending in `record`. `origin_s`: the run's start on this host's clock."""
        record.started_monotonic_s = origin_s
        RunFolder.create(self.folder / "run").write_run(record)
        command = [sys.executable, "-m", "harness.cluster.cell", str(self.folder / "run")]
        env = {**os.environ, GIVEN: json.dumps(scenario)}
        env.pop(
            "OMP_NUM_THREADS", None
        )  # Ray's, of the one core that the actor asked for: an engine takes what it finds
        self.child = Child(command, env, self.folder / "cell.log")
        self.child.start()

    def take(self) -> Taken:
        """What is new since the last call."""
        assert self.child is not None
        ended = not self.child.alive
        run = self.folder / "run"
        taken = Taken(ended=ended, said=self.child.tail() if ended else "")
        taken.record = RunFolder.open(run).read_run()
        if ended:
            with contextlib.suppress(BenchError, OSError):
                RunFolder.open(run).compact()  # it was killed before it could
            taken.tables = {path.stem: path.read_bytes() for path in run.glob("*.parquet")}
        else:
            before = {name for name in self._read if name.endswith((".arrows", ".jsonl"))}
            taken.streams = self._new(list((run / "journal").glob("*-*.*")))
            if not all((run / "journal" / name).exists() for name in before):
                taken.record = None  # it ends at this moment: the tables will hold everything
        taken.logs = self._new(list(run.glob("*.log")))
        return taken

    def _new(self, paths: list[Path]) -> dict[str, bytes]:
        found = {}
        for path in paths:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(self._read.get(path.name, 0))
                data = file.read()
                self._read[path.name] = self._read.get(path.name, 0) + len(data)
                if data:
                    found[path.name] = data
        return found

    def close(self) -> None:
        """End whatever runs, and leave nothing behind."""
        if self.child is not None:
            self.child.stop()
        self.echo.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Silent:
    """An observer whom nobody sees: the tool looks into the folder."""

    def engine(self, *_: Any) -> None: ...
    def point(self, *_: Any) -> None: ...
    def progress(self, *_: Any) -> None: ...
    def ended(self, *_: Any) -> None: ...
    def warning(self, text: str) -> None: ...


def main() -> int:
    """Measure into the folder that is named."""
    from harness.run import run

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    scenario = from_resolved(json.loads(os.environ.pop(GIVEN)))
    folder = RunFolder.open(Path(sys.argv[1]))
    try:
        run(scenario, folder, Silent(), folder.read_run())
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        print(f"{error}; {error.remedy}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
