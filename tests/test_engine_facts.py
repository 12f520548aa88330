"""What engines say of themselves: lines of real logs and pages, and the facts that must come out of them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.engines.base import parallel
from harness.engines.ollama import first_of_each, ps_facts, runner_facts, show_facts
from harness.engines.vllm import VllmEngine, cache_facts, flags, is_path, log_facts, of_all_gpus, spec_facts
from harness.enginespec import VllmSpec
from harness.records import Fact

GIB, MIB = 2**30, 2**20
REFERENCE = Path(__file__).parents[1] / "results" / "reference"

# vLLM 0.24.0 on an H100 (the lines that carry facts, and some that look as if they did).
VLLM_GPU_LOG = """\
(APIServer pid=1266) INFO 11-22 00:05:01 [api_utils.py:339]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.24.0
(EngineCore pid=1335) INFO 11-22 00:05:24 [core.py:114] Initializing a V1 LLM engine (v0.24.0) with config: model='/m'
(EngineCore pid=1335) INFO 11-22 00:05:26 [parallel_state.py:1588] world_size=1 rank=0 local_rank=0 backend=nccl
(EngineCore pid=1335) INFO 11-22 00:05:27 [cuda.py:480] Using FLASH_ATTN attention backend out of potential backends: \
['FLASH_ATTN', 'TRITON_ATTN', 'FLEX_ATTENTION'].
(EngineCore pid=1335) INFO 11-22 00:05:27 [flash_attn.py:670] Using FlashAttention version 3
(EngineCore pid=1335) INFO 11-22 00:05:28 [model_runner.py:302] Model loading took 2.32 GiB and 1.860613 seconds
(EngineCore pid=1335) INFO 11-22 00:05:51 [gpu_worker.py:508] Available KV cache memory: 67.91 GiB
(EngineCore pid=1335) INFO 11-22 00:05:51 [kv_cache_utils.py:2146] GPU KV cache size: 2,225,424 tokens
(EngineCore pid=1335) INFO 11-22 00:05:51 [kv_cache_utils.py:2147] Maximum concurrency for 8,192 tokens per request: \
271.66x
(EngineCore pid=1335) INFO 11-22 00:05:55 [model_runner.py:726] Graph capturing finished in 4 secs, took 0.45 GiB
(EngineCore pid=1335) INFO 11-22 00:06:16 [core.py:337] init engine (profile, create kv cache, warmup model) took \
47.38 s (compilation: 19.91 s)
(APIServer pid=1266) INFO 11-22 00:06:28 [loggers.py:273] Engine 000: Avg prompt throughput: 34137.3 tokens/s, \
Running: 256 reqs, Waiting: 0 reqs, GPU KV cache usage: 7.1%, Prefix cache hit rate: 0.0%
"""
VLLM_GPU_METRICS = """\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="False",engine="0",\
kv_cache_max_concurrency="271.658203125",kv_cache_memory_bytes="None",kv_cache_size_tokens="2225424",\
num_cpu_blocks="None",num_gpu_blocks="139089",num_gpu_blocks_override="None"} 1.0
vllm:num_requests_running{engine="0"} 0.0
"""
# vLLM 0.32.0 on a CPU: no line about the weights, an exact number of KV bytes, and it calls its blocks the GPU's.
VLLM_CPU_LOG = """\
Triton is installed, but doesn't include CPU backend. Disabling Triton.
(APIServer pid=26975) \x1b[32mINFO\x1b[0m 11-22 02:14:12 [api_utils.py:347]  ▄▄ ▄█ █     █  version 0.32.0
(APIServer pid=26975) WARNING 11-22 02:14:12 [cpu.py:317] Reset SSM cache type to float32 for accelerated GDN mamba \
backend 'none'.
(Worker pid=28177) INFO 11-22 02:15:23 [cpu_worker.py:260] Explicitly set (1.0/17.21) GiB for KV cache on node 0.
(EngineCore pid=27620) INFO 11-22 02:15:23 [kv_cache_utils.py:2327] CPU KV cache size: 1,048,576 tokens, Maximum \
concurrency for 2,048 tokens per request: 512.00x
(EngineCore pid=27620) INFO 11-22 02:15:23 [core.py:402] init engine (profile, create kv cache, warmup model) took \
0.67 s
"""
VLLM_CPU_METRICS = (
    'vllm:cache_config_info{block_size="128",enable_prefix_caching="True",kv_cache_memory_bytes="1073741824",'
    'kv_cache_size_tokens="1048576",num_gpu_blocks="8192"} 1.0\n'
)
# Ollama's runner on a CPU, loaded twice: only the last load counts. Two devices hold weights.
OLLAMA_LOAD = """\
time=2026-11-22T02:23:40Z level=INFO source=llama_server.go:433 msg="starting llama-server" cmd="llama-server"
load_tensors:          AMX model buffer size =     1.50 MiB
load_tensors:          CPU model buffer size =     0.66 MiB
llama_context: n_seq_max             = {slots}
llama_context: n_ctx                 = {n_ctx}
llama_context: n_ctx_seq             = 2048
llama_context:        CPU  output buffer size =     0.02 MiB
llama_kv_cache:        CPU KV buffer size =     {kv} MiB
sched_reserve:        CPU compute buffer size =    10.52 MiB
srv    load_model: initializing, n_slots = {slots}, n_ctx_slot = 2048, kv_unified = 'false'
time=2026-11-22T02:23:40Z level=INFO source=llama_server.go:1362 msg="llama-server started in 0.26 seconds"
slot   operator(): id  3 | task 0 | new prompt, n_ctx_slot = 2048, n_keep = 4, task.n_tokens = 1900
"""
OLLAMA_LOG = OLLAMA_LOAD.format(slots=1, n_ctx=2048, kv="2.00") + OLLAMA_LOAD.format(slots=4, n_ctx=8192, kv="8.00")
PS = {
    "models": [
        {"name": "other:latest", "model": "other:latest", "size": 1, "digest": "0", "context_length": 1},
        {"name": "tiny:latest", "size": 21705522, "digest": "bd00b411", "size_vram": 1572864, "context_length": 2048},
    ]
}
SHOW = {
    "details": {"family": "llama", "parameter_size": "1.13M", "quantization_level": "F16"},
    "model_info": {"general.architecture": "llama", "general.parameter_count": 1132928},
}


def _values(facts: Any) -> dict[str, Any]:
    return {fact.name: fact.value for fact in (facts.values() if isinstance(facts, dict) else facts)}


def test_bytes_of_a_model_that_is_split_over_gpus_are_those_of_all() -> None:
    facts = log_facts(VLLM_GPU_LOG, "logged", "vllm log")
    facts |= cache_facts(VLLM_GPU_METRICS, facts)
    whole = of_all_gpus(facts, 2)
    assert whole["weights_bytes"].value == 2 * facts["weights_bytes"].value  # type: ignore[operator]
    assert whole["kv_bytes_per_token"].value == 2 * facts["kv_bytes_per_token"].value  # type: ignore[operator]
    assert "2 GPUs together" in whole["kv_capacity_bytes"].source
    assert "kv_capacity_tokens" not in whole  # told of the engine as it is
    assert of_all_gpus(facts, 1) == {}
    assert parallel({"--tensor-parallel-size": 2, "pipeline_parallel_size": None}) == 2


def test_vllm_on_a_gpu() -> None:
    facts = log_facts(VLLM_GPU_LOG, "logged", "vllm log")
    assert {fact.label for fact in facts.values()} == {"logged"}
    facts |= cache_facts(VLLM_GPU_METRICS, facts)
    assert _values(facts) == {
        "version": "0.24.0",
        "weights_bytes": pytest.approx(2.32 * GIB),
        "weights_load_s": 1.860613,
        "kv_capacity_bytes": pytest.approx(67.91 * GIB),
        "kv_capacity_tokens": 2_225_424,
        "kv_blocks": 139_089,
        "kv_block_tokens": 16,
        "kv_bytes_per_token": pytest.approx(32768, rel=1e-3),  # 16 layers x 2 x 8 heads x 64 x 2 bytes
        "max_concurrency": 271.66,
        "context_tokens": 8192,
        "graph_bytes": pytest.approx(0.45 * GIB),
        "attention_backend": "FLASH_ATTN",
        "kv_cache_dtype": "auto (the model's)",
        "prefix_caching": False,
        "engine_init_s": 47.38,
    }
    assert facts["kv_capacity_tokens"].label == "measured"
    assert facts["kv_bytes_per_token"].label == "derived"


@pytest.mark.parametrize(
    ("log", "phases"),
    [(VLLM_GPU_LOG, {"start_s": 9.0, "load_s": 1.860613, "init_s": 47.38}),
     (VLLM_CPU_LOG, {"start_s": 9.0, "load_s": None, "init_s": 0.67}), ("", {"start_s": 9.0, "load_s": None,
      "init_s": None})],
)  # fmt: skip
def test_vllms_phases(log: str, phases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VllmEngine(VllmSpec(name="v", kind="vllm", model="m"))
    engine.log = tmp_path / "log"
    engine.log.write_text(log)
    monkeypatch.setattr(engine, "await_answer", lambda url: 9.0)
    assert engine.ready(lambda *_: None) == phases


@pytest.mark.parametrize("folder", sorted(REFERENCE.glob("*/vllm.log.gz")), ids=lambda path: path.parent.name)
def test_logged_kv_tokens_of_real_gpus_are_the_runs(folder: Path) -> None:
    """Runs on an H100: what vLLM logged is what its page, the run's facts and the report's figures say."""
    (logged,) = re.findall(r"GPU KV cache size: ([\d,]+) tokens", gzip.decompress(folder.read_bytes()).decode())
    run = json.loads(folder.with_name("run.json").read_text())
    facts = {fact["name"]: fact["value"] for fact in run["engines"][0]["facts"]}
    assert facts["kv_capacity_tokens"] == int(logged.replace(",", ""))
    rows = json.loads(folder.with_name("summary.json").read_text())["rows"]
    capacity = {row["value"] for row in rows if row["metric"] == "kv_capacity_bytes"}
    assert capacity == {facts["kv_capacity_bytes"]}
    assert facts["kv_capacity_bytes"] / facts["kv_bytes_per_token"] == pytest.approx(
        facts["kv_capacity_tokens"], rel=1e-3
    )


def test_overridden_blocks_make_no_bytes_of_those_that_were_free() -> None:
    known = log_facts(VLLM_GPU_LOG, "logged", "vllm log")
    page = VLLM_GPU_METRICS.replace('num_gpu_blocks_override="None"', 'num_gpu_blocks_override="256"')
    facts = known | cache_facts(page.replace('"2225424"', '"4096"'), known)
    assert facts["kv_capacity_tokens"].value == 4096
    assert facts["kv_capacity_bytes"].value is None
    assert "kv_bytes_per_token" not in facts


def test_vllm_on_a_cpu() -> None:
    facts = log_facts(VLLM_CPU_LOG, "logged", "vllm log")
    assert facts["kv_capacity_bytes"].value == GIB
    facts |= cache_facts(VLLM_CPU_METRICS, facts)
    assert _values(facts) == {
        "version": "0.32.0", "kv_capacity_bytes": GIB, "kv_capacity_tokens": 1_048_576, "kv_blocks": 8192,
        "kv_block_tokens": 128, "kv_bytes_per_token": 1024, "max_concurrency": 512, "context_tokens": 2048,
        "prefix_caching": True, "engine_init_s": 0.67,
    }  # fmt: skip


def test_vllm_before_it_told_its_tokens_and_without_a_log() -> None:
    """An `openai` engine reads /metrics alone; before 0.30 that has blocks only, and no bytes at all."""
    page = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0\n'
    facts = cache_facts(page, {})
    assert _values(facts) == {"kv_block_tokens": 16, "kv_blocks": 1000, "kv_capacity_tokens": 16_000}
    assert facts["kv_capacity_tokens"].source == "/metrics: blocks x size"
    logged = log_facts("GPU KV cache size: 15,984 tokens", "logged", "vllm log")
    assert cache_facts(page, logged)["kv_capacity_tokens"].value == 15_984  # the log knows what is usable
    assert cache_facts("# nothing of it\n", {}) == {}
    assert _values(cache_facts("", logged)) == {"kv_capacity_tokens": 15_984}
    assert log_facts("", "logged", "vllm log") == {}


@pytest.mark.parametrize(
    ("line", "backend"),
    [
        ("[cuda.py:221] Using Flash Attention backend on V1 engine.", "Flash Attention"),  # 0.8
        ("[cuda.py:240] Using FlashInfer backend on V1 engine by default for Blackwell (SM 10.0) GPUs.", "FlashInfer"),
        ("[cuda.py:416] Using AttentionBackendEnum.TRITON_ATTN backend.", "TRITON_ATTN"),  # 0.19
        ("[cuda.py:480] Using FLASHINFER attention backend out of potential backends: [].", "FLASHINFER"),  # 0.24
        ("[mxfp4.py:96] Using Triton backend", None),  # of a layer that is no attention
        ("[fp8.py:1] Using FLASHINFER_CUTLASS Fp8 MoE backend out of potential backends", None),
    ],
)
def test_vllm_names_its_attention_in_several_wordings(line: str, backend: str | None) -> None:
    assert _values(log_facts(f"INFO 05-03 20:21:10 {line}\n", "logged", "log")).get("attention_backend") == backend


def test_the_last_start_in_an_appended_log_counts() -> None:
    again = VLLM_GPU_LOG.replace("2,225,424", "1,000,000").replace("0.45 GiB", "0.50 GiB")
    values = _values(log_facts(VLLM_GPU_LOG + again, "logged", "vllm log"))
    assert (values["kv_capacity_tokens"], values["graph_bytes"]) == (1_000_000, pytest.approx(0.5 * GIB))


def test_ollama() -> None:
    facts = first_of_each([*ps_facts(PS, "tiny"), *show_facts(SHOW), *runner_facts(OLLAMA_LOG)])
    assert _values(facts) == {
        "memory_bytes": 21_705_522,
        "size_vram_bytes": 1_572_864,
        "model_digest": "bd00b411",
        "context_tokens": 2048,
        "quantization": "F16",
        "family": "llama",
        "parameters": 1_132_928,
        "weights_bytes": pytest.approx(2.16 * MIB),
        "kv_capacity_bytes": 8 * MIB,
        "kv_capacity_tokens": 8192,
        "kv_bytes_per_token": 1024,  # 4 layers x 2 x 2 heads x 32 x 2 bytes
        "compute_buffer_bytes": pytest.approx(10.52 * MIB),
        "parallel_slots": 4,
        "max_concurrency": 4,
    }
    assert len(facts) == len(_values(facts))


def test_ollamas_quantized_cache_and_layers_on_a_gpu() -> None:
    more = (
        "llama_kv_cache: size =    4.25 MiB (  2048 cells,   4 layers,  4/4 seqs), K (q8_0):    2.12 MiB, V (q8_0):"
        "    2.12 MiB\nload_tensors: offloaded 33/33 layers to GPU\n"
    )
    values = _values(runner_facts(OLLAMA_LOAD.format(slots=4, n_ctx=8192, kv="4.25") + more))
    assert (values["kv_cache_dtype"], values["layers_on_gpu"]) == ("q8_0", 33)
    assert values["kv_bytes_per_token"] == 544  # of each 32 values 34 bytes: 1024 / 2 x 34 / 32
    mixed = more.replace("V (q8_0)", "V (f16)")
    assert _values(runner_facts(mixed))["kv_cache_dtype"] == "q8_0 and f16"
    assert _values(show_facts(SHOW | {"model_info": {"llama.block_count": 4}}))["layers"] == 4


def test_ollamas_slots_that_share_their_context() -> None:
    shared = OLLAMA_LOAD.replace("'false'", "'true'").replace("n_ctx_slot = 2048", "n_ctx_slot = 8192")
    values = _values(runner_facts(shared.format(slots=4, n_ctx=8192, kv="8.00")))
    assert (values["kv_capacity_tokens"], values["kv_bytes_per_token"]) == (8192, 1024)


def test_an_older_ollama_that_does_not_log_n_ctx() -> None:
    lines = OLLAMA_LOG.splitlines(keepends=True)
    values = _values(runner_facts("".join(line for line in lines if "llama_context: n_ctx  " not in line)))
    assert values["kv_capacity_tokens"] == 8192


def test_ollama_that_says_nothing() -> None:
    assert runner_facts("") == []
    assert ps_facts({}, "tiny") == ps_facts({"models": None}, "tiny") == ps_facts(PS, "tiny:other") == []
    assert show_facts(None) == show_facts({"details": None}) == []
    assert [f.name for f in ps_facts(PS, "tiny:latest")] == [f.name for f in ps_facts(PS, "tiny")]
    assert _values(runner_facts("CPU KV buffer size = 8.00 MiB")) == {"kv_capacity_bytes": 8 * MIB}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, []),
        ({"max_model_len": 8192}, ["--max-model-len", "8192"]),
        ({"--max-model-len": 8192}, ["--max-model-len", "8192"]),
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"quantization": None, "seed": 0}, ["--seed", "0"]),
        ({"gpu_memory_utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
        ({"hf_overrides": {"a": [1, "x"]}}, ["--hf-overrides", '{"a": [1, "x"]}']),
        ({"lora_modules": ["a=b", 2]}, ["--lora-modules", "a=b", "2"]),
        ({"served": "two words; rm -rf /"}, ["--served", "two words; rm -rf /"]),  # no shell ever reads it
    ],
)
def test_flags(args: dict[str, Any], words: list[str]) -> None:
    assert flags(args) == words


@pytest.mark.parametrize(
    ("model", "path"),
    [("/models/x", True), ("./x", True), ("../x", True), ("~/x", True), ("org/model", False), ("model", False),
     (".hidden/x", False)],
)  # fmt: skip
def test_is_path(model: str, path: bool) -> None:
    assert is_path(model) == path


def test_first_of_each() -> None:
    a, b, c = (Fact(name, value, "", "logged", "x") for name, value in (("n", 1), ("m", 2), ("n", 3)))
    assert first_of_each([a, b, c]) == [a, b]
    assert first_of_each([]) == []


def test_what_the_scenario_sets_is_configured() -> None:
    facts = spec_facts({"max_num_seqs": 8, "port": 1, "dtype": "bfloat16"})
    assert _values(facts) == {"max_num_seqs": 8, "dtype": "bfloat16"}
    assert {fact.label for fact in facts} == {"configured"}
