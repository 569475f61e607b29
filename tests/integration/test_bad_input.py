"""Hostile and broken input: each case gets its documented answer, and disturbs nobody else.

All cases meet the same daemon. After each, an ordinary client must be served as if nothing had
happened, and the daemon must have logged no error.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.support.daemon import Daemon
from tests.support.rawhttp import RawConnection, encode_request

FORM = [("Content-Type", "application/x-www-form-urlencoded")]
JSON = [("Content-Type", "application/json")]
POLL = "/message-bus/c/poll"
NOW = POLL + "?dlp=t"
PUBLISH = "/api/v1/publish"


@dataclass
class Case:
    """One request and its answer; ``closes`` says that the connection ends with it."""

    status: int
    code: str | None = None
    method: str = "POST"
    path: str = NOW
    headers: Any = ()
    body: bytes | None = b""
    keyed: bool = False
    closes: bool | None = None
    raw: bytes | None = None
    header: tuple[str, str] | None = None


def publish(status: int, code: str, body: Any, **options: Any) -> Case:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Case(status, code, path=PUBLISH, keyed=True, body=raw, **options)


def channels(count: int) -> bytes:
    return json.dumps({f"/{number}": 0 for number in range(count)}).encode()


MESSAGE = {"channel": "/a", "data": 1}

CASES = {
    # the poll's body (SPEC 2.1, 2.9)
    "json, cut off": Case(400, "invalid_json", headers=JSON, body=b'{"/a":'),
    "json, no object": Case(400, "invalid_json", headers=JSON, body=b"[1]"),
    "json, scalar": Case(400, "invalid_json", headers=JSON, body=b"5"),
    "json, empty": Case(400, "invalid_json", headers=JSON, body=b""),
    "json, invalid utf-8": Case(400, "invalid_json", headers=JSON, body=b'{"/\xff":0}'),
    "json, deep": Case(400, "invalid_json", headers=JSON, body=b'{"a":' + b"[" * 100_000),
    "form, invalid utf-8": Case(400, "invalid_form", headers=FORM, body=b"/%ff=0"),
    "form, raw bytes": Case(400, "invalid_form", headers=FORM, body=b"/\xff\xfe=0"),
    "form, many fields": Case(400, "limit_exceeded", headers=FORM, body=b"a=1&" * 6000),
    "multipart, broken": Case(
        400, headers=[("Content-Type", "multipart/form-data; boundary=x")], body=b"--y\r\n"
    ),
    "compressed": Case(
        415, "unsupported_encoding", headers=[*JSON, ("Content-Encoding", "gzip")], body=b"x"
    ),
    "multipart, hostile": Case(
        400,
        "limit_exceeded",
        headers=[("Content-Type", "multipart/form-data; boundary=x")],
        body=b'--x\r\nContent-Type: multipart/mixed; y="' + b";" * 200_000 + b'"\r\n\r\n1\r\n--x--',
    ),
    "an escaped prefix": Case(404, "not_found", path="/message%2Dbus/AAA/poll?dlp=t"),
    "500 channels": Case(200, headers=JSON, body=channels(500)),
    "501 channels": Case(400, "limit_exceeded", headers=JSON, body=channels(501)),
    "channel, 512 bytes": Case(200, headers=JSON, body=b'{"%b":0}' % (b"x" * 512)),
    "channel, 513 bytes": Case(
        400, "invalid_channel", headers=JSON, body=b'{"%b":0}' % (b"x" * 513)
    ),
    "channel, control characters": Case(400, "invalid_channel", headers=FORM, body=b"/a%00=0"),
    "channel of another site": Case(400, "invalid_channel", headers=FORM, body=b"/a$|$b=0"),
    "positions that are none": Case(200, headers=JSON, body=b'{"/a":{},"/b":[],"/c":true}'),
    "huge positions": Case(200, headers=JSON, body=b'{"/a":1e308,"/b":-%b}' % (b"9" * 4000)),
    "body, 256 KiB": Case(200, headers=FORM, body=b"/a=" + b"0" * (256 * 1024 - 3)),
    "body, too large": Case(
        413, "payload_too_large", headers=FORM, body=b"x" * 300_000, closes=True
    ),
    "body, said to be huge": Case(
        413, "payload_too_large", headers=[*FORM, ("Content-Length", str(10**12))], body=None
    ),
    "chunks, too large": Case(
        413,
        "payload_too_large",
        raw=b"POST /message-bus/c/poll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"10000\r\n%b\r\n" % (b"x" * 65536) * 6,
    ),
    "chunks, malformed": Case(
        400,
        raw=b"POST /message-bus/c/poll HTTP/1.1\r\nHost: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    # path and method
    "client id, 128": Case(200, path=f"/message-bus/{'x' * 128}/poll?dlp=t"),
    "client id, 129": Case(400, "invalid_client_id", path=f"/message-bus/{'x' * 129}/poll"),
    "no client id": Case(404, "not_found", path="/message-bus/"),
    "no client id, doubled slash": Case(404, "not_found", path="/message-bus//poll"),
    "nothing there": Case(404, "not_found", path="/nothing"),
    "GET": Case(
        405, "method_not_allowed", method="GET", body=None, header=("allow", "POST, OPTIONS")
    ),
    "PUT": Case(405, "method_not_allowed", method="PUT"),
    "DELETE": Case(405, "method_not_allowed", method="DELETE", body=None),
    "OPTIONS with a body that is none": Case(200, method="OPTIONS", headers=JSON, body=b"{"),
    # what is no HTTP
    "garbage": Case(400, raw=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "header flood": Case(400, headers=[(f"X-{n}", "1") for n in range(500)]),
    "huge header": Case(400, headers=[("X-Big", "x" * 70_000)]),
    "huge path": Case(400, path="/message-bus/" + "x" * 20_000),
    "two lengths": Case(400, headers=[("Content-Length", "5"), ("Content-Length", "6")], body=None),
    "length and chunks": Case(
        400,
        raw=b"POST /message-bus/c/poll HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "header injection": Case(400, raw=b"POST /message-bus/c/poll HTTP/1.1\r\nHo st: x\r\n\r\n"),
    # the API (SPEC 4)
    "no key": Case(401, "unauthorized", path=PUBLISH, header=("www-authenticate", "Bearer")),
    "wrong key": Case(401, "unauthorized", path=PUBLISH, headers=[("Authorization", "Bearer x")]),
    "key of another scheme": Case(
        401, "unauthorized", path=PUBLISH, headers=[("Authorization", "Basic eDp5")]
    ),
    "key that is no text": Case(
        401, "unauthorized", path=PUBLISH, headers=[("Authorization", "Bearer \xff\xfe")]
    ),
    "key in the query": Case(401, "unauthorized", path=PUBLISH + "?key=x"),
    "publish, no json": publish(400, "invalid_json", b"x"),
    "publish, invalid utf-8": publish(400, "invalid_json", b'{"channel":"/a","data":"\xff"}'),
    "publish, empty": publish(400, "invalid_json", b""),
    "publish, deep": publish(400, "invalid_json", b'{"channel":"/a","data":' + b"[" * 500_000),
    "publish, not a channel": publish(400, "invalid_channel", {**MESSAGE, "channel": ""}),
    "publish, unknown field": publish(400, "unknown_field", {**MESSAGE, "userids": [1]}),
    "publish, no data": publish(400, "invalid_request", {"channel": "/a"}),
    "publish, reserved": publish(422, "reserved_channel", {**MESSAGE, "channel": "/__status"}),
    "publish, marshalled": publish(
        422,
        "reserved_channel",
        {
            "channel": "/distributed_hash",
            "user_ids": [-1],
            "data": {
                "op": "set",
                "key": "a",
                "value": "BAh7AA==",
                "marshalled": True,
                "origin": "x",
                "hash_key": "t",
            },
        },
    ),
    "publish, empty audience": publish(422, "invalid_audience", {**MESSAGE, "user_ids": []}),
    "publish, audience of booleans": publish(
        422, "invalid_audience", {**MESSAGE, "user_ids": [True]}
    ),
    "publish, restricted global": publish(
        422, "restricted_global", {"channel": "/global/a", "data": 1, "group_ids": [1]}
    ),
    "publish, data too large": publish(
        413, "payload_too_large", {**MESSAGE, "data": "x" * (1024 * 1024)}
    ),
    "publish, body too large": publish(413, "payload_too_large", b" " * (16 * 1024 * 1024)),
    "publish, unknown parameter": publish(400, "unknown_field", MESSAGE, method="POST"),
    "batch, no list": Case(
        400, "invalid_request", path=PUBLISH + "/batch", keyed=True, body=b'{"messages":5}'
    ),
    "backlog, no number": Case(
        400, None, method="GET", path="/api/v1/backlog?channel=/a&last_id=x", keyed=True, body=None
    ),
    "message, none": Case(
        404,
        "not_found",
        method="GET",
        path="/api/v1/message?channel=/none&message_id=1",
        keyed=True,
        body=None,
    ),
    "api, nothing there": Case(404, "not_found", path="/api/v1/nothing", keyed=True),
    "api, wrong method": Case(
        405, "method_not_allowed", method="GET", path=PUBLISH, keyed=True, body=None
    ),
}
CASES["publish, unknown parameter"].path = PUBLISH + "?channel=/a"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory) -> AsyncIterator[Daemon]:
    # The cases are those of one client, one after the other.
    config = {"poll": {"body_timeout": 1.0, "client_rate": "0"}}
    async with Daemon(tmp_path_factory.mktemp("daemon"), config) as daemon:
        yield daemon


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_bad_input(case: Case, shared: Daemon) -> None:
    headers = list(case.headers)
    if case.keyed:
        headers.append(("Authorization", f"Bearer {shared.key}"))
    request = case.raw or encode_request(case.method, case.path, headers=headers, body=case.body)
    async with await RawConnection.open(shared.url) as connection:
        response = await connection.send(request, method=case.method).finished()
        assert response.status == case.status, response.body[:500]
        if case.code is not None:
            problem = json.loads(response.body)
            assert problem["code"] == case.code, problem
            assert problem["status"] == case.status
            assert {"type", "title", "detail", "request_id"} <= problem.keys()
            assert response.header("content-type") == "application/problem+json"
            assert shared.key not in response.body.decode()
        if case.header is not None:
            assert response.header(case.header[0]) == case.header[1]
        if case.closes:
            assert await connection.closed_by_peer()
    await assert_undisturbed(shared)


async def assert_undisturbed(daemon: Daemon) -> None:
    """An ordinary client is served, and nothing was logged as an error."""
    assert daemon.running, daemon.output()
    async with await RawConnection.open(daemon.url) as good:
        request = encode_request(
            "POST", "/message-bus/good/poll", headers=JSON, body=b'{"/good":-1}'
        )
        response = good.send(request)
        await response.chunk_count(1)
        await daemon.publish("/good", "news")
        chunks = await response.chunk_count(2)
        assert b'"news"' in chunks[1].data
    assert [each for each in daemon.log if each["level"] == "error"] == []


SLOW = {
    "nothing at all": b"",
    "half a request line": b"POST /mess",
    "half a head": b"POST /message-bus/c/poll HTTP/1.1\r\nHost: x\r\nContent-Le",
    "half a body": b"POST /message-bus/c/poll HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: 50\r\n\r\n/a=0",
    "half a chunk": b"POST /message-bus/c/poll HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n50\r\n/a=",
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("start", SLOW.values(), ids=SLOW)
async def test_slow_senders_hold_up_nobody(start: bytes, shared: Daemon) -> None:
    connections = [await RawConnection.open(shared.url) for _ in range(50)]
    responses = [each.send(start) for each in connections if start] if start else []
    await assert_undisturbed(shared)
    if b"\r\n\r\n" in start:  # a body that does not come is given up after poll.body_timeout
        for response in responses:
            await response.finished()
            assert response.status == 408
            assert json.loads(response.body)["code"] == "request_timeout"
    for each in connections:
        await each.close()
    await assert_undisturbed(shared)


@pytest.mark.asyncio(loop_scope="module")
async def test_disconnects_anywhere_leave_nothing_behind(shared: Daemon) -> None:
    request = encode_request("POST", POLL, headers=JSON, body=b'{"/good":0}')
    for length in range(0, len(request) + 1, 7):
        connection = await RawConnection.open(shared.url)
        if length:
            connection.send(request[:length])
        await connection.abort()
    await assert_undisturbed(shared)
