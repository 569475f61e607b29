"""A daemon, or several, on a store behind a proxy that misbehaves."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.daemon import Daemon
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

# What a store of a real site has.
DURABLE_REDIS = {"appendonly": "yes", "appendfsync": "always"}
DURABLE_POSTGRES = {"fsync": "on", "synchronous_commit": "on"}


# Polls that come back every few seconds; and those that stay, where one that is on its way back while
# the ids begin anew would miss what guarantees.md says it may miss.
SOON, LATER = 4.0, 60.0


def settings(
    backend: Mapping[str, Any], *, interval: float = SOON, **server: Any
) -> dict[str, Any]:
    """Settings of a daemon, with users by header."""
    return {
        "server": {"trusted_proxies": ["127.0.0.1"], "shutdown_timeout": 5.0, **server},
        "poll": {"long_polling_interval": interval},
        "lookup": {"mode": "headers"},
        "backend": dict(backend),
    }


class World:
    """A store of its own. ``backend`` are the settings of a daemon that reaches it by the proxy,
    ``direct`` what differs without it, ``short_log`` the shortest log of all channels.
    """

    server: RedisServer | PostgresServer
    backend: dict[str, Any]
    direct: dict[str, Any]
    short_log: dict[str, Any]

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy


class RedisWorld(World):
    server: RedisServer

    def __init__(self, server: RedisServer, proxy: FaultProxy) -> None:
        super().__init__(proxy)
        self.server = server
        through = {"url": f"redis://127.0.0.1:{proxy.port}/0"}
        self.backend = {"kind": "redis", "keepalive_interval": 5.0, "redis": through}
        self.direct = {"redis": {"url": server.url}}
        self.short_log = {"max_global_backlog_size": 10}


class PostgresWorld(World):
    server: PostgresServer

    def __init__(self, server: PostgresServer, database: str, proxy: FaultProxy) -> None:
        super().__init__(proxy)
        self.server = server
        self.database = database
        through = {"url": server.url(database, port=proxy.port)}
        self.backend = {"kind": "postgres", "keepalive_interval": 5.0, "postgres": through}
        self.direct = {"postgres": {"url": server.url(database)}}
        self.short_log = {}


@asynccontextmanager
async def redis_world(
    folder: Path, config: Mapping[str, str] | None = None
) -> AsyncIterator[RedisWorld]:
    async with AsyncExitStack() as stack:
        (folder / "redis").mkdir()
        server = stack.enter_context(RedisServer(folder / "redis", config or DURABLE_REDIS))
        proxy = await stack.enter_async_context(FaultProxy(server.port))
        yield RedisWorld(server, proxy)


@asynccontextmanager
async def postgres_world(
    config: Mapping[str, str] | None = None, initdb: tuple[str, ...] = ()
) -> AsyncIterator[PostgresWorld]:
    async with AsyncExitStack() as stack:
        # Not a folder of pytest's: those are closed to the server's user.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="messagebusd-")))
        server = PostgresServer(folder, config or DURABLE_POSTGRES, initdb=initdb)
        stack.enter_context(server)
        proxy = await stack.enter_async_context(FaultProxy(server.port))
        yield PostgresWorld(server, server.create_database(), proxy)


async def readiness(daemon: Daemon) -> int:
    """The status of ``/readyz``."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
        session.get(f"{daemon.internal_url}/readyz") as answer,
    ):
        return answer.status


async def ready(daemon: Daemon, status: int = 200, within: float = 20) -> None:
    """Wait until ``/readyz`` answers so."""
    last = 0
    try:
        async with asyncio.timeout(within):
            while last != status:
                last = await readiness(daemon)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"/readyz answered {last}, not {status}") from None


async def metric(daemon: Daemon, name: str) -> float:
    """The sum of a metric over its labels."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{daemon.internal_url}/metrics") as answer,
    ):
        text = await answer.text()
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(name) and line[len(name)] in " {"
    )
