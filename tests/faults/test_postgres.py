"""PostgreSQL breaks, or the way to it, while publishers and a thousand parked polls go on.

Every test ends with the account of ``traffic``: every accepted message reached every entitled poll
exactly once, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import StartDaemon
from tests.faults.traffic import traffic
from tests.faults.world import PostgresWorld, metric, postgres_world, ready, settings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def world() -> AsyncIterator[PostgresWorld]:
    async with postgres_world() as world:
        yield world


async def test_connections_reset(world: PostgresWorld, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key, pause=0.05) as running:
        for _ in range(5):
            await running.published_more(30)
            world.proxy.reset()
    assert await metric(daemon, "messagebusd_store_reconnects_total") >= 3


async def test_a_publish_whose_answer_is_lost(
    world: PostgresWorld, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        for number in range(5):
            await running.published_more(20)
            world.proxy.cut_after(b"/faults/%d" % number)
        await running.published_more(50)
    assert any(each.refusals for each in running.publishers)


async def test_a_cable_is_cut(world: PostgresWorld, start_daemon: StartDaemon) -> None:
    """Half-open connections: nobody says that anything is wrong."""
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        world.proxy.blackhole()
        await ready(daemon, 503)
        await asyncio.sleep(3)
        world.proxy.restore()
        await ready(daemon)
        await running.published_more(100)


async def test_postgres_is_slow(world: PostgresWorld, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        world.proxy.delay = 0.1
        await running.published_more(50)
        world.proxy.delay = 0.8  # more than a timeout there and back
        await asyncio.sleep(3)
        world.proxy.restore()
        await running.published_more(50)


async def test_backends_are_terminated(world: PostgresWorld, start_daemon: StartDaemon) -> None:
    """Of the pool as well as the one that listens."""
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        for _ in range(3):
            await running.published_more(50)
            assert world.server.terminate(world.database) >= 2
        await running.published_more(50)


async def test_postgres_crashes_and_comes_back(
    world: PostgresWorld, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        await running.published_more(50)
        world.server.kill()
        await ready(daemon, 503)
        world.server.start()
        await ready(daemon)
        await running.published_more(50)


async def test_the_table_is_dropped_and_made_anew(
    world: PostgresWorld, start_daemon: StartDaemon
) -> None:
    """As the Ruby library's reset! does it."""
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        await running.published_more(100)
        await running.quiet()
        await running.parked()
        world.server.sql("DROP TABLE message_bus", world.database)
        running.resume()
        await running.published_more(100)


async def test_the_log_is_trimmed_meanwhile(
    world: PostgresWorld, start_daemon: StartDaemon
) -> None:
    """More is published elsewhere, while one node is cut off, than the store keeps of others."""
    cut_off = await start_daemon(settings(world.backend))
    direct = {"url": world.server.url(world.database)}
    other = await start_daemon(settings({**world.backend, "postgres": direct}))
    async with traffic(
        [cut_off.url], other.key, api_urls=[other.internal_url], pause=0.02
    ) as running:
        world.proxy.refuse()
        world.proxy.reset()
        await running.published_more(200)
        await world.proxy.accept()
        await running.published_more(50)
    assert await metric(cut_off, "messagebusd_store_replayed_messages_total") >= 200


async def test_a_daemon_is_killed_and_started_again(
    world: PostgresWorld, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        for _ in range(2):
            await running.published_more(50)
            await daemon.kill()
            await daemon.restart()
        await running.published_more(50)


async def test_the_disk_is_full(start_daemon: StartDaemon) -> None:
    """A limit on the size of files stands for the disk: it takes no rights to set one."""
    # Small segments, so that the server's own log stays below the limit.
    async with postgres_world(initdb=("--wal-segsize=1",)) as world:
        backend = {**world.backend, "max_global_backlog_size": 100_000}
        daemon = await start_daemon(settings(backend))
        fill = (
            "INSERT INTO message_bus (channel, value) SELECT '/filler', "
            "'{\"data\":\"' || repeat('x', 1000) || '\"}' FROM generate_series(1, 2500)"
        )
        world.server.sql(fill, world.database)
        async with traffic([daemon.url], daemon.key, subscribers=500, pause=0.02) as running:
            size = int(world.server.sql("SELECT pg_relation_size('message_bus')", world.database))
            world.server.limit_files(size)
            async with asyncio.timeout(30):
                while not all(each.refusals for each in running.publishers):
                    await asyncio.sleep(0.05)
            await running.parked()
            world.server.limit_files(None)
            await running.published_more(50)
