"""Limits as clients meet them: who is told to come back later, and that it is counted.

Rates here refill in hours, so that no test depends on how fast it runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.test_webhook import application
from tests.support.daemon import ApiError, Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response, encode_request

JSON = ("Content-Type", "application/json")
ORIGIN = ("Origin", "https://forum.example")
Serve = Callable[..., Awaitable[Daemon]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**config: Any) -> Daemon:
            cors = {"allow_origins": [ORIGIN[1]]}
            return await stack.enter_async_context(HostedDaemon(tmp_path, {"cors": cors, **config}))

        yield start


async def poll(
    daemon: Daemon,
    positions: dict[str, int],
    *headers: tuple[str, str],
    client: str = "me",
    query: str = "?dlp=t",
    method: str = "POST",
) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        request = encode_request(
            method,
            f"/message-bus/{client}/poll{query}",
            headers=[JSON, ORIGIN, *headers],
            body=json.dumps(positions).encode(),
        )
        return await connection.request(request)


async def count(daemon: Daemon, name: str, **labels: str) -> float:
    """A sample of /metrics, 0 if there is none."""
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as answer:
        text = await answer.text()
    for line in text.splitlines():
        given = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if line.startswith(f"messagebusd_{name}{{") and given == labels:
            return float(line.rsplit(" ", 1)[1])
    return 0.0


async def assert_refused(daemon: Daemon, response: Response, limit: str, most: int) -> None:
    assert response.status == 429
    problem = json.loads(response.body)
    assert problem["code"] == "rate_limited"
    assert limit in problem["detail"]
    retry_after = response.header("retry-after")
    assert retry_after is not None
    assert 1 <= int(retry_after) <= most
    # A page can read all of that.
    assert response.header("access-control-allow-origin") == ORIGIN[1]
    assert response.header("access-control-expose-headers") == "Retry-After"
    code = f"rate_limited_{limit}"
    assert await count(daemon, "refusals_total", door="poll", code=code) == 1


async def test_a_storm_of_empty_polls(serve: Serve) -> None:
    daemon = await serve(poll={"client_rate": "3/h"})
    for _ in range(3):
        assert (await poll(daemon, {"/a": 0})).body == b"[]"
    await assert_refused(daemon, await poll(daemon, {"/a": 0}), "client", 4800)
    assert (await poll(daemon, {"/a": 0}, client="another")).status == 200
    # Browsers ask before they poll, and must hear that they may.
    assert (await poll(daemon, {}, method="OPTIONS")).status == 200


async def test_a_storm_of_clients_that_do_not_learn_their_position(serve: Serve) -> None:
    daemon = await serve(poll={"client_rate": "3/h"})
    await daemon.publish("/a", 1)
    for _ in range(3):
        assert b"__status" in (await poll(daemon, {"/a": -1}, ("Dont-Chunk", "1"), query="")).body
    assert (await poll(daemon, {"/a": -1}, ("Dont-Chunk", "1"), query="")).status == 429


async def test_a_storm_of_streams_that_the_client_cuts(serve: Serve) -> None:
    daemon = await serve(poll={"client_rate": "3/h"})
    request = encode_request("POST", "/message-bus/me/poll", headers=[JSON], body=b'{"/a":0}')
    for _ in range(3):
        async with await RawConnection.open(daemon.url) as connection:
            await connection.send(request).chunk_count(1)
    assert (await poll(daemon, {"/a": 0})).status == 429


async def test_a_busy_channel_is_no_storm(serve: Serve) -> None:
    daemon = await serve(poll={"client_rate": "3/h"})
    dont_chunk = ("Dont-Chunk", "1")
    for number in range(10):  # what it missed, in every mode
        await daemon.publish("/a", number)
        for headers, query in (((), "?dlp=t"), ([dont_chunk], "")):
            answer = await poll(daemon, {"/a": number}, *headers, query=query)
            assert f'"data":{number}'.encode() in answer.body
    for number in range(10, 20):  # what comes while it waits
        async with await RawConnection.open(daemon.url) as connection:
            body = json.dumps({"/a": number}).encode()
            request = encode_request(
                "POST", "/message-bus/me/poll", headers=[JSON, dont_chunk], body=body
            )
            response = connection.send(request)
            await until_parked(daemon)
            await daemon.publish("/a", number)
            assert f'"data":{number}'.encode() in (await response.finished()).body
    for number in range(10):  # messages that it may not see, and must skip
        await daemon.publish("/b", "for others", user_ids=[1])
        answer = await poll(daemon, {"/b": number}, dont_chunk, query="")
        assert json.loads(answer.body)[0]["data"] == {"/b": number + 1}
    for _ in range(3):
        assert (await poll(daemon, {"/a": 20})).body == b"[]"
    assert (await poll(daemon, {"/a": 20})).status == 429


async def until_parked(daemon: Daemon) -> None:
    while (await daemon.api("GET", "clients"))["clients"] == []:
        pass


async def test_refused_polls_do_not_reach_the_application(serve: Serve) -> None:
    asked: list[str] = []

    def answer(request: Any) -> Any:
        asked.append("lookup")
        return {"user_id": 7, "cache_ttl": 0}

    async with application(answer) as url:
        daemon = await serve(
            poll={"client_rate": "2/h"}, lookup={"mode": "webhook", "webhook": {"url": url}}
        )
        statuses = [(await poll(daemon, {"/a": 0})).status for _ in range(5)]
        assert statuses == [200, 200, 429, 429, 429]
        assert len(asked) == 2


PROXIED = {"trusted_proxies": ["127.0.0.1"]}


async def test_too_many_polls_of_a_user(serve: Serve) -> None:
    daemon = await serve(server=PROXIED, lookup={"mode": "headers"}, poll={"user_rate": "2/h"})
    ada = ("X-MessageBus-User", "7")
    for number in range(2):
        assert (await poll(daemon, {"/a": 0}, ada, client=f"tab-{number}")).status == 200
    await assert_refused(daemon, await poll(daemon, {"/a": 0}, ada, client="tab-3"), "user", 5400)
    bob = ("X-MessageBus-User", "8")
    assert (await poll(daemon, {"/a": 0}, bob, client="tab-3")).status == 200


async def test_too_many_polls_of_an_address(serve: Serve) -> None:
    daemon = await serve(server=PROXIED, poll={"address_rate": "2/h"})

    async def from_(forwarded: str, client: str) -> Response:
        return await poll(daemon, {"/a": 0}, ("X-Forwarded-For", forwarded), client=client)

    assert (await from_("203.0.113.9", "a")).status == 200
    assert (await from_("192.0.2.1, 203.0.113.9", "b")).status == 200  # the first one is made up
    await assert_refused(daemon, await from_("192.0.2.2, 203.0.113.9", "c"), "address", 5400)
    assert (await from_("198.51.100.1", "c")).status == 200
    for number in range(5):  # a proxy that does not say for whom it asks
        assert (await poll(daemon, {"/a": 0}, client=f"p{number}")).status == 200


# -- sizes (SPEC 2.9)


async def test_oversized_polls_are_counted_by_reason(serve: Serve) -> None:
    limits = {"max_body": 64, "max_channels": 2, "max_channel": 8, "max_client_id": 8}
    daemon = await serve(poll=limits)
    cases = [
        (413, "payload_too_large", await poll(daemon, {"/a" * 40: 0})),
        (400, "limit_exceeded", await poll(daemon, {"/a": 0, "/b": 0, "/c": 0})),
        (400, "invalid_channel", await poll(daemon, {"/12345678": 0})),
        (400, "invalid_channel", await poll(daemon, {"/a\n": 0})),
        (400, "invalid_client_id", await poll(daemon, {"/a": 0}, client="x" * 9)),
    ]
    for status, code, response in cases:
        assert response.status == status
        assert json.loads(response.body)["code"] == code
    for code in {code for _, code, _ in cases}:
        times = sum(each == code for _, each, _ in cases)
        assert await count(daemon, "refusals_total", door="poll", code=code) == times
    assert (await poll(daemon, {"/1234567": 0, "/b": 0}, client="x" * 8)).status == 200


# -- over capacity (SPEC 2.3)


async def test_a_full_daemon_answers_at_once(serve: Serve) -> None:
    daemon = await serve(poll={"max_active_clients": 0})
    await daemon.publish("/a", "news")

    stream = await poll(daemon, {"/a": 0}, query="")
    assert stream.header("content-type") == "text/plain; charset=utf-8"
    assert b'"news"' in stream.chunks[0].data
    assert stream.terminated
    empty = await poll(daemon, {"/a": 1}, query="")
    assert [each.data for each in empty.chunks] == [b"[]\r\n|\r\n"]
    assert empty.terminated
    assert await count(daemon, "polls_total", mode="stream", outcome="full") == 2

    dont_chunk = ("Dont-Chunk", "1")
    answer = await poll(daemon, {"/a": 0}, dont_chunk, query="")
    assert answer.header("content-type") == "application/json; charset=utf-8"
    assert json.loads(answer.body)[0]["data"] == "news"
    assert (await poll(daemon, {"/a": 1}, dont_chunk, query="")).body == b"[]"
    assert await count(daemon, "polls_total", mode="long_poll", outcome="answered") == 1
    assert await count(daemon, "polls_total", mode="long_poll", outcome="full") == 1


async def test_without_long_polling_everybody_is_answered_at_once(serve: Serve) -> None:
    daemon = await serve(poll={"long_polling_enabled": False})
    stream = await poll(daemon, {"/a": 0}, query="")
    assert [each.data for each in stream.chunks] == [b"[]\r\n|\r\n"]
    assert stream.terminated
    assert (await poll(daemon, {"/a": 0}, ("Dont-Chunk", "1"), query="")).body == b"[]"
    assert await count(daemon, "polls_total", mode="stream", outcome="ended") == 1


# -- publishers


async def test_a_keys_rate(serve: Serve) -> None:
    daemon = await serve(api={"key_rate": "5/h"})

    async def refused(call: str, body: Any) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{daemon.url}/api/v1/{call}",
                json=body,
                headers={"Authorization": f"Bearer {daemon.key}"},
            ) as answer,
        ):
            assert answer.status == 429
            assert (await answer.json())["code"] == "rate_limited"
            return int(answer.headers["Retry-After"])

    await daemon.publish("/a", 0)
    # A batch counts what it has, and is published whole or not at all.
    batch = {"messages": [{"channel": "/a", "data": number} for number in range(1, 4)]}
    answer = await daemon.api("POST", "publish/batch", batch)
    assert [each["message_id"] for each in answer["results"]] == [2, 3, 4]
    assert 1440 <= await refused("publish/batch", batch) <= 2880
    assert (await daemon.api("GET", "last_id", query={"channel": "/a"}))["last_id"] == 4
    await daemon.publish("/a", 5)
    assert 720 <= await refused("publish", {"channel": "/a", "data": 6}) <= 1440
    assert await count(daemon, "refusals_total", door="api", code="rate_limited_key") == 2


async def test_keys_have_their_own_rates_and_large_batches_pass(serve: Serve) -> None:
    keys = [
        {"name": name, "token": name, "scopes": ["publish"], "rate": rate}
        for name, rate in (("slow", "1/h"), ("fast", "0"))
    ]
    daemon = await serve(api={"keys": keys})

    async def publish(key: str, messages: int) -> Any:
        batch = {"messages": [{"channel": "/a", "data": 1}] * messages}
        headers = {"Authorization": f"Bearer {key}"}
        return await daemon.api("POST", "publish/batch", batch, headers=headers)

    assert len((await publish("slow", 20))["results"]) == 20  # larger than all of its rate
    with pytest.raises(ApiError) as caught:
        await publish("slow", 1)
    assert caught.value.status == 429
    for _ in range(3):
        assert len((await publish("fast", 20))["results"]) == 20
    await daemon.publish("/a", 1)
