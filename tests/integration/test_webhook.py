"""Asking the host application, with a real one on a real port (SPEC 5)."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import StartDaemon
from tests.support.host_application import Answer, application, config, poll, told
from tests.support.rawhttp import RawConnection, encode_request


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


async def test_the_address_behind_trusted_proxies(start_daemon: StartDaemon) -> None:
    asked = []

    async def answer(request: web.Request) -> Any:
        asked.append(await request.json())
        return {}

    async with application(answer) as url:
        settings = {**config(url), "server": {"trusted_proxies": ["127.0.0.0/8"]}}
        daemon = await start_daemon(settings)
        forwarded = ("X-Forwarded-For", "9.9.9.9, 6.6.6.6, 127.0.0.1")
        await poll(daemon, {}, forwarded, ("X-Forwarded-Proto", "https"))
    assert asked[0]["remote_addr"] == "6.6.6.6"
    assert asked[0]["headers"]["x-forwarded-proto"] == "https"


async def test_refusals_are_passed_on(start_daemon: StartDaemon) -> None:
    async def answer(request: web.Request) -> Any:
        status = int((await request.json())["headers"]["cookie"])
        headers = {"X-Reason": "blocked", "Retry-After": "30", "X-Content-Type-Options": "nosniff"}
        return web.Response(status=status, text="Invalid Access", headers=headers)

    async with application(answer) as url:
        daemon = await start_daemon(config(url))
        for status in (401, 403, 404, 429):
            for query in ("?dlp=t", ""):
                response = await poll(daemon, {"/a": 0}, ("Cookie", str(status)), query=query)
                assert (response.status, response.body) == (status, b"Invalid Access")
                assert response.header("x-reason") == "blocked"
                assert response.header("retry-after") == "30"
                assert response.header("x-extra") == "e"
                # The text may hold what a visitor wrote: no browser is to make a page of it.
                assert response.header("x-content-type-options") == "nosniff"


async def hang(request: web.Request) -> Any:
    await asyncio.sleep(30)


async def drip(request: web.Request) -> Any:
    """A body that never ends, and never pauses for long."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(600):
        await response.write(b" ")
        await asyncio.sleep(0.05)
    return response


def bomb(request: web.Request) -> Any:
    body = gzip.compress(b" " * 50_000_000 + b"{}")
    return web.Response(body=body, headers={"Content-Encoding": "gzip"})


FAILURES: dict[str, Answer] = {
    "500": lambda _: web.Response(status=500),
    "redirect": lambda _: web.Response(status=302, headers={"Location": "/good"}),
    "kept post": lambda _: web.Response(status=307, headers={"Location": "/good"}),
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
    "large refusal": lambda _: web.Response(status=403, body=b"x" * 100_000),
    "many headers": lambda _: web.Response(
        status=403, headers={f"X-{number}": "x" * 7000 for number in range(5)}
    ),
    "bomb": bomb,
    "drip": drip,
    "slow": hang,
}


async def test_a_failed_lookup_makes_nobody_anonymous(start_daemon: StartDaemon) -> None:
    good = 0

    async def answer(request: web.Request) -> Any:
        name = (await request.json())["headers"]["cookie"]
        if name not in FAILURES:
            return {}
        found = FAILURES[name](request)
        return await found if asyncio.iscoroutine(found) else found

    async with application(answer) as url:
        daemon = await start_daemon(config(url, timeout=0.3))
        await daemon.publish("/a", "public")
        for name in FAILURES:
            response = await poll(daemon, {"/a": 0}, ("Cookie", name))
            assert response.status == 429, (name, response.body)
            assert 5 <= int(response.header("retry-after") or 0) <= 15
            assert json.loads(response.body)["code"] == "rate_limited"
            assert response.header("x-extra") == "e"
            # Where others are answered, these failures are not the application's.
            good += 1
            assert told(await poll(daemon, {"/a": 0}, ("Cookie", f"good {good}"))) == ["public"]
        assert not any(each.get("level") == "error" for each in daemon.log)


async def test_channels_can_be_restricted_or_forced(start_daemon: StartDaemon) -> None:
    identity: dict[str, Any] = {"allowed_channels": ["/chat/*"]}
    async with application(lambda _: identity) as url:
        daemon = await start_daemon(config(url, cache_ttl=0))
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


FORMS = {
    "poll": ("?dlp=t", ()),
    "long poll": ("", [("Dont-Chunk", "1")]),
    "stream": ("", ()),
}


@pytest.mark.parametrize("form", FORMS)
async def test_response_headers_are_on_every_kind_of_answer(
    start_daemon: StartDaemon, form: str
) -> None:
    query, extra = FORMS[form]
    headers = {
        "Set-Cookie": ["a=1; Path=/", "b=2"],
        "X-Extra": "mine",
        "Cache-Control": "public",
        "X-Content-Type-Options": "none",
    }

    def answer(request: web.Request) -> Any:
        return {"response_headers": headers}

    async with application(answer) as url:
        settings = config(url)
        settings["poll"]["long_polling_interval"] = 0.2
        daemon = await start_daemon(settings)
        response = await poll(daemon, {"/a": -1 if form == "stream" else None}, *extra, query=query)
    assert response.status == 200
    lines = [(name.lower(), value) for name, value in response.headers]
    assert [value for name, value in lines if name == "set-cookie"] == ["a=1; Path=/", "b=2"]
    assert response.header("x-extra") == "mine"
    assert "private" in (response.header("cache-control") or "")
    others = [name for name, _ in lines if name != "set-cookie"]
    assert len(set(others)) == len(others)


async def test_a_refusal_keeps_its_cookies_and_type(start_daemon: StartDaemon) -> None:
    def answer(request: web.Request) -> Any:
        response = web.Response(status=403, text="{}", content_type="application/json")
        response.set_cookie("_t", "del")
        response.set_cookie("b", "1")
        response.headers["Cache-Control"] = "public, max-age=600"
        response.headers["X-Accel-Redirect"] = "/secret"
        return response

    async with application(answer) as url:
        daemon = await start_daemon(config(url))
        response = await poll(daemon, {"/a": 0})
    names = [name.lower() for name, _ in response.headers]
    assert names.count("set-cookie") == 2
    assert (response.header("content-type") or "").startswith("application/json")
    assert "private" in (response.header("cache-control") or "")
    assert "x-accel-redirect" not in names


async def test_bytes_that_are_no_text_do_not_stop_a_poll(start_daemon: StartDaemon) -> None:
    asked = []

    async def answer(request: web.Request) -> Any:
        asked.append((await request.json())["headers"]["cookie"])
        return {"user_id": 1}

    async with application(answer) as url:
        daemon = await start_daemon(config(url))
        request = encode_request(
            "POST",
            "/message-bus/me/poll?dlp=t",
            headers=[("Content-Type", "application/json"), ("Cookie", "name=caf~")],
            body=b"{}",
        )
        async with await RawConnection.open(daemon.url) as connection:
            response = await connection.request(request.replace(b"caf~", b"caf\xe9"))
    assert (response.status, asked) == (200, ["name=caf\xe9"])


@pytest.mark.parametrize("mode", ["none", "headers", "webhook"])
async def test_a_host_belongs_to_a_site_in_every_mode(start_daemon: StartDaemon, mode: str) -> None:
    async with application(lambda _: {}) as url:
        settings = {
            **config(url),
            "sites": {"bus.test": "forum"},
            "server": {"trusted_proxies": ["127.0.0.0/8"]},
        }
        settings["lookup"]["mode"] = mode
        daemon = await start_daemon(settings)
        await daemon.publish("/a", "the forum's", site_id="forum")
        await daemon.publish("/a", "nobody's")
        forwarded = ("X-Forwarded-Host", "elsewhere.test")
        assert told(await poll(daemon, {"/a": 0}, forwarded)) == ["the forum's"]
