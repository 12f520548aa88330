"""A scenario that verifies an advice: the recommended engine under the load that was asked for."""

from __future__ import annotations

from typing import Any

import yaml

from sizing.advise import Advice


def scenario_yaml(advice: Advice) -> str:
    """The file's text. Needs a recommendation."""
    best = advice.best
    if best is None:
        raise ValueError("there is no recommendation to verify")
    candidate, want = best.candidate, advice.want
    setup = candidate.setup
    engine: dict[str, Any] = {"name": "advised", "kind": setup.engine, "model": candidate.model.name}
    if setup.engine == "vllm":
        engine["args"] = {
            "tensor_parallel_size": setup.devices,
            "max_model_len": setup.max_model_len,
            "gpu_memory_utilization": setup.gpu_memory_utilization or 0.92,
            "max_num_seqs": setup.max_num_seqs,
        }
        if candidate.quantization.name == "fp8":
            engine["args"]["quantization"] = "fp8"
    else:
        bare = candidate.model.name.rpartition("/")[2]
        engine["gguf"] = f"{bare}-{candidate.quantization.name.upper()}.gguf"
        engine["options"] = {"num_ctx": setup.num_ctx}
        engine["env"] = {"OLLAMA_NUM_PARALLEL": setup.num_parallel}
    load: dict[str, Any] = {"kind": "concurrency", "levels": [want.users], "requests": max(100, 4 * want.users)}
    if want.rate_rps is not None:
        load = {"kind": "poisson", "rate": want.rate_rps, "duration": "60s"}
    data: dict[str, Any] = {
        "name": "verify-advice",
        "engines": [engine],
        "workload": {"kind": "synthetic", "input_tokens": want.input_tokens, "output_tokens": want.output_tokens},
        "load": [load],
    }
    targets = {"ttft_p95": want.ttft_p95_s, "tpot_p95": want.tpot_p95_s}
    if slo := {key: f"{value * 1e3:g}ms" for key, value in targets.items() if value is not None}:
        data["slo"] = slo
    return f"# Verifies: bench advise on {advice.hardware.name}\n" + yaml.safe_dump(data, sort_keys=False)
