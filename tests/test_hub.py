"""A model of the hub without a network: told before an engine is waited for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engines import hub
from harness.engines.vllm import VllmEngine
from harness.enginespec import VllmSpec
from harness.errors import EngineError

MODEL = "org/some-model"


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine whose hub refuses, with an empty cache. An engine's start adds this machine's."""
    for key in (*hub.PROXIES, *hub.ELSEWHERE, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(key, raising=False)
        monkeypatch.delenv(key.upper(), raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path)}


@pytest.fixture
def answering() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_model_that_cannot_be_had_is_refused_with_what_to_do(closed: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine v: org/some-model is not in .*127\.0\.0\.1 cannot be reached") as no:
        hub.check("v", MODEL, closed)
    assert f"hf download {MODEL}" in no.value.remedy
    assert str(tmp_path / "hub") in no.value.remedy
    # The same at an engine's start, of the scenario's `env`, before any process: no log is written.
    spec = VllmSpec(name="v", kind="vllm", model=MODEL, env=closed, python="/usr/bin/python3")
    with pytest.raises(EngineError, match="cannot be reached"):
        VllmEngine(spec).start(tmp_path / "v.log")
    assert not (tmp_path / "v.log").exists()


def test_nothing_is_said_where_it_may_be_had(closed: dict[str, str], answering: str, tmp_path: Path) -> None:
    hub.check("v", MODEL, closed | {"HF_ENDPOINT": answering})
    hub.check("v", MODEL, closed | {"HTTPS_PROXY": "http://proxy:3128"})
    hub.check("v", MODEL, closed | {"VLLM_USE_MODELSCOPE": "True"})
    for other in ("s3://bucket/model", str(tmp_path), "./folder/of/mine"):
        hub.check("v", other, closed)
    snapshot = tmp_path / "hub/models--org--some-model/snapshots/abc"
    snapshot.mkdir(parents=True)
    with pytest.raises(EngineError):
        hub.check("v", MODEL, closed)
    (snapshot / "config.json").write_text("{}")
    hub.check("v", MODEL, closed)


@pytest.mark.parametrize("place", ["hub.example.com", "https://", "https://hub.example.com:often"])
def test_an_endpoint_that_is_no_address_is_refused(closed: dict[str, str], place: str) -> None:
    with pytest.raises(EngineError, match="HF_ENDPOINT is no address"):
        hub.check("v", MODEL, closed | {"HF_ENDPOINT": place})


def test_a_name_that_nobody_answers_for_is_not_waited_for(
    closed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()

    def connect(*_: object) -> None:
        ends.wait(20)
        raise OSError("late")

    monkeypatch.setattr(hub, "TIMEOUT_S", 0.05)
    monkeypatch.setattr("socket.create_connection", connect)
    with pytest.raises(EngineError, match=r"no answer within 0\.05 s"):
        hub.check("v", MODEL, closed)
    ends.set()


def test_where_the_cache_is() -> None:
    assert hub.cache({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == Path("/c")
    assert hub.cache({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/h/hub")
    assert hub.cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub.cache({}) == Path.home() / ".cache/huggingface/hub"
