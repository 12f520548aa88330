"""`bench run --prometheus`: the page under way, and that the shipped dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from harness.errors import InputError
from harness.http import HttpError, get_text
from harness.job import Outcome
from harness.live.figures import EXPOSED, GPU, HOST, VLLM, Figures
from harness.live.serve import live, page
from harness.records import PointRun, TelemetrySample
from harness.telemetry.prometheus import parse
from tests.cli import scenario, started, until

DASHBOARD = Path(__file__).parents[1] / "harness/live/grafana.json"
WORDS = {"sum", "by", "rate", "max", "engine", "point", "outcome", "replica", "label_values", "source", "metric"}


def full() -> Figures:
    """Figures with something of every kind."""
    figures = Figures()
    rows = [("vllm", metric) for metric in VLLM] + [("host", metric) for metric in HOST]
    rows += [("nvidia:0", metric) for metric in GPU] + [("load1/host", "cpu_ratio"), ("balancer", "cpu_cores")]
    rows += [("vllm", f"replica2.{metric}") for metric in VLLM]
    for number, (source, metric) in enumerate(rows):
        figures.sample(TelemetrySample(1.0, "v", source, metric, float(number + 1)))
    for name in EXPOSED:
        if name.startswith("enginebench_") and name not in {n for n, *_ in figures.series()}:
            figures.put(name, 1.0, engine='a "b"\n')
    return figures


def test_the_dashboard_asks_for_nothing_that_is_not_exposed() -> None:
    served = {sample.name for sample in parse(page(full()).decode())}
    assert set(EXPOSED) == served
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [v["query"]["query"] for v in board["templating"]["list"] if isinstance(v["query"], dict)]
    assert len(queries) >= 15
    for query in queries:
        bare = re.sub(r'"[^"]*"|\$\w+|\[[^\]]*\]', "", query)
        asked = set(re.findall(r"[A-Za-z_][\w:]*", bare)) - WORDS
        assert asked, query
        assert asked <= served, query
    legends = " ".join(target["legendFormat"] for panel in board["panels"] for target in panel["targets"])
    assert set(re.findall(r"{{(\w+)}}", legends)) <= {"engine", "point", "outcome", "replica", "host", "gpu", "status"}


def test_values_take_the_usual_names_and_units() -> None:
    figures = Figures()
    for source, metric, value in (
        ("nvidia:1", "memory_used_bytes", 2**30), ("nvidia:1", "utilization_ratio", 0.5), ("vllm", "running", 7.0),
        ("vllm", "replica2.kv_used_ratio", 0.25), ("load2/host", "cpu_ratio", 0.75), ("ollama", "loaded", 1.0),
    ):  # fmt: skip
        figures.sample(TelemetrySample(1.0, "v", source, metric, value))
    found = {(s.name, s.labels.get("replica"), s.labels.get("host")): s for s in parse(page(figures).decode())}
    assert found["DCGM_FI_DEV_FB_USED", None, "here"].value == 1024
    assert found["DCGM_FI_DEV_GPU_UTIL", None, "here"].labels == {"gpu": "1", "host": "here"}
    assert found["vllm:num_requests_running", "", "here"].value == 7
    assert found["vllm:kv_cache_usage_perc", "replica2", "here"].value == 0.25
    assert found["enginebench_host_cpu_ratio", None, "load2"].value == 0.75
    raw = [s for s in parse(page(figures).decode()) if s.name == "enginebench_telemetry"]
    assert ("ollama", "loaded", 1.0) in [(s.labels["source"], s.labels["metric"], s.value) for s in raw]


def test_a_port_that_is_taken_is_refused_and_the_observer_hears_everything() -> None:
    told: list[str] = []

    class Watcher:
        def __getattr__(self, name: str) -> Any:
            return lambda *args: told.append(name)

    with live(Watcher(), 0) as seen:
        with pytest.raises(InputError, match="--prometheus"), live(Watcher(), seen.port):
            pass
        point = PointRun("v", "c4", 0, {}, status="done")
        seen.engine("v", "starting", None)
        seen.point(point, 1, 1)
        figures = {"done": 3.0, "failed": 1.0, "tokens": 30.0, "in_flight": 4.0, "window_is_open": 1.0, "ttft_s": 0.2}
        seen.progress(point, figures)
        counted = [30.0]
        for tokens in (34.57, 33.1):  # an estimate, as long as answers are under way: the page's counter never falls
            seen.progress(point, figures | {"tokens": tokens})
            text = get_text(f"http://127.0.0.1:{seen.port}/metrics", 5.0)
            counted += _tokens(text)
        seen.ended(point, Outcome(0.0, 1.0, ok=3, failed=1, output_tokens=36))
        assert [*counted, *_tokens(page(seen.figures).decode())] == [30, 34, 34, 36]
        seen.warning("careful")
        assert 'enginebench_requests_total{engine="v",outcome="ok",point="c4",repeat="1"} 3.0' in text
        assert 'enginebench_points{status="running"} 1.0' in text
        with pytest.raises(HttpError):
            get_text(f"http://127.0.0.1:{seen.port}/", 5.0)
    assert told == ["engine", "point", *["progress"] * 3, "ended", "warning"]
    with pytest.raises(HttpError):
        get_text(f"http://127.0.0.1:{seen.port}/metrics", 1.0)


def _tokens(text: str) -> list[float]:
    return [s.value for s in parse(text) if s.name == "enginebench_output_tokens_total"]


def test_a_run_shows_itself_while_it_goes_on(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pages: list[str] = []

    def has_tokens() -> bool:
        try:
            pages.append(get_text(f"http://127.0.0.1:{port}/metrics", 2.0))
        except HttpError:
            return False
        wanted = {"enginebench_output_tokens_total", "vllm:num_requests_running", "node_memory_MemTotal_bytes"}
        return wanted <= {s.name for s in parse(pages[-1])}

    words = [
        "run",
        scenario(tmp_path, requests=400),
        "--out",
        tmp_path / "run",
        "--prometheus",
        str(port),
        "--no-report",
    ]
    with started(*words) as process:
        assert until(has_tokens), (process.poll(), pages[-1:])
