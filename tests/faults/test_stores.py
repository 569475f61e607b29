"""The store breaks, or the way to it, while publishers and a thousand parked polls go on.

Every test ends with the account of ``traffic``: every accepted message reached every entitled poll
exactly once, in order. What only one of the stores can suffer is in files of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.faults.traffic import traffic
from tests.faults.world import World, metric, postgres_world, ready, redis_world, settings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["redis", "postgres"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with redis_world(tmp_path) if request.param == "redis" else postgres_world() as world:
        yield world


async def test_connections_reset(world: World, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key, pause=0.05) as running:
        for _ in range(5):
            await running.published_more(30)
            world.proxy.reset()
    assert await metric(daemon, "messagebusd_store_reconnects_total") >= 3


async def test_a_publish_whose_answer_is_lost(world: World, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        for _ in range(5):
            await running.published_more(20)
            world.proxy.cut_after(b'{"data":{"n":')  # a publish, and no read of a channel
        await running.published_more(50)
    assert any(each.refusals for each in running.publishers)


async def test_a_cable_is_cut(world: World, start_daemon: StartDaemon) -> None:
    """Half-open connections: nobody says that anything is wrong."""
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        world.proxy.blackhole()
        await ready(daemon, 503)
        await asyncio.sleep(3)
        world.proxy.restore()
        await ready(daemon)
        await running.published_more(100)


async def test_a_daemon_is_killed_and_started_again(
    world: World, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        for _ in range(2):
            await running.published_more(50)
            await daemon.kill()
            await daemon.restart()
        await running.published_more(50)


async def test_the_store_is_slow(world: World, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        world.proxy.delay = 0.1
        await running.published_more(50)
        world.proxy.delay = 0.8  # more than a timeout there and back
        await asyncio.sleep(3)
        world.proxy.restore()
        await running.published_more(50)


async def test_the_store_crashes_and_comes_back_with_its_data(
    world: World, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        await running.published_more(50)
        world.server.kill()
        await ready(daemon, 503)
        world.server.start()
        await ready(daemon)
        await running.published_more(50)


async def test_more_is_published_meanwhile_than_the_log_keeps(
    world: World, start_daemon: StartDaemon
) -> None:
    """By another node, while one is cut off. On PostgreSQL that log is the backlog itself."""
    backend = {**world.backend, **world.short_log}
    cut_off = await start_daemon(settings(backend))
    other = await start_daemon(settings({**backend, **world.direct}))
    async with traffic(
        [cut_off.url], other.key, api_urls=[other.internal_url], pause=0.02
    ) as running:
        world.proxy.refuse()
        world.proxy.reset()
        await running.published_more(200)
        await world.proxy.accept()
        await running.published_more(50)
    assert await metric(cut_off, "messagebusd_store_replayed_messages_total") >= 200
