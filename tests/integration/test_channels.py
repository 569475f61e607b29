"""Channel rules through a running daemon: who gets what, and what is said of the rest (SPEC 6)."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.daemon import ApiError, Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, encode_request
from tests.support.redis_server import RedisServer

RULES: list[dict[str, Any]] = [
    {"pattern": "/internal/*", "subscribe": "none"},
    {"pattern": "/user/{user_id}", "subscribe": "authenticated"},
    {"pattern": "/topic/*", "subscribe": "public", "require_audience": True},
    {"pattern": "/members/*", "subscribe": "authenticated", "max_backlog_size": 2},
    {"pattern": "*", "subscribe": "granted"},
]
ANONYMOUS: Mapping[str, Any] = {}
SEVEN: Mapping[str, Any] = {"user_id": 7}


@asynccontextmanager
async def application() -> AsyncIterator[str]:
    """A host application that believes what the visitor's cookie says of him."""

    async def answer(request: web.Request) -> web.Response:
        cookie = (await request.json())["headers"]["cookie"]
        return web.json_response(json.loads(unquote(cookie.removeprefix("who="))))

    app = web.Application()
    app.router.add_post("/lookup", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/lookup"))


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with application() as url:
        config = {
            "channels": RULES,
            "lookup": {"mode": "webhook", "webhook": {"url": url}},
            "poll": {"allow_broadcast": True},
        }
        async with HostedDaemon(tmp_path, config) as hosted:
            yield hosted


def request(who: Mapping[str, Any], positions: Mapping[str, int], query: str = "?dlp=t") -> bytes:
    headers = [("Content-Type", "application/json"), ("Cookie", f"who={quote(json.dumps(who))}")]
    return encode_request(
        "POST",
        f"/message-bus/me/poll{query}",
        headers=headers,
        body=json.dumps(positions).encode(),
    )


async def poll(
    daemon: Daemon, who: Mapping[str, Any], positions: Mapping[str, int]
) -> tuple[list[str], dict[str, int]]:
    """The channels of the messages, and the status."""
    async with await RawConnection.open(daemon.url) as connection:
        response = await connection.request(request(who, positions))
    assert response.status == 200, response.body
    messages = json.loads(response.body)
    status = [each["data"] for each in messages if each["channel"] == "/__status"]
    told = [each["channel"] for each in messages if each["channel"] != "/__status"]
    return told, status[0] if status else {}


async def test_denied_channels_are_not_mentioned(daemon: Daemon) -> None:
    names = ["/internal/a", "/user/7", "/user/8", "/members/a", "/other"]
    for name in names:
        await daemon.publish(name, name)
    everything = dict.fromkeys(names, 0)
    assert await poll(daemon, ANONYMOUS, everything) == ([], {})
    assert await poll(daemon, SEVEN, everything) == (["/user/7", "/members/a"], {})
    for position in (-1, 99):  # asked for, and ahead of the channel: answered with a status
        asked = dict.fromkeys(names, position)
        assert await poll(daemon, ANONYMOUS, asked) == ([], {})
        assert await poll(daemon, SEVEN, asked) == ([], {"/user/7": 1, "/members/a": 1})


async def test_the_lookup_grants_and_restricts(daemon: Daemon) -> None:
    names = ["/internal/a", "/user/7", "/user/8", "/members/a", "/other"]
    for name in names:
        await daemon.publish(name, name)
    everything = dict.fromkeys(names, 0)
    allowed = {"user_id": 7, "allowed_channels": ["/other", "/internal/*", "/user/*"]}
    assert (await poll(daemon, allowed, everything))[0] == ["/user/7", "/other"]
    visitor = {"allowed_channels": ["*"]}
    assert (await poll(daemon, visitor, everything))[0] == ["/other"]
    assert (await poll(daemon, {**SEVEN, "allowed_channels": []}, everything))[0] == []
    forced = {"user_id": 7, "forced_channels": everything}
    assert (await poll(daemon, forced, {"/nothing": 0}))[0] == ["/user/7", "/members/a", "/other"]
    assert await poll(daemon, {"forced_channels": {"/internal/a": -1}}, {}) == ([], {})


async def test_live_messages_of_denied_channels(daemon: Daemon) -> None:
    async with await RawConnection.open(daemon.url) as connection:
        asked = {"/user/8": 0, "/internal/a": 0, "/user/7": 0, "/other": -1}
        response = await connection.send(request(SEVEN, asked, query="")).head()
        await response.chunk_count(1)
        for name in ("/user/8", "/internal/a", "/other", "/user/7"):
            await daemon.publish(name, name)
        chunks = await response.chunk_count(2)
        frames = [json.loads(each.data.removesuffix(b"\r\n|\r\n")) for each in chunks]
        assert [[each["channel"] for each in frame] for frame in frames] == [[], ["/user/7"]]


async def test_names_that_try_to_get_around(daemon: Daemon) -> None:
    await daemon.publish("/user/8", "secret")
    await daemon.publish("/internal/a", "secret", site_id="s")
    for name in ("/USER/8", "/user/%38", "/user//8", "/user/8/", "//user/8", "/global/user/8",
                 "/Internal/a", "/internal/../internal/a"):  # fmt: skip
        assert await poll(daemon, {**SEVEN, "site_id": "s"}, {name: 0}) == ([], {}), name
    for name in ("/x$|$s", "/internal/a$|$s", "/user/7$$123$$"):
        async with await RawConnection.open(daemon.url) as connection:
            response = await connection.request(request(SEVEN, {name: 0}))
        assert response.status == 400, name


async def test_no_answer_ever_mentions_a_denied_channel(daemon: Daemon) -> None:
    names = ["/internal/a", "/user/7", "/user/8", "/user/", "/members/a", "/members/b", "/x", "/y"]
    for name in names * 2:
        await daemon.publish(name, name)
    dice = random.Random(6)
    for _ in range(80):
        who: dict[str, Any] = dice.choice([{}, {"user_id": 7}, {"user_id": "8"}, {"user_id": "/"}])
        named: list[str] | None = dice.choice([None, [], ["/x", "/user/*"], ["*"]])
        may = {"/user/7": who == {"user_id": 7}, "/user/8": who == {"user_id": "8"}}
        may |= dict.fromkeys(("/members/a", "/members/b"), "user_id" in who)
        may |= {name: bool(named) and (named == ["*"] or name == "/x") for name in ("/x", "/y")}
        if named is not None:
            may = {
                name: yes and (named == ["*"] or name in named or ("/user" in name and named != []))
                for name, yes in may.items()
            }
            who = {**who, "allowed_channels": named}
        asked = {name: dice.choice([0, -1, -2, 1, 99]) for name in names if dice.random() < 0.8}
        told, status = await poll(daemon, who, asked)
        mentioned = {*told, *status}
        assert mentioned == {name for name in asked if may.get(name)}


async def test_every_door_asks_for_an_audience(daemon: Daemon) -> None:
    with pytest.raises(ApiError) as refused:
        await daemon.publish("/topic/1", 1)
    assert (refused.value.status, refused.value.problem["code"]) == (422, "audience_required")
    await daemon.publish("/topic/1", 1, user_ids=[7])
    await daemon.publish("/topic/1", 2, client_ids=["me"])
    results = (
        await daemon.api(
            "POST",
            "publish/batch",
            {
                "messages": [
                    {"channel": "/topic/1", "data": 3},
                    {"channel": "/topic/1", "data": 4, "group_ids": ["a"]},
                    {"channel": "/members/a", "data": 5},
                ]
            },
        )
    )["results"]
    assert [each.get("message_id") or each["error"]["code"] for each in results] == [
        "audience_required",
        3,
        1,
    ]
    async with await RawConnection.open(daemon.url) as connection:
        body = json.dumps({"channel": "/topic/1", "data": 6}).encode()
        headers = [("Content-Type", "application/json"), ("Cookie", "who={}")]
        response = await connection.request(
            encode_request("POST", "/message-bus/broadcast", headers=headers, body=body)
        )
    assert json.loads(response.body)["code"] == "audience_required"
    assert (await poll(daemon, SEVEN, {"/topic/1": 0}))[0] == ["/topic/1"] * 2


async def test_rules_keep_as_much_as_they_say(daemon: Daemon) -> None:
    for number in range(4):
        await daemon.publish("/members/a", number)
        await daemon.publish("/members/b", number, max_backlog_size=3)
    told, _ = await poll(daemon, SEVEN, {"/members/a": 0, "/members/b": 0})
    assert told == ["/members/a"] * 2 + ["/members/b"] * 3


async def test_an_inbox_entry_without_audience_is_a_dead_letter(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.flush()
    config = {
        "channels": RULES,
        "ingest": {"redis": {"enabled": True, "url": redis_server.url}},
    }
    async with (
        HostedDaemon(tmp_path, config) as daemon,
        redis_server.client(decode_responses=True) as client,
    ):
        stream = "messagebusd:publish"
        await client.xadd(stream, {"channel": "/topic/1", "data": "1"})
        await client.xadd(stream, {"channel": "/topic/1", "data": "2", "client_ids": '["me"]'})
        async with asyncio.timeout(10):
            while not (dead := await client.xrange(f"{stream}:dead")):
                await asyncio.sleep(0.01)
            query = {"channel": "/topic/1"}
            while not (last := await daemon.api("GET", "last_id", query=query))["last_id"]:
                await asyncio.sleep(0.01)
        assert [entry["dead_code"] for _, entry in dead] == ["audience_required"]
        assert last["last_id"] == 1
