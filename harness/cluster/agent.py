"""What runs on a load host: the same load processes as in a run of one machine, behind another transport.

A `LoadHost` lives in a Ray actor (or anywhere else: it knows nothing of Ray). Its methods are short; the tool calls
`sync` many times a second, and with each call go both ways what all hosts must agree on, the journals' new bytes, the
samples of this host's telemetry and, at the end, the outcomes.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import environment
from harness.cluster.board import Said, SharedBoard, Told
from harness.cluster.echo import Echo
from harness.errors import RunError
from harness.job import Job, Outcome
from harness.loadgen import Load
from harness.protocols import Prompt
from harness.records import TelemetrySample
from harness.telemetry.host import HostSource
from harness.telemetry.nvidia import nvidia_sources
from harness.telemetry.sampler import Sampler

BYTES_A_SYNC = 4 << 20
"""Of one journal; what is beyond comes with the next call."""


@dataclass(slots=True)
class Heard:
    """One answer of a host. `stamp_s` and the samples' times are on its own clock; `journals` are new bytes by row."""

    stamp_s: float
    said: Said = field(default_factory=Said)
    journals: dict[int, bytes] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    samples: list[TelemetrySample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed: str | None = None
    done: bool = False


class LoadHost:
    """The load processes of one host, its clock and its telemetry. `address`: by which the cluster knows the host;
    `total`: how many load processes all hosts have together."""

    def __init__(self, address: str, workers: int, total: int) -> None:
        self.echo = Echo(address)
        self.folder = Path(tempfile.mkdtemp(prefix="enginebench-"))
        self.load = Load(workers, None, lambda _, context: SharedBoard(total, context), fork=False)
        self._asked: dict[int, Any] = {}
        self._jobs: list[Job] = []
        self._read: dict[int, int] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._number = 0
        self._samples: list[TelemetrySample] = []
        self._warnings: list[str] = []
        gpus, _ = nvidia_sources()
        self.sampler = Sampler([HostSource(), *gpus], self._samples.append, origin_s=0.0,
                               on_warning=self._warnings.append)  # fmt: skip
        self.sampler.start()

    def clock(self) -> float:
        """This host's monotonic clock, now."""
        return time.monotonic()

    def where(self) -> tuple[tuple[str, int], bytes]:
        """Where the clock can be asked for faster, and the secret that it takes."""
        return self.echo.place, self.echo.secret

    def about(self) -> dict[str, Any]:
        """See `about`."""
        return about()

    def begin(self, jobs: Sequence[Job]) -> None:
        """Start this host's shares of a job: times of the run are counted from their `origin_s`, on this clock."""
        self._number += 1
        self.board.deal(jobs[0].workers, [job.worker for job in jobs])
        self._jobs = [replace(job, journal=str(self.folder / f"{self._number}-{job.worker}.arrows")) for job in jobs]
        for job in self._jobs:
            Path(job.journal).touch()
        self._read = {job.worker: 0 for job in self._jobs}
        self._outcomes = {}
        self._asked = dict(zip((job.worker for job in self._jobs), self.load.begin(self._jobs), strict=True))
        self.sampler.set_engine(jobs[0].engine)

    @property
    def board(self) -> SharedBoard:
        board = self.load.board
        assert isinstance(board, SharedBoard)
        return board

    def sync(self, told: Told, cancel: bool = False) -> Heard:
        """Hear of the others, and say what is new here."""
        heard = Heard(time.monotonic())
        self.board.hear(told)
        if cancel:
            self.load.cancel(list(self._asked.values()))
        try:
            self._collect()
        except RunError as error:
            heard.failed = str(error)
        heard.said = self.board.say()
        ended = not self._asked
        heard.journals = self._new_bytes()
        heard.outcomes = dict(self._outcomes)
        count = len(self._samples)
        heard.samples, heard.warnings = self._samples[:count], self._warnings[:]
        del self._samples[:count]
        self._warnings.clear()
        heard.done = ended and not heard.journals
        return heard

    def _collect(self) -> None:
        workers = {control: worker for worker, control in self._asked.items()}
        for control, outcome in self.load.answers(list(workers), 0.0).items() if workers else ():
            self._outcomes[workers[control]] = outcome
            del self._asked[workers[control]]

    def _new_bytes(self) -> dict[int, bytes]:
        found = {}
        for job in self._jobs:
            with open(job.journal, "rb") as file:
                file.seek(self._read[job.worker])
                data = file.read(BYTES_A_SYNC)
            if data:
                self._read[job.worker] += len(data)
                found[job.worker] = data
            elif not self._asked:
                Path(job.journal).write_bytes(b"")  # all of it is with the tool
                self._read[job.worker] = 0
        return found

    def probe(self, job: Job, prompts: Sequence[Prompt]) -> list[int | None] | str:
        """See `harness.probe`."""
        return self.load.probe(job, prompts)

    def close(self) -> None:
        """End the load processes, and leave nothing behind."""
        self.sampler.stop()
        self.echo.close()
        self.load.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)


def about() -> dict[str, Any]:
    """What must be alike on all hosts, and what a reader wants to know of this one."""
    here = environment.describe()
    kept = ("arch", "cpu_model", "cores_logical", "cores_allowed", "memory_bytes", "gpus", "driver", "kernel", "os")
    return {
        "tool_version": environment.tool_version(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{key: here.get(key) for key in kept if key in here},
    }
