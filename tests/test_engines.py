"""Against a real Ollama and a real vLLM (`scripts/test --engines`). What is missing fails here; nothing is skipped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from harness.engines.ollama import OllamaEngine
from harness.engines.vllm import VllmEngine
from harness.enginespec import OllamaSpec, VllmSpec
from harness.locate import ollama_binary, vllm_python
from tests.cli import bench, family, scenario, started, until
from tests.counted import Counted

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

VLLM = """{name: vllm, kind: vllm, model: "builtin:tiny", env: {VLLM_CPU_KVCACHE_SPACE: 1},
     args: {max_model_len: 2048, enforce_eager: true}}"""
OLLAMA = """{name: ollama, kind: ollama, model: "builtin:tiny",
     env: {OLLAMA_NUM_PARALLEL: 4, OLLAMA_CONTEXT_LENGTH: 2048}}"""


def text(engine: str, workload: str = "", load: str = "{kind: concurrency, levels: [2], requests: 12}") -> str:
    return (
        f"name: real\nengines:\n  - {engine}\nload:\n  - {load}\nwarmup: {{requests: 2}}\n"
        f"workload: {{kind: synthetic, input_tokens: 48, output_tokens: 24{workload}}}\n"
    )


def rows(folder: Path) -> Any:
    frame = pq.read_table(folder / "requests.parquet").to_pandas()
    return frame[frame.phase != "cooldown"]


def run_json(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def facts(folder: Path, engine: str) -> dict[str, Any]:
    entry = next(e for e in run_json(folder)["engines"] if e["name"] == engine)
    return {f["name"]: f["value"] for f in entry["facts"]}


def test_both_engines_are_installed() -> None:
    assert ollama_binary(None) is not None, "run scripts/install-engines ollama"
    assert vllm_python(None) is not None, "run scripts/install-engines vllm"


KNOWN = 24  # requests of 64 tokens in and 32 out, at the end of the run, by a load that ends by itself
BURST = f"  - {{kind: concurrency, levels: [4], requests: {KNOWN}, start: burst}}\n"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both engines by the shipped scenario, and a last point of known work."""
    folder = tmp_path_factory.mktemp("compared")
    shipped = (Path(__file__).parents[1] / "scenarios" / "ollama-vs-vllm-cpu.yaml").read_text()
    made = shipped.replace("requests: 100}\n", "requests: 100}\n" + BURST) + "order: file\n"
    assert BURST in made
    result = bench("run", scenario(folder, text=made), "--out", folder / "run", timeout_s=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


def known_work(folder: Path, engine: str) -> tuple[Counted, Any, Any]:
    """One engine of a run, its last point, and the requests of that."""
    run = Counted.open(folder, engine)
    (point,) = [p for p in run.record.points if p.engine == engine and p.point == "c4-burst"]
    return run, point, run.of_point(point)


def test_every_request_of_both_engines_is_exact(compared: Path) -> None:
    frame = rows(compared)
    assert set(frame.engine) == {"vllm", "ollama"}
    assert (frame.status == "ok").all(), frame[frame.status != "ok"].error.unique()
    assert frame.ttft_s.notna().all()
    assert (frame.ttft_s > 0).all()
    assert (frame.output_tokens == 32).all()
    assert (frame.input_tokens == 64).all()
    sizes = frame[frame.phase == "measure"].groupby(["engine", "point"]).size()
    assert sizes.to_dict() == {
        (engine, point): n
        for engine in ("vllm", "ollama")
        for point, n in (("c1", 100), ("c4", 100), ("c16", 100), ("c4-burst", KNOWN))
    }


def test_both_engines_say_what_they_hold(compared: Path) -> None:
    vllm, ollama = facts(compared, "vllm"), facts(compared, "ollama")
    # 4 layers x 2 (K, V) x 2 heads x 32 x 2 bytes: what the tiny model's shape needs, and both engines say
    assert vllm["kv_bytes_per_token"] == ollama["kv_bytes_per_token"] == 1024
    assert vllm["kv_capacity_bytes"] == 2**30
    assert ollama["kv_capacity_tokens"] == 4 * 2048
    assert vllm["version"]
    assert ollama["version"]
    assert ollama["model_digest"]


def test_the_reports_kv_memory_is_the_logs(compared: Path) -> None:
    """Read once more from the logs, by other expressions than the tool's."""
    summary = json.loads((compared / "summary.json").read_text())
    rows = {(r["engine"], r["metric"]): r["value"] for r in summary["rows"] if r["point"] == "c16"}
    vllm, ollama = ((compared / f"{name}.log").read_text("utf-8", "replace") for name in ("vllm", "ollama"))
    (tokens,) = {
        line.split("KV cache size: ")[1].split(" ")[0] for line in vllm.splitlines() if "KV cache size" in line
    }
    assert facts(compared, "vllm")["kv_capacity_tokens"] == int(tokens.replace(",", "")) == 2**30 // 1024
    assert rows["vllm", "kv_capacity_bytes"] == 2**30
    (mib,) = {line.split("=")[1].split()[0] for line in ollama.splitlines() if "KV buffer size" in line}
    assert rows["ollama", "kv_capacity_bytes"] == float(mib) * 2**20 == 4 * 2048 * 1024
    # 16 streams of at most 96 tokens: vLLM holds them all, Ollama those of its 4 slots
    assert 12 * 64 * 1024 < rows["vllm", "kv_live_bytes"] <= 16 * 96 * 1024
    assert 3 * 64 * 1024 < rows["ollama", "kv_live_bytes"] <= 4 * 96 * 1024


def test_vllms_counters_are_the_known_work_to_the_token(compared: Path) -> None:
    run, point, requests = known_work(compared, "vllm")
    names = ("finished", "prompt_tokens", "generation_tokens", "preemptions", "prefix_cache_hits")
    grown = {name: run.grown(f"{name}_total", point) for name in names}
    assert grown == {"finished": KNOWN, "prompt_tokens": KNOWN * 64, "generation_tokens": KNOWN * 32,
                     "preemptions": 0, "prefix_cache_hits": 0}  # fmt: skip
    assert (requests.status == "ok").sum() == len(requests) == KNOWN
    assert (requests.input_tokens.sum(), requests.output_tokens.sum()) == (KNOWN * 64, KNOWN * 32)
    assert run.grown("itl_count", point) == KNOWN * 31
    for name in ("ttft", "e2e", "queue", "prefill", "decode"):
        assert run.grown(f"{name}_count", point) == KNOWN
    parts_s = [run.mean_s(name, point) for name in ("queue", "prefill", "decode")]
    assert 0 < sum(parts_s) <= run.mean_s("e2e", point) <= requests.e2e_s.mean()


def test_ollamas_counters_and_log_are_the_known_work_to_the_token(compared: Path) -> None:
    """Its llama-server's counters, what each answer says of itself, and its log's last requests."""
    run, point, requests = known_work(compared, "ollama")
    names = ("prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total", "decode_sum_s")
    grown = {name: run.grown(name, point, "llama-server") or 0.0 for name in names}
    assert grown["prompt_tokens_total"] + grown["prompt_tokens_cached_total"] == KNOWN * 64
    assert grown["prompt_tokens_cached_total"] <= KNOWN, "each prompt begins with other words"
    assert grown["generation_tokens_total"] == KNOWN * 32
    assert (requests.input_tokens.sum(), requests.output_tokens.sum()) == (KNOWN * 64, KNOWN * 32)
    timings = [dict(row) for row in requests.server_timings]
    assert {frozenset(row) for row in timings} == {frozenset({"total_s", "load_s", "prompt_eval_s", "eval_s"})}
    assert all(row["prompt_eval_s"] + row["eval_s"] <= row["total_s"] for row in timings)
    assert sum(row["eval_s"] for row in timings) == pytest.approx(grown["decode_sum_s"], rel=0.01)
    # The middle of a long log is cut out, and its runner writes up to 100 KB a request: most of the last are there.
    log = (compared / "ollama.log").read_text("utf-8", "replace").rpartition("[enginebench cut")[2]
    logged = re.findall(r"(prompt)? +eval time = +([\d.]+) ms / +(\d+) tokens", log)[-2 * KNOWN :]
    assert len(logged) >= KNOWN
    assert {tokens for kind, _, tokens in logged if not kind} == {"32"}
    assert {int(tokens) for kind, _, tokens in logged if kind} <= {63, 64}, "a first token may be in its cache"
    for kind, key in (("prompt", "prompt_eval_s"), ("", "eval_s")):
        told_ms = [row[key] * 1e3 for row in timings]
        for ms in (float(ms) for found, ms, _ in logged if found == kind):
            assert min(abs(ms - told) for told in told_ms) < 0.01
    held = run.series("llama-server", "kv_used_ratio").value * 4 * 2048
    assert 64 <= held.max() <= 4 * 96


def test_one_report_compares_both(compared: Path) -> None:
    page = (compared / "report.html").read_text()
    assert "vllm" in page
    assert "ollama" in page
    assert not any(engine["simulated"] for engine in run_json(compared)["engines"])
    again = bench("report", compared, "--text")
    assert again.returncode == 0
    assert "ollama" in again.stdout


@pytest.mark.parametrize("engine", [VLLM, OLLAMA], ids=["vllm", "ollama"])
def test_kill_9_of_the_tool_ends_a_real_engine_within_5_s(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    load = "{kind: concurrency, levels: [1], requests: 100000}"
    with started("run", scenario(tmp_path, text=text(engine, load=load)), "--out", folder) as tool:
        check_kill_9(tool, folder)


def check_kill_9(tool: subprocess.Popen[str], folder: Path) -> None:
    measuring = until(
        lambda: (folder / "run.json").exists() and run_json(folder)["points"][0]["status"] == "running", 300
    )
    assert measuring, tool.communicate(timeout=5)
    time.sleep(3)
    members = family(tool.pid)
    assert len(members) >= 4  # the load process, the guard, the engine and its own
    tool.send_signal(signal.SIGKILL)
    tool.wait()
    assert not psutil.wait_procs(members, timeout=5)[1]
    report = bench("report", folder)
    assert report.returncode == 0, report.stderr
    read = bench("report", folder, "--text")
    assert "interrupted" in read.stdout or "killed" in read.stdout or "not finished" in read.stdout, read.stdout


def test_a_vllm_that_refuses_its_arguments_shows_its_own_words(tmp_path: Path) -> None:
    engine = VLLM.replace("max_model_len: 2048", "max_model_len: 2048, no_such_argument: 1")
    result = bench("run", scenario(tmp_path, text=text(engine)), "--out", tmp_path / "run", timeout_s=300)
    assert result.returncode == 1
    assert "no-such-argument" in result.stdout
    assert "ended at start with exit code" in result.stdout
    assert "Traceback" not in result.stderr


def test_an_ollama_model_that_cannot_be_had(tmp_path: Path) -> None:
    engine = OLLAMA.replace("builtin:tiny", "no-such-model:latest").replace(
        "OLLAMA_NUM_PARALLEL: 4", f"OLLAMA_NUM_PARALLEL: 4, OLLAMA_MODELS: {tmp_path / 'models'}"
    )
    result = bench("run", scenario(tmp_path, text=text(engine)), "--out", tmp_path / "run", timeout_s=300)
    assert result.returncode == 1
    assert "no-such-model:latest cannot be had" in result.stdout
    assert "remedy" in result.stdout


@pytest.mark.parametrize("engine", [VLLM, OLLAMA], ids=["vllm", "ollama"])
def test_ctrl_c_ends_a_real_engine_while_it_starts(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started("run", scenario(tmp_path, text=text(engine)), "--out", folder) as tool:
        assert until(lambda: len(family(tool.pid)) >= 3, 60)
        members = family(tool.pid)
        tool.send_signal(signal.SIGINT)
        output, _ = tool.communicate(timeout=60)
    assert tool.returncode == 130, output
    assert "Traceback" not in output
    assert not psutil.wait_procs(members, timeout=5)[1]


def running(engine: Any, log: Path) -> Iterator[str]:
    engine.start(log)
    try:
        engine.ready(lambda *_: None)
        yield engine.root
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def vllm_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec = VllmSpec(
        name="v", kind="vllm", model="builtin:tiny", env={"VLLM_CPU_KVCACHE_SPACE": 1},
        args={"max_model_len": 2048, "enforce_eager": True},
    )  # fmt: skip
    yield from running(VllmEngine(spec), tmp_path_factory.mktemp("vllm") / "vllm.log")


@pytest.fixture(scope="module")
def ollama_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec = OllamaSpec(name="o", kind="ollama", model="builtin:tiny", env={"OLLAMA_CONTEXT_LENGTH": 2048})
    yield from running(OllamaEngine(spec), tmp_path_factory.mktemp("ollama") / "ollama.log")


CLOSED = "{kind: concurrency, levels: [2], requests: 12}"
OPEN = "{kind: poisson, rate: 4, requests: 12}"


@pytest.mark.parametrize("load", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_attached_vllm(vllm_root: str, api: str, load: str, tmp_path: Path) -> None:
    engine = f"{{name: a, kind: openai, flavor: vllm, model: 'builtin:tiny', base_url: '{vllm_root}/v1'}}"
    check_attached(engine, api, load, tmp_path, extra_input=16)


@pytest.mark.parametrize("load", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_attached_ollama(ollama_root: str, api: str, load: str, tmp_path: Path) -> None:
    engine = f"{{name: a, kind: ollama, model: 'builtin:tiny', base_url: '{ollama_root}'}}"
    check_attached(engine, api, load, tmp_path, extra_input=16)


def check_attached(engine: str, api: str, load: str, tmp_path: Path, extra_input: int) -> None:
    """Exact lengths at a running engine; chat adds the template's tokens, which do not count as asked for."""
    result = bench("run", scenario(tmp_path, text=text(engine, f", api: {api}", load)), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    frame = rows(tmp_path / "run")
    assert (frame.status == "ok").all(), frame.error.unique()
    assert (frame.phase == "measure").sum() == 12
    assert (frame.output_tokens == 24).all()
    assert (frame.input_tokens == 48 + (extra_input if api == "chat" else 0)).all()
    if "poisson" in load:
        assert (frame.sent_s >= frame.scheduled_s).all()


def test_ollama_over_openai_is_attached_too(ollama_root: str, tmp_path: Path) -> None:
    engine = f"{{name: a, kind: openai, flavor: ollama, model: enginebench-tiny:latest, base_url: '{ollama_root}/v1'}}"
    result = bench("run", scenario(tmp_path, text=text(engine, ", api: chat")), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (rows(tmp_path / "run").output_tokens == 24).all()


VARIED = (
    "kind: synthetic, input_tokens: {kind: uniform, min: 20, max: 300}, output_tokens: {kind: uniform, min: 4, max: 40}"
)


def test_vllm_gets_exact_lengths_by_token_ids(vllm_root: str, tmp_path: Path) -> None:
    engine = f"{{name: a, kind: openai, flavor: vllm, model: 'builtin:tiny', base_url: '{vllm_root}/v1'}}"
    made = text(engine).replace("kind: synthetic, input_tokens: 48, output_tokens: 24", VARIED + ", prompt: token_ids")
    result = bench("run", scenario(tmp_path, text=made), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    frame = rows(tmp_path / "run")
    assert (frame.status == "ok").all(), frame.error.unique()
    assert (frame.input_tokens == frame.asked_input_tokens).all()
    assert (frame.output_tokens == frame.asked_output_tokens).all()
    assert frame.input_tokens.nunique() > 5
    assert facts(tmp_path / "run", "a")["prompt_form"] == "token ids"
    assert "Lengths as asked for" in result.stdout


def test_vllms_prefix_hits_are_the_known_ones(vllm_root: str, tmp_path: Path) -> None:
    """Ten prompts of 300 tokens, one after the other, that begin with the same 256: two blocks of 128, known from the
    warm-up on."""
    engine = f"{{name: a, kind: openai, flavor: vllm, model: 'builtin:tiny', base_url: '{vllm_root}/v1'}}"
    load = "{kind: concurrency, levels: [1], requests: 10, start: burst}"
    made = text(engine, ", shared_prefix: {tokens: 256, share: 1.0, prefixes: 1}", load).replace(": 48,", ": 300,")
    result = bench("run", scenario(tmp_path, text=made), "--no-report", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    run = Counted.open(tmp_path / "run")
    (point,) = run.record.points
    assert run.grown("prefix_cache_queries_total", point) == run.grown("prompt_tokens_total", point) == 10 * 300
    assert run.grown("prefix_cache_hits_total", point) == 10 * 256
    assert run.grown("preemptions_total", point) == 0


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("which", ["vllm", "ollama"])
def test_sessions_of_three_turns(which: str, api: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each turn holds all that was said: the new text, and the model's own answers."""
    root = request.getfixturevalue(f"{which}_root")
    place = (
        f"kind: openai, flavor: vllm, base_url: '{root}/v1'" if which == "vllm" else f"kind: ollama, base_url: '{root}'"
    )
    engine = f"{{name: a, {place}, model: 'builtin:tiny'}}"
    sessions = f", turns: 3, think_time: {{kind: exponential, mean: 50ms}}, api: {api}"
    result = bench("run", scenario(tmp_path, text=text(engine, sessions)), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    frame = rows(tmp_path / "run")
    assert (frame.status == "ok").all(), frame.error.unique()
    assert (frame.output_tokens == 24).all()
    template = facts(tmp_path / "run", "a").get("template_tokens", 0)
    first = frame[frame.turn == 0]
    assert (first.input_tokens == first.asked_input_tokens).all()
    assert (first.input_tokens == 48 + template).all()
    assert frame[frame.turn > 0].asked_input_tokens.isna().all()
    sizes = frame.pivot_table(index=["phase", "session"], columns="turn", values="input_tokens")
    for turn in (1, 2):
        grown = (sizes[turn] - sizes[turn - 1]).dropna()
        assert len(grown) > 0
        assert (grown > 48 + 12).all(), "the new text, and an answer of 24 tokens, read again"
        assert (grown < 48 + 120).all()


BASELINE = """{name: one, kind: transformers, model: "builtin:tiny", args: {dtype: float32}}
  - {name: four, kind: transformers, model: "builtin:tiny", args: {dtype: float32, batch: 4, batch_wait: 100ms}}"""


def test_the_baseline_on_real_torch(tmp_path: Path) -> None:
    """Known work: 12 requests of uneven lengths, 4 at once; one after the other, and in batches of up to 4."""
    load = "{kind: concurrency, levels: [4], requests: 12, start: burst}"
    made = text(BASELINE, load=load).replace("kind: synthetic, input_tokens: 48, output_tokens: 24", VARIED)
    result = bench("run", scenario(tmp_path, text=made), "--no-report", "--out", tmp_path / "run", timeout_s=300)
    assert result.returncode == 0, result.stdout + result.stderr
    frame = rows(tmp_path / "run")
    assert (frame.status == "ok").all(), frame.error.unique()
    assert (frame.input_tokens == frame.asked_input_tokens).all()
    assert (frame.output_tokens == frame.asked_output_tokens).all()
    assert (frame.chunks == frame.output_tokens).all()
    for name, batches in (("one", 12), ("four", 3)):
        said = facts(tmp_path / "run", name)
        assert said["kv_bytes_per_token"] == 4 * 2 * 2 * 32 * 4  # layers x (K, V) x heads x 32 x bytes of float32
        assert said["weights_bytes"] > 4 * 1_132_928
        assert said["kv_capacity_bytes"] is None
        run = Counted.open(tmp_path / "run", name)
        (point,) = [p for p in run.record.points if p.engine == name]
        mine = frame[(frame.engine == name) & (frame.phase == "measure")]
        grown = {metric: run.grown(f"{metric}_total", point, "transformers") for metric in
                 ("batches", "finished", "prompt_tokens", "generation_tokens")}  # fmt: skip
        assert grown == {"batches": batches, "finished": 12, "prompt_tokens": mine.input_tokens.sum(),
                         "generation_tokens": mine.output_tokens.sum()}  # fmt: skip


def test_nothing_is_left_behind() -> None:
    """Runs last: no engine of these tests is alive any more but those of the module's own fixtures."""
    left = subprocess.run(["pgrep", "-fc", "guard.py"], capture_output=True, text=True).stdout.strip()
    assert int(left or 0) <= 2
