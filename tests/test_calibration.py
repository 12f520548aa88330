"""Calibrating the client: what is concluded, kept and used; how many load processes there are, and where."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import calibrate, calibration, cores
from harness.calibrate import calibrate_client
from harness.calibration import Level, conclude
from harness.environment import fingerprint
from harness.health import verdict
from harness.home import data_folder
from harness.scenario import Point, Scenario
from tests.cli import bench


def level(streams: int, error: float = 0.0, late_s: float = 0.0002) -> Level:
    return Level(streams, streams * 97.0, 0.05 * (1 + error), 0.05, error, 0.0, 0.5, 0.001, 0.4, late_s)


@pytest.mark.parametrize(
    ("levels", "ceiling", "first"),
    [
        ([level(64), level(128), level(256, 0.2), level(512, 0.5)], 128 * 97.0, "client"),
        ([level(64), level(128, 0.2, 0.004), level(256, 0.5, 0.02)], 64 * 97.0, "server"),
        ([level(64), level(128), level(256, 0.01, 0.02)], 256 * 97.0, "server"),
        ([level(64), level(128)], 128 * 97.0, "neither"),
        ([level(64), level(128, 0.2), level(256)], 256 * 97.0, "neither"),
        ([level(64, 0.2), level(128, 0.3)], None, "client"),
        ([], None, "neither"),
    ],
    ids=["client", "server", "server beaten", "neither", "one bad by chance", "none good", "nothing"],
)
def test_which_side_gave_in_first(levels: list[Level], ceiling: float | None, first: str) -> None:
    found = conclude(levels, "2026-11-22", "f", "1")
    assert (found.ceiling_chunks_s, found.first) == (ceiling, first)
    assert found.limit_chunks_s == (ceiling if first == "client" else None)


def test_a_calibration_is_kept_for_this_machine(tmp_path: Path) -> None:
    env: dict[str, Any] = {"arch": "x", "cpu_model": "y", "cores_logical": 2}
    assert calibration.load(env, tmp_path) == (None, "the client was not calibrated on this machine")
    found = conclude([level(64), level(128, 0.5)], "2026-11-22", fingerprint(env), "1")
    path = calibration.store(found, tmp_path / "deeper")
    assert calibration.load(env, path.parent) == (found, None)
    assert calibration.load(env | {"cpu_model": "z"}, path.parent)[1] == "the client was calibrated on another machine"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"another_key": 1}))
    assert calibration.load(env, path.parent) == (found, None), "keys of later versions are passed over"
    path.write_text(json.dumps(data | {"schema_version": 99}))
    assert "newer version" in str(calibration.load(env, path.parent)[1])
    path.write_text("{")
    assert "cannot be read" in str(calibration.load(env, path.parent)[1])


def test_a_point_beyond_the_ceiling_is_client_limited() -> None:
    point = Point("c", "concurrency", duration_s=1.0, concurrency=64)
    client: dict[str, float | None] = {"chunks_s": 60_000.0, "workers": 1.0}
    assert verdict(point, client, 0.05) == []
    assert verdict(point, client, 0.05, 80_000.0) == []
    (reason,) = verdict(point, client, 0.05, 50_000.0)
    assert "bench calibrate client" in reason
    assert verdict(point, client | {"workers": 2.0}, 0.05, 50_000.0) == []


def scenario(load: str, **more: Any) -> Scenario:
    engine = {"name": "e", "kind": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    kind, _, value = load.partition("=")
    point = {"levels": [int(value)]} if kind == "concurrency" else {"rate": float(value)}
    return Scenario.model_validate(
        {"name": "s", "engines": [engine], "load": [{"kind": kind, "requests": 9, **point}], **more}
    )


def test_load_processes_by_the_asked_load() -> None:
    workload = {"output_tokens": 200}
    assert cores.worker_count(scenario("concurrency=64"), 16) == 1
    assert cores.worker_count(scenario("concurrency=1024"), 16) == 3
    assert cores.worker_count(scenario("concurrency=1024"), 4) == 1, "a quarter of the cores at most"
    assert cores.worker_count(scenario("concurrency=60000"), 16) == 4
    assert cores.worker_count(scenario("poisson=500", workload=workload), 16) == 3
    assert cores.worker_count(scenario("poisson=500", workload=workload), 16, 200_000.0) == 1
    assert cores.worker_count(scenario("concurrency=1", client={"workers": 7}), 2) == 7, "asked for"


def test_cores_are_set_apart_where_there_is_room() -> None:
    assert cores.cores_apart(1, [0, 1]) is None
    assert cores.cores_apart(2, list(range(16))) == [14, 15]
    assert cores.cores_apart(4, list(range(8))) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux sets cores apart")
def test_nothing_else_runs_on_the_cores_of_the_load() -> None:
    usable = cores.available()
    with cores.away_from(usable[-1:] if len(usable) > 1 else None, usable):
        assert cores.available() == (usable[:-1] if len(usable) > 1 else usable)
    assert cores.available() == usable


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("ENGINEBENCH_HOME")
    assert data_folder().name == "enginebench"


def test_two_levels_on_the_reference_server() -> None:
    said: list[Level] = []
    found = calibrate_client(said.append, streams=(2, 4), window_s=0.7)
    assert found.levels == said
    assert [one.streams for one in found.levels] in ([2, 4], [2]), "a busy machine's server may be beaten at once"
    for one in found.levels:
        assert one.chunks_s > 0
        assert one.ttft_mean_s is not None
        assert one.ttft_error is not None
        assert one.server_ttft_mean_s is not None
        assert one.server_ttft_mean_s >= 0.05


def test_no_more_streams_are_tried_once_the_client_gave_in_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = iter([level(64), level(128, 0.2), level(256, 0.3), level(512)])
    monkeypatch.setattr(calibrate, "Load", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(calibrate, "_reference_server", lambda: nullcontext("http://127.0.0.1:1"))
    monkeypatch.setattr(calibrate, "_level", lambda *_: next(levels))
    found = calibrate_client(lambda _: None, streams=(64, 128, 256, 512))
    assert [one.streams for one in found.levels] == [64, 128, 256]
    assert found.first == "client"


def test_the_command_says_where_it_keeps_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from bench.app import app

    def two(say: Any) -> Any:
        levels = [level(64), level(128, 0.5)]
        for one in levels:
            say(one)
        return conclude(levels, "2026-11-22", "f", "1")

    monkeypatch.setattr("harness.calibrate.calibrate_client", two)
    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["calibrate", "client"])
    assert done.exit_code == 0, done.output
    assert "6,208 chunks/s" in done.output
    assert str(tmp_path / "client.json") in done.output
    done = CliRunner().invoke(app, ["calibrate", "client", "--format", "json"])
    data = json.loads(done.output)
    assert (data["first"], data["limit_chunks_s"]) == ("client", 6208.0)
    assert data["levels"][0] == dataclasses.asdict(level(64))


def test_help_shows_an_example() -> None:
    assert "bench calibrate client" in bench("calibrate", "client", "--help").stdout
