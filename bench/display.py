"""What `bench run` shows while it works: a progress bar on a terminal, a line a point elsewhere."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.job import Outcome
from harness.records import PointRun
from harness.units import show_bytes, show_duration, significant

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WINDOW_S = 3.0
_ASKED_FOR = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # what makes rich take a pipe for a terminal


class Display:
    """An observer of a run (see `harness.run.Observer`), and the last lines under it."""

    def __init__(self, stderr: bool = False) -> None:
        self.console = _console(sys.stderr if stderr else sys.stdout)
        self._live = self.console.is_terminal
        self._bar = _bar(self.console) if self._live else _NoBar()
        self._task = self._bar.add_task("", total=1, engine="", figures="")
        self._said: tuple[str, str] = ("", "")
        self._tokens: list[tuple[float, float]] = []
        self._place = ""

    def __enter__(self) -> Display:
        return self  # the bar's thread starts with the first news: the load processes are forked before it

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def headline(self, name: str, folder: str, resumed: bool) -> None:
        self.console.print(name, style="bold", end=" ", soft_wrap=True, markup=False)
        self.console.print(f"{'goes on in' if resumed else 'to'} {folder}", soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def finish(self, table: RenderableType, page: Path) -> None:
        self._bar.stop()
        self.console.print(table)
        self.console.print(f"report: {page}", soft_wrap=True, markup=False)

    # --- told by the run ---

    def engine(self, name: str, doing: str, share: float | None) -> None:
        self._bar.start()
        self._bar.update(
            self._task, engine=name, description=doing, figures="", total=1 if share is not None else None,
            completed=share or 0,
        )  # fmt: skip
        said = (name, doing.split(": ")[0])
        if not self._live and said != self._said:
            self.console.print(f"{name}: {said[1]}", soft_wrap=True, markup=False)
        self._said = said

    def point(self, point: PointRun, number: int, of: int) -> None:
        self._tokens = []
        self._place = f"{point.point} repeat {point.repeat + 1} ({number}/{of})"
        wanted = point.load.get("requests")
        self._bar.reset(self._task, total=wanted or point.load.get("duration_s") or 1)
        self._bar.update(self._task, engine=point.engine, description=self._place, figures="ramping up")

    def progress(self, point: PointRun, figures: dict[str, float]) -> None:
        now = time.monotonic()
        self._tokens = [t for t in self._tokens if now - t[0] < _WINDOW_S] + [(now, figures["tokens"])]
        rate = (self._tokens[-1][1] - self._tokens[0][1]) / max(now - self._tokens[0][0], 1e-9)
        wanted = point.load.get("requests")
        shown = [f"{figures['measured_done']:.0f}{f'/{wanted}' if wanted else ' done'}", f"{rate:,.0f} tok/s"]
        if figures["ttft_s"]:
            shown.append(f"TTFT {show_duration(figures['ttft_s'])}")
        if (held := figures.get("gpu_memory_bytes")) is not None:
            shown.append(f"GPU {show_bytes(held)}")
        elif (held := figures.get("engine_rss_bytes")) is not None:
            shown.append(f"memory {show_bytes(held)}")
        if figures["failed"]:
            shown.append(f"[red]{figures['failed']:.0f} failed[/red]")
        done: dict[str, Any] = {"completed": figures["measured_done"]} if wanted else {}
        if not wanted and figures["window_is_open"]:
            done = {"advance": 0.2}
        if not figures["window_is_open"]:
            shown.insert(0, "ramping up")
        self._bar.update(self._task, figures="  ".join(shown), **done)

    def ended(self, point: PointRun, outcome: Outcome) -> None:
        text = f"{point.engine} {self._place}: {outcome.measured_ok} measured, {outcome.failed} failed"
        if outcome.ttft_p50_s is not None and outcome.open_s is not None and outcome.close_s is not None:
            window = significant(outcome.close_s - outcome.open_s)
            text += f", TTFT p50 {show_duration(outcome.ttft_p50_s)}, window {window} s"
        if point.status != "done":
            text += f" [{point.status}]"
        self.console.print(text, soft_wrap=True, markup=False)
        for warning in point.warnings + ([point.error] if point.error else []):
            self.console.print(f"  warning: {warning}", style="yellow", soft_wrap=True, markup=False)

    def warning(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)


def _console(stream: TextIO) -> Any:
    """Rich's console; where nobody would see what it can do, one that needs no import of it."""
    if not stream.isatty() and not any(name in os.environ for name in _ASKED_FOR):
        return _Plain(stream)
    return _rich(stream)


def _rich(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=False)


class _Plain:
    """Of rich's console what is used here, in plain text."""

    is_terminal = False

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def print(self, shown: RenderableType, end: str = "\n", **_: object) -> None:
        if isinstance(shown, str):
            print(shown, end=end, file=self.stream, flush=True)
        else:
            _rich(self.stream).print(shown)


class _NoBar:
    """In place of a bar, where nobody would see one."""

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def update(self, *_: Any, **__: Any) -> None: ...
    def reset(self, *_: Any, **__: Any) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


def _bar(console: Console) -> Any:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.fields[engine]}[/bold]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        transient=True,
        expand=True,
    )
