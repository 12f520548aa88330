"""`replicas: N`: two simulated replicas behind the real balancers, and how capacities and telemetry come together."""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pytest

from harness.engines import make_engine
from harness.engines.balancer import NGINX, Balancer
from harness.engines.replicas import Together, gpus_of
from harness.engines.sim import SimEngine
from harness.engines.vllm import VllmEngine
from harness.enginespec import SimSpec, VllmSpec
from harness.errors import EngineError
from harness.http import post_json
from harness.locate import nginx_binary, router_binary
from harness.records import EngineRun, Fact, PointRun
from reports import hosts

no_nginx = pytest.mark.skipif(nginx_binary() is None, reason="apt-get install nginx-light")
no_router = pytest.mark.skipif(router_binary() is None, reason="scripts/install-engines router")
BALANCERS = [
    pytest.param("nginx", marks=no_nginx),
    pytest.param("vllm-router", marks=[no_router, pytest.mark.engines]),
]


def spec(**more: Any) -> SimSpec:
    return SimSpec.model_validate(
        {"name": "two", "kind": "sim", "model": "meta-llama/Llama-3.1-8B-Instruct", "replicas": 2,
         "args": {"time_scale": 0.3}} | more
    )  # fmt: skip


@contextmanager
def running(wanted: SimSpec, folder: Path) -> Iterator[Any]:
    engine = make_engine(wanted)
    try:
        engine.start(folder / "two.log")
        engine.ready(lambda text, share: None)
        yield engine
    finally:
        engine.stop()


@pytest.mark.parametrize("balancer", BALANCERS)
def test_two_replicas_serve_behind_one_address(balancer: str, tmp_path: Path) -> None:
    with running(spec(balancer=balancer), tmp_path) as engine:
        target = engine.target()
        body = {"model": target.model, "prompt": "one two three", "max_tokens": 4, "ignore_eos": True}
        for _ in range(20):
            assert post_json(f"{target.url}/completions", body, 20.0)["choices"]
        assert reads_of_a_stream(target, body) > 24
        together, family = engine.sources()
        read = together.read()
        assert read["finished_total"] == read["replica1.finished_total"] + read["replica2.finished_total"] == 21
        assert read["replica1.finished_total"] == pytest.approx(10, abs=1)  # in turn
        facts = {fact.name: fact for fact in engine.facts()}
        one = {fact.name: fact.value for fact in engine.engines[0].facts()}
        assert (facts["replicas"].value, facts["weights_bytes"].value) == (2, 2 * one["weights_bytes"])
        assert str(facts["balancer"].value).startswith(balancer)
        assert family.name == "balancer"
        family.read()
        assert family.read()["rss_bytes"] > 0
        assert engine.fault() is None
        pids = engine.pids() + engine.balancer.pids()
        assert len(pids) >= 3
        if balancer == "nginx":
            took = re.findall(r"127\.0\.0\.1:\d+", (tmp_path / "two.requests.log").read_text())
            assert len(set(took)) == 2
        psutil.Process(engine.balancer.pids()[0]).kill()
        deadline = time.monotonic() + 10
        while engine.fault() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "balancer of two ended" in str(engine.fault())
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert {path.name for path in tmp_path.glob("*.log")} >= {"two.log", "two.1.log", "two.2.log"}


def test_nginx_closes_idle_connections_before_the_server_does() -> None:
    """uvicorn waits for 5 s: a request that comes as it closes is a 502."""
    upstream = NGINX[NGINX.index("upstream replicas") : NGINX.index("server {{")]
    found = re.search(r"keepalive_timeout (\d+)s;", upstream)
    assert found
    assert int(found[1]) < 5


def reads_of_a_stream(target: Any, body: dict[str, Any]) -> int:
    """In how many pieces a streamed answer comes: one, through a balancer that buffers."""
    connection = http.client.HTTPConnection(target.url.removeprefix("http://").removesuffix("/v1"), timeout=30)
    asked = json.dumps(body | {"stream": True, "max_tokens": 48})
    connection.request("POST", "/v1/completions", asked, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    pieces = 0
    while answer.read1(1 << 20):
        pieces += 1
    connection.close()
    return pieces


def test_together_sums_and_keeps_each(tmp_path: Path) -> None:
    reads = [{"running": 3.0, "kv_used_ratio": 0.5, "odd": 1.0}, {"running": 1.0, "kv_used_ratio": 0.1}]
    sources = [SimpleNamespace(name="vllm", period_s=1.0, blocking=True, read=lambda r=read: r) for read in reads]
    assert Together(sources).read() == {
        "running": 4.0, "kv_used_ratio": 0.3, "replica1.running": 3.0, "replica1.kv_used_ratio": 0.5,
        "replica1.odd": 1.0, "replica2.running": 1.0, "replica2.kv_used_ratio": 0.1,
    }  # fmt: skip


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    base = {"name": "v", "kind": "vllm", "model": "m", "args": {"tensor_parallel_size": 2}}
    engine: Any = make_engine(VllmSpec.model_validate(base | {"replicas": 2}))
    assert [one.spec.env["CUDA_VISIBLE_DEVICES"] for one in engine.engines] == ["4,5", "6,7"]
    assert [one.spec.name for one in engine.engines] == ["v.1", "v.2"]
    monkeypatch.setattr(VllmEngine, "facts", lambda self: [])
    assert next(fact.value for fact in engine.facts() if fact.name == "replica_gpus") == "4,5; 6,7"
    assert (
        gpus_of(VllmSpec.model_validate(base | {"args": {"pipeline_parallel_size": 2, "data_parallel_size": 4}})) == 8
    )
    with pytest.raises(EngineError, match="3 replicas of 2 GPUs each, and 4 GPUs are here"):
        make_engine(VllmSpec.model_validate(base | {"replicas": 3}))
    assert isinstance(make_engine(spec(replicas=1)), SimEngine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # all of them hidden
    hidden: Any = make_engine(VllmSpec.model_validate(base | {"replicas": 2}))
    assert "CUDA_VISIBLE_DEVICES" not in hidden.engines[0].spec.env


def test_parallel_sizes_go_to_vllm_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own Ray executor too: nothing of ours is between."""
    said: list[list[str]] = []
    monkeypatch.setattr(VllmEngine, "launch", lambda self, command, env, log: said.append(command))
    args = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "data_parallel_size": 2,
            "data_parallel_backend": "ray", "distributed_executor_backend": "ray",
            "enable_expert_parallel": True}  # fmt: skip
    base = {"name": "v", "kind": "vllm", "model": "org/m", "python": sys.executable, "args": args,
            "env": {"HF_HUB_OFFLINE": "1"}}  # fmt: skip  # no network is asked
    make_engine(VllmSpec.model_validate(base), "127.0.0.7").start(tmp_path / "v.log")
    words = " ".join(said[0])
    assert (
        "--tensor-parallel-size 4 --pipeline-parallel-size 2 --data-parallel-size 2 --data-parallel-backend ray"
        in words
    )
    assert "--distributed-executor-backend ray --enable-expert-parallel" in words
    assert "--host 127.0.0.7 --port" in words


def test_the_router_stays_on_loopback(tmp_path: Path) -> None:
    engine: Any = make_engine(spec(balancer="vllm-router"), "127.0.0.2")
    assert engine.host == "127.0.0.2"
    with pytest.raises(EngineError, match="loopback only"):
        Balancer("vllm-router", "two", "127.0.0.2", 1).start([], tmp_path / "two.log")


def test_a_report_says_how_the_balancer_dealt_and_of_hosts() -> None:
    point = PointRun("v", "c4", 0, {}, "done", start_s=10.0, open_s=11.0, close_s=19.0, end_s=20.0)
    engine = EngineRun("v", "vllm", "m", facts=[Fact("replica_gpus", "0; 1", "", "configured", "")])
    run = SimpleNamespace(points=[point], engines=[engine], cluster={
        "hosts": [{"name": "load1", "address": "10.0.0.1", "load_processes": 2, "cores_allowed": 4.0, "lost": None}],
        "clocks": [{"host": "load1", "address": "10.0.0.1", "engine": "v", "point": "c4", "repeat": 0,
                    "offset_s": 5.0, "error_s": 0.0002, "round_trip_s": 0.0001}],
        "gaps": [{"host": "load2", "address": "10.0.0.2", "from_s": 12.3, "reason": "no answer"}],
    })  # fmt: skip
    rows = [
        (at, "v", "vllm", f"replica{n}.{metric}", value)
        for n, share in ((1, 3.0), (2, 1.0))
        for at in (9.0, 15.0, 21.0)
        for metric, value in (("finished_total", at * share), ("running", share), ("kv_used_ratio", share / 10))
    ]
    rows += [(at, "v", "nvidia:0", "power_w", 300.0 + at) for at in (9.0, 12.0, 16.0)]
    rows += [(15.0, "v", "nvidia:0", "utilization_ratio", 0.5), (15.0, "v", "nvidia:1", "utilization_ratio", 0.25)]
    names = ("time_s", "engine", "source", "metric", "value")
    telemetry = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    assert hosts.balance(run, telemetry) == [
        ["v", "c4", "1", "1", "36", "75.0%", "3.0", "30.0%", "0", "50%", "314 W"],
        ["v", "c4", "1", "2", "12", "25.0%", "1.0", "10.0%", "1", "25%", "–"],
    ]
    engine.facts.clear()  # nobody said which GPUs they have
    assert [row[-3:] for row in hosts.balance(run, telemetry)] == [["–", "–", "–"]] * 2
    assert hosts.balance(run, telemetry.slice(0, 0)) == []
    assert hosts.hosts(run)[0][:4] == ["load1", "10.0.0.1", "2", "4"]
    assert hosts.clocks(run)[0][5:] == ["5.000000", "0.200", "0.100"]
    assert hosts.gaps(run) == [["load2", "10.0.0.2", "12.3", "no answer"]]
