"""The stores that have to keep the contract: add one to ``STORES``, with its server's fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.backends.stores import MemoryStore, Store

# How a store's harness is made; the request gives it the fixture of its server.
STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "memory": lambda request: MemoryStore(),
}


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
