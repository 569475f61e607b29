"""Caches of several processes hold the same, through a real daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from messagebus_client import (
    AsyncClient,
    AsyncDistributedCaches,
    Client,
    ConnectionFailed,
    DistributedCaches,
    InvalidRequest,
    NotAllowed,
)
from tests.clients.conftest import Host
from tests.support.daemon import Daemon
from tests.support.fault_proxy import FaultProxy

WAIT_SECONDS = 30.0


@pytest.fixture
async def daemon(host: Host) -> Daemon:
    return await host()


async def holds(cache: Any, expected: dict[Any, Any]) -> None:
    """Wait until a cache holds this."""
    async with asyncio.timeout(WAIT_SECONDS):
        while cache.snapshot() != expected:
            await asyncio.sleep(0.01)


async def test_changes_reach_every_process(daemon: Daemon) -> None:
    async with (
        AsyncClient(daemon.url, daemon.key) as first,
        AsyncDistributedCaches(first) as caches,
    ):
        a = caches["titles"]
        with Client(daemon.url, daemon.key) as second:
            threaded = DistributedCaches(second)
            await asyncio.to_thread(threaded.start)
            b = threaded["titles"]
            await a.set("forum", {"größe": [1, None]})
            assert a["forum"] == a.get("forum") == {"größe": [1, None]}
            await holds(b, {"forum": {"größe": [1, None]}})
            await asyncio.to_thread(b.__setitem__, 7, "seven")
            assert 7 in b
            await holds(a, {"forum": {"größe": [1, None]}, 7: "seven"})
            await a.delete("forum")
            await holds(b, {7: "seven"})
            with pytest.raises(KeyError):
                b["forum"]
            await asyncio.to_thread(b.delete, "unknown here")
            another = caches["another"]  # before: it begins empty
            await asyncio.to_thread(threaded["another"].__setitem__, "x", 1)
            await holds(another, {"x": 1})
            await asyncio.to_thread(b.clear)
            assert b.snapshot() == {}
            await holds(a, {})
            await asyncio.to_thread(threaded.close)
            assert threaded["another"].snapshot() == {}
    assert another.snapshot() == {}


async def test_the_daemon_takes_no_marshalled_values(daemon: Daemon) -> None:
    operation = {"op": "set", "key": "a", "value": "BAhJIgZhBjoGRVQ=", "marshalled": True}
    async with AsyncClient(daemon.url, daemon.key) as bus:
        with pytest.raises(InvalidRequest, match="marshalled"):
            await bus.publish(
                "/distributed_hash",
                {**operation, "origin": "ruby", "hash_key": "c"},
                user_ids=[-1],
            )


async def test_sites_and_versions_keep_to_themselves(daemon: Daemon) -> None:
    async with (
        AsyncClient(daemon.url, daemon.key) as bus,
        AsyncDistributedCaches(bus, site_id="forum", app_version="1") as mine,
        AsyncDistributedCaches(bus, site_id="forum", app_version="1") as same,
        AsyncDistributedCaches(bus, site_id="forum", app_version="2") as newer,
        AsyncDistributedCaches(bus, site_id="shop", app_version="1") as elsewhere,
    ):
        caches = [each["c"] for each in (mine, same, newer, elsewhere)]
        await caches[0].set("a", 1)
        await caches[3].set("b", 2)
        await holds(caches[1], {"a": 1})
        await caches[2].set("c", 3)
        assert caches[2].snapshot() == {"c": 3}
        assert caches[3].snapshot() == {"b": 2}
        assert caches[0].snapshot() == {"a": 1}


async def test_what_is_missed_meanwhile_comes_later(daemon: Daemon) -> None:
    async with (
        FaultProxy(int(daemon.url.rpartition(":")[2])) as proxy,
        AsyncClient(f"http://127.0.0.1:{proxy.port}", daemon.key, retry_for=0.2) as far,
        AsyncDistributedCaches(far) as far_caches,
        AsyncClient(daemon.url, daemon.key) as near,
        AsyncDistributedCaches(near) as near_caches,
    ):
        a, b = far_caches["c"], near_caches["c"]
        await b.set("x", 1)
        await holds(a, {"x": 1})
        proxy.refuse()
        proxy.reset()
        await b.set("x", 2)
        await b.set("y", 3)
        with pytest.raises(ConnectionFailed):
            await a.set("x", "never")
        await proxy.accept()
        await holds(a, {"x": 2, "y": 3})


async def test_a_cache_that_missed_something_is_empty(daemon: Daemon) -> None:
    """The backlog keeps only so many operations."""
    async with (
        FaultProxy(int(daemon.url.rpartition(":")[2])) as proxy,
        AsyncClient(f"http://127.0.0.1:{proxy.port}", daemon.key) as far,
        AsyncDistributedCaches(far) as far_caches,
        AsyncClient(daemon.url, daemon.key) as near,
    ):
        await near.publish("/other", 0)  # so that ids of the channel and global ones differ
        cache = far_caches["c"]
        await cache.set("stale", 1)
        proxy.refuse()
        proxy.reset()
        operation = {"op": "set", "value": 2, "origin": "x", "hash_key": "c"}
        for key in ("stale", "b", "c"):
            await near.publish(
                "/distributed_hash",
                {**operation, "key": key},
                user_ids=[-1],
                max_backlog_size=1,
            )
        await proxy.accept()
        await holds(cache, {"c": 2})


async def test_who_may_not_listen_has_no_cache(host: Host) -> None:
    keys = [{"name": "writer", "token": "a-key-of-its-own-1234567890", "scopes": ["publish"]}]
    daemon = await host({"api": {"keys": keys}})
    async with AsyncClient(daemon.url, "a-key-of-its-own-1234567890") as bus:
        with pytest.raises(NotAllowed, match="forbidden"):
            await AsyncDistributedCaches(bus).start()
