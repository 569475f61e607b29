"""The stores that the scenarios are replayed on, each time an empty one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

# A store's settings, valid inside the context.
FreshStore = Callable[[], AbstractAsyncContextManager[Mapping[str, Any]]]

_numbers = itertools.count(1)


def memory(request: pytest.FixtureRequest) -> FreshStore:
    @asynccontextmanager
    async def fresh() -> AsyncIterator[Mapping[str, Any]]:
        yield {"kind": "memory"}

    return fresh


def redis(request: pytest.FixtureRequest) -> FreshStore:
    server: RedisServer = request.getfixturevalue("redis_server")

    @asynccontextmanager
    async def fresh() -> AsyncIterator[Mapping[str, Any]]:
        # Names of its own are as good as a server of its own.
        prefix = f"conformance-{next(_numbers)}-"
        yield {"kind": "redis", "redis": {"url": server.url, "key_prefix": prefix}}

    return fresh


def postgres(request: pytest.FixtureRequest) -> FreshStore:
    server: PostgresServer = request.getfixturevalue("postgres_server")

    @asynccontextmanager
    async def fresh() -> AsyncIterator[Mapping[str, Any]]:
        # In threads: other scenarios go on in this loop, and look at the time.
        database = await asyncio.to_thread(server.create_database)
        try:
            yield {"kind": "postgres", "postgres": {"url": server.url(database)}}
        finally:
            await asyncio.to_thread(server.drop_database, database)

    return fresh


STORES = {"memory": memory, "redis": redis, "postgres": postgres}
