"""vLLM's OpenAI server, in an interpreter of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness import tinymodels
from harness.engines.base import TINY, Launched, Say, parallel
from harness.enginespec import TransformersSpec, VllmSpec
from harness.errors import EngineError, InputError
from harness.http import HttpError, get_json, get_text
from harness.locate import engines_folder, vllm_python
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.vllm import vllm_source

GIB = 2**30
# A log line of vLLM to a fact: (pattern, fact's name, unit, factor). Wordings of 0.8 to 0.32; the last match counts.
_LOG = (
    (r"version (\d+\.\d+\.\d+\S*)", "version", "", None),
    (r"Model loading took ([\d.]+) GiB", "weights_bytes", "bytes", GIB),
    (r"Available KV cache memory: ([\d.]+) GiB", "kv_capacity_bytes", "bytes", GIB),
    (r"Explicitly set \(([\d.]+)/[\d.]+\) GiB for KV cache", "kv_capacity_bytes", "bytes", GIB),
    (r"KV cache size: ([\d,]+) tokens", "kv_capacity_tokens", "tok", 1),
    (r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", "max_concurrency", "requests", 1),
    (r"Maximum concurrency for ([\d,]+) tokens per request", "context_tokens", "tok", 1),
    (r"Graph capturing finished in \d+ secs, took ([\d.]+) GiB", "graph_bytes", "bytes", GIB),
    (r"Using ([\w ]+) backend on V1 engine", "attention_backend", "", None),
    (r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z_\d]+)(?: attention)? backend", "attention_backend", "", None),
    (r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds", "weights_load_s", "s", 1),
    (r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s", "engine_init_s", "s", 1),
)


SPLIT = ("tensor_parallel_size", "pipeline_parallel_size")
OF_EACH_GPU = ("weights_bytes", "kv_capacity_bytes", "graph_bytes")


class VllmEngine(Launched):
    """Starts the server, reads its log and `/metrics`. Errors: see `Engine`."""

    spec: VllmSpec

    def __init__(self, spec: VllmSpec) -> None:
        super().__init__(spec)
        self.model = spec.model
        self.log: Path | None = None

    def start(self, log: Path) -> None:
        self.log = log
        check(self.spec)
        self.claim()
        python = vllm_python(self.spec.python)
        if python is None and self.spec.command is None:
            raise EngineError(
                f"engine {self.spec.name}: no Python with vLLM was found",
                "install one (scripts/install-engines vllm, or pip install vllm in a venv of its own) and name its "
                "interpreter: `python:` in the scenario, or ENGINEBENCH_VLLM_PYTHON",
            )
        env: dict[str, str] = {}
        args: dict[str, Any] = {}
        if self.spec.model == TINY:
            self.model = str(tinymodels.hf_folder(engines_folder() / "models"))
            args["load_format"] = "dummy"
        if is_path(self.model):
            self.model = str(Path(self.model).expanduser())
            env["HF_HUB_OFFLINE"] = "1"  # a local folder needs nothing from outside
        elif not {"download_dir", "download-dir"} & set(self.spec.args):  # another cache
            self.reach(self.model)
        args |= self.spec.args
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", self.model]
        command += ["--served-model-name", self.spec.model, "--host", self.host, "--port", str(self.port)]
        self.launch(command + flags(args), env, log)

    def ready(self, say: Say) -> dict[str, float | None]:
        """`load_s`: the weights; `init_s`: profiling, compiling, the cache and the graphs; both by its log."""
        say("loading the model", None)
        phases: dict[str, float | None] = {"start_s": self.await_answer(f"{self.root}/health")}
        told = self._log_facts()
        for phase, name in (("load_s", "weights_load_s"), ("init_s", "engine_init_s")):
            value = told[name].value if name in told else None
            phases[phase] = value if isinstance(value, float) else None
        return phases

    def _log_facts(self) -> dict[str, Fact]:
        text = self.log.read_text("utf-8", "replace") if self.log and self.log.exists() else ""
        return log_facts(text, "logged", "vllm log")

    def target(self) -> Target:
        return Target(
            f"{self.root}/v1", "openai", self.spec.model, exact_length=True, token_ids=True, extended_sampling=True
        )

    def facts(self) -> list[Fact]:
        facts = self._log_facts()
        facts |= version_fact(self.root)
        try:
            facts |= cache_facts(get_text(f"{self.root}/metrics", 10.0), facts)
        except HttpError:
            facts.setdefault("kv_capacity_tokens", Fact("kv_capacity_tokens", None, "tok", "logged", "no /metrics"))
        facts |= of_all_gpus(facts, parallel(self.spec.args, SPLIT))
        return [*facts.values(), *(fact for fact in spec_facts(self.spec.args) if fact.name not in facts)]

    def sources(self) -> list[Any]:
        return [vllm_source(f"{self.root}/metrics")]


def check(spec: VllmSpec | TransformersSpec) -> None:
    """Raises InputError: `model` is a folder, and it is not there (in a container of the user's own it may be)."""
    if spec.command is None and is_path(spec.model) and not Path(spec.model).expanduser().is_dir():
        raise InputError(f"engine {spec.name}: no such model folder: {spec.model}", "check `model`")


def flags(args: dict[str, Any]) -> list[str]:
    """`args` of a scenario as server flags: true is a bare flag, false its `--no-` form, null leaves it out."""
    words: list[str] = []
    for key, value in args.items():
        flag = "--" + key.lstrip("-").replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def is_path(model: str) -> bool:
    """Whether a model is named by a path (a hub's name has one slash at most and starts with no dot)."""
    return model.startswith(("/", "./", "../", "~"))


def log_facts(text: str, label: str, source: str) -> dict[str, Fact]:
    """What a log in vLLM's wording says."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    facts: dict[str, Fact] = {}
    for pattern, name, unit, factor in _LOG:
        found = re.findall(pattern, text)
        if found:
            raw = found[-1].replace(",", "")
            value: str | float = raw if factor is None else float(raw) * factor
            facts[name] = Fact(name, value, unit, label, source)
    return facts


def version_fact(root: str) -> dict[str, Fact]:
    try:
        version = get_json(f"{root}/version", 5.0).get("version")
    except (HttpError, AttributeError):
        return {}
    return {"version": Fact("version", version, "", "measured", "/version")} if version else {}


def cache_facts(metrics: str, known: dict[str, Fact]) -> dict[str, Fact]:
    """KV tokens from `vllm:cache_config_info`, and bytes a token from the logged bytes over them."""
    facts: dict[str, Fact] = {}
    line = re.search(r"^vllm:cache_config_info\{(.*)\} ", metrics, re.M)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line.group(1))) if line else {}
    blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    told = labels.get("kv_cache_size_tokens", "")  # since about 0.30, beside kv_cache_memory_bytes
    tokens = (
        int(told) if told.isdigit() else known["kv_capacity_tokens"].value if "kv_capacity_tokens" in known else None
    )
    if blocks.isdigit() and size.isdigit():
        tokens = tokens or int(blocks) * int(size)
        facts["kv_block_tokens"] = Fact("kv_block_tokens", int(size), "tok", "measured", "/metrics")
        facts["kv_blocks"] = Fact("kv_blocks", int(blocks), "blocks", "measured", "/metrics")
    if tokens is not None:
        source = "/metrics" if told else "vllm log" if "kv_capacity_tokens" in known else "/metrics: blocks x size"
        facts["kv_capacity_tokens"] = Fact("kv_capacity_tokens", tokens, "tok", "measured", source)
    if (held := labels.get("kv_cache_memory_bytes", "")).isdigit():
        facts["kv_capacity_bytes"] = Fact("kv_capacity_bytes", int(held), "bytes", "measured", "/metrics")
    if "enable_prefix_caching" in labels:
        on = labels["enable_prefix_caching"] == "True"
        facts["prefix_caching"] = Fact("prefix_caching", on, "", "measured", "/metrics")
    if labels.get("num_gpu_blocks_override", "").isdigit():
        why = "with num_gpu_blocks_override it uses less than the bytes it states"
        facts["kv_capacity_bytes"] = Fact("kv_capacity_bytes", None, "bytes", "measured", why)
    if kind := labels.get("cache_dtype"):
        kind = "auto (the model's)" if kind == "auto" else kind
        facts["kv_cache_dtype"] = Fact("kv_cache_dtype", kind, "", "measured", "/metrics")
    capacity = (known | facts)["kv_capacity_bytes"].value if "kv_capacity_bytes" in known | facts else None
    if isinstance(tokens, int | float) and isinstance(capacity, int | float) and tokens > 0:
        # The log rounds GiB to two decimals and the token count down to whole blocks: good to a percent or better.
        facts["kv_bytes_per_token"] = Fact(
            "kv_bytes_per_token", round(capacity / tokens), "bytes", "derived", "KV bytes / KV tokens"
        )
    return facts


def of_all_gpus(facts: dict[str, Fact], gpus: int) -> dict[str, Fact]:
    """vLLM tells bytes of each of the GPUs that a model is split over; here they are those of all, as tokens are."""
    found = {}
    for name in (*OF_EACH_GPU, "kv_bytes_per_token") if gpus > 1 else ():
        fact = facts.get(name)
        if fact is not None and isinstance(fact.value, int | float):
            source = f"{fact.source}, {gpus} GPUs together"
            found[name] = Fact(name, fact.value * gpus, fact.unit, fact.label, source)
    return found


def spec_facts(args: dict[str, Any]) -> list[Fact]:
    """What the scenario itself sets and a reader wants to see beside the figures."""
    wanted = (
        "quantization",
        "dtype",
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "max_num_seqs",
        "kv_cache_dtype",
    )
    return [Fact(key, args[key], "", "configured", "scenario") for key in wanted if key in args]
