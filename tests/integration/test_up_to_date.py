"""Polls of two nodes on one store: who is up to date parks without asking it, and misses nothing.

What a node asks its store is counted on the way there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.hosted import HostedDaemon
from tests.support.postgres_server import PostgresServer
from tests.support.rawhttp import RawConnection, Response, encode_request
from tests.support.redis_server import RedisServer

CHANNEL = "/a-channel-that-is-counted"
STREAM, LONG_POLL, POLL = "stream", "long_poll", "poll"


class Nodes:
    """Two nodes, of which ``here`` reaches the store by a proxy."""

    def __init__(self, stack: AsyncExitStack, here: HostedDaemon, there: HostedDaemon) -> None:
        self.here = here
        self.there = there
        self._stack = stack
        self._clients = 0

    async def poll(self, position: int, mode: str = STREAM) -> Response:
        """Poll ``here`` as a new client."""
        self._clients += 1
        connection = await self._stack.enter_async_context(await RawConnection.open(self.here.url))
        headers = [("Content-Type", "application/json")]
        if mode == LONG_POLL:
            headers.append(("Dont-Chunk", "true"))
        path = f"/message-bus/c{self._clients}/poll" + "?dlp=t" * (mode == POLL)
        body = json.dumps({CHANNEL: position}).encode()
        return connection.send(encode_request("POST", path, headers=headers, body=body))

    async def parked(self, count: int) -> None:
        """Wait until so many polls are parked."""
        async with asyncio.timeout(10):
            while True:
                clients = (await self.here.api("GET", "stats"))["clients"]
                if clients["stream"] + clients["long_poll"] == count:
                    return
                await asyncio.sleep(0.01)


def ids(response: Response) -> list[int]:
    """The messages of an answer, or of a stream so far."""
    if response.framing != "chunked":
        messages = json.loads(response.body)
    else:
        frames = b"".join(each.data for each in response.chunks).split(b"\r\n|\r\n")
        messages = [each for frame in frames if frame for each in json.loads(frame)]
    return [each["message_id"] for each in messages]


@pytest.fixture(params=["redis", "postgres"])
async def store(
    request: pytest.FixtureRequest, redis_server: RedisServer, postgres_server: PostgresServer
) -> AsyncIterator[tuple[FaultProxy, dict[str, Any], dict[str, Any]]]:
    """The proxy, and the settings of a store with and without it."""
    if request.param == "redis":
        redis_server.flush()
        async with FaultProxy(redis_server.port) as proxy:
            through = f"redis://127.0.0.1:{proxy.port}/0"
            yield proxy, *({"redis": {"url": url}} for url in (through, redis_server.url))
        return
    database = postgres_server.create_database()
    async with FaultProxy(postgres_server.port) as proxy:
        through = postgres_server.url(database, port=proxy.port)
        direct = postgres_server.url(database)
        yield proxy, *({"postgres": {"url": url}} for url in (through, direct))


@pytest.fixture
async def nodes(
    tmp_path: Path, store: tuple[FaultProxy, dict[str, Any], dict[str, Any]]
) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:

        async def node(name: str, settings: dict[str, Any]) -> HostedDaemon:
            (tmp_path / name).mkdir()
            [kind] = settings
            config = {
                "poll": {"long_polling_interval": 60.0},
                "backend": {"kind": kind, **settings},
            }
            return await stack.enter_async_context(HostedDaemon(tmp_path / name, config))

        _, through, direct = store
        yield Nodes(stack, await node("here", through), await node("there", direct))


@pytest.fixture
def proxy(store: tuple[FaultProxy, dict[str, Any], dict[str, Any]]) -> FaultProxy:
    return store[0]


async def test_it_parks_without_a_round_trip_and_gets_what_comes(
    nodes: Nodes, proxy: FaultProxy
) -> None:
    last = (await nodes.there.publish(CHANNEL, 1))["message_id"]
    proxy.count(CHANNEL.encode())
    await (await nodes.poll(last, POLL)).finished()
    asked = proxy.marked
    assert asked > 0

    streams = [await nodes.poll(last) for _ in range(10)]
    for each in streams:
        await each.chunk_count(1)
    long_polls = [await nodes.poll(last, LONG_POLL) for _ in range(10)]
    await nodes.parked(20)
    assert proxy.marked == asked

    new = (await nodes.there.publish(CHANNEL, 2))["message_id"]
    for each in streams:
        await each.chunk_count(2)
        assert ids(each) == [new]
    for each in long_polls:
        assert ids(await each.finished()) == [new]
    # They come back from there, and still nobody needs to ask.
    again = [await nodes.poll(new, LONG_POLL) for _ in range(10)]
    await nodes.parked(20)
    assert proxy.marked == asked
    newest = (await nodes.there.publish(CHANNEL, 3))["message_id"]
    for each in again:
        assert ids(await each.finished()) == [newest]


async def test_who_is_answered_at_once_is_told_what_another_node_has_acknowledged(
    nodes: Nodes, proxy: FaultProxy
) -> None:
    last = (await nodes.there.publish(CHANNEL, 0))["message_id"]
    await (await nodes.poll(last)).chunk_count(1)
    for number in range(20):
        before, last = last, (await nodes.there.publish(CHANNEL, number))["message_id"]
        answer = await (await nodes.poll(before, POLL)).finished()
        assert ids(answer) == [last]


async def test_what_this_node_has_acknowledged_is_in_the_first_frame(nodes: Nodes) -> None:
    last = (await nodes.here.publish(CHANNEL, 0))["message_id"]
    for number in range(20):
        before, last = last, (await nodes.here.publish(CHANNEL, number))["message_id"]
        behind, ahead = await nodes.poll(before), await nodes.poll(last)
        await behind.chunk_count(1)
        await ahead.chunk_count(1)
        assert ids(behind) == [last]
        assert ids(ahead) == []


async def test_what_it_misses_while_the_node_is_cut_off_comes_afterwards(
    nodes: Nodes, proxy: FaultProxy
) -> None:
    last = (await nodes.there.publish(CHANNEL, 0))["message_id"]
    await (await nodes.poll(last)).chunk_count(1)
    proxy.count(CHANNEL.encode())
    response = await nodes.poll(last)
    await response.chunk_count(1)
    assert proxy.marked == 0
    proxy.refuse()
    proxy.reset()
    new = [(await nodes.there.publish(CHANNEL, number))["message_id"] for number in range(3)]
    await proxy.accept()
    assert await response.until(lambda each: len(ids(each)) >= len(new), 20)
    assert ids(response) == new
