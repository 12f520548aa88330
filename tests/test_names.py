"""Names as strangers write them: NVML, llama-bench, Ollama's library, Hugging Face, price lists. The wrong part or the
wrong model is worse than none."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.machine import find_machine
from harness.modelfile import find_model
from harness.tinymodels import gguf_file, hf_folder
from sizing.candidates import Want, options
from sizing.catalog import hardware, in_format, model, quantization, stated_quantization
from sizing.hardware_names import split_count

HARDWARE = {
    "NVIDIA H100 80GB HBM3": "H100 SXM 80GB",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "A100-80G": "A100 SXM 80GB",
    "NVIDIA GH200 480GB": "GH200 96GB",
    "GB200 NVL72": "GB200",
    "AMD Instinct MI300X": "MI300X 192GB",
    "RTX4090": "RTX 4090 24GB",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX 4090 Laptop 16GB",
    "RTX 4090D": "RTX 4090 D 24GB",
    "RTX 3060 8GB": "RTX 3060 8GB",
    "GeForce RTX 3060 12GB": "GeForce RTX 3060",
    "RTX 3080 12GB": "RTX 3080 12GB",
    "RTX 2070": "RTX 2070 8GB",
    "RTX 2080": "RTX 2080 8GB",
    "RTX 4070TiSuper": "GeForce RTX 4070 Ti Super",
    "7900XTX": "Radeon RX 7900 XTX",
    "RX 6800": "RX 6800 16GB",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Blackwell Max-Q 96GB",
    "NVIDIA A10G": "A10G 24GB",
    "Tesla V100-SXM2-16GB": "V100 (PCIe/SXM)",
    "NVIDIA GB10": "DGX Spark 128GB",
    "AMD RYZEN AI MAX+ 395 w/ Radeon 8060S": "Ryzen AI Max+ 395 128GB",
    "AMD EPYC 9654 96-Core Processor": "EPYC 9654",
    "Intel(R) Core(TM) i9-14900K": "Core i9-14900K",
    "MacBook Pro M4 Max": "Apple M4 Max",
    "Jetson AGX Orin 64GB": "Jetson AGX Orin 64GB",
}
COUNTS = {
    "2x RTX 3090": 2, "8 x H100": 8, "8xH100": 8, "2x3090": 2, "H100x8": 8, "3090 24GB * 2": 2, "RTX 3090 (x2)": 2,
    "dual RTX 3090": 2, "DGX H100": 8, "DGX Spark": 1, "M1 Max 32": 1, "MI300X": 1, "AmpereOne A192-32X": 1, "4090": 1,
}  # fmt: skip
MODELS = {
    "llama 8B Q4_K - Medium": "meta-llama/Meta-Llama-3-8B",
    "llama 3B Q4_K - Medium": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen3moe 30B.A3B Q4_K - Medium": "Qwen/Qwen3-30B-A3B",
    "gpt-oss 20B MXFP4 MoE": "openai/gpt-oss-20b",
    "gemma 2B Q4_0": "google/gemma-2b-it",
    "gemma3 27B Q4_K - Medium": "google/gemma-3-27b-it",
    "llama3.2": "meta-llama/Llama-3.2-3B-Instruct",
    "mistral-small:22b": "mistralai/Mistral-Small-Instruct-2409",
    "mistralai/Mistral-Small-Instruct-2409": "mistralai/Mistral-Small-Instruct-2409",
    "mistral-small": "mistralai/Mistral-Small-24B-Instruct-2501",
    "tiiuae/falcon-7b": "tiiuae/falcon-7b",
    "Qwen/Qwen-7B": "Qwen/Qwen-7B",
    "deepseek-ai/DeepSeek-V2.5": "deepseek-ai/DeepSeek-V2-Chat",
    "deepseek-ai/DeepSeek-V3.1": "deepseek-ai/DeepSeek-V3",
    "nvidia/DeepSeek-R1-0528-FP4-v2": "deepseek-ai/DeepSeek-R1",
    "phi3.5": "microsoft/Phi-3.5-mini-instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct": "Qwen/Qwen2.5-VL-7B-Instruct",
    "neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": "meta-llama/Llama-3.1-8B-Instruct",
    "unsloth/Qwen3-32B-GGUF:UD-Q4_K_XL": "Qwen/Qwen3-32B",
    "amd/Llama-3.3-70B-Instruct-FP8-KV": "meta-llama/Llama-3.3-70B-Instruct",
    "Qwen/Qwen3-235B-A22B-Thinking-2507": "Qwen/Qwen3-235B-A22B",
}
FORMATS = {
    "Q4_K - Medium": "Q4_K_M", "Q4_K - Small": "Q4_K_S", "Q3_K - Large": "Q3_K_L", "IQ4_XS - 4.25 bpw": "IQ4_XS",
    "UD-Q4_K_XL": "Q4_K_M", "Q6_K_L": "Q6_K", "mostly Q4_0": "Q4_0", "fp8_w8a8": "fp8", "INT8 W8A8": "w8a8",
    "FP8 (Marlin W8A16)": "w8a16", "gptq_marlin int8": "w8a16", "AWQ 8bit": "w8a16", "AWQ-INT4": "awq",
    "auto-round": "int4", "MXFP4_MOE": "mxfp4", "modelopt_fp4": "nvfp4", "bf16?": "bf16", "half": "fp16",
}  # fmt: skip


def test_hardware() -> None:
    assert {asked: hardware(asked).name for asked in HARDWARE} == HARDWARE


def test_counts() -> None:
    assert {asked: split_count(asked)[0] for asked in COUNTS} == COUNTS


def test_models() -> None:
    found = {asked: model(asked, typical_will_do=True).name for asked in MODELS}
    assert found == MODELS


def test_formats() -> None:
    assert {asked: quantization(asked).name for asked in FORMATS} == FORMATS


@pytest.mark.parametrize("name", ["A100", "RTX 4060 Ti", "RTX 6000", "RTX 3090 24GB + RTX 4090", "H1000", "RTX 9999"])
def test_what_may_be_several_parts_or_none_is_refused(name: str) -> None:
    with pytest.raises(LookupError):
        hardware(name)


def test_memory_tells_boards_apart() -> None:
    assert find_machine("A100", "40GiB").hardware.name == "A100 40GB"
    assert find_machine("RTX 4060 Ti", "16GiB").hardware.memory_gib == 16
    with pytest.raises(InputError, match="fits several"):
        find_machine("A100")


def test_an_apple_chip_with_fewer_cores_is_another() -> None:
    whole, less = hardware("M3 Max"), hardware("Apple M3 Max 14-Core CPU, 30-Core GPU")
    assert (whole.cores, whole.bandwidth_gbs, less.cores, less.bandwidth_gbs) == (40, 400, 30, 300)
    assert hardware("M1 Max Mac Studio (10 core - 64GB)").cores == 32, "ten cores are the CPU's"
    assert hardware("M5 Pro 24GB").memory_gib == 24


def test_formats_that_are_not_stated() -> None:
    """By engine and family: the model's own, Ollama's tag, MXFP4 for the experts of gpt-oss whatever is said."""
    for stated, name, native, engine, found in (
        (None, "meta-llama/Llama-3.1-8B-Instruct", "bf16", "vllm", "bf16"),
        ("default checkpoint", "deepseek-ai/DeepSeek-R1", "fp8", "vllm", "fp8"),
        ("auto", "llama3.1:8b", "bf16", "ollama", "Q4_K_M"),
        (None, "llama3.2:1b", "bf16", "ollama", "Q8_0"),
        (None, "gemma2:9b", "bf16", "ollama", "Q4_0"),
        (None, "llama3.1:8b-instruct-fp16", "fp16", "ollama", "F16"),
        ("Q4_K_M", "gpt-oss:20b", "mxfp4", "ollama", "mxfp4"),
        ("bf16", "openai/gpt-oss-20b", "mxfp4", "vllm", "bf16"),
    ):
        assert stated_quantization(stated, name, native, engine).name == found, (stated, name, engine)
    with pytest.raises(LookupError):
        stated_quantization("nonsense", "openai/gpt-oss-20b", "mxfp4", "vllm")


def test_own_files_count_in_their_own_format(tmp_path: Path) -> None:
    """A GGUF of one's own is advised as it is; what a folder's tensors weigh says nothing of another format."""
    file, folder = gguf_file(tmp_path), hf_folder(tmp_path)
    shape, own = find_model(str(file))
    assert own == "f16"
    ways = list(options(hardware("RTX 3060"), 1, shape, Want(context_tokens=512)))
    assert [(weights.name, setup.engine) for weights, setup in ways] == [("F16", "ollama")]
    assert in_format(shape, quantization("f16")).file_bytes == shape.file_bytes
    assert in_format(shape, quantization("q4_k_m")).file_bytes is None
    assert find_model(str(folder))[0].file_bytes is None, "it holds no weights"
    with pytest.raises(InputError, match="without a name"):
        find_model(" ")
