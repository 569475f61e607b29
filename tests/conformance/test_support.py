"""The instruments themselves: the raw client against scripted servers, the TOML writer, the
daemon as a subprocess, and the host application."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from tests.conformance.webhook import application
from tests.conftest import StartDaemon
from tests.support.daemon import ApiError, DaemonError, to_toml
from tests.support.rawhttp import RawConnection, encode_request

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REQUEST = encode_request("POST", "/x", body=b"{}")


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A server that does as the script says, then closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


def saying(*parts: bytes, keep_open: bool = False, pause: float = 0.0) -> Script:
    """Read a request's head, send the parts, and close, or wait for the client to close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        if keep_open:
            await reader.read()

    return script


async def test_length_keeps_header_case_order_and_duplicates() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 2\r\n\r\n[]"
    async with (
        scripted(saying(answer, keep_open=True)) as url,
        await RawConnection.open(url) as connection,
    ):
        response = await connection.request(REQUEST)
        assert response.status == 200
        assert response.headers == [("X-A", "1"), ("x-a", "2"), ("Content-Length", "2")]
        assert (response.framing, response.body, response.complete) == ("length", b"[]", True)
        assert not await connection.closed_by_peer(within=0.05)


async def test_chunks_arrive_one_by_one_with_their_times() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = head, b"2\r\n[]\r\n", b"3\r\n", b"[1]\r\n0\r\n\r\n"
    async with (
        scripted(saying(*parts, pause=0.05)) as url,
        await RawConnection.open(url) as connection,
    ):
        response = connection.send(REQUEST)
        await response.chunk_count(1)
        assert not response.over
        await response.finished()
        assert [chunk.data for chunk in response.chunks] == [b"[]", b"[1]"]
        assert response.chunks[1].at - response.chunks[0].at > 0.08
        assert response.terminated
        assert await connection.closed_by_peer()


@pytest.mark.parametrize(
    ("answer", "framing", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[]", "length", b"[]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n", "chunked", b"[]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]-", "chunked", b""),
    ],
)
async def test_cut_off_responses_are_over_but_not_complete(
    answer: bytes, framing: str, body: bytes
) -> None:
    async with (
        scripted(saying(answer)) as url,
        await RawConnection.open(url) as connection,
    ):
        response = await connection.request(REQUEST)
        assert (response.framing, response.body) == (framing, body)
        assert response.error is not None
        assert not response.complete
        assert not response.terminated


async def test_body_until_close() -> None:
    async with (
        scripted(saying(b"HTTP/1.0 200 OK\r\n\r\n[", b"]", pause=0.01)) as url,
        await RawConnection.open(url) as connection,
    ):
        response = await connection.request(REQUEST)
        assert (response.framing, response.body) == ("until_close", b"[]")
        assert response.complete


async def test_interim_responses_and_a_body_sent_afterwards() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(2)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body)
        await writer.drain()

    async with scripted(script) as url, await RawConnection.open(url) as connection:
        response = connection.send(REQUEST.removesuffix(b"{}"))
        await response.until(lambda r: bool(r.interim))
        connection.send_more(b"{}")
        await response.finished()
        assert response.interim == ["HTTP/1.1 100 Continue"]
        assert response.body == b"{}"


async def test_head_has_no_body_and_bytes_after_it_are_seen() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
    async with (
        scripted(saying(answer, keep_open=True)) as url,
        await RawConnection.open(url) as connection,
    ):
        response = await connection.request(encode_request("HEAD", "/x"))
        assert (response.framing, response.body) == ("none", b"")
        assert connection.unread == b"[]"


async def test_two_requests_on_one_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in (b"1", b"2"):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + number)
            await writer.drain()

    async with scripted(script) as url, await RawConnection.open(url) as connection:
        assert (await connection.request(REQUEST)).body == b"1"
        assert (await connection.request(REQUEST)).body == b"2"
        assert await connection.closed_by_peer()


async def test_abort_drops_a_response_that_is_still_coming() -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await reader.read() == b""
        gone.set()

    async with scripted(script) as url, await RawConnection.open(url) as connection:
        response = connection.send(REQUEST)
        await response.head()
        assert await response.quiet(0.05)
        await connection.abort()
        assert response.over
        assert not response.complete
        assert not await connection.closed_by_peer(within=0)
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_server_that_says_nothing() -> None:
    async with scripted(saying()) as url, await RawConnection.open(url) as connection:
        response = await connection.request(REQUEST)
        assert response.status_line is None
        with pytest.raises(AssertionError, match="no response head"):
            _ = response.status


@pytest.mark.parametrize("answer", [b"ICY 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nno header\r\n\r\n"])
async def test_what_is_no_http(answer: bytes) -> None:
    async with scripted(saying(answer)) as url, await RawConnection.open(url) as connection:
        response = await connection.request(REQUEST)
        assert type(response.error).__name__ == "ProtocolViolation"


def test_requests_are_sent_as_asked() -> None:
    assert encode_request("GET", "/a%20b?c") == b"GET /a%20b?c HTTP/1.1\r\nHost: bus.test\r\n\r\n"
    assert encode_request(
        "POST", "/", headers=[("A", "1"), ("a", "2")], body=b"12345678", chunked=True, version="1.0"
    ) == (
        b"POST / HTTP/1.0\r\nHost: bus.test\r\nA: 1\r\na: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"7\r\n1234567\r\n1\r\n8\r\n0\r\n\r\n"
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"server": {"listen": "127.0.0.1:0"}, "poll": {"interval": 2.5, "on": True, "n": 10**20}},
        {"a": {"x": 'q"\\\n\x7f\x00é🎉', "odd key.": [1, [2.0], {"k": "v"}], "empty": []}},
        {"filters": [{"prefix": "/a"}, {"prefix": "/b", "deep": {"c": 1}}], "last": {"d": {}}},
        {"api": {"sub": {"x": 1}, "keys": [{"expires": datetime(2030, 1, 2, tzinfo=UTC)}]}},
    ],
)
def test_toml_reads_back(config: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(config)) == config


def test_toml_has_no_null() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        to_toml({"a": {"b": None}})


async def test_daemon_starts_publishes_and_restarts_in_place(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"server": {"internal_listen": "127.0.0.1:0"}})
    assert (await daemon.publish("/foo", 1))["message_id"] == 1
    with pytest.raises(ApiError, match="400") as refused:
        await daemon.publish("", 1)
    assert refused.value.problem["code"] == "invalid_channel"
    before = (daemon.url, daemon.internal_url, daemon.pid)
    assert before[0] != before[1]
    await daemon.restart()
    assert (daemon.url, daemon.internal_url) == before[:2]
    assert daemon.pid != before[2]
    assert (await daemon.api("GET", "last_id", query={"channel": "/foo"}))["last_id"] == 0
    assert await daemon.stop() == 0
    assert not daemon.running
    assert daemon.log[-1]["message"] == "stopped"


async def test_daemon_can_be_killed(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert daemon.internal_url == daemon.url
    assert await daemon.kill() == -9
    assert not daemon.running


async def test_a_failed_start_says_why(start_daemon: StartDaemon) -> None:
    with pytest.raises(DaemonError, match="exit code 1") as failure:
        await start_daemon({"poll": {"no_such_key": 1}})
    assert "no_such_key" in str(failure.value)


async def test_the_host_application_believes_and_refuses() -> None:
    async with (
        application("X-User", "X-Groups", "X-Site", "X-Fail") as url,
        aiohttp.ClientSession() as session,
    ):
        headers = {"x-user": '"7"', "x-groups": "[1]", "x-site": "a"}
        async with session.post(url, json={"headers": headers}) as answer:
            assert await answer.json() == {"user_id": "7", "group_ids": [1], "site_id": "a"}
        async with session.post(url, json={"headers": {}}) as answer:
            assert await answer.json() == {}
        refusal = '{"status": 403, "headers": {"X-Reason": "blocked"}, "body": "no"}'
        async with session.post(url, json={"headers": {"x-fail": refusal}}) as answer:
            assert (answer.status, await answer.text()) == (403, "no")
            assert answer.headers["X-Reason"] == "blocked"
