"""Whether a model can be had from the Hugging Face hub. Without a network the engines ask again and again: a name that
cannot be resolved ends vLLM after 48 s, a firewall that drops packets keeps it for longer than it is waited for."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import EngineError

HUB = "https://huggingface.co"
TIMEOUT_S = 10.0
PROXIES = ("https_proxy", "http_proxy", "all_proxy")
ELSEWHERE = ("VLLM_USE_MODELSCOPE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # then the hub is not asked


def check(name: str, model: str, env: Mapping[str, str]) -> None:
    """Nothing is done where a proxy or another source stands between, or where some of the model is here already.

    Raises:
        EngineError: nothing of the model is in the cache of this machine, and the hub does not answer; `HF_ENDPOINT` is
            no address.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or Path(model).exists() or cached(model, env):
        return
    if any(env.get(key) or env.get(key.upper()) for key in (*PROXIES, *ELSEWHERE)):
        return
    told = env.get("HF_ENDPOINT") or HUB
    place = urlsplit(told)
    try:
        host, port = place.hostname, place.port or (80 if place.scheme == "http" else 443)
    except ValueError:  # a port that is no number
        host = None
    if not host:
        raise EngineError(f"engine {name}: HF_ENDPOINT is no address: {told}", "write it as https://HOST[:PORT]")
    if why := _unreachable(host, port):
        raise EngineError(
            f"engine {name}: {model} is not in the model cache of this machine ({cache(env)}), and {host} "
            f"cannot be reached: {why}",
            f"give a folder (model: /models/...), or load it where there is a network (hf download {model}) and copy "
            f"it to {cache(env)}; behind a proxy set https_proxy",
        )


def _unreachable(host: str, port: int) -> str | None:
    """Why nothing can be reached there; None where it can. TIMEOUT_S is for all of it: the name, and each address."""
    found: list[str | None] = []

    def reach() -> None:
        try:
            socket.create_connection((host, port), TIMEOUT_S).close()
            found.append(None)
        except OSError as error:
            found.append(error.strerror or str(error))

    asking = threading.Thread(target=reach, daemon=True)
    asking.start()
    asking.join(TIMEOUT_S)
    return found[0] if found else f"no answer within {TIMEOUT_S:g} s"


def cached(model: str, env: Mapping[str, str]) -> bool:
    """Whether anything of the model is there; whether all of it is, its server has to find out."""
    return any((cache(env) / f"models--{model.replace('/', '--')}" / "snapshots").glob("*/*"))


def cache(env: Mapping[str, str]) -> Path:
    """The hub's cache, as its library finds it."""
    if told := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(told).expanduser()
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"
