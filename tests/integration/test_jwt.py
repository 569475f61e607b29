"""Signed tokens through the whole daemon: what is seen, by whom, how long, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response, encode_request
from tests.support.tokens import SECRET, forge, jwk, jwks, sign

JSON = ("Content-Type", "application/json")
Start = Callable[..., Awaitable[HostedDaemon]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(**jwt: Any) -> HostedDaemon:
            config = {
                "lookup": {"mode": "jwt", "jwt": jwt or {"secret": SECRET}},
                "poll": {"extra_response_headers": {"X-Extra": "e"}, "long_polling_interval": 20.0},
                "cors": {"allow_origins": ["https://forum.example"]},
            }
            return await stack.enter_async_context(HostedDaemon(tmp_path, config))

        yield start


def token(seconds: float = 60, **claims: Any) -> str:
    return sign({"sub": 42, "exp": time.time() + seconds, **claims})


def bearer(found: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {found}")


async def poll(
    daemon: HostedDaemon, body: Any, *headers: tuple[str, str], query: str = "?dlp=t"
) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        return await connection.request(request(body, *headers, query=query))


def request(body: Any, *headers: tuple[str, str], query: str = "") -> bytes:
    return encode_request(
        "POST",
        f"/message-bus/me/poll{query}",
        headers=[JSON, *headers],
        body=json.dumps(body).encode(),
    )


def told(response: Response) -> list[Any]:
    assert response.status == 200, response.body
    return [each["data"] for each in json.loads(response.body) if each["channel"] != "/__status"]


async def test_a_token_decides_what_is_seen(start: Start) -> None:
    daemon = await start(secret=SECRET, cookie="t")
    for site in (None, "forum"):
        await daemon.publish("/a", f"42's on {site}", user_ids=[42], site_id=site)
        await daemon.publish("/a", f"staff's on {site}", group_ids=["staff"], site_id=site)
        await daemon.publish("/a", f"43's on {site}", user_ids=[43], site_id=site)
        await daemon.publish("/a", f"all's on {site}", site_id=site)
    asked = {"/a": 0}
    assert told(await poll(daemon, asked)) == ["all's on None"]
    assert told(await poll(daemon, asked, bearer(token()))) == ["42's on None", "all's on None"]
    member = token(groups=["staff"], site="forum")
    for place in (bearer(member), ("Cookie", f"t={member}")):
        assert told(await poll(daemon, asked, place)) == [
            "42's on forum",
            "staff's on forum",
            "all's on forum",
        ]
    assert told(await poll(daemon, asked, bearer(token(sub="42")))) == ["all's on None"]
    # Live, and with channels that may be asked for.
    async with await RawConnection.open(daemon.url) as connection:
        parked = connection.send(
            request({"/a": -1, "/b": -1}, bearer(token(channels=["/b*"], groups=[1])))
        )
        await parked.chunk_count(1)
        await daemon.publish("/a", "not asked for", user_ids=[42])
        await daemon.publish("/b", "43's", user_ids=[43])
        await daemon.publish("/b", "42's", user_ids=[42])
        await parked.chunk_count(2)
        assert b"42's" in parked.body
        assert b"43's" not in parked.body
        assert b'"/a"' not in parked.body


@pytest.mark.parametrize("mode", ["stream", "long poll"])
async def test_a_poll_ends_with_its_token(start: Start, mode: str) -> None:
    daemon = await start()
    headers = [("Dont-Chunk", "true")] if mode == "long poll" else []
    async with await RawConnection.open(daemon.url) as connection:
        ends = time.time() + 1.0
        sent = request({"/a": 0}, bearer(token(1.0)), *headers)
        response = connection.send(sent)
        await response.finished()
        assert ends - 0.2 < time.time() < ends + 5  # far below the interval
        assert response.status == 200
        assert response.complete
        assert await connection.closed_by_peer()
    if mode == "long poll":
        assert response.body == b"[]"


async def test_a_token_in_its_leeway_is_answered_and_does_not_wait(start: Start) -> None:
    daemon = await start(secret=SECRET, leeway=60.0)
    await daemon.publish("/a", "mine", user_ids=[42])
    late = bearer(token(-5))
    response = await poll(daemon, {"/a": 0}, late, query="")
    assert b"mine" in response.body
    assert response.terminated
    again = await poll(daemon, {"/a": 1}, late, ("Dont-Chunk", "true"), query="")
    assert (again.status, again.body) == (200, b"[]")


@pytest.mark.parametrize("query", ["?dlp=t", ""])
async def test_a_token_that_is_not_valid_is_nobodys(start: Start, query: str) -> None:
    daemon = await start()
    await daemon.publish("/a", "public")
    claims = {"sub": 42, "exp": time.time() + 60}
    for bad in (
        token(-60),
        token(nbf=time.time() + 60),
        token(aud="other"),
        token(sub=-1),
        token(site="a|b"),
        forge(claims, {"alg": "none"}),
        forge(claims, {"alg": "HS256"}, b"guessed"),
        "undefined",
    ):
        origin = ("Origin", "https://forum.example")
        response = await poll(daemon, {"/a": 0}, bearer(bad), origin, query=query)
        assert response.status == 401
        assert response.header("www-authenticate") == 'Bearer error="invalid_token"'
        assert response.header("content-type") == "application/problem+json"
        assert response.header("x-extra") == "e"
        assert response.header("access-control-allow-origin") == "https://forum.example"
        problem = json.loads(response.body)
        assert (problem["code"], problem["status"]) == ("invalid_token", 401)
        assert bad not in problem["detail"]
        assert b"public" not in response.body
    async with await RawConnection.open(daemon.url) as connection:
        metrics = (await connection.request(encode_request("GET", "/metrics"))).body
    assert b'messagebusd_refusals_total{code="invalid_token",door="poll"} 8.0' in metrics
    assert b'messagebusd_lookup_seconds_count{outcome="refused"} 8.0' in metrics


async def test_a_token_can_be_required(start: Start) -> None:
    daemon = await start(secret=SECRET, required=True)
    response = await poll(daemon, {"/a": 0})
    assert (response.status, json.loads(response.body)["code"]) == (401, "unauthorized")
    assert response.header("www-authenticate") == "Bearer"
    assert (await poll(daemon, {"/a": 0}, bearer(token()))).status == 200


async def test_keys_are_rotated_while_polls_go_on(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(jwk("RS256", kid="old")))
    claims = {"sub": 42, "exp": time.time() + 60}
    old = bearer(sign(claims, "RS256", kid="old"))
    new = bearer(sign(claims, "ES256", kid="new"))
    daemon = await start(jwks_file=str(file))
    assert (await poll(daemon, {}, old)).status == 200
    assert (await poll(daemon, {}, new)).status == 401
    file.write_bytes(jwks(jwk("ES256", kid="new")))
    async with asyncio.timeout(10):
        while (await poll(daemon, {}, new)).status != 200:
            await asyncio.sleep(0.05)
    assert (await poll(daemon, {}, old)).status == 401


async def test_keys_stay_while_their_url_is_away(start: Start) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=jwks(jwk("RS256", kid="k")))

    app = web.Application()
    app.router.add_get("/jwks", handle)
    claims = {"sub": 42, "exp": time.time() + 60}
    async with TestServer(app, host="127.0.0.1") as server:
        daemon = await start(jwks_url=str(server.make_url("/jwks")))
    assert (await poll(daemon, {}, bearer(sign(claims, "RS256", kid="k")))).status == 200
    assert (await poll(daemon, {}, bearer(sign(claims, "ES256", kid="k")))).status == 401


async def test_keys_that_cannot_be_fetched_make_nobody_anonymous(start: Start) -> None:
    daemon = await start(jwks_url="http://127.0.0.1:1/jwks")
    await daemon.publish("/a", "public")
    found = sign({"sub": 42, "exp": time.time() + 60}, "RS256", kid="k")
    response = await poll(daemon, {"/a": 0}, bearer(found))
    assert response.status == 429
    assert 5 <= int(response.header("retry-after") or 0) <= 15
    assert told(await poll(daemon, {"/a": 0})) == ["public"]


async def test_a_stolen_client_id_is_no_identity(start: Start) -> None:
    daemon = await start()
    async with (
        await RawConnection.open(daemon.url) as mine,
        await RawConnection.open(daemon.url) as theirs,
    ):
        parked = mine.send(request({"/a": -1, "__seq": 1}, bearer(token())))
        await parked.chunk_count(1)
        stolen = theirs.send(request({"/a": -1, "__seq": 9}, bearer(token(sub=43))))
        await stolen.chunk_count(1)
        await daemon.publish("/a", "42's", user_ids=[42])
        await parked.chunk_count(2)
        assert b"42's" in parked.body
        assert not parked.terminated
        await daemon.publish("/a", "43's", user_ids=[43])
        await stolen.chunk_count(2)
        assert b"42's" not in stolen.body
        await daemon.publish("/a", "last")
        await parked.chunk_count(3)
        assert b"43's" not in parked.body
