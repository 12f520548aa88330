"""The command line end to end, on the embedded engine: what users meet, the bad days included."""

from __future__ import annotations

import errno
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from bench import app
from harness.engines.process import free_port
from harness.http import HttpError, get_text
from tests.cli import bench, family, scenario, started, until


def run_json(folder: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((folder / "run.json").read_text())
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    result = bench("run", scenario(folder), "--out", folder / "run")
    assert result.returncode == 0, result.stderr + result.stdout
    return folder / "run"


def test_a_run_leaves_records_summary_and_page(finished: Path) -> None:
    run = run_json(finished)
    assert run["status"] == "done"
    assert not (finished / "journal").exists()
    frame = pq.read_table(finished / "requests.parquet").to_pandas()
    measured = frame[frame.phase == "measure"]
    assert (measured.groupby(["engine", "point"]).size() == 20).all()
    assert len(measured.groupby(["engine", "point"])) == 4
    ok = frame[frame.status == "ok"]
    assert ok.ttft_s.notna().all()
    assert (ok.output_tokens == 16).all()
    assert (ok.input_tokens == 32).all()
    assert (ok.token_source == "server").all()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary
    page = (finished / "report.html").read_text()
    assert "simulated" in page
    for engine in run["engines"]:  # type: ignore[attr-defined]
        phases = engine["phases_s"]
        assert 0 < phases["start_s"] <= phases["ready_s"]
        assert phases["first_request_s"] > 0
    assert "time: first request" in page


def test_measured_requests_are_sent_inside_the_window_and_no_other(finished: Path) -> None:
    frame = pq.read_table(finished / "requests.parquet").to_pandas()
    for point in run_json(finished)["points"]:  # type: ignore[attr-defined]
        rows = frame[(frame.engine == point["engine"]) & (frame.point == point["point"])]
        inside = (rows.sent_s >= point["open_s"]) & (rows.scheduled_s < point["close_s"])
        assert set(rows[inside].phase) == {"measure"}
        assert inside.sum() == 20


def test_telemetry_covers_host_engine_processes_and_the_engines_own_counters(finished: Path) -> None:
    frame = pq.read_table(finished / "telemetry.parquet").to_pandas()
    for engine in ("fast", "slots"):
        sources = set(frame[frame.engine == engine].source)
        assert {"host", "process", "vllm"} <= sources
    assert (frame[frame.metric == "rss_bytes"].value > 1e6).all()


def test_a_second_run_into_the_same_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    before = (finished / "run.json").read_bytes()
    result = bench("run", scenario(tmp_path), "--out", finished)
    assert result.returncode == 2
    assert "holds a run already" in result.stderr
    assert (finished / "run.json").read_bytes() == before


def test_a_complete_run_cannot_be_resumed(finished: Path) -> None:
    result = bench("run", "--resume", finished)
    assert result.returncode == 2
    assert "complete" in result.stderr


def test_report_is_rebuilt_from_records_alone(finished: Path) -> None:
    first = json.loads((finished / "summary.json").read_text())
    for name in ("summary.json", "report.html"):
        (finished / name).unlink()
    result = bench("report", finished)
    assert result.returncode == 0, result.stderr
    assert json.loads((finished / "summary.json").read_text()) == first


def test_list_names_the_run(finished: Path) -> None:
    result = bench("list", finished.parent, "--format", "json")
    rows = json.loads(result.stdout)
    assert [row["status"] for row in rows] == ["done"]
    assert "no such folder" in bench("list", finished / "nothing").stderr
    (finished.parent / "empty").mkdir(exist_ok=True)
    assert "no runs in" in bench("list", finished.parent / "empty").stdout
    assert "done" in bench("list", finished).stdout


@pytest.fixture
def half_done(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run in the middle of its third point, with the first two done."""
    folder = tmp_path / "run"

    def two_points_done() -> bool:
        if not (folder / "run.json").exists():
            return False
        states = [p["status"] for p in run_json(folder)["points"]]  # type: ignore[attr-defined]
        return states.count("done") + states.count("client-limited") >= 2 and "running" in states

    with started("run", scenario(tmp_path, requests=30, repeats=2), "--out", folder) as process:
        assert until(two_points_done, 60)
        yield process, folder


def test_kill_9_leaves_no_process_and_a_run_that_is_read_and_resumed(
    half_done: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = half_done
    members = family(process.pid)
    assert any("simserver" in " ".join(p.cmdline()) for p in members)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(members, timeout=5)
    assert not alive
    assert run_json(folder)["status"] == "running"
    report = bench("report", folder)
    assert report.returncode == 0, report.stderr
    before = [p for p in run_json(folder)["points"] if p["status"] == "done"]  # type: ignore[attr-defined]
    resumed = bench("run", "--resume", folder, "--no-report")
    assert resumed.returncode == 0, resumed.stderr + resumed.stdout
    after = run_json(folder)
    assert after["status"] == "done"
    assert [p for p in after["points"] if p in before] == before  # type: ignore[attr-defined]
    frame = pq.read_table(folder / "requests.parquet").to_pandas()
    counts = frame[frame.phase == "measure"].groupby(["engine", "point", "repeat"]).size()
    assert len(counts) == 8
    assert (counts == 30).all()


def test_ctrl_c_keeps_what_was_measured(half_done: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = half_done
    members = family(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert f"bench run --resume {folder}" in output
    assert run_json(folder)["status"] == "interrupted"
    assert not psutil.wait_procs(members, timeout=5)[1]
    assert (folder / "report.html").exists()
    assert pq.read_table(folder / "requests.parquet").num_rows > 60


def test_an_engine_that_dies_in_mid_run_fails_alone(half_done: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = half_done
    for member in family(process.pid):
        if "simserver" in " ".join(member.cmdline()) and "guard.py" not in " ".join(member.cmdline()):
            member.kill()
    output, _ = process.communicate(timeout=80)
    assert process.returncode == 1
    assert "ended in mid-run" in output
    assert "Traceback" not in output
    run = run_json(folder)
    by_engine = {e["name"]: e["status"] for e in run["engines"]}  # type: ignore[attr-defined]
    assert by_engine == {"fast": "failed", "slots": "done"}


def failing(tmp_path: Path, engine: str, *args: str) -> subprocess.CompletedProcess[str]:
    text = f"name: bad\nengines:\n  - {engine}\nload:\n  - {{kind: concurrency, levels: [1], requests: 2}}\n"
    return bench("run", scenario(tmp_path, text=text), "--out", tmp_path / "bad", "--no-report", *args)


def test_an_engine_that_dies_at_start_shows_its_log(tmp_path: Path) -> None:
    result = failing(tmp_path, "{name: a, kind: sim, model: Llama-3.1-8B-Instruct, args: {max_model_len: 9999999}}")
    assert result.returncode == 1
    assert "ended at start with exit code 2" in result.stdout
    assert result.stdout.count("9999999 exceeds") == 1, "the log's lines are shown once"
    assert "tok/s" not in result.stdout, "no table where nothing was measured"
    assert "Traceback" not in result.stdout + result.stderr
    assert run_json(tmp_path / "bad")["status"] == "failed"


def test_a_port_in_use_is_named_with_its_owner(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = failing(tmp_path, f"{{name: a, kind: sim, model: Llama-3.1-8B-Instruct, port: {port}}}")
    assert result.returncode == 1
    assert f"port {port} cannot be used" in result.stdout
    assert "remedy" in result.stdout


@pytest.mark.parametrize(
    ("engine", "code", "says"),
    [
        ("{name: a, kind: vllm, model: /no/such/folder, python: /usr/bin/python3}", 2, "no such model folder"),
        ("{name: a, kind: ollama, model: m, gguf: /no/such.gguf}", 2, "no such GGUF file"),
        ("{name: a, kind: sim, model: no-such-model-anywhere}", 2, "unknown model 'no-such-model-anywhere'"),
        ("{name: a, kind: openai, model: m, base_url: 'http://127.0.0.1:9/v1'}", 1, "does not answer"),
        ("{name: a, kind: ollama, model: m, base_url: 'http://127.0.0.1:9'}", 1, "no Ollama answers"),
        ("{name: a, kind: sim, model: m, command: [/no/such/program]}", 1, "cannot execute"),
    ],
)
def test_what_is_missing_is_said_in_one_message(tmp_path: Path, engine: str, code: int, says: str) -> None:
    result = failing(tmp_path, engine)
    assert result.returncode == code, result.stdout + result.stderr
    assert says in result.stdout + result.stderr
    assert "remedy" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_attaching_to_a_running_endpoint(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "harness.simserver", "--port", str(port), "--time-scale", "0.2"]
    command += ["--hardware", "H100 SXM 80GB", "--model", "meta-llama/Llama-3.1-8B-Instruct"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            assert until(lambda: answers(port))
            base = f"base_url: 'http://127.0.0.1:{port}/v1'"
            wrong = failing(tmp_path, f"{{name: a, kind: openai, model: other, {base}}}")
            assert wrong.returncode == 1
            assert "does not serve 'other'" in wrong.stdout
            engine = f"{{name: a, kind: openai, flavor: vllm, model: meta-llama/Llama-3.1-8B-Instruct, {base}}}"
            (tmp_path / "good").mkdir()
            good = failing(tmp_path / "good", engine)
            assert good.returncode == 0, good.stdout + good.stderr
            assert answers(port), "an engine that was attached to must be left running"
        finally:
            server.terminate()


def answers(port: int) -> bool:
    try:
        get_text(f"http://127.0.0.1:{port}/health", 1.0)
    except HttpError:
        return False
    return True


def test_a_full_disk_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/x/run.json.part")

    monkeypatch.setattr(app, "_invoke", full)
    monkeypatch.setattr(app, "leave", sys.exit)
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 1
    assert "no space is left on the disk at /x/run.json.part" in capsys.readouterr().err


def test_a_reader_that_left_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`bench list | head -1`."""

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "argv", ["bench", "list", str(tmp_path)])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr("click.echo", gone)
    monkeypatch.setattr(app, "leave", sys.exit)
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 0


def test_wrong_input_is_exit_2(tmp_path: Path) -> None:
    path = scenario(tmp_path, text="name: x\nengine: []\n")
    for args in (("run", path), ("run", "nope"), ("run",), ("run", path, "--resume", tmp_path), ("report", tmp_path)):
        result = bench(*args)
        assert result.returncode == 2, args
        assert "error: " in result.stderr
        assert "Traceback" not in result.stderr
    assert f"{path}:2: engine: unknown key 'engine'; did you mean 'engines'?" in bench("run", path).stderr


def test_scenario_new_check_schema(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert bench("scenario", "new", file).returncode == 0
    assert bench("scenario", "new", file).returncode == 2
    assert "good" in bench("scenario", "check", file).stdout
    schema = json.loads(bench("scenario", "schema").stdout)
    assert schema["properties"]["engines"]


def test_an_open_loop_that_is_not_kept_up_with_is_said_to_be_overloaded(tmp_path: Path) -> None:
    text = (
        "name: over\nengines: [{name: a, kind: sim, model: Llama-3.1-8B-Instruct, policy: ollama, "
        "quantization: Q4_K_M, args: {num_parallel: 1, time_scale: 0.5}}]\n"
        "workload: {input_tokens: 16, output_tokens: 16}\n"
        "load: [{kind: constant, rate: 40/s, duration: 500ms}]\nwarmup: {requests: 1}\n"
    )
    result = bench("run", scenario(tmp_path, text=text), "--out", tmp_path / "run", "--no-report")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "overloaded" in result.stdout
    said = run_json(tmp_path / "run")["points"][0]["warnings"]  # type: ignore[index]
    assert any("overloaded" in text for text in said)
