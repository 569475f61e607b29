"""Fixtures that every test package may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest

from tests.support.daemon import Config, Daemon

# Properties are about outcomes, not about time, and the machine may be loaded.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")


class StartDaemon(Protocol):
    async def __call__(
        self, config: Config | None = None, *, env: Mapping[str, str] | None = None
    ) -> Daemon: ...


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
