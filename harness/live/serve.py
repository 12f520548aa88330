"""The page that Prometheus scrapes, and the observer that fills it while it passes everything on to another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harness.errors import InputError
from harness.job import Outcome
from harness.live.figures import EXPOSED, Figures
from harness.records import PointRun, TelemetrySample

LOOPBACK = "127.0.0.1"


@contextmanager
def live(observer: Any, port: int, address: str = LOOPBACK) -> Iterator[Live]:
    """An observer that passes on to `observer`, with a page at http://address:port/metrics.

    Raises:
        InputError: prometheus-client is not installed, or the port cannot be had.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise InputError("--prometheus needs prometheus-client", "pip install 'enginebench[prometheus]'") from None
    figures = Figures()
    try:
        server = ThreadingHTTPServer((address, port), _handler(figures))
    except OSError as error:
        raise InputError(f"--prometheus {port}: {error.strerror}", "give a port that is free") from None
    server.daemon_threads = True
    found = Live(observer, figures, server)
    try:
        yield found
    finally:
        found.close()


class Live:
    """See `harness.run.Observer`; `sample` takes telemetry, too. The page is served from the first news of an engine
    on: the load processes are forked before it, while there is no other thread."""

    def __init__(self, observer: Any, figures: Figures, server: ThreadingHTTPServer) -> None:
        self._observer, self.figures, self._server = observer, figures, server
        self._thread: threading.Thread | None = None
        self._statuses: dict[tuple[str, str, int], str] = {}

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def engine(self, name: str, doing: str, share: float | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._server.serve_forever, name="prometheus", daemon=True)
            self._thread.start()
        self._observer.engine(name, doing, share)

    def point(self, point: PointRun, number: int, of: int) -> None:
        self._status(point, "running")
        self._observer.point(point, number, of)

    def progress(self, point: PointRun, figures: dict[str, float]) -> None:
        labels = {"engine": point.engine, "point": point.point, "repeat": str(point.repeat + 1)}
        put = self.figures.put
        put("enginebench_requests_total", figures["done"], outcome="ok", **labels)
        put("enginebench_requests_total", figures["failed"], outcome="failed", **labels)
        self.figures.count("enginebench_output_tokens_total", figures["tokens"], **labels)
        put("enginebench_requests_in_flight", figures["in_flight"], **labels)
        put("enginebench_window_open", figures["window_is_open"], **labels)
        if figures["ttft_s"]:
            put("enginebench_time_to_first_token_seconds", figures["ttft_s"], **labels)
        self._observer.progress(point, figures)

    def ended(self, point: PointRun, outcome: Outcome) -> None:
        labels = {"engine": point.engine, "point": point.point, "repeat": str(point.repeat + 1)}
        self.figures.put("enginebench_requests_total", outcome.ok, outcome="ok", **labels)
        self.figures.put("enginebench_requests_total", outcome.failed, outcome="failed", **labels)
        self.figures.count("enginebench_output_tokens_total", outcome.output_tokens, **labels)
        self.figures.put("enginebench_requests_in_flight", 0.0, **labels)
        self.figures.put("enginebench_window_open", 0.0, **labels)
        self._status(point, point.status)
        self._observer.ended(point, outcome)

    def warning(self, text: str) -> None:
        self._observer.warning(text)

    def sample(self, row: TelemetrySample) -> None:
        self.figures.sample(row)

    def _status(self, point: PointRun, status: str) -> None:
        self._statuses[point.engine, point.point, point.repeat] = status
        for each in {*self._statuses.values(), "running"}:
            count = sum(status == each for status in self._statuses.values())
            self.figures.put("enginebench_points", float(count), status=each)

    def close(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class Collected:
    """What prometheus-client asks for the figures."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, tuple[Any, list[str]]] = {}
        for name, labels, value in self._figures.series():
            if name not in families:
                kind = CounterMetricFamily if EXPOSED[name].kind == "counter" else GaugeMetricFamily
                families[name] = (kind(name, EXPOSED[name].help, labels=list(labels)), list(labels))
            family, keys = families[name]
            family.add_metric([labels.get(key, "") for key in keys], value)
        yield from (family for family, _ in families.values())


def page(figures: Figures) -> bytes:
    """The text that Prometheus reads."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collected(figures))
    return bytes(generate_latest(registry))


def _handler(figures: Figures) -> type[BaseHTTPRequestHandler]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.path.partition("?")[0] == "/metrics"
            body = page(figures) if good else b"see /metrics\n"
            self.send_response(200 if good else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    return Page
