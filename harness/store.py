"""The run folder: run.json, an append-only journal while a run goes on, columnar files after.

Opening a folder or writing run.json does not load pyarrow: the tool's own process does without it while it measures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from harness.errors import InputError
from harness.lines import LineJournal
from harness.records import SCHEMA_VERSION, EngineRun, Fact, Finding, PointRun, RunRecord, TelemetrySample

if TYPE_CHECKING:
    import pyarrow as pa

_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


class RunFolder:
    """One run on disk. Opening reads only run.json; tables are read when asked for.

    Raises:
        InputError: at `open`: the folder holds no readable run, or one of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = path / "journal"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make the folder. One that holds a run already is refused: nothing measured is ever overwritten."""
        if (path / "run.json").exists():
            raise InputError(
                f"{path} holds a run already",
                f"give another --out, or continue that run with: bench run --resume {path}",
            )
        _refuse_odd_name(path)
        try:
            (path / "journal").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made: {error.strerror}", "give another --out") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        if path.is_file():
            there = (path.parent / "run.json").is_file()
            remedy = f"name the run folder: {path.parent}" if there else "`bench list` shows the runs there are"
            raise InputError(f"{path} is a file, not a run folder", remedy)
        if not (path / "run.json").is_file():
            raise InputError(f"{path} holds no run (no run.json)", "`bench list` shows the runs there are")
        _refuse_odd_name(path)
        return cls(path)

    def lock(self) -> None:
        """Keep other tools out until this process ends.

        Raises:
            InputError: another process measures into this folder.
        """
        with contextlib.suppress(ImportError):  # Windows has no fcntl: there it is left to the user
            import fcntl

            try:
                lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the process ends
            except OSError as error:
                raise InputError(f"{self.path}: cannot be written: {error.strerror}", "check its permissions") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise InputError(f"another bench run measures into {self.path}", "wait for it to end") from None
            self._lock = lock

    def write_run(self, run: RunRecord) -> None:
        """Replace run.json as a whole: a reader sees the old one or the new one. NaN (no JSON) becomes null."""
        part = self.path / "run.json.part"
        part.write_bytes(_as_json(run))
        os.replace(part, self.path / "run.json")

    def read_run(self) -> RunRecord:
        """The run's record; keys that this version does not know are passed over."""
        path = self.path / "run.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = int(data.get("schema_version", 0))
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"{path} has format {version}; this enginebench reads up to {SCHEMA_VERSION}",
                    "upgrade it: pip install -U enginebench",
                )
            data["engines"] = [_record(EngineRun, e) for e in data.get("engines", [])]
            for engine in data["engines"]:
                engine.facts = [_record(Fact, f) for f in engine.facts]
            data["points"] = [_record(PointRun, p) for p in data.get("points", [])]
            data["findings"] = [_record(Finding, f) for f in data.get("findings", [])]
            run: RunRecord = _record(RunRecord, data)
            return run
        except (json.JSONDecodeError, TypeError, AttributeError, ValueError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}", "restore it from a copy") from None

    def telemetry_journal(self) -> LineJournal:
        """A new stream of samples."""
        return LineJournal(self.new_journal("telemetry", "jsonl"), TelemetrySample)

    def new_journal(self, name: str, kind: str = "arrows") -> Path:
        """A path for one more stream of `name`; none is used twice, so that nothing is appended to a torn one."""
        self.journal_path.mkdir(exist_ok=True)
        taken = [int(path.stem.rpartition("-")[2]) for path in self.journal_path.glob(f"{name}-*")]
        path = self.journal_path / f"{name}-{max(taken, default=-1) + 1:04d}.{kind}"
        path.touch(exist_ok=False)
        return path

    def requests(self) -> pa.Table:
        """All requests, ordered by the time they were wanted: the Parquet file and what is in the journal."""
        from harness import tables

        return tables.read(self.path, "requests")

    def telemetry(self) -> pa.Table:
        """All samples, ordered by time."""
        from harness import tables

        return tables.read(self.path, "telemetry")

    def compact(self) -> None:
        """See `tables.compact`."""
        if not self.journal_path.is_dir():
            return
        from harness import tables

        tables.compact(self.path)

    def set_aside(self, engine: str, point: str, repeat: int) -> int:
        """See `tables.set_aside`."""
        from harness import tables

        return tables.set_aside(self.path, engine, point, repeat)


def _refuse_odd_name(path: Path) -> None:
    """Arrow opens no file below a name that is not UTF-8: told before anything is measured, not after."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is not in UTF-8", "rename the folder, or give another --out") from None


def _as_json(run: RunRecord) -> bytes:
    """Whatever is in it: half of a character in what a server said, or a number past 64 bits, costs no run."""
    try:
        return orjson.dumps(run, option=_JSON)
    except TypeError:
        plain = json.loads(json.dumps(dataclasses.asdict(run)), parse_constant=lambda _: None)
        return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _record(kind: type[Any], data: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in data.items() if key in names})


def run_folders(results: Path) -> tuple[list[Path], list[str]]:
    """The run folders below a results folder: it itself, its children and theirs; and what could not be looked into.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    if not results.is_dir():
        raise InputError(f"{results}: no such folder", "name the folder that holds run folders, such as results")
    if closed := _closed([results]):
        raise InputError(closed[0], "run it as a user who may, or ask for the rights")
    found = [*results.glob("run.json"), *results.glob("*/run.json"), *results.glob("*/*/run.json")]
    return sorted(path.parent for path in found), _closed([*results.glob("*/"), *results.glob("*/*/")])


def _closed(folders: list[Path]) -> list[str]:
    return [f"{folder}: the folder may not be read" for folder in folders if not os.access(folder, os.R_OK | os.X_OK)]
