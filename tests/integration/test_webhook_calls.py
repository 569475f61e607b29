"""How often, and when, the host application is asked; and what polls get while it cannot be."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon
from tests.support.host_application import application, config, poll, told
from tests.support.rawhttp import RawConnection, encode_request
from tests.support.redis_server import RedisServer

# From SPEC 2.4, and what a busy machine adds.
FIRST_FRAME_SECONDS = 2.0 + 1.5


class Counting:
    """Answers with the user that the cookie names, and counts."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.identity: dict[str, Any] = {}
        self.hanging: dict[str, asyncio.Event] = {}

    async def __call__(self, request: web.Request) -> Any:
        cookie = (await request.json())["headers"].get("cookie", "")
        self.calls[cookie] += 1
        answer = {"user_id": cookie or None, **self.identity}
        if (released := self.hanging.get(cookie)) is not None:
            await released.wait()
        return answer


def cookie(name: str) -> tuple[str, str]:
    return ("Cookie", name)


async def metric(daemon: Daemon, sample: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(daemon.url + "/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith(f"messagebusd_{sample} "):
                return float(line.rpartition(" ")[2])
    return 0.0


async def test_many_polls_are_few_calls(start_daemon: StartDaemon) -> None:
    host, visitors, each = Counting(), 40, 50
    async with application(host) as url:
        daemon = await start_daemon(config(url))
        body = json.dumps({"/a": 0})
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:

            async def visit(number: int) -> None:
                own = (
                    {**headers, "Cookie": f"v{number % visitors}"} if number % visitors else headers
                )
                path = f"{daemon.url}/message-bus/c{number}/poll?dlp=t"
                async with session.post(path, data=body, headers=own) as answer:
                    assert answer.status == 200, await answer.text()

            await asyncio.gather(*map(visit, range(visitors * each)))
        assert len(host.calls) == visitors
        assert set(host.calls.values()) == {1}
        kinds = {
            kind: await metric(daemon, f'lookup_cache_total{{outcome="{kind}"}}')
            for kind in ("miss", "shared", "hit")
        }
    assert kinds["miss"] == visitors
    assert sum(kinds.values()) == visitors * each


async def test_a_lookup_that_hangs_disturbs_nobody_else(start_daemon: StartDaemon) -> None:
    host = Counting()
    host.hanging["bad"] = asyncio.Event()
    async with application(host) as url:
        daemon = await start_daemon(config(url, timeout=1.0))
        bad = [asyncio.create_task(poll(daemon, {"/a": 0}, cookie("bad"))) for _ in range(30)]
        good = 0
        while not all(each.done() for each in bad):
            good += 1
            assert (await poll(daemon, {"/a": 0}, cookie(f"good{good}"))).status == 200
        assert {(await each).status for each in bad} == {429}
        assert good > 1
        assert host.calls["bad"] == 1
        host.hanging.clear()
        assert (await poll(daemon, {"/a": 0}, cookie("bad"))).status == 200


async def test_an_application_that_goes_away_and_comes_back(start_daemon: StartDaemon) -> None:
    host = Counting()
    async with application(host) as url:
        daemon = await start_daemon(config(url, cache_ttl=0.05, stale_if_error=60))
        await daemon.publish("/a", "mine", user_ids=["ada"])
        assert told(await poll(daemon, {"/a": 0}, cookie("ada"))) == ["mine"]
    for number in range(15):
        started = time.monotonic()
        assert told(await poll(daemon, {"/a": 0}, cookie("ada"))) == ["mine"]
        assert (await poll(daemon, {"/a": 0}, cookie(f"eve{number}"))).status == 429
        assert (await poll(daemon, {"/a": 0})).status == 429
        assert time.monotonic() - started < 3 * FIRST_FRAME_SECONDS
    assert await metric(daemon, "lookup_paused") == 1
    assert await metric(daemon, 'lookup_cache_total{outcome="stale"}') > 0
    async with application(host, urlsplit(url).port) as again:
        assert again == url
        async with asyncio.timeout(30):
            while (await poll(daemon, {"/a": 0}, cookie("new"))).status != 200:
                await asyncio.sleep(0.1)
        assert await metric(daemon, "lookup_paused") == 0
        assert host.calls["ada"] >= 1
    lines = [each["message"] for each in daemon.log if "lookups" in each["message"]]
    assert lines.count("lookups are answered again") == 1
    assert lines.count("lookups fail") < 10


async def test_a_connection_that_was_closed_meanwhile_is_made_anew(
    start_daemon: StartDaemon,
) -> None:
    """By a server that ends each connection after one answer, without saying so."""
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        answered += 1
        await reader.read(1)  # the next request, which has no answer
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        daemon = await start_daemon(config(f"http://127.0.0.1:{port}/lookup", cache_ttl=0))
        for _ in range(4):
            assert (await poll(daemon, {"/a": 0})).status == 200
    assert answered == 4


async def test_visitors_never_share_a_session(start_daemon: StartDaemon) -> None:
    sessions = 0

    async def answer(request: web.Request) -> Any:
        nonlocal sessions
        sessions += 1
        name = f"session={sessions}"
        await asyncio.sleep(0.05)
        return {"response_headers": {"Set-Cookie": name}, "cache_ttl": 60}

    async with application(answer) as url:
        daemon = await start_daemon(config(url))
        polls = [poll(daemon, {"/a": 0}) for _ in range(10)]
        responses = await asyncio.gather(*polls)
        responses.append(await poll(daemon, {"/a": 0}))
    assert len({each.header("set-cookie") for each in responses}) == len(responses)


async def test_polls_with_side_effects_always_arrive(start_daemon: StartDaemon) -> None:
    host = Counting()
    async with application(host) as url:
        daemon = await start_daemon(config(url, bypass_cache_headers=["Discourse-Present"]))
        present = ("Discourse-Present", "true")
        for headers in ((), (present,), (), (present,), ()):
            assert (await poll(daemon, {}, cookie("ada"), *headers)).status == 200
    assert host.calls == {"ada": 3}


async def test_invalidating_ends_polls_and_what_is_known_or_under_way(
    start_daemon: StartDaemon,
) -> None:
    host = Counting()
    host.identity["allowed_channels"] = ["/a"]
    async with application(host) as url:
        daemon = await start_daemon(config(url))
        await daemon.publish("/a", "secret")
        request = encode_request(
            "POST",
            "/message-bus/me/poll",
            headers=[("Content-Type", "application/json"), cookie("ada")],
            body=json.dumps({"/a": None}).encode(),
        )
        async with await RawConnection.open(daemon.url) as connection:
            parked = connection.send(request)
            await parked.chunk_count(1)
            # Another device of hers, whose lookup the application has not answered yet.
            host.hanging["ada; b"] = asyncio.Event()
            host.identity["user_id"] = "ada"
            waiting = asyncio.create_task(poll(daemon, {"/a": 0}, cookie("ada; b")))
            async with asyncio.timeout(10):
                while not host.calls["ada; b"]:
                    await asyncio.sleep(0.005)
            host.identity["allowed_channels"] = []
            await daemon.api("POST", "lookups/invalidate", {"user_id": "ada"})
            await parked.finished()
            host.hanging["ada; b"].set()
            assert told(await waiting) == []
            assert host.calls["ada; b"] == 2
            assert told(await poll(daemon, {"/a": 0}, cookie("ada"))) == []


async def test_invalidating_reaches_every_worker(
    start_daemon: StartDaemon, redis_server: RedisServer
) -> None:
    redis_server.flush()
    host = Counting()
    host.identity["allowed_channels"] = ["/a"]
    async with application(host) as url:
        store = {"kind": "redis", "redis": {"url": redis_server.url}}
        settings = {**config(url), "backend": store, "server": {"workers": 2}}
        daemon = await start_daemon(settings)
        await daemon.publish("/a", "secret")
        for _ in range(16):  # each on a new connection, which any worker may have
            assert told(await poll(daemon, {"/a": 0}, cookie("ada"))) == ["secret"]
        assert host.calls["ada"] <= 2
        asked = host.calls["ada"]
        host.identity["allowed_channels"] = []
        await daemon.api("POST", "lookups/invalidate", {"user_id": "ada"})
        # The other worker hears of it in no time, but not before this answer.
        async with asyncio.timeout(10):
            denied = 0
            while denied < 16:
                denied = denied + 1 if not told(await poll(daemon, {"/a": 0}, cookie("ada"))) else 0
        assert host.calls["ada"] == 2 * asked
