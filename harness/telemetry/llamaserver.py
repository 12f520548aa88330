"""What the llama-server below an Ollama daemon says of itself: `GET /metrics` and `GET /slots`.

Ollama passes neither on, but its child inherits the environment: with `LLAMA_ARG_ENDPOINT_METRICS=1` and
`LLAMA_ARG_ENDPOINT_SLOTS=1` both answer on the child's own loopback port. Counters grow when a prompt has been read
and when an answer has ended. Source: llama.cpp `tools/server/README.md`; parts of real pages are in the tests.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import psutil

from harness.http import HttpError, get_json, get_text
from harness.telemetry.prometheus import parse

PERIOD_S: Final = 1.0
TIMEOUT_S: Final = 3.0
ENDPOINTS_ENV: Final = {"LLAMA_ARG_ENDPOINT_METRICS": "1", "LLAMA_ARG_ENDPOINT_SLOTS": "1"}

NAMES: Final = {
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "deferred",  # behind its slots; Ollama keeps its own queue before it
    "llamacpp:prompt_tokens_total": "prompt_tokens_total",  # those read, without what its cache knew
    "llamacpp:prompt_tokens_cached_total": "prompt_tokens_cached_total",
    "llamacpp:tokens_predicted_total": "generation_tokens_total",
    "llamacpp:tokens_predicted_seconds_total": "decode_sum_s",  # its `prompt_seconds_total` is not the answers' sum
    "llamacpp:n_decode_total": "steps_total",
}


def read_metrics(text: str) -> dict[str, float]:
    """The metrics of a page; one that it lacks, or gives as NaN, is left out."""
    return {NAMES[s.name]: s.value for s in parse(text, NAMES) if math.isfinite(s.value)}


def live_tokens(slots: Any) -> int | None:
    """Tokens that slots at work hold in the KV cache: read of the prompt, known from before, and made. What an idle
    slot keeps of its last request is not live. None: a page of another form."""
    if not isinstance(slots, list) or not all(isinstance(slot, dict) and "is_processing" in slot for slot in slots):
        return None
    total = 0
    for slot in slots:
        if slot["is_processing"]:
            made = slot.get("next_token") or [{}]
            made = made[0] if isinstance(made, list) else made
            parts = (slot.get("n_prompt_tokens_processed"), slot.get("n_prompt_tokens_cache"), made.get("n_decoded"))
            if parts[0] is None:
                return None  # an older server, which does not tell
            total += sum(int(part or 0) for part in parts)
    return total


def find_port(pids: Iterable[int]) -> int | None:
    """The port on which a llama-server among these processes listens."""
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if "llama-server" in process.name():
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        return int(connection.laddr.port)
    return None


class LlamaServerSource:
    """Counters, running requests and live KV of the llama-server in a family of processes.

    `kv_used_ratio` is live tokens over `capacity_tokens` (not given where that is not known). Two reads of a few ms a
    second, answered between two steps of the model; read in the thread for sources that wait (see `Sampler`).
    """

    name = "llama-server"
    period_s = PERIOD_S
    blocking = True

    def __init__(
        self, pids: Callable[[], Iterable[int]], capacity_tokens: float | None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.pids, self.capacity_tokens, self.timeout_s = pids, capacity_tokens, timeout_s
        self._port: int | None = None

    def read(self) -> dict[str, float]:
        """Raises HttpError: there is none, or it hangs, or it does not know these pages."""
        self._port = self._port or find_port(self.pids())
        root = f"http://127.0.0.1:{self._port}"
        if self._port is None:
            raise HttpError("llama-server", None, "no such process listens in Ollama's family")
        try:
            values = read_metrics(get_text(f"{root}/metrics", self.timeout_s))
            live = live_tokens(get_json(f"{root}/slots", self.timeout_s))
        except HttpError:
            self._port = None  # a model that is loaded anew has another process
            raise
        if live is not None:
            values["kv_live_tokens"] = float(live)
            if self.capacity_tokens:
                values["kv_used_ratio"] = live / self.capacity_tokens
        return values
