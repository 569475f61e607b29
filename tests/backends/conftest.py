"""The stores that have to keep the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from messagebusd.backends.base import Backend, Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import PublishLimits, parse_publication
from tests.support.clock import FakeClock


class Store:
    """A store under test, fresh, with what tests need around it."""

    def __init__(self, clock: FakeClock) -> None:
        self.announced: list[Message] = []
        self._clock = clock
        self._opened: list[Backend] = []
        self.backend: Backend

    async def reopen(self, **retention: int) -> None:
        """Start over with another retention."""
        backend = MemoryBackend(
            replace(Retention(), **retention), max_bytes=2**26, clock=self._clock
        )
        backend.subscribe(self.announced.extend)
        await backend.open()
        self._opened.append(backend)
        self.announced.clear()
        self.backend = backend

    async def publish(self, channel: str, data: bytes = b"1", **options: object) -> int:
        publication = parse_publication(
            b'{"channel":"%b","data":%b}' % (channel.encode(), data), PublishLimits()
        )
        published = await self.backend.publish(replace(publication, **options))
        return published.message_id

    async def ids(self, channel: str, after_id: int = 0, **bounds: int) -> list[int]:
        return [each.message_id for each in (await self.read(channel, after_id, **bounds)).messages]

    async def read(self, channel, after_id=0, max_messages=10_000, max_bytes=2**30):
        return await self.backend.backlog(
            channel, after_id, max_messages=max_messages, max_bytes=max_bytes
        )

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass for the store."""
        self._clock.advance(seconds)

    async def announcements(self, count: int) -> list[Message]:
        """Wait until so many messages have been announced."""
        async with asyncio.timeout(5):
            while len(self.announced) < count:
                await asyncio.sleep(0)
        return self.announced

    async def close(self) -> None:
        for backend in self._opened:
            await backend.close()


@pytest.fixture(params=["memory"])
async def store() -> AsyncIterator[Store]:
    under_test = Store(FakeClock())
    await under_test.reopen()
    yield under_test
    await under_test.close()
