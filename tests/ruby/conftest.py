"""The real gem beside the daemon: collected only where `MESSAGEBUS_GEM` names a checkout of it.

The gem is in no registry that the other tests may rely on, and nothing of it is in this tree; the
recorded vectors stand for it everywhere else. docs/operations.md says how to run these tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import StartDaemon
from tests.ruby.peer import RubyPeer
from tests.ruby.stores import PostgresPlace, RedisPlace, StorePlace
from tests.support.daemon import Daemon
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

GEM = os.environ.get("MESSAGEBUS_GEM")
collect_ignore_glob = [] if GEM else ["test_*.py"]


class StartRuby(Protocol):
    async def __call__(self, *, site: str | None = None, listen: bool = True) -> RubyPeer: ...


@pytest.fixture(scope="session")
def gem() -> Path:
    """The checkout."""
    path = Path(GEM or "").absolute()
    if not (path / "lib" / "message_bus.rb").is_file():
        raise RuntimeError(f"MESSAGEBUS_GEM is no checkout of discourse/message_bus: {path}")
    if shutil.which("ruby") is None:
        raise RuntimeError("ruby is missing: apt-get install ruby ruby-redis ruby-pg ruby-rack")
    return path


@pytest.fixture(params=["redis", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[StorePlace]:
    """An empty store that the daemon and Ruby share."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.flush()
        yield RedisPlace(server)
        server.flush()
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        name = postgres.create_database()
        yield PostgresPlace(postgres, name)
        postgres.drop_database(name)


@pytest.fixture
async def bus(place: StorePlace, start_daemon: StartDaemon) -> Daemon:
    """A daemon on the store. Who polls is told by headers."""
    return await start_daemon(
        {
            "server": {"trusted_proxies": ["127.0.0.1"]},
            "lookup": {"mode": "headers"},
            "backend": place.backend,
        }
    )


@pytest.fixture
async def start_ruby(place: StorePlace, bus: Daemon, gem: Path) -> AsyncIterator[StartRuby]:
    """Start Ruby processes on the store; after the daemon, which makes the tables."""
    async with AsyncExitStack() as stack:

        async def start(*, site: str | None = None, listen: bool = True) -> RubyPeer:
            peer = RubyPeer(gem, place.kind, place.ruby_options, site)
            await stack.enter_async_context(peer)
            if listen:
                await peer.ask("listen")
            return peer

        yield start
