"""Fixtures that every test package may use."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest

from tests.support.daemon import Config, Daemon
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

# Properties are about outcomes, not about time, and the machine may be loaded. The inner loop looks
# at fewer examples.
for profile, examples in (("default", 100), ("quick", 15)):
    hypothesis.settings.register_profile(
        profile,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class StartDaemon(Protocol):
    async def __call__(
        self, config: Config | None = None, *, env: Mapping[str, str] | None = None
    ) -> Daemon: ...


@pytest.fixture(autouse=True)
def _signal_mask() -> Iterator[None]:
    """Signals that a command blocks in this process are blocked in no other test's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
async def start_daemon(tmp_path: Path) -> AsyncIterator[StartDaemon]:
    """Start daemons with settings of the test's own; what still runs is ended afterwards."""
    async with AsyncExitStack() as stack:
        count = 0

        async def start(
            config: Config | None = None, *, env: Mapping[str, str] | None = None
        ) -> Daemon:
            nonlocal count
            count += 1
            folder = tmp_path / f"daemon-{count}"
            folder.mkdir()
            return await stack.enter_async_context(Daemon(folder, config, env=env))

        yield start


@pytest.fixture
async def daemon(start_daemon: StartDaemon) -> Daemon:
    """A daemon with default settings."""
    return await start_daemon()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests: each uses keys and a channel of its own, or flushes it first."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests: each has a database of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="messagebusd-") as folder,
        PostgresServer(Path(folder)) as server,
    ):
        yield server
