"""An Ollama daemon: one of our own on a free port, or one that runs already."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from harness import tinymodels
from harness.engines.base import TINY, Launched, Say, answers
from harness.enginespec import OllamaSpec
from harness.errors import EngineError, InputError
from harness.http import HttpError, get_json, post_json
from harness.locate import engines_folder, ollama_binary
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.llamaserver import ENDPOINTS_ENV, LlamaServerSource, find_port
from harness.telemetry.ollama import OllamaSource

MIB = 2**20
# Set on every launch, so that no default of a version or a machine decides (section 4 of the design: fair comparison).
DEFAULTS = {
    "OLLAMA_NUM_PARALLEL": "4", "OLLAMA_CONTEXT_LENGTH": "4096", "OLLAMA_MAX_QUEUE": "2048", **ENDPOINTS_ENV,
}  # fmt: skip
_LOG = (
    (r"KV buffer size\s*=\s*([\d.]+) MiB", "kv_capacity_bytes", "bytes", MIB),
    (r"model buffer size\s*=\s*([\d.]+) MiB", "weights_bytes", "bytes", MIB),
    (r"compute buffer size\s*=\s*([\d.]+) MiB", "compute_buffer_bytes", "bytes", MIB),
)
_LAST = (
    (r"n_slots = (\d+)", "parallel_slots", "slots"),
    (r"n_ctx_slot = (\d+)", "context_tokens", "tok"),
    (r"n_seq_max\s*=\s*(\d+)", "parallel_slots", "slots"),
    (r"offloaded (\d+)/\d+ layers to GPU", "layers_on_gpu", "layers"),
)


def check(spec: OllamaSpec) -> None:
    """Raises InputError: the GGUF file is not there."""
    if spec.gguf and not Path(spec.gguf).expanduser().is_file():
        raise InputError(f"engine {spec.name}: no such GGUF file: {spec.gguf}", "check `gguf`")


class OllamaEngine(Launched):
    """Starts `ollama serve`, gets the model (pull, or create from a GGUF), loads it. Errors: see `Engine`."""

    spec: OllamaSpec

    def __init__(self, spec: OllamaSpec) -> None:
        super().__init__(spec)
        self.log: Path | None = None
        self.attached = spec.base_url is not None
        self.gguf = Path(spec.gguf).expanduser() if spec.gguf else None
        self.model = "enginebench-tiny" if spec.model == TINY else spec.model
        self._log_start = 0

    @property
    def url(self) -> str:
        return (self.spec.base_url or self.root).rstrip("/").removesuffix("/v1").removesuffix("/api")

    def start(self, log: Path) -> None:
        self.log = log
        check(self.spec)
        if self.attached:
            if not answers(f"{self.url}/api/version"):
                raise EngineError(f"engine {self.spec.name}: no Ollama answers at {self.url}", "start it: ollama serve")
            return
        self.claim()
        binary = ollama_binary(self.spec.binary)
        if binary is None and self.spec.command is None:
            raise EngineError(
                f"engine {self.spec.name}: no `ollama` was found",
                "install it (scripts/install-engines ollama, or https://ollama.com/download), or name it: `binary:`",
            )
        env = {**DEFAULTS, "OLLAMA_HOST": f"{self.host}:{self.port}"}
        if self.spec.model == TINY or self.gguf:  # models made here stay out of the user's own store
            env["OLLAMA_MODELS"] = str(engines_folder() / "ollama-models")
        self._log_start = log.stat().st_size if log.exists() else 0
        self.launch([str(binary), "serve"], env, log)

    def ready(self, say: Say) -> dict[str, float | None]:
        phases: dict[str, float | None] = {}
        if not self.attached:
            phases["start_s"] = self.await_answer(f"{self.url}/api/version")
        self._get_model(say)
        say("loading the model", None)
        began_s = time.monotonic()
        load = {"model": self.model, "keep_alive": -1, "stream": False, "options": self.spec.options}
        try:
            post_json(f"{self.url}/api/generate", load, self.spec.ready_timeout)
        except HttpError as error:
            tail = self.child.tail() if self.child else ""
            raise EngineError(
                f"engine {self.spec.name}: {self.model} could not be loaded: {error.reason}",
                "see the engine's log in the run folder",
                tail,
            ) from None
        phases["load_s"] = time.monotonic() - began_s  # the answer to a request without a prompt does not say it
        return phases

    def _get_model(self, say: Say) -> None:
        import ollama

        gguf = tinymodels.gguf_file(engines_folder() / "models") if self.spec.model == TINY else self.gguf
        try:
            with ollama.Client(host=self.url, timeout=None, trust_env=not self._loopback()) as client:
                if gguf is not None:
                    say(f"creating the model from {gguf.name}", None)
                    client.create(model=self.model, files={gguf.name: client.create_blob(str(gguf))})
                    return
                if self.model.removesuffix(":latest") in {
                    str(m.model).removesuffix(":latest") for m in client.list().models
                }:
                    return
                say(f"pulling {self.model}", None)
                for progress in client.pull(self.model, stream=True):
                    share = (progress.completed or 0) / progress.total if progress.total else None
                    say(f"pulling {self.model}: {progress.status}", share)
        except Exception as error:  # the client raises its own and httpx's errors
            text = str(error).strip() or type(error).__name__
            raise EngineError(
                f"engine {self.spec.name}: the model {self.spec.model} cannot be had: {text}",
                "check its name (ollama list, https://ollama.com/library) and the network, or create it: `gguf: FILE`",
                self.child.tail() if self.child else "",
            ) from None

    def _loopback(self) -> bool:
        return "127.0.0.1" in self.url or "localhost" in self.url

    def target(self) -> Target:
        return Target(self.url, "ollama", self.model, options=dict(self.spec.options))

    def facts(self) -> list[Fact]:
        facts: list[Fact] = []
        try:
            version = get_json(f"{self.url}/api/version", 5.0).get("version")
            facts.append(Fact("version", version, "", "measured", "/api/version"))
            facts += ps_facts(get_json(f"{self.url}/api/ps", 5.0), self.model)
            facts += show_facts(post_json(f"{self.url}/api/show", {"model": self.model}, 10.0))
        except HttpError as error:
            facts.append(Fact("facts_error", str(error), "", "measured", "api"))
        facts += self._runner_facts()
        facts += [Fact(key.lower(), value, "", "configured", "environment") for key, value in self._settings()]
        return first_of_each(facts)

    def _runner_facts(self) -> list[Fact]:
        if self.log is None or not self.log.exists():
            return []
        with open(self.log, "rb") as file:
            file.seek(self._log_start)
            return runner_facts(file.read().decode("utf-8", "replace"))

    def _settings(self) -> list[tuple[str, str]]:
        shown = ("OLLAMA_NUM_PARALLEL", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_FLASH_ATTENTION")
        return [(key, self.environment[key]) for key in shown if key in self.environment]

    def sources(self) -> list[Any]:
        sources: list[Any] = [OllamaSource(self.url, self.model)]
        if find_port(self.pids()) is not None:  # else, of a runner of another kind, live KV is derived from the records
            told = {fact.name: fact.value for fact in self._runner_facts()}
            capacity = told.get("kv_capacity_tokens")
            sources.append(LlamaServerSource(self.pids, capacity if isinstance(capacity, int | float) else None))
        return sources


def runner_facts(log: str) -> list[Fact]:
    """Memory that the runner's log states, of the last load in it. Several devices' buffers are added up."""
    start = max(log.rfind("starting llama-server"), log.rfind("starting runner"), 0)
    log = log[start:]
    facts = []
    for pattern, name, unit, factor in _LOG:
        found = re.findall(pattern, log)
        if found:
            facts.append(Fact(name, sum(map(float, found)) * factor, unit, "logged", "ollama log"))
    for pattern, name, unit in _LAST:
        found = re.findall(pattern, log)
        if found:
            facts.append(Fact(name, int(found[-1]), unit, "logged", "ollama log"))
    if kinds := re.findall(r"llama_kv_cache: size =.*K \((\w+)\).*V \((\w+)\)", log):
        kind = " and ".join(dict.fromkeys(kinds[-1]))
        facts.append(Fact("kv_cache_dtype", kind, "", "logged", "ollama log"))
    named = {fact.name: fact.value for fact in facts}
    slots, context, capacity = (named.get(n) for n in ("parallel_slots", "context_tokens", "kv_capacity_bytes"))
    if isinstance(slots, int) and isinstance(context, int) and isinstance(capacity, float) and slots * context:
        whole = re.findall(r"llama_context: n_ctx\s+= (\d+)", log)  # slots may share it (kv_unified)
        tokens = int(whole[-1]) if whole else slots * context
        source = "n_ctx of the ollama log" if whole else "slots x context of the ollama log"
        facts.append(Fact("kv_capacity_tokens", tokens, "tok", "derived", source))
        facts.append(Fact("kv_bytes_per_token", capacity / tokens, "bytes", "derived", "KV bytes / KV tokens"))
        facts.append(Fact("max_concurrency", slots, "requests", "derived", "slots"))
    return facts


def ps_facts(page: dict[str, Any], model: str) -> list[Fact]:
    for entry in page.get("models") or []:
        if str(entry.get("name", "")).removesuffix(":latest") == model.removesuffix(":latest"):
            size, vram = entry.get("size"), entry.get("size_vram")
            facts = [
                Fact("memory_bytes", size, "bytes", "measured", "/api/ps"),
                Fact(
                    "size_vram_bytes", vram, "bytes", "measured", "/api/ps"
                ),  # on a CPU with AMX its buffers count too
                Fact("model_digest", entry.get("digest"), "", "measured", "/api/ps"),
                Fact("context_tokens", entry.get("context_length"), "tok", "measured", "/api/ps"),
            ]
            return [fact for fact in facts if fact.value is not None]
    return []


def show_facts(page: dict[str, Any] | None) -> list[Fact]:
    details = (page or {}).get("details") or {}
    info = (page or {}).get("model_info") or {}
    rows = [
        ("quantization", details.get("quantization_level"), ""),
        ("family", details.get("family"), ""),
        ("parameters", info.get("general.parameter_count"), ""),
        ("layers", next((info[key] for key in info if key.endswith(".block_count")), None), "layers"),
    ]
    return [Fact(name, value, unit, "measured", "/api/show") for name, value, unit in rows if value is not None]


def first_of_each(facts: list[Fact]) -> list[Fact]:
    """One fact a name: the first said counts."""
    kept: dict[str, Fact] = {}
    for fact in facts:
        kept.setdefault(fact.name, fact)
    return list(kept.values())
