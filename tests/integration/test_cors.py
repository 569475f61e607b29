"""Cross-origin access as browsers meet it: preflights, and what answers of every kind carry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.integration.test_webhook import application
from tests.support.daemon import Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response, encode_request

FORUM = "https://forum.example"
POLL = "/message-bus/me/poll"
JSON = ("Content-Type", "application/json")

asked: list[str] = []


async def decide(request: web.Request) -> Any:
    """A host application that refuses one client, and tries to decide about origins."""
    body = await request.json()
    headers = {"Access-Control-Allow-Origin": "https://evil.example", "Vary": "Cookie"}
    asked.append("lookup")
    if body["client_id"] == "refused":
        return web.Response(status=403, text="no", headers=headers)
    return {"user_id": 7, "response_headers": headers}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    async with application(decide) as url:
        config = {
            "cors": {"allow_origins": [FORUM]},
            "poll": {"extra_response_headers": {"X-Extra": "e", "Vary": "Accept"}},
            "lookup": {"mode": "webhook", "webhook": {"url": url, "cache_ttl": 0}},
        }
        async with HostedDaemon(tmp_path_factory.mktemp("daemon"), config) as daemon:
            yield daemon


async def ask(daemon: Daemon, request: bytes) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        return await connection.request(request)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_preflight_is_answered_from_the_configuration(shared: Daemon) -> None:
    before = len(asked)
    headers = [
        ("Origin", FORUM),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type,dont-chunk,x-silence-logger"),
    ]
    response = await ask(shared, encode_request("OPTIONS", POLL, headers=headers))
    assert (response.status, response.body) == (200, b"OK")
    assert response.header("access-control-allow-origin") == FORUM
    assert response.header("access-control-allow-methods") == "POST, OPTIONS"
    allowed = (response.header("access-control-allow-headers") or "").lower().split(", ")
    assert {"content-type", "dont-chunk", "x-silence-logger", "authorization"} <= set(allowed)
    assert response.header("access-control-max-age") == "7200"
    assert response.header("access-control-allow-credentials") is None
    assert response.header("vary") == "Accept, Origin"
    assert response.header("x-extra") == "e"
    assert "no-store" not in (response.header("cache-control") or "")
    assert len(asked) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_a_preflight_of_another_origin_allows_nothing(shared: Daemon) -> None:
    for origin in ("https://evil.example", "null"):
        request = encode_request("OPTIONS", POLL, headers=[("Origin", origin)])
        response = await ask(shared, request)
        assert (response.status, response.body) == (200, b"OK")
        assert [name for name, _ in response.headers if "access-control" in name.lower()] == []
        assert response.header("vary") == "Accept, Origin"


def poll(
    body: bytes = b'{"/a":0}', *headers: Any, path: str = f"{POLL}?dlp=t", method: str = "POST"
) -> bytes:
    sent = [("Origin", FORUM), JSON, *headers]
    return encode_request(method, path, headers=sent, body=body)


ANSWERS = {
    "an answer": (200, poll()),
    "a long poll's": (200, poll(b'{"/a":-1}', ("Dont-Chunk", "1"), path=POLL)),
    "a malformed body": (400, poll(b"{")),
    "too many channels": (400, poll(json.dumps(dict.fromkeys(map(str, range(501)), 0)).encode())),
    "a client id too long": (400, poll(path=f"/message-bus/{'x' * 129}/poll")),
    "refused by the application": (403, poll(path="/message-bus/refused/poll")),
    "no client id": (404, poll(path="/message-bus/")),
    "another method": (405, poll(method="PUT")),
    "a body too large": (413, poll(b" " * 300_000)),
    "a compressed body": (415, poll(b"{}", ("Content-Encoding", "gzip"))),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("status", "request_"), ANSWERS.values(), ids=ANSWERS)
async def test_a_page_can_read_every_answer(status: int, request_: bytes, shared: Daemon) -> None:
    response = await ask(shared, request_)
    assert response.status == status
    assert response.header("access-control-allow-origin") == FORUM
    assert response.header("access-control-expose-headers") == "Retry-After"
    assert "Origin" in (response.header("vary") or "").split(", ")
    assert response.header("x-extra") == "e"

    other = request_.replace(FORUM.encode(), b"https://evil.example", 1)
    response = await ask(shared, other)
    assert response.status == status
    assert response.header("access-control-allow-origin") is None
    assert "Origin" in (response.header("vary") or "").split(", ")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_can_read_a_stream(shared: Daemon) -> None:
    async with await RawConnection.open(shared.url) as connection:
        response = connection.send(poll(path=POLL))
        await response.chunk_count(1)
        assert response.header("access-control-allow-origin") == FORUM
        assert response.header("vary") == "Cookie, Origin"
