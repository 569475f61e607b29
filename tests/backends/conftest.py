"""The stores that have to keep the contract: add one to ``STORES``, with its server's fixture."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

import pytest
import uvloop

from messagebusd.protocol.stored import EnvelopeCodec, decode_envelope, encode_compact
from tests.backends.postgres_store import PostgresStore
from tests.backends.redis_store import RedisStore
from tests.backends.stores import MemoryStore, Store

# As with ``codec = "compact"``, but the suite's short audiences are packed as well.
COMPACT = EnvelopeCodec(partial(encode_compact, from_ids=1), decode_envelope)

# How a store's harness is made; the request gives it the fixture of its server.
STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "memory": lambda request: MemoryStore(),
    "redis": lambda request: RedisStore(request.getfixturevalue("redis_server")),
    "postgres": lambda request: PostgresStore(request.getfixturevalue("postgres_server")),
    "redis-compact": lambda request: RedisStore(
        request.getfixturevalue("redis_server"), codec=COMPACT
    ),
    "postgres-compact": lambda request: PostgresStore(
        request.getfixturevalue("postgres_server"), codec=COMPACT
    ),
}

# Modules whose tests run on asyncio's transports and on uvloop's, which the daemon uses.
ON_BOTH_LOOPS = {"test_contract"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in ON_BOTH_LOOPS:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With another codec once is enough: nothing in it depends on the loop."""
    items[:] = [each for each in items if not re.search(r"\[uvloop-\w+-compact\]", each.name)]


@pytest.fixture(params=STORES)
def new_store(request: pytest.FixtureRequest) -> Store:
    """A store's harness, not opened yet."""
    return STORES[request.param](request)


@pytest.fixture
async def store(new_store: Store) -> AsyncIterator[Store]:
    try:
        await new_store.reopen()
        yield new_store
    finally:
        await new_store.close()
