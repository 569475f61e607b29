"""Two nodes on one store, one of them cut off while somebody's rights change on the other."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.security.identities import by_headers
from tests.security.people import CHANNEL, Person
from tests.security.reading import letters_from, parked, poll_bytes, texts
from tests.support.fault_proxy import FaultProxy
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection
from tests.support.redis_server import RedisServer

VICTIM = Person("seven-None", 7, (1,))


@pytest.mark.parametrize("others", [0, 150])
async def test_rights_that_changed_while_a_node_was_cut_off(
    tmp_path: Path, redis_server: RedisServer, others: int
) -> None:
    """It learns that before anything that was published afterwards, however many people there were
    of whom it had to learn."""
    redis_server.flush()
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(by_headers())
        proxy = await stack.enter_async_context(FaultProxy(redis_server.port))

        async def node(name: str, url: str) -> HostedDaemon:
            (tmp_path / name).mkdir()
            backend = {"kind": "redis", "redis": {"url": url}}
            config = {**way.config, "poll": {"long_polling_interval": 60.0}, "backend": backend}
            return await stack.enter_async_context(HostedDaemon(tmp_path / name, config))

        here = await node("here", redis_server.url)
        there = await node("there", f"redis://127.0.0.1:{proxy.port}/0")
        connection = await stack.enter_async_context(await RawConnection.open(there.url))
        response = connection.send(poll_bytes(way, VICTIM, letters_from(-1)))
        await parked(there, 1)

        proxy.refuse()
        proxy.reset()
        await here.api("POST", "lookups/invalidate", {"user_id": 7})
        for user_id in range(1000, 1000 + others):
            await here.api("POST", "lookups/invalidate", {"user_id": user_id})
        await here.publish(CHANNEL, "after he has left", group_ids=[1])
        await proxy.accept()

        await response.finished()
        assert response.complete
        assert texts(response) == []
