"""Where the engines are: for `bench doctor` and for what starts them.

A place that somebody named, by option or variable, is never replaced by another: if nothing is there, it is None.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path


def engines_folder() -> Path:
    """Where `scripts/install-engines` puts them: `$ENGINEBENCH_ENGINES`, else `enginebench/engines` in the cache."""
    named = os.environ.get("ENGINEBENCH_ENGINES")
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "enginebench" / "engines"


def ollama_binary(explicit: str | None = None) -> Path | None:
    """The `ollama` to start: the one named (a path, or a command), else that on PATH, else the installed one."""
    if explicit:
        return _executable(explicit)
    return _executable("ollama") or _executable(str(engines_folder() / "ollama" / "bin" / "ollama"))


def llama_server(ollama: Path) -> Path | None:
    """The `llama-server` that an Ollama binary starts for a model; None: none in any place where that Ollama looks."""
    real = ollama.resolve()
    places = (real.parent.parent / "lib" / "ollama", real.parent / "lib" / "ollama", real.parent)
    return next((found for place in places if (found := _executable(str(place / "llama-server")))), None)


def vllm_python(explicit: str | None = None) -> Path | None:
    """The Python interpreter that has vLLM: the one named, or in `$ENGINEBENCH_VLLM_PYTHON`; else the installed one;
    else the one that runs this, if it has vLLM."""
    named = explicit or os.environ.get("ENGINEBENCH_VLLM_PYTHON")
    if named:
        return _executable(named)
    installed = _executable(str(engines_folder() / "vllm" / "bin" / "python"))
    if installed is not None:
        return installed
    return Path(sys.executable) if importlib.util.find_spec("vllm") is not None else None


def transformers_python(explicit: str | None = None) -> Path | None:
    """The Python interpreter that has torch and transformers: the one named, or in `$ENGINEBENCH_TRANSFORMERS_PYTHON`;
    else the one that runs this, if it has both; else the installed one; else vLLM's, which has them too."""
    named = explicit or os.environ.get("ENGINEBENCH_TRANSFORMERS_PYTHON")
    if named:
        return _executable(named)
    if all(importlib.util.find_spec(package) is not None for package in ("torch", "transformers")):
        return Path(sys.executable)
    return _executable(str(engines_folder() / "transformers" / "bin" / "python")) or vllm_python()


def nginx_binary() -> Path | None:
    """Debian's is in a folder that only root has on PATH."""
    return _executable("nginx") or _executable("/usr/sbin/nginx")


def router_binary() -> Path | None:
    """vLLM's router: the one in `$ENGINEBENCH_VLLM_ROUTER`, else that on PATH, else the installed one."""
    named = os.environ.get("ENGINEBENCH_VLLM_ROUTER")
    if named:
        return _executable(named)
    return _executable("vllm-router") or _executable(str(engines_folder() / "router" / "bin" / "vllm-router"))


def _executable(name: str) -> Path | None:
    # Made absolute but not resolved: a virtual environment is found through its link to the interpreter.
    found = shutil.which(os.path.expanduser(name))
    return Path(found).absolute() if found else None
