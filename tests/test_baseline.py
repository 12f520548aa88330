"""Stored baselines: what is kept, what is refused, and that older files are still read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from reports.baseline import KEYS, as_side, load, path_of, save
from reports.sides import Side, read_sides
from tests.cli import bench
from tests.gatefolders import MACHINE, run

# As version 1 wrote it at first: a file that is in somebody's repository.
FIRST = {
    "kind": "enginebench-baseline", "schema_version": 1,
    "sessions": [
        {"engine": "vllm", "started_at": "2026-01-02T03:04:05+00:00",
         "points": {"c8": {"load": {"name": "c8", "kind": "concurrency", "concurrency": 8}, "at_s": [1, 2, 3],
                           "figures": {"ttft_p95_s": [[0.05, 0.051, 0.052], [0, 0, 0]], "gone_by_now": [[1], [0]]}}}}
    ],
}  # fmt: skip


def side(path: Path, **more: Any) -> Side:
    day = more.get("day", 2)
    return read_sides(run(**more).write(path / f"run-{day}-{len(list(path.iterdir()))}").path, KEYS)["vllm"]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved, path = side(tmp_path), tmp_path / "b" / "main.json"
    assert save(path, saved) == 1
    (back,) = load(path)
    assert back.fingerprint == saved.fingerprint
    assert back.workload == saved.workload
    for key, repeats in saved.points["c8"].figures.items():
        assert back.points["c8"].figures[key].values == pytest.approx(repeats.values, rel=1e-5)
        assert back.points["c8"].figures[key].at_s == pytest.approx(repeats.at_s, abs=0.06)
    assert path.stat().st_size < 10_000
    assert "ttft_p95_s" in path.read_text()


def test_history_says_how_much_sessions_differ(tmp_path: Path) -> None:
    path = tmp_path / "main.json"
    for day, slower in ((2, 1.0), (3, 1.1), (4, 1.0)):
        count = save(path, side(tmp_path, day=day, slower=slower))
    assert count == 3
    newest = as_side(path)
    assert newest.started_at.startswith("2026-01-04")
    band = newest.band("c8", "ttft_p95_s", ratio=True)
    assert band is not None
    assert band.steps == 2
    assert band.sd == pytest.approx(0.095, abs=0.02)


def test_sessions_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    path, first = tmp_path / "main.json", side(tmp_path)
    save(path, first)
    with pytest.raises(InputError, match="already"):
        save(path, first)
    other = side(tmp_path, day=3, environment=MACHINE | {"cores_allowed": 2.0})
    with pytest.raises(InputError, match="not like the last"):
        save(path, other)
    assert save(path, other, fresh=True) == 1
    with pytest.raises(InputError, match="no figures"):
        save(tmp_path / "none.json", side(tmp_path, day=4, repeats=0))


def test_older_files_are_read_and_newer_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(FIRST))
    (old,) = load(path)
    assert old.points["c8"].figures["ttft_p95_s"].values == [0.05, 0.051, 0.052]
    assert set(old.points["c8"].figures) == {"ttft_p95_s"}
    path.write_text(json.dumps(FIRST | {"schema_version": 2}))
    with pytest.raises(InputError, match="reads up to 1"):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "enginebench-baseline"}', "\x00", '{"kind": "other"}'])
def test_a_damaged_file_is_one_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError):
        load(path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\\b"])
def test_a_name_stays_in_its_folder(name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        path_of(name, Path("baselines"))


def test_the_commands(tmp_path: Path) -> None:
    base, slow = run().write(tmp_path / "base").path, run(day=3, slower=1.3).write(tmp_path / "slow").path
    folder = tmp_path / "baselines"
    assert bench("baseline", "save", "main", base, "--dir", folder).returncode == 0
    assert "TTFT p95" in bench("baseline", "show", "main", "--dir", folder).stdout
    shown = json.loads(bench("baseline", "show", "main", "--dir", folder, "--format", "json").stdout)
    assert len(shown[0]["points"]["c8"]["figures"]["ttft_p95_s"]) == 5
    (row,) = json.loads(bench("baseline", "list", "--dir", folder, "--format", "json").stdout)
    assert (row["name"], row["sessions"]) == ("main", 1)
    gated = bench("gate", "--baseline", folder / "main.json", "--candidate", slow, "--limit", "ttft_p95: 5%")
    assert gated.returncode == 1, gated.stdout + gated.stderr
    assert bench("baseline", "show", "nix", "--dir", folder).returncode == 2
