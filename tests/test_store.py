"""The run folder: whatever kills the process, what is read is whole, there once, and never overwritten."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import InputError
from harness.journal import Journal
from harness.records import SCHEMA_VERSION, EngineRun, Fact, PointRun, RequestRecord, RunRecord, TelemetrySample
from harness.store import RunFolder
from harness.tables import REQUEST_SCHEMA, TELEMETRY_SCHEMA, read_journal


def _request(number: int, **more: Any) -> RequestRecord:
    request = RequestRecord(
        engine="e", point="c1", repeat=0, request_id=number, phase="measure", scheduled_s=float(number),
        sent_s=number + 0.25, first_token_s=number + 0.5, last_token_s=number + 0.75, end_s=number + 0.8,
        input_tokens=8, output_tokens=2, token_source="server", chunks=2, gaps_s=[0.25], ttft_s=0.25, tpot_s=0.25,
        e2e_s=0.5, status="ok", http_status=200, error=None, finish_reason="length",
    )  # fmt: skip
    return dataclasses.replace(request, **more)


def _folder(path: Path, requests: list[RequestRecord] | None = None, batch: int = 3) -> RunFolder:
    folder = RunFolder.create(path / "run")
    folder.write_run(_run())
    if requests is not None:
        _write(folder, requests, batch)
    return folder


def _write(folder: RunFolder, requests: list[RequestRecord], batch: int = 3) -> None:
    journal = Journal(folder.new_journal("requests"), "requests")
    for index, request in enumerate(requests):
        journal.add(request)
        if index % batch == batch - 1:
            journal.flush()
    journal.close()


def _run(**more: Any) -> RunRecord:
    return RunRecord("test", {"name": "test"}, "abc", "2026-01-02T03:04:05Z", 1.0, "0.1.0", **more)


def _ids(folder: RunFolder) -> list[int]:
    ids: list[int] = folder.requests()["request_id"].to_pylist()
    return ids


# --- the journal ---------------------------------------------------------------------------------


def test_a_torn_tail_is_dropped_wherever_it_is_torn(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    journal = Journal(folder.new_journal("requests"), "requests")
    (stream,) = folder.journal_path.iterdir()
    sizes = []
    for number in range(2):
        journal.add(_request(2 * number))
        journal.add(_request(2 * number + 1))
        journal.flush()
        sizes.append(stream.stat().st_size)
    journal.close()
    whole = stream.read_bytes()
    edges = [*range(sizes[0], sizes[0] + 40), *range(sizes[1] - 40, len(whole) + 1)]
    for cut in sorted({*edges, *range(sizes[0], len(whole), 7)}):
        stream.write_bytes(whole[:cut])
        ids = [i for batch in read_journal(stream) for i in batch["request_id"].to_pylist()]
        assert ids == list(range(4 if cut >= sizes[1] else 2)), cut


def test_a_torn_first_batch_and_an_empty_journal_are_no_rows(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(0)])
    (stream,) = folder.journal_path.iterdir()
    whole = stream.read_bytes()
    for cut in (0, 1, 4, 8, 100, len(whole) // 2):
        stream.write_bytes(whole[:cut])
        assert folder.requests().num_rows == 0, cut
    folder.compact()
    assert folder.requests().num_rows == 0


def test_a_tail_of_zeros_as_a_power_cut_leaves_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(0), _request(1)], batch=1)
    (stream,) = folder.journal_path.iterdir()
    stream.write_bytes(stream.read_bytes()[:-8] + bytes(4096))
    assert _ids(folder) == [0, 1]


def test_what_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    _folder(tmp_path)
    code = f"""
import os, signal
from pathlib import Path
from tests.test_store import Journal, RunFolder, _request
journal = Journal(RunFolder.open(Path({str(tmp_path / "run")!r})).new_journal("requests"), "requests")
journal.add(_request(0)); journal.add(_request(1)); journal.flush(); journal.add(_request(2))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert _ids(RunFolder.open(tmp_path / "run")) == [0, 1]


def test_rows_become_due_a_second_after_the_last_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("harness.journal.time.monotonic", lambda: now)
    journal = Journal(_folder(tmp_path).new_journal("requests"), "requests")
    now += 5
    assert not journal.due()  # nothing to write
    journal.add(_request(0))
    assert journal.due()
    journal.flush()
    journal.add(_request(1))
    now += 0.9
    assert not journal.due()
    now += 0.1
    assert journal.due()
    journal.close()


def test_no_journal_is_ever_used_twice(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(0)])
    _write(folder, [_request(1)])
    _write(RunFolder.open(folder.path), [_request(2)])
    folder.new_journal("telemetry")
    assert sorted(p.name for p in folder.journal_path.iterdir()) == [
        "requests-0000.arrows", "requests-0001.arrows", "requests-0002.arrows", "telemetry-0000.arrows",
    ]  # fmt: skip
    (folder.journal_path / "requests-0001.arrows").unlink()
    assert folder.new_journal("requests").name == "requests-0003.arrows"
    assert _ids(folder) == [0, 2]


def test_values_survive_the_journal_and_parquet(tmp_path: Path) -> None:
    rows = [
        _request(0, gaps_s=array("d", [0.5, 0.25]), server_timings={"load": 1.5, "eval": 0.0}, text="é\n\0"),
        _request(1, gaps_s=[], server_timings={}, output_tokens=None, finish_reason=None),
        _request(2, gaps_s=(0.125,), server_timings=None, tpot_s=math.nan, error="HTTP 503"),
    ]
    folder = _folder(tmp_path, rows)
    for _ in range(2):
        table = folder.requests()
        assert table["gaps_s"].to_pylist() == [[0.5, 0.25], [], [0.125]]
        assert table["server_timings"].to_pylist() == [[("load", 1.5), ("eval", 0.0)], [], None]
        assert table["text"].to_pylist() == ["é\n\0", None, None]
        assert table["output_tokens"].to_pylist() == [2, None, 2]
        assert table["tpot_s"].null_count == 0  # NaN is a value that somebody wrote; null is none
        assert math.isnan(table["tpot_s"][2].as_py())
        assert table.schema.equals(REQUEST_SCHEMA)
        folder.compact()


def test_every_field_of_a_record_has_its_column() -> None:
    assert REQUEST_SCHEMA.names == [field.name for field in dataclasses.fields(RequestRecord)]
    assert TELEMETRY_SCHEMA.names == [field.name for field in dataclasses.fields(TelemetrySample)]


# --- compaction ----------------------------------------------------------------------------------


def test_rows_come_in_the_order_they_were_wanted_from_all_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(5), _request(1)])
    folder.compact()
    _write(folder, [_request(3), _request(0)])
    assert _ids(folder) == [0, 1, 3, 5]


def test_compacting_twice_changes_nothing(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(i) for i in range(7)])
    folder.compact()
    assert not folder.journal_path.exists()
    first = (folder.path / "requests.parquet").read_bytes()
    folder.compact()
    assert (folder.path / "requests.parquet").read_bytes() == first
    assert _ids(folder) == list(range(7))
    _write(folder, [_request(7)])
    folder.compact()
    assert _ids(folder) == list(range(8))


@pytest.mark.parametrize("dies_at", ["os.replace", "Path.unlink"])
def test_killed_in_compaction_rows_are_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    rows = [_request(i) for i in range(5)] + [_request(9, sent_s=None, phase="warmup")]
    folder = _folder(tmp_path, rows)
    samples = Journal(folder.new_journal("telemetry"), "telemetry")
    samples.add(TelemetrySample(1.0, None, "host", "cpu_cores", 2.0))
    samples.add(TelemetrySample(1.0, "e", "host", "cpu_cores", 2.0))
    samples.close()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die) if dies_at == "os.replace" else patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            folder.compact()
    assert (folder.path / "requests.parquet").exists() == (dies_at == "Path.unlink")
    for _ in range(2):
        assert _ids(folder) == [0, 1, 2, 3, 4, 9]
        assert folder.telemetry()["engine"].to_pylist() in ([None, "e"], ["e", None])
        folder.compact()


def test_set_aside_takes_one_repeat_out_of_the_figures(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(0), _request(1, repeat=1), _request(2, point="c4"), _request(3, engine="f")])
    assert folder.set_aside("e", "c1", 0) == 1
    assert _ids(folder) == [1, 2, 3]
    assert folder.set_aside("e", "c1", 0) == 0
    _write(folder, [_request(7)])
    assert folder.set_aside("e", "c1", 0) == 1
    assert _ids(folder) == [1, 2, 3]
    aside = pq.read_table(folder.path / "interrupted.parquet")
    assert aside["request_id"].to_pylist() == [0, 7]
    assert aside.schema.names == REQUEST_SCHEMA.names


# --- files of other versions, damage -------------------------------------------------------------


def test_an_older_file_without_a_column_is_read_with_nulls(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(0)])
    folder.compact()
    path = folder.path / "requests.parquet"
    old = pq.read_table(path).drop_columns(["first_chunk_tokens", "server_timings", "text"])
    old = old.set_column(old.schema.get_field_index("chunks"), "chunks", old["chunks"].cast(pa.int64()))
    pq.write_table(old.append_column("of_the_future", pa.array([1])), path)
    _write(folder, [_request(1, first_chunk_tokens=2)])
    table = folder.requests()
    assert table.schema.equals(REQUEST_SCHEMA)
    assert table["first_chunk_tokens"].to_pylist() == [None, 2]
    assert table["chunks"].to_pylist() == [2, 2]


def test_a_journal_of_an_older_version_is_read_with_nulls(tmp_path: Path) -> None:
    """A run that was killed, then the tool was upgraded: `--resume` must still find what was measured."""
    folder = _folder(tmp_path, [_request(0)])
    (stream,) = folder.journal_path.iterdir()
    (batch,) = read_journal(stream)
    old = pa.Table.from_batches([batch]).drop_columns(["worker", "text"])
    with pa.ipc.new_stream(str(stream), old.schema) as writer:
        writer.write_table(old)
    _write(folder, [_request(1)])
    assert folder.requests()["worker"].to_pylist() == [None, 0]
    folder.compact()
    assert _ids(folder) == [0, 1]


def test_a_newer_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    folder.write_run(_run(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(InputError, match=f"has format {SCHEMA_VERSION + 1}") as caught:
        folder.read_run()
    assert "pip install -U" in caught.value.remedy


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"name": "x"}', '{"schema_version": "new"}', '{"schema_version": null}', "\xff",
     '{"engines": 3}', '{"engines": [3]}', '{"engines": [{"name": "e"}]}', '{"points": [{}]}', "{" + '"a":[' * 20],
)  # fmt: skip
def test_a_damaged_run_json_is_named(tmp_path: Path, text: str) -> None:
    folder = _folder(tmp_path)
    (folder.path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"run\.json is damaged") as caught:
        folder.read_run()
    assert caught.value.remedy


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_request(0)])
    folder.compact()
    path = folder.path / "requests.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"requests\.parquet is damaged"):
        folder.requests()


def test_run_json_survives_with_its_parts(tmp_path: Path) -> None:
    facts = [Fact("kv_capacity_tokens", 7, "tok", "logged", "log"), Fact("x", None, "", "measured", "api")]
    engines = [EngineRun("e", "vllm", "m", facts=facts, command=["a"], phases_s={"start_s": 1.5})]
    points = [PointRun("e", "c1", 0, {"kind": "concurrency"}, "done", 1.0, 2.0, client={"cpu_ratio": 0.5})]
    run = _run(engines=engines, points=points, warnings=["w"], resumes=[3.0])
    folder = _folder(tmp_path)
    folder.write_run(run)
    assert folder.read_run() == run
    assert not list(folder.path.glob("*.part"))


def test_unknown_keys_of_run_json_are_passed_over(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    data = json.loads((folder.path / "run.json").read_text())
    data |= {"of_the_future": 1, "engines": [{"name": "e", "kind": "k", "model": "m", "new": 1}]}
    (folder.path / "run.json").write_text(json.dumps(data))
    assert folder.read_run().engines == [EngineRun("e", "k", "m")]


def test_nan_never_costs_a_run(tmp_path: Path) -> None:
    """NaN is no JSON: it becomes null, and writing never fails for it."""
    folder = _folder(tmp_path)
    point = PointRun("e", "c1", 0, {}, client={"lag": math.nan, "cpu": math.inf, "ok": 1.0})
    folder.write_run(_run(points=[point], environment={"list": [(1, math.nan)]}))
    read = folder.read_run()
    assert read.points[0].client == {"lag": None, "cpu": None, "ok": 1.0}
    assert read.environment == {"list": [[1, None]]}


def test_what_utf8_and_64_bits_have_no_place_for_never_costs_a_run(tmp_path: Path) -> None:
    """A server may say half of a character, and a scenario any number."""
    folder = _folder(tmp_path)
    folder.write_run(_run(warnings=["half \ud83d é"], environment={"seed": 10**30, 1: math.nan}))
    read = folder.read_run()
    assert read.warnings == ["half ? é"]
    assert read.environment == {"seed": 10**30, "1": None}


def test_a_failed_write_leaves_the_old_run_json(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    with pytest.raises(TypeError):
        folder.write_run(_run(environment={"no JSON": object()}))
    assert folder.read_run() == _run()


# --- whose folder it is --------------------------------------------------------------------------


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    with pytest.raises(InputError, match="holds a run already") as caught:
        RunFolder.create(folder.path)
    assert "--resume" in caught.value.remedy
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(InputError, match="holds no run"):
        RunFolder.open(tmp_path)


def test_a_name_that_arrow_cannot_open_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    with pytest.raises(InputError, match="not in UTF-8"):
        RunFolder.create(odd)
    assert not odd.exists()
    _folder(tmp_path).path.rename(odd)
    with pytest.raises(InputError, match="not in UTF-8"):
        RunFolder.open(odd)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    code = f"""
import sys
from pathlib import Path
from harness.store import RunFolder
folder = RunFolder.open(Path({str(folder.path)!r}))
folder.lock()
print("locked", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdin=-1, stdout=-1)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another bench run measures into"):
            folder.lock()
        other.kill()
    folder.lock()  # the lock ends with its process, however that ends
    with pytest.raises(InputError, match="another bench run"):
        RunFolder.open(folder.path).lock()
    folder._lock.close()
