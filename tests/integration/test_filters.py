"""Filters through a running daemon: live and backlog, and not for the trusted side (SPEC 6)."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, encode_request

JSON = ("Content-Type", "application/json")
FRESH = {
    "channel_prefix": "/fresh/",
    "allow": "!has(message.data.published_at) || now - message.data.published_at <= 20",
}


def request(positions: Any, query: str = "?dlp=t") -> bytes:
    body = json.dumps(positions).encode()
    return encode_request("POST", f"/message-bus/me/poll{query}", headers=[JSON], body=body)


async def poll(daemon: Daemon, positions: Any) -> list[Any]:
    async with await RawConnection.open(daemon.url) as connection:
        response = await connection.request(request(positions))
    assert response.status == 200, response.body
    return [each["data"] for each in json.loads(response.body)]


async def test_an_expression_withholds_live_and_backlog(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"filters": [FRESH]})
    now = time.time()
    old, new = {"published_at": int(now) - 60}, {"published_at": int(now)}
    async with await RawConnection.open(daemon.url) as connection:
        live = await connection.send(request({"/fresh/a": 0, "/other": 0}, "")).head()
        await live.chunk_count(1)
        for data in (old, new, {"published_at": now}, {"published_at": "soon"}, "no object"):
            await daemon.publish("/fresh/a", data)
        await daemon.publish("/other", old)
        chunks = await live.chunk_count(4)
        frames = [json.loads(each.data.removesuffix(b"\r\n|\r\n")) for each in chunks]
        told = [each["data"] for frame in frames for each in frame]
        assert told == [new, {"published_at": now}, old]
    # A field of something that is no object cannot be looked for, so that one is withheld too.
    assert await poll(daemon, {"/fresh/a": 0}) == [new, {"published_at": now}, {"/fresh/a": 5}]
    assert await poll(daemon, {"/other": 0}) == [old]
    failures = [each for each in daemon.log if each.get("filter") == FRESH["allow"]]
    assert len(failures) == 1
    assert failures[0]["level"] == "error"


async def test_servers_are_shown_everything(tmp_path: Path) -> None:
    filters = [{"channel_prefix": "/", "allow": "false"}]
    rules = [{"pattern": "*", "subscribe": "none"}]
    async with HostedDaemon(tmp_path, {"filters": filters, "channels": rules}) as daemon:
        await daemon.publish("/a", 1)
        assert await poll(daemon, {"/a": 0}) == []
        backlog = await daemon.api("GET", "backlog", query={"channel": "/a"})
        assert [each["data"] for each in backlog["messages"]] == [1]
        async with await RawConnection.open(daemon.internal_url) as connection:
            subscription = encode_request(
                "GET",
                "/api/v1/subscribe?channel=/a&last_id=0",
                headers=[("Authorization", f"Bearer {daemon.key}")],
            )
            response = await connection.send(subscription).head()
            await daemon.publish("/a", 2)
            async with asyncio.timeout(10):
                while b"".join(each.data for each in response.chunks).count(b'"data":') < 2:
                    await response.chunk_count(len(response.chunks) + 1)


async def test_filters_see_who_polls(tmp_path: Path) -> None:
    config = {
        "filters": [{"channel_prefix": "/for/", "allow": "client.user_id in message.data.users"}],
        "lookup": {"mode": "headers"},
        "server": {"trusted_proxies": ["127.0.0.1"]},
    }
    async with HostedDaemon(tmp_path, config) as daemon:
        data = {"users": [7, "8"]}
        await daemon.publish("/for/some", data)
        for user, told in (("7", [data]), ('"7"', [{"/for/some": 1}]), ('"8"', [data])):
            async with await RawConnection.open(daemon.url) as connection:
                response = await connection.request(
                    encode_request(
                        "POST",
                        "/message-bus/me/poll?dlp=t",
                        headers=[JSON, ("X-MessageBus-User", user)],
                        body=b'{"/for/some":0}',
                    )
                )
            assert [each["data"] for each in json.loads(response.body)] == told
        assert await poll(daemon, {"/for/some": 0}) == [{"/for/some": 1}]
