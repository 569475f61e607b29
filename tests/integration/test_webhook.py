"""Asking the host application, with a real one on a real port (SPEC 5)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon
from tests.support.rawhttp import RawConnection, Response, encode_request

JSON = ("Content-Type", "application/json")
Answer = Callable[[web.Request], Any]


@asynccontextmanager
async def application(answer: Answer) -> AsyncIterator[str]:
    """A host application; what ``answer`` returns is its JSON, unless it is a response."""

    async def handle(request: web.Request) -> web.StreamResponse:
        found = answer(request)
        if asyncio.iscoroutine(found):
            found = await found
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    app = web.Application()
    app.router.add_post("/lookup", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/lookup"))


def config(url: str, **webhook: Any) -> dict[str, Any]:
    return {
        "lookup": {"mode": "webhook", "webhook": {"url": url, **webhook}},
        "poll": {"extra_response_headers": {"X-Extra": "e"}},
    }


async def poll(
    daemon: Daemon, body: Any, *headers: tuple[str, str], query: str = "?dlp=t"
) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        request = encode_request(
            "POST",
            f"/message-bus/me/poll{query}",
            headers=[JSON, *headers],
            body=json.dumps(body).encode(),
        )
        return await connection.request(request)


def told(response: Response) -> list[Any]:
    assert response.status == 200, response.body
    return [each["data"] for each in json.loads(response.body)]


async def test_an_identity_decides_what_is_seen(start_daemon: StartDaemon) -> None:
    def answer(request: web.Request) -> Any:
        return {
            "user_id": 42,
            "group_ids": ["staff"],
            "site_id": "forum",
            "response_headers": {"X-Foo": "bar"},
            "cache_ttl": 60,
        }

    async with application(answer) as url:
        daemon = await start_daemon(config(url))
        await daemon.publish("/a", "mine", user_ids=[42], site_id="forum")
        await daemon.publish("/a", "staff's", group_ids=["staff"], site_id="forum")
        await daemon.publish("/a", "not mine", user_ids=["42"], site_id="forum")
        await daemon.publish("/a", "elsewhere")
        response = await poll(daemon, {"/a": 0})
        assert told(response) == ["mine", "staff's", {"/a": 3}]
        assert (response.header("x-foo"), response.header("x-extra")) == ("bar", "e")


async def test_what_the_application_is_told(start_daemon: StartDaemon) -> None:
    asked = []

    async def answer(request: web.Request) -> Any:
        body = await request.read()
        identifier = request.headers["webhook-id"]
        timestamp = request.headers["webhook-timestamp"]
        signed = f"{identifier}.{timestamp}.".encode() + body
        digest = hmac.new(b"hush", signed, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        asked.append(json.loads(body))
        return {}

    async with application(answer) as url:
        secret = f"whsec_{base64.b64encode(b'hush').decode()}"
        daemon = await start_daemon(config(url, secret=secret))
        response = await poll(
            daemon,
            {},
            ("Cookie", "_t=1"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Private", "x"),
            query="?dlp=t&_=5",
        )
        assert response.status == 200
    assert asked == [
        {
            "client_id": "me",
            "method": "POST",
            "path": "/message-bus/me/poll",
            "query": "dlp=t&_=5",
            "host": "bus.test",
            "remote_addr": "127.0.0.1",
            "headers": {"cookie": "_t=1"},
        }
    ]
    assert "hush" not in daemon.output()
    assert secret not in daemon.output()


@pytest.mark.parametrize(
    ("forwarded", "remote"),
    [
        ("6.6.6.6", "6.6.6.6"),
        ("6.6.6.6, 127.0.0.1", "6.6.6.6"),
        ("9.9.9.9, 6.6.6.6, 127.0.0.1", "6.6.6.6"),
        ("", "127.0.0.1"),
    ],
)
async def test_the_address_behind_trusted_proxies(
    start_daemon: StartDaemon, forwarded: str, remote: str
) -> None:
    asked = []

    async def answer(request: web.Request) -> Any:
        asked.append(await request.json())
        return {}

    async with application(answer) as url:
        settings = {**config(url), "server": {"trusted_proxies": ["127.0.0.0/8"]}}
        daemon = await start_daemon(settings)
        await poll(daemon, {}, ("X-Forwarded-For", forwarded), ("X-Forwarded-Proto", "https"))
    assert asked[0]["remote_addr"] == remote
    assert asked[0]["headers"]["x-forwarded-proto"] == "https"


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_refusals_are_passed_on(start_daemon: StartDaemon, status: int) -> None:
    def answer(request: web.Request) -> Any:
        headers = {"X-Reason": "blocked", "Retry-After": "30"}
        return web.Response(status=status, text="Invalid Access", headers=headers)

    async with application(answer) as url:
        daemon = await start_daemon(config(url))
        for query in ("?dlp=t", ""):
            response = await poll(daemon, {"/a": 0}, query=query)
            assert (response.status, response.body) == (status, b"Invalid Access")
            assert response.header("x-reason") == "blocked"
            assert response.header("retry-after") == "30"
            assert response.header("x-extra") == "e"


async def hang(request: web.Request) -> Any:
    await asyncio.sleep(30)


FAILURES: dict[str, Answer] = {
    "500": lambda _: web.Response(status=500),
    "redirect": lambda _: web.Response(status=302, headers={"Location": "/elsewhere"}),
    "no content": lambda _: web.Response(status=204),
    "no json": lambda _: web.Response(text="<html>"),
    "no object": lambda _: [1],
    "wrong type": lambda _: {"user_id": 1.5},
    "boolean user": lambda _: {"user_id": True},
    "nobody": lambda _: {"user_id": -1},
    "broken site": lambda _: {"site_id": "a$|$b"},
    "split header": lambda _: {"response_headers": {"X-A": "b\r\nX-C: d"}},
    "framing header": lambda _: {"response_headers": {"Content-Length": "5"}},
    "too large": lambda _: {"site_id": "x" * 100_000},
    "too deep": lambda _: web.Response(text='{"user_id":' + "[" * 30_000),
    "slow": hang,
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
async def test_a_failed_lookup_makes_nobody_anonymous(
    start_daemon: StartDaemon, answer: Answer
) -> None:
    async with application(answer) as url:
        daemon = await start_daemon(config(url, timeout=0.3))
        await daemon.publish("/a", "public")
        response = await poll(daemon, {"/a": 0})
        assert response.status == 429, response.body
        assert 5 <= int(response.header("retry-after") or 0) <= 15
        assert json.loads(response.body)["code"] == "rate_limited"
        assert response.header("x-extra") == "e"


async def test_an_application_that_is_down_and_comes_back(start_daemon: StartDaemon) -> None:
    async with application(lambda _: {}) as url:
        pass
    daemon = await start_daemon(config(url))
    assert (await poll(daemon, {})).status == 429


async def test_channels_can_be_restricted_or_forced(start_daemon: StartDaemon) -> None:
    identity: dict[str, Any] = {"allowed_channels": ["/chat/*"]}
    async with application(lambda _: identity) as url:
        daemon = await start_daemon(config(url))
        for channel in ("/chat/1", "/secret"):
            await daemon.publish(channel, channel)
        asked = {"/chat/1": 0, "/secret": 0, "/other": -1}
        assert told(await poll(daemon, asked)) == ["/chat/1"]
        identity["allowed_channels"] = []
        assert told(await poll(daemon, asked)) == []
        del identity["allowed_channels"]
        identity["forced_channels"] = {"/secret": 0}
        assert told(await poll(daemon, asked)) == ["/secret"]


async def test_preflights_ask_nobody(start_daemon: StartDaemon) -> None:
    asked = []
    async with application(lambda request: asked.append(request) or {}) as url:
        daemon = await start_daemon(config(url))
        async with await RawConnection.open(daemon.url) as connection:
            request = encode_request("OPTIONS", "/message-bus/me/poll")
            assert (await connection.request(request)).status == 200
    assert asked == []
