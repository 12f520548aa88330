"""What an Ollama daemon says of the loaded model: `GET /api/ps`.

Source: https://docs.ollama.com/api/ps (fields `size`, `size_vram`, `context_length`).
"""

from __future__ import annotations

from typing import Any, Final

from harness.http import HttpError, get_json

PERIOD_S: Final = 1.0
TIMEOUT_S: Final = 1.0

_FIELDS: Final = {"size": "size_bytes", "size_vram": "size_vram_bytes", "context_length": "context_tokens"}


def read_ps(page: Any, model: str) -> dict[str, float]:
    """`loaded` (0 or 1) and, where loaded, `size_bytes`, `size_vram_bytes`, `context_tokens` as far as told."""
    models = page.get("models") if isinstance(page, dict) else None
    for row in models or []:
        if _tagged(model) in {_tagged(str(row.get(key, ""))) for key in ("name", "model")}:
            told = {metric: row.get(field) for field, metric in _FIELDS.items()}
            return {"loaded": 1.0} | {k: float(v) for k, v in told.items() if isinstance(v, int | float)}
    return {"loaded": 0.0}


def _tagged(model: str) -> str:
    """Ollama takes `llama3` for `llama3:latest`; a colon within a registry's address is no tag."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


class OllamaSource:
    """Size and place of one model in an Ollama daemon.

    A read blocks for up to about `TIMEOUT_S`, so the sampler gives it a thread apart (`blocking`): a hanging daemon
    costs its own samples only. A read costs about 1.1 ms of CPU.
    """

    name = "ollama"
    period_s = PERIOD_S
    blocking = True

    def __init__(self, base_url: str, model: str, timeout_s: float = TIMEOUT_S) -> None:
        self.url = base_url.rstrip("/") + "/api/ps"
        self.model = model
        self.timeout_s = timeout_s

    def read(self) -> dict[str, float]:
        """Raises HttpError: the daemon is gone, hangs, or answers something else."""
        page = get_json(self.url, self.timeout_s)
        if not isinstance(page, dict) or not isinstance(page.get("models", []), list | None):
            raise HttpError(self.url, None, "not an answer of Ollama")
        return read_ps(page, self.model)
