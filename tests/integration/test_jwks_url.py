"""Keys at a URL: a real server that rotates, hangs, breaks and lies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from messagebusd.errors import LookupUnavailable
from messagebusd.identity import jwks as jwks_module
from messagebusd.identity.jwks import MAX_SET_BYTES, RemoteKeys
from tests.support.tokens import jwk, jwks, secret_jwk

FAR = 3600.0
Answer = Callable[[], Awaitable[web.StreamResponse]]


class Issuer:
    """The server with the keys. ``document`` is what it gives, unless there is an ``answer``;
    closed, it holds requests back."""

    def __init__(self) -> None:
        self.document = jwks(jwk("RS256", kid="a"))
        self.answer: Callable[[], web.StreamResponse] | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.requests = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        await self.is_open.wait()
        if self.answer is not None:
            return self.answer()
        return web.Response(body=self.document, content_type="application/jwk-set+json")

    def rotate(self, *entries: Any) -> None:
        self.document = jwks(*entries)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/jwks", issuer.handle)
    app.router.add_get("/elsewhere", issuer.handle)
    async with TestServer(app, host="127.0.0.1") as server:
        issuer.url = str(server.make_url("/jwks"))
        yield issuer
        issuer.is_open.set()


@asynccontextmanager
async def remote(issuer: Issuer, max_age: float = FAR, **options: Any) -> AsyncIterator[RemoteKeys]:
    keys = RemoteKeys(issuer.url, max_age, **{"cooldown": 0.0, "wait": 5.0, **options})
    await keys.open()
    try:
        yield keys
    finally:
        await keys.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def known(keys: RemoteKeys, kid: str) -> None:
    """Wait until there is such a key."""

    async def is_known() -> bool:
        with suppress(LookupUnavailable):
            return await keys.find(kid) is not None
        return False

    await until(is_known)


async def unavailable(keys: RemoteKeys, kid: str, reason: str = "") -> None:
    """Wait until it cannot be known whether there is such a key; nobody is told meanwhile that
    there is one."""

    async def is_unavailable() -> bool:
        try:
            assert await keys.find(kid) is None
        except LookupUnavailable as error:
            return reason in str(error)
        return False

    await until(is_unavailable)


async def test_keys_are_there_at_the_beginning(issuer: Issuer) -> None:
    async with remote(issuer) as keys:
        assert issuer.requests == 1
        for _ in range(5):
            assert await keys.find("a")
        assert issuer.requests == 1


async def test_a_new_key_is_fetched_when_a_token_names_it(issuer: Issuer) -> None:
    async with remote(issuer) as keys:
        issuer.rotate(jwk("RS256-2", kid="b"))
        assert await keys.find("a")
        await known(keys, "b")
        assert await keys.find("a") is None  # withdrawn


async def test_a_withdrawn_key_is_forgotten_in_time(issuer: Issuer) -> None:
    async with remote(issuer, max_age=0.05) as keys:
        issuer.rotate(jwk("RS256-2", kid="b"))

        async def is_forgotten() -> bool:
            return await keys.find("a") is None

        await until(is_forgotten)
        assert await keys.find("b")


async def test_made_up_names_cost_one_fetch(issuer: Issuer) -> None:
    async with remote(issuer, cooldown=FAR) as keys:
        found = await asyncio.gather(*(keys.find(f"made up {each}") for each in range(100)))
        assert found == [None] * 100
        assert issuer.requests == 1  # it was asked a moment ago


async def test_all_who_wait_share_one_fetch(issuer: Issuer) -> None:
    async with remote(issuer) as keys:
        await asyncio.sleep(0)
        issuer.is_open.clear()
        issuer.rotate(jwk("RS256-2", kid="b"))
        waiting = [asyncio.create_task(keys.find("b")) for _ in range(50)]

        async def is_asked() -> bool:
            return issuer.requests == 2

        await until(is_asked)
        issuer.is_open.set()
        assert all(await asyncio.gather(*waiting))
        assert issuer.requests == 2


async def test_a_token_without_a_name_asks_for_nothing(issuer: Issuer) -> None:
    issuer.rotate(jwk("RS256", kid="a"), jwk("RS256-2", kid="b"))
    async with remote(issuer) as keys:
        assert await keys.find(None) is None
        assert issuer.requests == 1


async def test_who_hangs_delays_no_known_key(issuer: Issuer) -> None:
    async with remote(issuer, wait=0.1) as keys:
        issuer.is_open.clear()
        await unavailable(keys, "b", "in time")
        started = time.monotonic()
        for _ in range(100):
            assert await keys.find("a")
        assert time.monotonic() - started < 0.1  # less than one wait


async def test_who_hangs_from_the_beginning_stops_nothing(issuer: Issuer) -> None:
    issuer.is_open.clear()
    async with remote(issuer, wait=0.1) as keys:
        for kid in ("a", None):
            with pytest.raises(LookupUnavailable):
                await keys.find(kid)
        issuer.is_open.set()
        await known(keys, "a")


async def test_who_hangs_is_given_up(issuer: Issuer) -> None:
    issuer.is_open.clear()
    async with remote(issuer, timeout=0.1) as keys:
        with pytest.raises(LookupUnavailable, match="no answer in time"):
            await keys.find("a")
        issuer.is_open.set()
        await known(keys, "a")


BROKEN: dict[str, Callable[[], web.StreamResponse]] = {
    "500": lambda: web.Response(status=500),
    "404": lambda: web.Response(status=404, body=jwks(jwk("RS256-2", kid="b"))),
    "redirect": lambda: web.Response(status=302, headers={"Location": "/elsewhere"}),
    "no JSON": lambda: web.Response(text="<html>"),
    "empty": lambda: web.Response(),
    "no keys": lambda: web.Response(body=jwks()),
    "only a secret": lambda: web.Response(body=jwks(secret_jwk(kid="b"))),
    "a name twice": lambda: web.Response(body=jwks(jwk("RS256-2", kid="b"), jwk("ES256", kid="b"))),
    "too large": lambda: web.Response(body=jwks(jwk("RS256-2", kid="b")) + b" " * MAX_SET_BYTES),
    "too large when unpacked": lambda: _packed(b" " * 50 * MAX_SET_BYTES),
}


def _packed(content: bytes) -> web.Response:
    response = web.Response(body=jwks(jwk("RS256-2", kid="b")) + content)
    response.enable_compression(web.ContentCoding.gzip)
    return response


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_answer_changes_nothing(
    issuer: Issuer, answer: Callable[[], web.StreamResponse]
) -> None:
    async with remote(issuer) as keys:
        issuer.answer = answer
        await unavailable(keys, "b")
        assert await keys.find("a")
        issuer.answer = None
        issuer.rotate(jwk("RS256", kid="a"), jwk("RS256-2", kid="b"))
        await known(keys, "b")


async def test_nobody_there(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    issuer.url = "http://127.0.0.1:1/jwks"
    async with remote(issuer, cooldown=0.01) as keys:
        with pytest.raises(LookupUnavailable):
            await keys.find("a")
        for _ in range(20):
            with suppress(LookupUnavailable):
                await keys.find("a")
            await asyncio.sleep(0.01)
    assert [each.message for each in caplog.records] == ["the token keys cannot be fetched"]


async def test_a_failure_is_not_tried_again_at_once(issuer: Issuer) -> None:
    issuer.answer = BROKEN["500"]
    async with remote(issuer, cooldown=FAR) as keys:
        for _ in range(20):
            with pytest.raises(LookupUnavailable):
                await keys.find("a")
        assert issuer.requests == 1


def test_a_poll_waits_less_than_its_first_frame_may_take() -> None:
    assert jwks_module.WAIT_SECONDS < 1.9
