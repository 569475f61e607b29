"""Every pair of who publishes to whom and who polls: live and from the backlog, however somebody
is identified, on one site and on several, on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.stores import STORES
from tests.security.identities import WAYS, Way
from tests.security.people import LETTERS, PEOPLE, SITES, readable
from tests.security.reading import (
    END,
    letters_from,
    messages,
    moved,
    parked,
    poll_bytes,
    read_all,
    texts,
)
from tests.support.daemon import Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response


@dataclass
class Bus:
    daemon: Daemon
    way: Way

    async def publish_all(self) -> None:
        batch = [{"channel": each.channel, "data": each.text, **each.options} for each in LETTERS]
        answer = await self.daemon.api("POST", "publish/batch", {"messages": batch})
        assert not any("error" in each for each in answer["results"])
        for site_id in SITES:
            await self.daemon.publish("/letters", END, **({"site_id": site_id} if site_id else {}))


# Every way on the embedded store; the store has no part in who somebody is.
@pytest.fixture(
    params=[*((way, "memory") for way in WAYS), ("headers", "redis"), ("headers", "postgres")],
    ids=lambda each: f"{each[0]}-{each[1]}",
)
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    name, store = request.param
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(WAYS[name]())
        backend = await stack.enter_async_context(STORES[store](request)())
        config = {"backend": backend, "poll": {"long_polling_interval": 60.0}}
        daemon = HostedDaemon(tmp_path, {**config, **way.config})
        yield Bus(await stack.enter_async_context(daemon), way)


async def test_from_the_backlog(bus: Bus) -> None:
    await bus.publish_all()
    for person in PEOPLE:
        got = await read_all(bus.daemon, bus.way, person, letters_from(0))
        assert sorted(got) == sorted(readable(person)), person


async def test_on_a_stream(bus: Bus) -> None:
    async with AsyncExitStack() as stack:
        streams = {}
        for person in PEOPLE:
            connection = await stack.enter_async_context(await RawConnection.open(bus.daemon.url))
            streams[person] = connection.send(poll_bytes(bus.way, person, letters_from(-1)))
            await streams[person].chunk_count(1)
        await bus.publish_all()
        for person, response in streams.items():
            assert await response.until(_has_ended), person
            assert sorted(texts(response)) == sorted(readable(person)), person


async def test_on_long_polls(bus: Bus) -> None:
    async with AsyncExitStack() as stack:
        polls = {}
        at = letters_from(0)
        for person in PEOPLE:
            connection = await stack.enter_async_context(await RawConnection.open(bus.daemon.url))
            polls[person] = connection.send(poll_bytes(bus.way, person, at, mode="long_poll"))
        await parked(bus.daemon, len(PEOPLE))
        await bus.publish_all()
        for person, response in polls.items():
            await response.finished()
            first = texts(response)
            rest = await read_all(bus.daemon, bus.way, person, moved(at, response))
            assert sorted(first + rest) == sorted(readable(person)), person


def _has_ended(response: Response) -> bool:
    return any(each["data"] == END for each in messages(response))
