"""What is sent: OpenAI completions and chat, Ollama generate and chat. How answers are read is in `answers`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from harness.scenario import Sampling

Dialect = Literal["openai", "ollama"]
Prompt = str | list[int] | list[dict[str, str]]
"""A text, token ids, or the messages of a chat."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what the server there understands. `headers` may hold a key: it is never written.

    `exact_length`: it takes `ignore_eos`, so that output lengths come out as asked. `token_ids`: it can say which
    tokens each chunk holds (vLLM's `return_token_ids`), so that a chunk without text is known to be a token.
    """

    url: str
    dialect: Dialect
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    ca_file: str | None = None
    exact_length: bool = False
    token_ids: bool = False
    extended_sampling: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def path_and_body(
    target: Target, api: str, prompt: Prompt, output_tokens: int, sampling: Sampling
) -> tuple[str, bytes]:
    """The path below the target's URL and the JSON of one streaming request."""
    make = _ollama_body if target.dialect == "ollama" else _openai_body
    path, body = make(target, api, prompt, output_tokens, sampling)
    return path, orjson.dumps(body)


def _openai_body(
    target: Target, api: str, prompt: Prompt, output_tokens: int, sampling: Sampling
) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": target.model, "max_tokens": output_tokens, "stream": True, "stream_options": {"include_usage": True},
        "temperature": sampling.temperature, "top_p": sampling.top_p,
    }  # fmt: skip
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = sampling.stop
    if target.extended_sampling:
        body |= {"top_k": sampling.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
    if target.exact_length:
        body["ignore_eos"] = True
    if target.token_ids:
        body["return_token_ids"] = True
    body.update(target.options)
    if api == "chat":
        return "/chat/completions", body | {"messages": _messages(prompt)}
    return "/completions", body | {"prompt": prompt}


def _ollama_body(
    target: Target, api: str, prompt: Prompt, output_tokens: int, sampling: Sampling
) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {
        "num_predict": output_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "top_k": sampling.top_k, "stop": sampling.stop, **_NEUTRAL, **target.options,
    }  # fmt: skip
    if sampling.seed is not None:
        options["seed"] = sampling.seed
    body: dict[str, Any] = {"model": target.model, "stream": True, "keep_alive": -1, "options": options}
    if api == "chat":
        return "/api/chat", body | {"messages": _messages(prompt), "truncate": False}
    return "/api/generate", body | {"prompt": prompt, "raw": True, "truncate": False}  # else a long prompt is cut


_NEUTRAL = {"min_p": 0.0, "repeat_penalty": 1.0}
"""What a model file may set otherwise (so may a generation_config.json for vLLM): sampling is to be alike."""


def _messages(prompt: Prompt) -> Any:
    """A text is one user's message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
