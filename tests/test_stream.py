"""The hot path: framing under every way to cut the bytes into reads, and real connections over loopback."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import shutil
import socket
import ssl
import subprocess
import zlib
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from harness import pool as pool_module
from harness.frames import dechunk
from harness.pool import Pool
from harness.protocols import Target
from harness.stream import Connection, Exchange, connect, timed_lines
from tests.rawserver import CLOSE, END, HANG, RECORDED, RESET, RawServer, chunked, feed, feed_all, plain

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RECORDINGS = ["vllm-0.32-completions-ids", "vllm-0.32-chat", "ollama-0.32-generate", "ollama-0.32-chat"]


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.bin").read_bytes()


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *at, len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(edges)]


def expected_times(raw: bytes, lines: list[bytes], at: list[int]) -> list[float]:
    """When each line's newline arrives, found without the code under test: no line of a recording spans chunks."""
    times, position = [], 0
    for line in lines:
        position = raw.index(line + b"\n", position) + len(line)
        times.append(1.0 + bisect_right(at, position))
    return times


def check_cuts(raw: bytes, cuts: list[list[int]]) -> None:
    lines = [line for _, line in timed_lines(feed([raw]))]
    assert len(lines) > 4
    for at, x in zip(cuts, feed_all([cut(raw, at) for at in cuts]), strict=True):
        assert x.error is None
        assert x.end_s == x.times[-1] == len(at) + 1
        found = timed_lines(x)
        assert [line for _, line in found] == lines, at
        assert [time for time, _ in found] == expected_times(raw, lines, at), at


@pytest.mark.parametrize("name", RECORDINGS)
def test_any_cut_gives_the_same_lines_at_the_time_of_the_read_that_completes_them(name: str) -> None:
    raw = recorded(name)
    rng = random.Random(7)
    several = [sorted(rng.sample(range(1, len(raw)), rng.randint(2, 12))) for _ in range(300)]
    check_cuts(raw, [[at] for at in range(1, len(raw))])
    check_cuts(raw, several)
    check_cuts(raw, [list(range(1, len(raw)))])


def test_any_cut_of_chunks_that_cut_lines() -> None:
    body = recorded("vllm-0.32-completions").partition(b"\r\n\r\n")[2]
    parts, ended = dechunk(body)
    assert ended
    text = b"".join(body[start:end] for start, end in parts)
    raw = HEAD + chunked(*(text[start : start + 7] for start in range(0, len(text), 7))) + END
    want = [line for line in text.split(b"\n") if line]
    for x in feed_all([cut(raw, [at]) for at in range(1, len(raw), 7)]):
        assert [line for _, line in timed_lines(x)] == want


def test_the_terminator_inside_a_chunk_does_not_end_the_body() -> None:
    tricky = b": 0\r\n\r\n"
    raw = HEAD + chunked(b"data: 1\n\n", tricky + b"\n", b"data: 2\n\n") + END
    looks_ended = raw.index(tricky) + len(tricky)
    x = feed([raw[:looks_ended], raw[looks_ended:]])
    assert [line for _, line in timed_lines(x)] == [b"data: 1", b": 0", b"data: 2"]
    at_the_head = HEAD + chunked(tricky) + END
    x = feed([at_the_head[: len(HEAD) + 3 + len(tricky)], at_the_head[len(HEAD) + 3 + len(tricky) :]])
    assert [line for _, line in timed_lines(x)] == [b": 0"]


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"000\r\n\r\n", b"0;last\r\n\r\n", b"0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n"])
def test_chunk_extensions_and_trailers(end: bytes) -> None:
    raw = HEAD + b"3;name=value\r\na\nb\r\n2 ;x\r\n\nc\r\n" + end
    for x in feed_all([[raw], *(cut(raw, [at]) for at in range(1, len(raw)))]):
        assert x.error is None
        assert [line for _, line in timed_lines(x)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("size", [b"-7", b"-5", b"zz", b"", b"0x"])
def test_a_bad_chunk_size_ends_with_the_connection_and_never_loops(size: bytes) -> None:
    x = feed([HEAD + chunked(b"data: 1\n\n") + size + b"\r\nabc\r\n\r\n"], end=CLOSE)
    assert x.error == "connection closed before the end of the response"
    assert timed_lines(x) == [(1.0, b"data: 1")]


def test_content_length_in_pieces() -> None:
    raw = plain(b"one\ntwo\nthree")
    for at, x in enumerate(feed_all([cut(raw, [at]) for at in range(1, len(raw))]), 1):
        assert x.error is None
        assert [line for _, line in timed_lines(x)] == [b"one", b"two", b"three"], at
    x = feed([plain(b"one\n", b"HTTP/1.1 200 OK")[:-2], b"e\n"])
    assert timed_lines(x) == [(2.0, b"one")]
    assert feed([plain(b"")]).status == 200


def test_a_body_until_the_connection_closes() -> None:
    x = feed([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na\nb", b"b\nc", b"c"], end=CLOSE)
    assert (x.error, x.end_s) == (None, 3.0)
    assert timed_lines(x) == [(1.0, b"a"), (2.0, b"bb"), (3.0, b"cc")]
    x = feed([b"HTTP/1.1 200 OK\r\n\r\na\nb"], end=RESET)
    assert x.error == "connection reset: [Errno 104] by peer"
    assert timed_lines(x) == [(1.0, b"a")], "half a line is none"


def test_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    raw = interim + HEAD + chunked(b"a\n", b"b\n") + END
    for at, x in enumerate(feed_all([cut(raw, [at]) for at in range(1, len(raw))]), 1):
        assert (x.status, x.error) == (200, None), at
        assert [line for _, line in timed_lines(x)] == [b"a", b"b"]
        assert x.times[-1] == 2.0
    assert len(feed([interim, HEAD, chunked(b"a\n") + END]).reads) == 2


def test_no_content_has_no_body() -> None:
    assert feed([b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"]).status == 204


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01\x00\x02\x02", b"220 mail ready\r\n"])
def test_what_is_not_http_is_refused_at_once(garbage: bytes) -> None:
    x = feed([garbage])
    assert x.error is not None
    assert x.error.startswith("no HTTP response: ")
    assert x.status is None


@pytest.mark.parametrize("line", [b"HTTP/2 200\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 \xb2 OK\r\n\r\n"])
def test_a_bad_status_line(line: bytes) -> None:
    assert "no HTTP response" in (feed([line]).error or "")


def test_a_huge_head_is_refused() -> None:
    field = b"X-Filler: " + b"x" * 1000 + b"\r\n"
    assert "the head does not end" in (feed([b"HTTP/1.1 200 OK\r\n", *([field] * 65)]).error or "")
    assert "the head does not end" in (feed([b"HTTP/1.1 200 OK\r\n" + field * 70 + b"\r\nbody"]).error or "")
    assert feed([b"HTTP/1.1 200 OK\r\n" + field * 60 + b"Content-Length: 1\r\n\r\nx"]).error is None


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed_bodies(pack: Callable[[bytes], bytes]) -> None:
    name = b"gzip" if pack is gzip.compress else b"deflate"
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: %s\r\n\r\n" % name)
    packed = pack(b"data: one\n\ndata: two\n\n")
    raw = head + chunked(packed[:12], packed[12:]) + END
    for x in feed_all([cut(raw, [at]) for at in range(1, len(raw))]):
        assert [line for _, line in timed_lines(x)] == [b"data: one", b"data: two"]


def test_a_compressed_stream_keeps_its_times() -> None:
    squeeze = zlib.compressobj(wbits=31)
    first = squeeze.compress(b"data: one\n\n") + squeeze.flush(zlib.Z_SYNC_FLUSH)
    second = squeeze.compress(b"data: two\n\n") + squeeze.flush(zlib.Z_FINISH)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: GZIP\r\n"
    framed = feed([head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(first), chunked(second), END])
    bare = feed([head + b"\r\n" + first, second], end=CLOSE)
    assert timed_lines(framed) == timed_lines(bare) == [(1.0, b"data: one"), (2.0, b"data: two")]


def test_a_last_line_without_newline_has_the_time_of_its_bytes() -> None:
    assert timed_lines(feed([HEAD + chunked(b"a\nb"), END])) == [(1.0, b"a"), (1.0, b"b")]


# --- real connections ---


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return uvloop.run if request.param == "uvloop" else asyncio.run


def target(port: int, scheme: str = "http", **more: Any) -> Target:
    return Target(f"{scheme}://127.0.0.1:{port}/v1", "openai", "m", **more)


async def ask(pool: Pool, timeout_s: float = 30.0) -> Exchange:
    return await pool.exchange("/completions", b"{}", timeout_s, None)


def test_connections_are_kept(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with RawServer([plain()]) as server:
            pool = Pool(target(server.port, headers={"Authorization": "Bearer k"}))
            for _ in range(3):
                x = await ask(pool)
                assert (x.status, x.error) == (200, None)
            pool.close()
        assert (server.connections, len(server.requests)) == (1, 3)
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
        assert b"\r\nAuthorization: Bearer k\r\n" in head
        assert body == b"{}"

    run(main())


def test_connection_close_is_obeyed(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with RawServer([plain(head=b"HTTP/1.1 200 OK\r\nConnection: close")]) as server:
            pool = Pool(target(server.port))
            assert [(await ask(pool)).error for _ in range(2)] == [None, None]
            assert not pool.idle
            pool.close()
        assert server.connections == 2

    run(main())


@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_a_kept_connection_that_the_server_closes_is_replaced_once(run: Callable[[Any], Any], how: str) -> None:
    async def main() -> None:
        async with RawServer([plain()], [how], [0.05, plain(b"again")], [how]) as server:
            pool = Pool(target(server.port))
            await pool.ahead(3)
            await ask(pool)
            x = await ask(pool)
            assert (x.error, x.status) == (None, 200)
            assert x.sent_s is not None
            assert x.sent_s <= server.arrived_s[1], "its time counts from the first sending"
            assert len(server.requests) == 3
            x = await ask(pool)
            assert x.error is not None
            assert x.error.startswith("connection")
            assert len(server.requests) == 5, "on a kept one and on a new one, and no more"
            pool.close()

    run(main())


def test_a_request_that_the_server_had_taken_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "STALE_S", 0.1)

    async def main() -> None:
        async with RawServer([plain()], [0.3, RESET], [plain()]) as server:
            pool = Pool(target(server.port))
            await ask(pool)
            assert "connection" in ((await ask(pool)).error or "")
            assert len(server.requests) == 2
            pool.close()

    uvloop.run(main())


def test_a_connection_closed_before_its_first_use_is_replaced(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with RawServer([plain()]) as server:
            connection = await connect("127.0.0.1", server.port, None)
            connection.close()
            await asyncio.sleep(0.01)
            x = await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", 30.0)
            assert x.error == "connection closed before the request"
            pool = Pool(target(server.port))
            pool.idle.append(connection)
            assert (await ask(pool)).error is None
            pool.close()

    run(main())


def test_a_reset_in_mid_stream_keeps_what_arrived(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        script = [HEAD + chunked(b"data: 1\n\n"), 0.05, chunked(b"data: 2\n\n") + b"9\r\ndata:", 0.05, RESET]
        async with RawServer(script) as server:
            pool = Pool(target(server.port))
            x = await ask(pool)
            pool.close()
        assert x.error is not None
        assert x.error.startswith("connection")
        lines = timed_lines(x)
        assert [line for _, line in lines] == [b"data: 1", b"data: 2"]
        assert lines[1][0] - lines[0][0] > 0.02
        assert all(time >= sent for (time, _), sent in zip(lines, server.sent_s, strict=False))

    run(main())


def test_a_timeout_and_an_abort_end_an_exchange(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with RawServer([HEAD + chunked(b"data: 1\n\n"), HANG]) as server:
            pool = Pool(target(server.port))
            x = await ask(pool, timeout_s=0.2)
            assert x.error == "no end after 0.2 s"
            assert x.seconds >= 0.19
            assert timed_lines(x)
            task = asyncio.ensure_future(ask(pool))
            while not any(exchange.began_answering for _, exchange in pool.under_way()):
                await asyncio.sleep(0.01)
            pool.abort_all("cancelled")
            assert (await task).error == "cancelled"
            assert not pool.active
            assert not pool.idle
            pool.close()

    run(main())


def test_refused_and_unknown_hosts(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and not listening
            x = await ask(Pool(target(taken.getsockname()[1])))
        assert (x.error or "").startswith("cannot connect to 127.0.0.1:")
        assert (x.sent_s, x.status) == (None, None)
        assert x.end_s is not None

    run(main())


def test_bytes_that_nobody_asked_for_close_the_connection(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with RawServer([HEAD + chunked(b"a\n") + END, 0.05, b"HTTP/1.1 408 Request Timeout\r\n\r\n"]) as server:
            pool = Pool(target(server.port))
            x = await ask(pool)
            async with asyncio.timeout(20):
                while pool.idle[0].open:
                    await asyncio.sleep(0.01)
            assert len(x.reads) == len(x.times) <= 2
            pool.close()

    run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate that is its own authority, and its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("no `openssl` command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    extensions = (
        "subjectAltName=IP:127.0.0.1",
        "basicConstraints=critical,CA:TRUE",
        "keyUsage=critical,keyCertSign,digitalSignature",
    )
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=enginebench test", "-keyout", "key.pem", "-out", "cert.pem"]
    command += [part for extension in extensions for part in ("-addext", extension)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


def test_tls(run: Callable[[Any], Any], certificate: Path) -> None:
    async def main() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, certificate.with_name("key.pem"))
        script = [HEAD + chunked(b"data: 1\n\n"), 0.05, chunked(b"data: 2\n\n") + END]
        async with RawServer(script, tls=tls) as server:
            pool = Pool(target(server.port, "https", ca_file=str(certificate)))
            for _ in range(2):
                x = await ask(pool)
                assert x.error is None
                lines = timed_lines(x)
                assert [line for _, line in lines] == [b"data: 1", b"data: 2"]
                assert lines[1][0] - lines[0][0] > 0.02
            assert server.connections == 1
            pool.close()
            x = await ask(Pool(target(server.port, "https")))
            assert "certificate verify failed" in (x.error or "").lower()
            await asyncio.sleep(0.05)

    run(main())


def test_a_connection_reports_no_more_than_one_end() -> None:
    connection = Connection()
    connection.abort("nothing is under way")
    connection.connection_lost(None)
    connection.close()
    assert not connection.open
