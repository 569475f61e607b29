"""The API of the real daemon: from its start to its stop (SPEC 4, 9)."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from tests.conftest import StartDaemon
from tests.support.api import DOCUMENT
from tests.support.daemon import ApiError, Daemon


def asking(daemon: Daemon) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        daemon.internal_url,
        headers={"Authorization": f"Bearer {daemon.key}"},
        timeout=aiohttp.ClientTimeout(sock_read=20),
    )


async def test_a_subscription_lasts_until_the_daemon_stops(daemon: Daemon):
    await daemon.publish("/foo", 1)
    query = {"channel": "/foo", "last_id": "0"}
    async with asking(daemon) as session, session.get("/api/v1/subscribe", params=query) as stream:
        lines = stream.content
        assert await lines.readline() == b"\n"
        assert json.loads(await lines.readline())["message_id"] == 1
        await daemon.publish("/foo", 2)
        assert json.loads(await lines.readline())["message_id"] == 2
        stopping = asyncio.create_task(daemon.stop())
        assert json.loads(await lines.readline())["end"]["code"] == "draining"
        assert await lines.readline() == b""
    assert await stopping == 0


async def test_the_api_is_on_the_internal_listener_alone(start_daemon: StartDaemon):
    daemon = await start_daemon({"server": {"internal_listen": "127.0.0.1:0"}})
    await daemon.publish("/foo", 1)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{daemon.url}/api/v1/openapi.json") as answer:
            assert answer.status == 404
            assert answer.headers["Content-Type"] == "application/problem+json"
        async with session.get(f"{daemon.internal_url}/api/v1/openapi.json") as answer:
            assert await answer.json() == DOCUMENT


async def test_limits_come_from_the_settings(start_daemon: StartDaemon):
    daemon = await start_daemon(
        {"backend": {"max_data_size": 10}, "poll": {"max_channel": 20, "max_channels": 2}}
    )
    await daemon.publish("/foo", "x" * 8)
    for call, body, status in (
        ("publish", {"channel": "/foo", "data": "x" * 9}, 413),
        ("publish", {"channel": "/" + "x" * 20, "data": 1}, 400),
        ("last_ids", {"channels": ["/a", "/b", "/c"]}, 400),
    ):
        with pytest.raises(ApiError) as refused:
            await daemon.api("POST", call, body)
        assert refused.value.status == status


async def test_a_key_is_in_no_log(start_daemon: StartDaemon):
    daemon = await start_daemon({"log": {"level": "debug"}})
    await daemon.publish("/foo", 1)
    for query in ({"key": daemon.key}, {"channel": "/foo", "token": daemon.key}):
        with pytest.raises(ApiError) as refused:
            await daemon.api("GET", "last_id", query=query)
        assert daemon.key not in str(refused.value)
    assert await daemon.stop() == 0
    assert daemon.key not in daemon.output()
