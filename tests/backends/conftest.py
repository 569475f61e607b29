"""The stores that have to keep the contract: add one to ``STORES``, with its server's fixture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.backends.postgres_store import PostgresStore
from tests.backends.redis_store import RedisStore
from tests.backends.stores import MemoryStore, Store

# How a store's harness is made; the request gives it the fixture of its server.
STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "memory": lambda request: MemoryStore(),
    "redis": lambda request: RedisStore(request.getfixturevalue("redis_server")),
    "postgres": lambda request: PostgresStore(request.getfixturevalue("postgres_server")),
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
