"""A load balancer of somebody else's in front of an engine's replicas: nginx, or vLLM's router.

Both deal requests out in turn. What a benchmark must see is left as it is: no retries, no buffering, no breaker.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness.engines.process import Child, free_port, wait_until
from harness.errors import EngineError
from harness.http import HttpError, get_text
from harness.locate import nginx_binary, router_binary

READY_S = 60.0
LOOPBACK = "127.0.0.1"
# keepalive_timeout: vLLM's server (uvicorn) closes a connection that was idle for 5 s. A request sent down it at that
# moment meets a reset, which nginx answers with 502 (3 of 1,027 at 512 streams in a
# run of two replicas, see docs/scale.md): so nginx is the first to close.
NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
worker_processes auto;
worker_rlimit_nofile 65535;
events {{ worker_connections 16384; }}
http {{
  log_format upstream '$msec $upstream_addr $status $request_time';
  access_log {access} upstream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 1m;
  keepalive_requests 1000000;
  upstream replicas {{
    zone replicas 256k;
{servers}
    keepalive 1024;
    keepalive_requests 1000000;
    keepalive_timeout 4s;
  }}
  server {{
    listen {host}:{port} backlog=4096;
    location / {{
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_buffering off;
      proxy_next_upstream off;
      proxy_connect_timeout 60s;
      proxy_read_timeout 3600s;
      proxy_send_timeout 3600s;
    }}
  }}
}}
"""


class Balancer:
    """One balancer: `kind` is `nginx` or `vllm-router`. Errors: EngineError, with the remedy."""

    def __init__(self, kind: str, name: str, host: str, port: int) -> None:
        self.kind, self.name, self.host, self.port = kind, name, host, port
        self.child: Child | None = None
        self.folder: Path | None = None
        self.version: str | None = None

    @property
    def root(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self, replicas: list[str], log: Path) -> None:
        """In front of these roots (`http://host:port`). nginx says beside `log` which replica took each request."""
        command = self._nginx(replicas, log) if self.kind == "nginx" else self._router(replicas)
        self.child = Child(command, dict(os.environ), log)
        self.child.start()
        wait_until(self.child, self._answers, READY_S, f"balancer of {self.name}")

    def _answers(self) -> bool:
        try:
            get_text(f"{self.root}/{'version' if self.kind == 'nginx' else 'health'}", timeout_s=5.0)
        except HttpError as error:
            return error.status is not None and error.status < 500  # a replica without that page answers all the same
        return True

    def _nginx(self, replicas: list[str], log: Path) -> list[str]:
        binary = nginx_binary()
        if binary is None:
            raise EngineError(
                f"engine {self.name}: no `nginx` was found for its replicas",
                "apt-get install nginx-light, or write `balancer: vllm-router`",
            )
        said = subprocess.run([str(binary), "-v"], capture_output=True, text=True, check=False).stderr
        self.version = (re.search(r"nginx/(\S+)", said) or [None, None])[1]
        self.folder = Path(tempfile.mkdtemp(prefix="enginebench-nginx-"))
        self.folder.chmod(0o711)  # its workers may be of another user
        servers = "\n".join(f"    server {root.removeprefix('http://')} max_fails=0;" for root in replicas)
        config = self.folder / "nginx.conf"
        access = log.with_suffix(".requests.log").absolute()
        config.write_text(
            NGINX.format(folder=self.folder, access=access, servers=servers, host=self.host, port=self.port)
        )
        return [str(binary), "-p", str(self.folder), "-c", str(config)]

    def _router(self, replicas: list[str]) -> list[str]:
        if self.host != LOOPBACK:
            raise EngineError(
                f"engine {self.name}: vllm-router serves on loopback only (it brings an old OpenSSL with it)",
                "write `balancer: nginx` for load from other hosts",
            )
        binary = router_binary()
        if binary is None:
            raise EngineError(
                f"engine {self.name}: no `vllm-router` was found for its replicas",
                "scripts/install-engines router, or name it in ENGINEBENCH_VLLM_ROUTER, or write `balancer: nginx`",
            )
        said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
        self.version = (re.search(r"(\d+\.\d+\.\d+)", said) or [None, None])[1]
        command = [str(binary), "--host", self.host, "--port", str(self.port), "--worker-urls", *replicas]
        command += ["--policy", "round_robin", "--disable-retries", "--disable-circuit-breaker"]
        command += ["--request-timeout-secs", "3600", "--max-concurrent-requests", "65536"]
        return [*command, "--prometheus-host", LOOPBACK, "--prometheus-port", str(free_port())]

    def fault(self) -> EngineError | None:
        if self.child is None or self.child.alive:
            return None
        return EngineError(
            f"the balancer of {self.name} ended in mid-run with exit code {self.child.exit_code}",
            f"the reason is in its log: {self.child.log}",
            self.child.tail(),
        )

    def pids(self) -> list[int]:
        return self.child.pids() if self.child else []

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
