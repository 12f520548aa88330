"""A tiny synchronous HTTP client on the standard library.

For readiness polls, facts and telemetry; the hot path is `stream.py`.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

MAX_BODY_BYTES = 64 * 2**20
_PIECE_BYTES = 64 * 2**10
_REASON_CHARACTERS = 300


class HttpError(OSError):
    """Every way an exchange can fail. `status` is the server's answer, None if there was none; `reason` says why."""

    def __init__(self, url: str, status: int | None, reason: str) -> None:
        self.url, self.status, self.reason = _shown(url), status, reason
        super().__init__(f"{self.url}: {f'status {status}: ' if status is not None else ''}{reason}")


def get_text(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> str:
    """The body of a GET as text.

    Raises:
        HttpError: no connection, no whole answer in time (each wait ends after `timeout_s`, a body that dribbles
            in after two of them), a status of 400 or above, a body over `MAX_BODY_BYTES` or not UTF-8.
    """
    return _exchange(url, None, timeout_s, headers or {})


def get_json(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Any:
    """The body of a GET as JSON. Raises HttpError as `get_text`, and if the body is no JSON."""
    return _decoded(url, get_text(url, timeout_s, {"Accept": "application/json", **(headers or {})}))


def post_json(url: str, body: Any, timeout_s: float, headers: Mapping[str, str] | None = None) -> Any:
    """Send `body` as JSON; the answer as JSON, None if it is empty. Raises HttpError as `get_json`."""
    data = json.dumps(body).encode()
    text = _exchange(url, data, timeout_s, {"Content-Type": "application/json", **(headers or {})})
    return _decoded(url, text) if text.strip() else None


def _decoded(url: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise HttpError(url, None, f"the answer is no JSON: {text[:80]!r}") from None


def _exchange(url: str, data: bytes | None, timeout_s: float, headers: Mapping[str, str]) -> str:
    """The one boundary where the errors of urllib, http.client and sockets become HttpError."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HttpError(url, None, "not an http:// or https:// address")
        request = urllib.request.Request(url, data=data, headers=dict(headers))
        with _opener(is_loopback(parts.hostname)).open(request, timeout=timeout_s) as response:
            return _body(url, response, time.monotonic() + timeout_s).decode()
    except HttpError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(url, error.code, _refusal(error)) from None
    except urllib.error.URLError as error:
        raise HttpError(url, None, _reason(error.reason, timeout_s)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HttpError(url, None, _reason(error, timeout_s)) from None


@functools.cache
def _opener(loopback: bool) -> urllib.request.OpenerDirector:
    # A proxy in the environment can't reach our loopback, and must not see what is asked there.
    handlers = [urllib.request.ProxyHandler({})] if loopback else []
    return urllib.request.build_opener(*handlers)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _body(url: str, response: http.client.HTTPResponse, deadline_s: float) -> bytes:
    # The socket's timeout counts for each read alone: without a deadline a dribbling server would hold us forever.
    pieces: list[bytes] = []
    size = 0
    while piece := response.read1(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise HttpError(url, response.status, f"the answer is over {MAX_BODY_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise HttpError(url, response.status, "the answer did not end in time")
    # `read1` takes an early end of the connection for the end of the body: the bytes still owed tell them apart.
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _refusal(error: urllib.error.HTTPError) -> str:
    """What the server said with its refusal: often the only explanation there is."""
    try:
        said = " ".join(error.read(4096).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        said = ""
    return (said or str(error.reason) or "no reason given")[:_REASON_CHARACTERS]


def _reason(error: object, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended within the answer"
    return str(error) or type(error).__name__


def _shown(url: str) -> str:
    """The address without what may be secret in it: a password, a query."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(not an address)"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
