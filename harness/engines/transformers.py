"""The baseline: Hugging Face `generate` in an interpreter that has torch, behind `harness.transformersserver`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import tinymodels, transformersserver
from harness.engines.base import TINY, Launched, Say
from harness.engines.vllm import check, flags, is_path
from harness.enginespec import TransformersSpec
from harness.errors import EngineError
from harness.http import HttpError, get_json
from harness.locate import engines_folder, transformers_python
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.transformers import transformers_source

REMEDY = 'pip install "enginebench[transformers]", or name an interpreter that has both: `python:` in the scenario'
_SERVER = Path(transformersserver.__file__).with_name("__main__.py")
_MISSING = "torch or transformers is missing"


class TransformersEngine(Launched):
    """Starts the server and reads its `/facts`. Errors: see `Engine`."""

    spec: TransformersSpec

    def start(self, log: Path) -> None:
        check(self.spec)
        self.claim()
        spec = self.spec
        python = transformers_python(spec.python)
        if python is None and spec.command is None:
            raise EngineError(f"engine {spec.name}: no Python with torch and transformers was found", REMEDY)
        args: dict[str, Any] = spec.args.model_dump()
        model, env = spec.model, {"TOKENIZERS_PARALLELISM": "false"}
        if model == TINY:
            model = str(tinymodels.hf_folder(engines_folder() / "models"))
            args |= {"load": "dummy"}
        if is_path(model):
            model = str(Path(model).expanduser())
            env["HF_HUB_OFFLINE"] = "1"  # a local folder needs nothing from outside
        else:
            self.reach(model)
        # -P: the server's folder is none to look for modules in.
        command = [str(python), "-P", str(_SERVER), "--port", str(self.port), "--model", model]
        self.launch([*command, "--served-model-name", spec.model, *flags(args)], env, log)

    def ready(self, say: Say) -> dict[str, float | None]:
        say("loading the model", None)
        try:
            start_s = self.await_answer(f"{self.root}/health")
            told = {name: value for name, value, _, _ in get_json(f"{self.root}/facts", 10.0)}
            return {"start_s": start_s, "load_s": told["weights_load_s"]}
        except HttpError as error:
            raise EngineError(f"engine {self.spec.name}: no facts: {error}", "see its log in the run folder") from None
        except EngineError as error:
            if _MISSING in error.log_tail:
                raise EngineError(f"engine {self.spec.name}: {_MISSING}", REMEDY, error.log_tail) from None
            raise

    def target(self) -> Target:
        return Target(
            f"{self.root}/v1", "openai", self.spec.model, exact_length=True, token_ids=True, extended_sampling=True
        )

    def facts(self) -> list[Fact]:
        args = self.spec.args
        own = [Fact(key, getattr(args, key), "", "configured", "scenario") for key in ("dtype", "batch")]
        own.append(Fact("batch_wait_s", args.batch_wait, "s", "configured", "scenario"))
        try:
            told = get_json(f"{self.root}/facts", 10.0)
        except HttpError as error:
            return [*own, Fact("facts_error", str(error), "", "measured", "/facts")]
        reason = "none is reserved: the cache grows with each token of a batch"
        capacity = Fact("kv_capacity_bytes", None, "bytes", "measured", reason)
        return [*(Fact(name, value, unit, "measured", source) for name, value, unit, source in told), capacity, *own]

    def sources(self) -> list[Any]:
        return [transformers_source(f"{self.root}/metrics")]
