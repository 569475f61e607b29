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
from tests.faults.world import LATER, PostgresWorld, postgres_world, settings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def world() -> AsyncIterator[PostgresWorld]:
    async with postgres_world() as world:
        yield world


async def test_backends_are_terminated(world: PostgresWorld, start_daemon: StartDaemon) -> None:
    """Of the pool as well as the one that listens."""
    daemon = await start_daemon(settings(world.backend))
    async with traffic([daemon.url], daemon.key) as running:
        for _ in range(3):
            await running.published_more(50)
            assert world.server.terminate(world.database) >= 2
        await running.published_more(50)


async def test_the_table_is_dropped_and_made_anew(
    world: PostgresWorld, start_daemon: StartDaemon
) -> None:
    """As the Ruby library's reset! does it."""
    daemon = await start_daemon(settings(world.backend, interval=LATER))
    async with traffic([daemon.url], daemon.key) as running:
        await running.published_more(100)
        await running.quiet()
        await running.parked()
        world.server.sql("DROP TABLE message_bus", world.database)
        running.resume()
        await running.published_more(100)


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
