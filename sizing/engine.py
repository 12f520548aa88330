"""One engine start as a whole: its settings, what they do to memory, how long its steps take, how it schedules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.memory import MemoryPlan
from sizing.memory_llama import OllamaStart, plan_ollama
from sizing.memory_vllm import VllmStart, plan_vllm, scheduled_ahead, vllm_defaults
from sizing.policy import Policy, ollama_policy, vllm_policy
from sizing.speed import StepTime
from sizing.speed_llama import Split, llama_step_time
from sizing.speed_vllm import vllm_step_time

ENGINES = ("vllm", "ollama", "llama.cpp")
# Bytes of a KV element by the names that the engines use; q8_0 and q4_0 store a scale per 32 elements.
KV_BYTES = {
    "auto": 2.0, "f16": 2.0, "fp16": 2.0, "bf16": 2.0, "f32": 4.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0,
    "int8": 1.0, "int8_per_token_head": 1.0, "q8_0": 1.0625, "q5_1": 0.75, "q4_0": 0.5625, "q4_1": 0.625,
    "nvfp4": 0.5625,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings of a start, those of either family; None takes the engine's default."""

    engine: str = "vllm"
    version: str | None = None
    devices: int = 1
    """tensor_parallel_size of vLLM, GPUs that llama.cpp spreads the layers over"""
    gpu_memory_utilization: float | None = None
    max_model_len: int = 8192
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    """None: vLLM's default for the device"""
    num_ctx: int = 4096
    num_parallel: int = 1
    kv_cache_type: str = "auto"
    flash_attention: bool | None = None
    prefix_caching: bool = True
    async_scheduling: bool | None = None
    """vLLM: whether a step is scheduled while the one before it runs; None: as that version does by itself"""
    overhead_bytes: int | None = None
    """vLLM: measured by a start on this machine"""
    overhead_extra_bytes: int | None = None
    """vLLM: what a start on this machine needed beyond the formula; None when none was seen"""

    @property
    def calibrated(self) -> bool:
        """Whether a start on this machine settled the overhead."""
        return self.overhead_bytes is not None or self.overhead_extra_bytes is not None

    @property
    def vllm(self) -> bool:
        """Whether it is the vLLM family: tensor parallelism, paged KV."""
        return self.engine == "vllm"

    @property
    def kv_bytes_per_element(self) -> float:
        """Raises LookupError for a type that no engine has."""
        try:
            return KV_BYTES[self.kv_cache_type.lower()]
        except KeyError:
            known = ", ".join(KV_BYTES)
            raise LookupError(f"unknown KV cache type {self.kv_cache_type!r}; there are: {known}") from None


def memory_plan(hardware: Hardware, model: ModelShape, quantization: Quantization, setup: Setup) -> MemoryPlan:
    """What the start does with the memory of a device. Raises ValueError for hardware without a memory size."""
    if setup.vllm:
        return plan_vllm(hardware, model, quantization, vllm_start(setup))
    return plan_ollama(hardware, model, quantization, ollama_start(setup))


def vllm_start(setup: Setup) -> VllmStart:
    """The settings that vLLM's memory follows from."""
    start = VllmStart(
        gpu_memory_utilization=setup.gpu_memory_utilization,
        max_model_len=setup.max_model_len,
        max_num_batched_tokens=setup.max_num_batched_tokens,
        kv_bytes_per_element=setup.kv_bytes_per_element,
        tensor_parallel=setup.devices,
        max_num_seqs=setup.max_num_seqs,
        overhead_bytes=setup.overhead_bytes,
        overhead_extra_bytes=setup.overhead_extra_bytes or 0,
    )
    return dataclasses.replace(start, version=setup.version) if setup.version else start


def ollama_start(setup: Setup) -> OllamaStart:
    """The settings that Ollama's and llama.cpp's memory follow from."""
    start = OllamaStart(
        num_ctx=setup.num_ctx,
        num_parallel=setup.num_parallel,
        kv_bytes_per_element=setup.kv_bytes_per_element,
        devices=setup.devices,
        flash_attention=setup.flash_attention,
        vision=setup.engine == "ollama",
    )
    if setup.version and setup.engine == "ollama":
        start = dataclasses.replace(start, version=setup.version)
    return start


def works_ahead(setup: Setup) -> bool:
    """Whether vLLM schedules a step while the one before it runs."""
    if setup.async_scheduling is not None:
        return setup.async_scheduling
    return scheduled_ahead(vllm_start(setup).version)


def step_time(
    hardware: Hardware,
    model: ModelShape,
    quantization: Quantization,
    setup: Setup,
    plan: MemoryPlan | None = None,
) -> StepTime:
    """How long the engine's steps take; `plan` says which layers stay on the CPU."""
    if setup.vllm:
        return vllm_step_time(
            hardware, model, quantization, setup.devices, setup.kv_bytes_per_element, ahead=works_ahead(setup)
        )
    split = Split(setup.devices, plan.gpu_layers if plan else None)
    return llama_step_time(hardware, model, quantization, setup.kv_bytes_per_element, split)


def policy(hardware: Hardware, plan: MemoryPlan, setup: Setup) -> Policy:
    """How the engine schedules on that plan."""
    if setup.vllm:
        start = vllm_start(setup)
        budget, most = vllm_defaults(hardware, start)
        return vllm_policy(plan, most, budget, setup.prefix_caching, works_ahead(setup))
    return ollama_policy(plan, setup.num_parallel, prefix_caching=setup.prefix_caching)
