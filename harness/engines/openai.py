"""Any running endpoint that speaks OpenAI's API: nothing is started, nothing is stopped."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.engines.base import Say
from harness.engines.ollama import first_of_each
from harness.engines.vllm import cache_facts, version_fact
from harness.enginespec import OpenAISpec
from harness.errors import EngineError
from harness.http import HttpError, get_json, get_text, is_loopback
from harness.protocols import Target
from harness.records import Fact
from harness.telemetry.ollama import OllamaSource
from harness.telemetry.vllm import vllm_source


class OpenAIEngine:
    """Attaches to `base_url`. The API key comes from the environment and stays in memory."""

    simulated = False

    def __init__(self, spec: OpenAISpec) -> None:
        self.spec = spec
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        self.root = spec.base_url.removesuffix("/v1")

    @property
    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.spec.api_key_env)
        own = {name: os.path.expandvars(value) for name, value in self.spec.headers.items()}
        return {**({"Authorization": f"Bearer {key}"} if key else {}), **own}

    @property
    def _metrics_url(self) -> str | None:
        return self.spec.metrics_url or (f"{self.root}/metrics" if self.spec.flavor == "vllm" else None)

    def start(self, log: Path) -> None:
        """Nothing to start."""

    def ready(self, say: Say) -> dict[str, float | None]:
        say("waiting for the endpoint", None)
        try:
            models = get_json(f"{self.spec.base_url}/models", 10.0, self._headers)
        except HttpError as error:
            if error.status in (401, 403):
                raise EngineError(
                    f"engine {self.spec.name}: {self.spec.base_url} refuses the key (HTTP {error.status})",
                    f"put the key into the environment variable {self.spec.api_key_env}",
                ) from None
            if error.status is None:
                raise EngineError(
                    f"engine {self.spec.name}: {self.spec.base_url} does not answer: {error.reason}",
                    "start the server, or check `base_url`",
                ) from None
            return {}  # an endpoint without /models may still serve
        names = [m.get("id") for m in (models or {}).get("data") or []]
        if names and self.spec.model not in names:
            raise EngineError(
                f"engine {self.spec.name}: {self.spec.base_url} does not serve '{self.spec.model}'",
                f"it serves: {', '.join(map(str, names[:10]))}",
            )
        return {}

    def target(self) -> Target:
        vllm = self.spec.flavor == "vllm"
        return Target(self.spec.base_url, "openai", self.spec.model, self._headers, self.spec.ca_file, vllm, vllm, vllm)

    def facts(self) -> list[Fact]:
        facts = [Fact("connect_s", connect_s(self.root), "s", "measured", "TCP connect, median of 5")]
        if self.spec.flavor == "vllm":
            facts += version_fact(self.root).values()
        if self.spec.flavor == "vllm" and self._metrics_url:
            try:
                facts += cache_facts(get_text(self._metrics_url, 10.0), {}).values()
            except HttpError:
                facts.append(Fact("kv_capacity_tokens", None, "tok", "measured", "no /metrics"))
        if not self._local():
            facts.append(Fact("telemetry", "none: the host is remote", "", "configured", "base_url"))
        return first_of_each(facts)

    def _local(self) -> bool:
        return is_loopback(urlsplit(self.root).hostname or "")

    def sources(self) -> list[Any]:
        if self.spec.flavor == "ollama":
            return [OllamaSource(self.root, self.spec.model)]
        return [vllm_source(self._metrics_url)] if self._metrics_url else []

    def pids(self) -> list[int]:
        return []

    def fault(self) -> EngineError | None:
        return None

    def stop(self) -> None:
        """Not ours to stop."""


def connect_s(root: str) -> float | None:
    """The median time of five TCP connects: how far away the endpoint is. None if it cannot be reached."""
    url = urlsplit(root)
    times = []
    for _ in range(5):
        began = time.monotonic()
        try:
            socket.create_connection(
                (url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), 5
            ).close()
        except OSError:
            return None
        times.append(time.monotonic() - began)
    return sorted(times)[2]
