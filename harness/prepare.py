"""Before an engine is measured: does it serve at all, and how are prompts of exact lengths made for it?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

from harness import fitting, tokenizer
from harness.engines.base import TINY, Engine
from harness.errors import EngineError, InputError
from harness.http import HttpError, post_json
from harness.job import Job
from harness.locate import engines_folder
from harness.protocols import Prompt, Target
from harness.records import EngineRun, Fact
from harness.scenario import Point, Scenario
from harness.tinymodels import VOCAB_WORDS
from harness.words import WORDS
from harness.workloads import PromptPlan
from harness.workloadspec import FileWorkload, Workload

TOKENIZE_TIMEOUT_S = 10.0


class Prober(Protocol):
    """What sends the first prompts (see `harness.probe`)."""

    def probe(self, job: Job, prompts: Sequence[Prompt]) -> list[int | None] | str: ...


def prepare(job: Job, load: Prober, spec: Any, row: EngineRun, engine: Engine) -> Job:
    """The job with the plan for its prompts; what a reader should know of it is among the engine's facts and warnings.

    Raises:
        EngineError: the engine does not serve, or not prompts as long as the workload asks for.
        InputError: the workload's tokenizer cannot be read.
    """
    workload = job.workload

    def count(prompts: Sequence[Prompt]) -> list[int | None]:
        found = load.probe(job, prompts)
        if isinstance(found, str):
            raise fitting.Refused(found)
        return found

    words = VOCAB_WORDS if spec.model == TINY else WORDS
    row.phases_s["first_request_s"] = _first_request_s(job, load, words)
    server = fitting.Server(
        takes_ids=job.target.token_ids and job.target.dialect == "openai",
        token_of=lambda text: tokenize(job.target, text),
        tokenizer=_tokenizer(spec, workload.tokenizer),
    )
    try:
        fitted = fitting.fit(workload, words, job.plan.seed, count, server)
    except fitting.NoTokenIds as refused:
        raise EngineError(f"engine {spec.name}: {refused}", "write `prompt: auto` or `prompt: text`") from None
    except fitting.Refused as refused:
        raise engine.fault() or EngineError(
            f"engine {spec.name}: a first request{_of_length(workload)} failed: {refused}",
            "check `model`, `api`, and that input and output tokens fit the context length",
        ) from None
    except ValueError as error:
        raise InputError(f"engine {spec.name}: {error}", "check `tokenizer`") from None
    finally:
        tokenizer.load.cache_clear()  # a large vocabulary takes 100 MB, and the load processes have their own
    row.facts += _facts(fitted)
    row.warnings += [text for text in fitted.warnings if text not in row.warnings]
    if isinstance(workload, FileWorkload) and not workload.unique:
        row.warnings.append("Prompts of a file are sent as they are (`unique: false`): a prompt cache may know them.")
    return dataclasses.replace(job, plan=fitted.plan)


def _first_request_s(job: Job, load: Prober, words: tuple[str, ...]) -> float | None:
    """Seconds of the first request that the engine gets, cold: a prompt of about the usual length, one token of answer.
    None where it was refused: what follows says why."""
    tokens = job.workload.typical_input() if isinstance(job.workload, Workload) else fitting.GROUP_WORDS
    prompt = dataclasses.replace(job.plan, words=words).prompt("first", 0, tokens)
    began_s = time.monotonic()
    refused = isinstance(load.probe(job, [prompt]), str)
    return None if refused else time.monotonic() - began_s


def first_job(scenario: Scenario, spec: Any, target: Target, origin_s: float) -> Job:
    """The job of an engine before anything is known of its server."""
    point = Point("probe", "concurrency", requests=1, concurrency=1)
    return Job(
        spec.name, point, 0, target, spec.workload or scenario.workload, PromptPlan(seed=scenario.seed), origin_s,
        timeout_s=spec.request_timeout, save_text=scenario.save_text,
    )  # fmt: skip


def tokenize(target: Target, text: str) -> list[int] | None:
    """The token ids of a text by vLLM's `/tokenize`; None where the server has none, or does not answer it."""
    url = target.url.removesuffix("/v1") + "/tokenize"
    body = {"model": target.model, "prompt": text, "add_special_tokens": False}
    try:
        answer = post_json(url, body, TOKENIZE_TIMEOUT_S, target.headers)
    except HttpError:
        return None
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None


def _tokenizer(spec: Any, named: str | None) -> str | None:
    """The path of the model's tokenizer, if there is one here and it can be read."""
    if not tokenizer.can_read():
        if named is not None:
            raise InputError(
                f"engine {spec.name}: a `tokenizer` is named, but nothing here can read it",
                "pip install enginebench[tokenizers]",
            )
        return None
    path = tokenizer.find(spec.model, named, engines_folder() / "models" if spec.model == TINY else None)
    return str(path) if path is not None else None


def _of_length(workload: Any) -> str:
    return f" of {workload.typical_input()} input tokens" if isinstance(workload, Workload) else ""


def _facts(fitted: fitting.Fitted) -> list[Fact]:
    plan = fitted.plan
    facts = [Fact("prompt_form", fitted.form, "", "derived", "workload and first requests")]
    if not plan.count_fixed:
        facts.append(Fact("template_tokens", round(plan.tokens_fixed), "tok", "measured", "first requests"))
    return facts
