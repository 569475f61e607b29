"""Daemons for the clients' tests, in this process: they start in no time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.hosted import HostedDaemon


class Host(Protocol):
    async def __call__(self, config: dict[str, Any] | None = None) -> HostedDaemon: ...


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """Start daemons with settings of the test's own."""
    async with AsyncExitStack() as stack:
        count = 0

        async def start(config: dict[str, Any] | None = None) -> HostedDaemon:
            nonlocal count
            count += 1
            folder = tmp_path / f"daemon-{count}"
            folder.mkdir()
            return await stack.enter_async_context(HostedDaemon(folder, config))

        yield start
