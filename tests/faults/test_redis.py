"""Redis breaks, or the way to it, while publishers and a thousand parked polls go on.

Every test ends with the account of ``traffic``: every accepted message reached every entitled poll
exactly once, in order.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.faults.traffic import traffic, until
from tests.faults.world import LATER, RedisWorld, metric, ready, redis_world, settings
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RedisWorld]:
    async with redis_world(tmp_path) as world:
        yield world


async def test_redis_comes_back_empty(world: RedisWorld, start_daemon: StartDaemon) -> None:
    """What had reached everybody is gone from the store; what comes afterwards reaches all."""
    daemon = await start_daemon(settings(world.backend, interval=LATER))
    async with traffic([daemon.url], daemon.key) as running:
        await running.published_more(100)
        await running.quiet()
        await running.parked()
        world.server.stop()
        world.server.wipe()
        world.server.start()
        running.resume()
        await running.published_more(100)


async def test_redis_is_flushed(world: RedisWorld, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend, interval=LATER))
    async with traffic([daemon.url], daemon.key) as running:
        await running.published_more(100)
        await running.quiet()
        await running.parked()
        world.server.flush()
        running.resume()
        await running.published_more(100)


async def test_a_replica_is_promoted(
    world: RedisWorld, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """One address for both servers; the old master turns read-only before it is left."""
    (tmp_path / "replica").mkdir()
    with RedisServer(tmp_path / "replica") as replica:
        replica.replica_of(world.server)
        daemon = await start_daemon(settings(world.backend))
        async with traffic([daemon.url], daemon.key) as running:
            await running.published_more(50)
            # Redis replicates later: what it has not replicated, a failover loses.
            await running.quiet()
            assert world.server.control.wait(1, 5000) == 1
            replica.replica_of(None)
            world.server.replica_of(replica)
            running.resume()
            await asyncio.sleep(1)
            world.proxy.retarget(replica.port)
            await running.published_more(100)


async def test_redis_is_full(world: RedisWorld, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        world.server.control.config_set("maxmemory", "1mb")
        await ready(daemon, 503)
        await asyncio.sleep(1)
        world.server.control.config_set("maxmemory", "0")
        await ready(daemon)
        await running.published_more(50)


async def test_a_worker_is_killed(world: RedisWorld, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend, workers=2))

    def workers() -> list[int]:
        return [record["pid"] for record in daemon.log if record["message"] == "worker ready"]

    async with traffic([daemon.url], daemon.key) as running:
        for started in (2, 3):
            await until(lambda started=started: len(workers()) == started, 20, "a new worker")
            await running.published_more(50)
            os.kill(workers()[-1], signal.SIGKILL)
        await running.published_more(100)


async def test_messages_wait_while_redis_is_away(
    world: RedisWorld, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key, subscribers=200) as running:
        world.proxy.refuse()
        world.proxy.reset()
        await ready(daemon, 503)
        for number in range(5):
            options = {"user_ids": [number], "queue_in_memory": True}
            assert (await daemon.publish("/waiting", number, **options))["queued"]
        assert await metric(daemon, "messagebusd_waiting_messages") == 5
        await world.proxy.accept()
        await ready(daemon)
        await running.published_more(20)
    waited = (await daemon.api("GET", "backlog", query={"channel": "/waiting"}))["messages"]
    assert [(each["data"], each["user_ids"]) for each in waited] == [(n, [n]) for n in range(5)]
    assert await metric(daemon, "messagebusd_waiting_messages") == 0
