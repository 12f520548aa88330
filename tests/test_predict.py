"""Names as people spell them, predictions with their intervals, quality, advice; and the commands, as a process."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.machine import find_machine
from harness.modelfile import find_model, safetensors_bytes
from sizing.advise import Advice, Choice, advise
from sizing.candidates import Want, catalogue, screen
from sizing.catalog import hardware, model, native_quantization, quantization
from sizing.engine import Setup, memory_plan, policy, step_time
from sizing.hardware_names import split_count
from sizing.learnt import NOTHING, Learnt
from sizing.loads import Offered, OverloadError, meet
from sizing.memory_llama import OllamaStart, plan_ollama
from sizing.predict import MEMORY_KEYS, SPEED_KEYS, Query, predict
from sizing.quality import evidence, expected_nats, loss_nats
from sizing.steady import Load, burst_mean_ttft_s, steady_state
from sizing.together import share_of
from tests.cli import bench
from tests.runfolders import Speed, new

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


# --------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("LLaMA 3 8B", "meta-llama/Meta-Llama-3-8B"),
        ("llama3.2:1b", "meta-llama/Llama-3.2-1B-Instruct"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", LLAMA),
        (
            "hf.co/unsloth/Mistral-Small-3.2-24B-Instruct-2506-GGUF:Q4_K_M",
            "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        ),
        ("DeepSeek R1 14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
        ("Qwen/Qwen3-14B-FP8", "Qwen/Qwen3-14B"),
        ("gpt-oss 20b", "openai/gpt-oss-20b"),
        ("microsoft_Phi-4-mini-instruct-Q4_K_M.gguf", "microsoft/Phi-4-mini-instruct"),
    ],
)
def test_models_are_found_as_people_spell_them(asked: str, found: str) -> None:
    assert model(asked).name == found


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("h100_sxm", "H100 SXM 80GB"),
        ("H100", "H100 SXM 80GB"),
        ("Intel 13900K (Nvidia 4090)](https://example.org)", "RTX 4090 24GB"),
        ("M1 Max 32‑Core GPU 64GB", "Apple M1 Max"),
        ("V100 PCIe 32GB", "V100 32GB"),
        ("Pi 5 - 8GB (AMD Pro W7700<sup>1</sup>)", "Radeon Pro W7700 16GB"),
    ],
)
def test_hardware_is_found_as_people_spell_it(asked: str, found: str) -> None:
    assert hardware(asked).name == found


def test_a_board_that_was_assumed_is_said_and_a_count_is_read() -> None:
    assert "is taken as H100 SXM 80GB" in hardware("H100").note
    assert hardware("M1 Max 64GB").memory_gib == 64
    assert split_count("2x A100 SXM 80GB") == (2, "A100 SXM 80GB")
    assert split_count("RTX 4090") == (1, "RTX 4090")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("AutoRound int4 g128", "int4"),
        ("gptq_marlin int8", "w8a16"),
        ("fp4", "nvfp4"),
        ("Q6", "Q6_K"),
        ("bf16?", "bf16"),
    ],
)
def test_formats_are_found_inside_longer_texts(asked: str, found: str) -> None:
    assert quantization(asked).name == found


def test_the_own_format_of_a_model_is_told_from_its_name() -> None:
    assert native_quantization("openai/gpt-oss-20b") == "mxfp4"
    assert native_quantization("Qwen/Qwen3-14B-AWQ") == "awq"
    assert native_quantization(LLAMA) == "bf16"


def test_a_size_alone_gives_a_typical_model_only_where_that_will_do() -> None:
    with pytest.raises(LookupError):
        model("nothing-7b")
    typical = model("nothing-7b", typical_will_do=True)
    assert typical.params == 7e9
    assert not typical.known_geometry


# -------------------------------------------------------------------------------------------------- own files


def test_own_config_and_safetensors_are_exact(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 1000, "intermediate_size": 512, "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 6)
    shape, own = find_model(str(tmp_path))
    assert (shape.file_bytes, own, shape.kv_heads, shape.head_dim) == (6, "fp8", 2, 32)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense" * 4)
    with pytest.raises(InputError, match="no safetensors file"):
        safetensors_bytes(tmp_path / "bad.safetensors")


def test_own_hardware_is_strict(tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text("name: Mine\nmemory: 20GiB\nbandwidth_gbs: 500\n")
    assert find_machine(str(file)).hardware.usable_gib == 20
    assert find_machine("RTX 4090", "22GiB").hardware.usable_gib == 22
    file.write_text("name: Mine\nmemory: 20GiB\nbandwidht: 500\n")
    with pytest.raises(InputError, match="unknown key 'bandwidht'"):
        find_machine(str(file))


# ------------------------------------------------------------------------------------------------- prediction


def _query(engine: str = "vllm", gpu: str = "H100", quant: str = "fp8", name: str = LLAMA, **load: int) -> Query:
    offered = Offered(load.get("sent", 512), load.get("made", 64), load.get("users", 1))
    return Query(hardware(gpu), model(name), quantization(quant), Setup(engine=engine), offered)


@pytest.mark.parametrize("engine", ["vllm", "ollama", "llama.cpp"])
def test_every_figure_has_its_interval_label_and_sources(engine: str) -> None:
    answer = predict(_query(engine, quant="fp8" if engine == "vllm" else "q4_k_m"))
    assert tuple(answer.memory) == MEMORY_KEYS
    assert set(SPEED_KEYS) <= set(answer.speed)
    for estimate in (*answer.memory.values(), *answer.speed.values()):
        assert estimate.value is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.label in ("measured", "calibrated", "derived")
        assert estimate.sources


def test_what_cannot_be_known_is_none_with_a_reason() -> None:
    too_big = predict(_query(gpu="RTX 4090", quant="bf16", name="Llama-3.1-70B-Instruct"))
    assert too_big.memory["fits"].value is False
    assert too_big.speed["ttft_p50_s"].value is None
    assert "does not fit" in too_big.speed["ttft_p50_s"].reason
    no_size = predict(_query("ollama", "M4 Max", "q4_k_m"))
    assert no_size.memory["fits"].value is None
    assert no_size.speed["decode_tok_s"].value is not None  # the bandwidth is known
    typical = _query("llama.cpp", "RTX 4090", "q4_k_m")
    unknown = Query(typical.hardware, model("nothing-8b", True), typical.quantization, typical.setup, typical.offered)
    assert predict(unknown).memory["kv_bytes_per_token"].value is None


def test_a_start_on_this_machine_narrows_the_overhead() -> None:
    query = _query()
    plain = predict(query).memory["kv_capacity_bytes"]
    known = Query(query.hardware, query.model, query.quantization, Setup(overhead_extra_bytes=0), query.offered)
    narrow = predict(known).memory["kv_capacity_bytes"]
    assert narrow.label == "calibrated"
    assert float(narrow.high or 0) - float(narrow.low or 0) < float(plain.high or 0) - float(plain.low or 0)


def test_figures_that_nobody_verified_widen_the_interval() -> None:
    sure = _query("llama.cpp", "RTX 4090", "q4_k_m")
    unsure = dataclasses.replace(sure, hardware=dataclasses.replace(sure.hardware, verified="UNVERIFIED"))
    one, two = (predict(query).speed["decode_tok_s"] for query in (sure, unsure))
    assert one.value == two.value
    assert float(two.low or 0) < float(one.low or 0)
    assert any("UNVERIFIED" in note for note in predict(unsure).notes)


def test_a_burst_waits_longer_than_a_staggered_loop_and_the_closed_form_agrees() -> None:
    device, shape, weights, setup = hardware("H100"), model(LLAMA), quantization("bf16"), Setup()
    plan = memory_plan(device, shape, weights, setup)
    times, rules = step_time(device, shape, weights, setup, plan), policy(device, plan, setup)
    steady = meet(times, rules, Offered(512, 64, 16))
    burst = meet(times, rules, Offered(512, 64, 16, burst_requests=64))
    assert burst.ttft_mean_s > 1.5 * steady.ttft_mean_s
    state = steady_state(times, Load(512, 64, 16), rules)
    assert state.tpot_s == pytest.approx(steady.tpot_p50_s, rel=0.1)
    assert state.ttft_s == pytest.approx(steady.ttft_p50_s, rel=0.35)
    assert burst_mean_ttft_s(state, Load(512, 64, 16), 64) > state.ttft_s
    with pytest.raises(OverloadError, match="exceed the about"):
        meet(times, rules, Offered(512, 64, rate_rps=1e6))
    with pytest.raises(OverloadError, match="exceeds the 8192"):
        meet(times, rules, Offered(9000, 64))


def test_replicas_share_a_load_and_add_up() -> None:
    two = dataclasses.replace(_query(users=32), replicas=2)
    one, together = predict(_query(users=16)), predict(two)
    for key, times in (("output_tok_s", 2), ("tpot_p50_s", 1), ("ttft_p95_s", 1), ("decode_tok_s", 1)):
        assert together.speed[key].value == pytest.approx(times * (one.speed[key].value or 0))
    for key, times in (("kv_capacity_tokens", 2), ("weights_bytes", 2), ("kv_bytes_per_token", 1)):
        assert together.memory[key].value == pytest.approx(times * (one.memory[key].value or 0))
    assert together.memory["fits"].value is True
    load = two.offered
    single, odd = share_of(dataclasses.replace(load, concurrency=1), 4), share_of(load, 3)
    assert (single[0].concurrency, single[1]) == (1, 1.0)
    assert (odd[0].concurrency, odd[1]) == (11, pytest.approx(32 / 11))
    assert share_of(dataclasses.replace(load, rate_rps=6.0), 3)[0].rate_rps == 2.0
    assert share_of(dataclasses.replace(load, burst_requests=100), 2)[0].burst_requests == 50


def test_layers_that_do_not_fit_stay_on_the_cpu_and_slow_it_down() -> None:
    device, shape, weights = hardware("RTX 4080"), model("Llama-3.1-70B-Instruct"), quantization("q4_k_m")
    plan = plan_ollama(device, shape, weights, OllamaStart(4096, 1))
    assert not plan.fits
    assert plan.gpu_layers is not None
    assert 0 < plan.gpu_layers < shape.layers
    slow = predict(_query("ollama", "RTX 4080", "q4_k_m", "Llama-3.1-70B-Instruct")).speed["decode_tok_s"].value
    assert slow is not None
    assert slow < 5


def test_attention_scores_without_flash_attention_are_as_logged() -> None:
    """ollama/ollama#9988: qwen2.5-coder:32b used 19.85, 21.17 and 23.82 GiB at 4096, 8192 and 16384 tokens."""
    shape, weights = model("qwen2.5-coder:32b"), quantization("q4_k_m")
    for context, gib in ((4096, 19.85), (8192, 21.17), (16384, 23.82)):
        plan = plan_ollama(hardware("H100"), shape, weights, OllamaStart(context, 1, version="0.5.7"))
        used = plan.weight_bytes + plan.overhead_bytes + plan.kv_capacity_bytes
        assert used / 2**30 == pytest.approx(gib, rel=0.03)


def test_a_format_that_is_slower_at_saturation_is_said_to_be_slower() -> None:
    """gpustack's saturated Qwen3-8B: AWQ -27 % on an H100 and -7 % on an A100, FP8 +15 to +27 % on the H100."""

    def output_tok_s(gpu: str, quant: str) -> float:
        device, shape, weights = hardware(gpu), model("Qwen3-8B"), quantization(quant)
        setup = Setup(max_model_len=4096)
        plan = memory_plan(device, shape, weights, setup)
        times = step_time(device, shape, weights, setup, plan)
        return steady_state(times, Load(220, 200, 256), policy(device, plan, setup)).output_tok_s

    assert output_tok_s("H100 SXM", "awq") < 0.85 * output_tok_s("H100 SXM", "bf16")
    assert 0.9 < output_tok_s("A100 SXM 80GB", "awq") / output_tok_s("A100 SXM 80GB", "bf16") < 1.0
    assert 1.1 < output_tok_s("H100 SXM", "fp8") / output_tok_s("H100 SXM", "bf16") < 1.35


# ----------------------------------------------------------------------------------------- quality and advice


def test_quality_follows_bits_and_measured_rows_stay_near() -> None:
    shape = model("Meta-Llama-3-8B")
    losses = [float(loss_nats(shape, quantization(q)).value or 0) for q in ("q8_0", "q6_k", "q4_k_m", "q3_k_m", "q2_k")]
    assert losses == sorted(losses)
    assert losses[2] == pytest.approx(math.log(6.407115 / 6.2316), rel=0.6)
    assert loss_nats(shape, quantization("bf16")).value == 0.0
    assert len(evidence()) > 40
    big, small = model("Llama-3.1-70B-Instruct"), model(LLAMA)
    assert float(expected_nats(big, quantization("q4_k_m")).value or 0) < float(
        expected_nats(small, quantization("bf16")).value or 0
    )


def test_advice_names_what_binds_and_never_what_does_not_fit() -> None:
    want = Want(users=4, context_tokens=8192, tpot_p95_s=0.05)
    advice = advise(hardware("RTX 4090"), 1, catalogue(), want, price_per_hour=0.4)
    best = advice.best
    assert best is not None
    assert best.candidate.plan.fits
    assert "70B" not in best.candidate.model.name  # 70B does not fit 24 GB
    assert best.users is not None
    assert best.users >= 4
    assert advice.why_runner_up
    assert "memory" in advice.binding
    assert advice.relax
    assert best.cost_per_million.value is not None
    nothing = advise(hardware("RTX 4060"), 1, [model("Llama-3.1-70B-Instruct")], want)
    assert nothing.best is None
    assert all(not candidate.fits for candidate in screen(hardware("T4"), 1, [model("DeepSeek-V3")], want))


def test_advice_takes_what_starts_and_runs_taught() -> None:
    extra, name = 6 * 2**30, "H100 SXM 80GB"
    taught = Learnt({(LLAMA, 1): extra}, (("vllm", None, 1.5), ("vllm", "awq", 1.7)), "receipts.jsonl")
    before, after = (advise(hardware(name), 1, [model(LLAMA)], Want(users=4, learnt=of)) for of in (NOTHING, taught))

    def of(advice: Advice, engine: str) -> Choice:
        return next(c for c in advice.ranked if c.candidate.setup.engine == engine)

    old, new_ = of(before, "vllm"), of(after, "vllm")
    assert old.candidate.quantization.name == new_.candidate.quantization.name == "fp8"
    assert old.candidate.plan.kv_capacity_bytes - new_.candidate.plan.kv_capacity_bytes == extra
    assert new_.prediction.memory["kv_capacity_tokens"].label == "calibrated"
    assert old.prediction.speed["tpot_p50_s"].label == "derived"
    tpot = new_.prediction.speed["tpot_p50_s"]
    assert tpot.label == "calibrated"
    assert "1 receipts" in tpot.sources[-1]  # a run in AWQ says nothing of FP8
    assert tpot.value == pytest.approx(1.5 * float(old.prediction.speed["tpot_p50_s"].value or 0), rel=0.05)
    assert of(after, "ollama").prediction == of(before, "ollama").prediction
    slow = Want(users=4, tpot_p95_s=1.2 * float(old.prediction.speed["tpot_p95_s"].value or 0))
    assert of(advise(hardware(name), 1, [model(LLAMA)], slow), "vllm").candidate.quantization.name == "fp8"
    screened = screen(hardware(name), 1, [model(LLAMA)], dataclasses.replace(slow, learnt=taught))
    assert all(not c.fits for c in screened if c.setup.vllm)


def test_the_recommendation_is_predicted_as_predict_does_and_a_missed_limit_ends_early() -> None:
    want = Want(users=24, input_tokens=256, output_tokens=48, ttft_p95_s=1.0, tpot_p95_s=0.05)
    best = advise(hardware("H100 SXM 80GB"), 1, [model(LLAMA)], want).best
    assert best is not None
    found = best.candidate
    offered = Offered(256, 48, 24)
    query = Query(hardware("H100 SXM 80GB"), found.model, found.quantization, found.setup, offered)
    assert predict(query).speed == best.prediction.speed
    ttft_p95_s = float(best.prediction.speed["ttft_p95_s"].value or 0)
    for share, above in ((1.01, False), (0.5, True)):
        limited = dataclasses.replace(offered, most_ttft_p95_s=share * ttft_p95_s)
        speed = predict(dataclasses.replace(query, offered=limited)).speed
        assert (speed["ttft_p95_s"].value is None) is above
        if not above:
            assert speed == best.prediction.speed
    assert "the p95 of TTFT is above" in str(speed["ttft_p95_s"].reason)


# ---------------------------------------------------------------------------------------------------- commands


def test_predict_prints_the_keys_and_refuses_what_it_does_not_know() -> None:
    words = ("predict", "--hardware", "H100 SXM 80GB", "--model", LLAMA, "--quantization", "fp8", "--format", "json")
    found = json.loads(bench(*words).stdout)
    assert tuple(found["memory"]) == MEMORY_KEYS
    assert set(SPEED_KEYS) <= set(found["speed"])
    assert set(found["speed"]["tpot_p50_s"]) == {"value", "low", "high", "label", "sources"}
    wrong = bench("predict", "--hardware", "RTX 4091", "--model", LLAMA)
    assert wrong.returncode == 2
    assert "RTX 4090" in wrong.stderr
    assert bench("predict", "--hardware", "H100").returncode == 2


def test_predict_answers_every_point_of_a_scenario() -> None:
    found = json.loads(bench("predict", "quickstart", "--format", "json").stdout)
    assert len(found["points"]) >= 2
    assert all("speed" in point or "reason" in point for point in found["points"])


def test_advise_writes_a_scenario_that_passes_its_check(tmp_path: Path) -> None:
    file = tmp_path / "verify.yaml"
    done = bench("advise", "--hardware", "H100", "--users", "8", "--format", "json", "--write-scenario", file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recommendation"]["commands"]
    assert bench("scenario", "check", file).returncode == 0
    for format in ("md", "html"):
        assert "Run " in bench("advise", "--hardware", "H100", "--format", format).stdout
    none = bench("advise", "--hardware", "RTX 4060", "--models", "Llama-3.1-70B-Instruct")
    assert none.returncode == 3
    assert "Nothing in the catalogue" in none.stdout


def test_a_run_is_scored_and_what_it_teaches_is_read_by_the_next_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.scored import keep, score
    from harness.receipts import read, step_scale, vllm_extra_bytes

    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path / "home"))
    built = new().engine("a", model=LLAMA, facts={"kv_capacity_tokens": (400_000, "tok")})
    built.point("a", 2, Speed(0.05, 0.02))
    built.run.scenario["load"] = [{"kind": "concurrency", "levels": [2], "duration": 10.0}]
    built.run.environment = {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}
    scored = score(built.write(tmp_path / "run").path)
    assert {item.figure for item in scored} >= {"kv_capacity_tokens", "tpot_p50_s"}
    tpot = next(item for item in scored if item.figure == "tpot_p50_s")
    assert tpot.measured == pytest.approx(0.02, rel=0.01)
    assert keep(scored) == tmp_path / "home" / "receipts.jsonl"
    shown = bench("advise", "--hardware", "H100", "--models", LLAMA, "--slo", "none", "--format", "json")
    labels = {way["engine"]: way["memory"]["kv_capacity_tokens"]["label"] for way in json.loads(shown.stdout)["ranked"]}
    assert labels == {"vllm": "calibrated", "ollama": "derived"}
    scale, sources = step_scale("H100 SXM 80GB", "vllm", "bf16")
    assert scale == pytest.approx(tpot.measured / (tpot.predicted or 1))
    assert sources
    extra = vllm_extra_bytes("H100 SXM 80GB", LLAMA, None)
    assert extra is not None
    assert vllm_extra_bytes("H100 SXM 80GB", LLAMA, None, devices=2) is None  # a start of other buffers
    query = scored[0].query
    taught = Query(query.hardware, query.model, query.quantization, Setup(overhead_extra_bytes=extra), query.offered)
    assert predict(taught).memory["kv_capacity_tokens"].value == pytest.approx(400_000, rel=0.01)
    built.run.scenario["engines"][0]["replicas"] = 2  # whose KV tokens are those of both
    built.run.engines[0].facts[0] = dataclasses.replace(built.run.engines[0].facts[0], value=800_000)
    keep(score(built.write(tmp_path / "two").path))
    assert read("vllm_start")[-1]["extra_bytes"] == pytest.approx(extra, abs=2**20)
    (tmp_path / "home" / "receipts.jsonl").write_text("damaged\n")
    assert read("speed") == []
    assert step_scale("H100 SXM 80GB", "vllm", "bf16") == (1.0, ())
