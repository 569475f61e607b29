"""What the contract suite knows of a store: the harness, and the memory store in it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace

from messagebusd.backends.base import Backend, Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import PublishRules, parse_publication
from tests.support.clock import FakeClock


class Announcements:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        # The channels that must not miss anything, and what was said of breaks.
        self.watched: set[str] = set()
        self.breaks: list[object] = []

    def dispatch(self, messages: Sequence[Message]) -> None:
        self.messages.extend(messages)

    def channels(self) -> set[str]:
        return self.watched

    def interrupted(self) -> None:
        self.breaks.append("interrupted")

    def restarted(self, channels: Collection[str]) -> None:
        self.breaks.append(sorted(channels))


class Reports:
    """An observer that keeps what is reported to it."""

    def __init__(self) -> None:
        self.reconnects = 0
        self.gaps = 0
        self.replayed = 0
        self.ignored: list[str] = []

    def store_reconnected(self) -> None:
        self.reconnects += 1

    def store_gap(self, messages: int) -> None:
        self.gaps += messages

    def store_replayed(self, messages: int) -> None:
        self.replayed += messages

    def store_ignored(self, reason: str) -> None:
        self.ignored.append(reason)


class Store(ABC):
    """A store under test, fresh, with what tests need around it."""

    def __init__(self) -> None:
        self.listener = Announcements()
        self.reports = Reports()
        self.backend: Backend
        self._opened: list[Backend] = []

    @abstractmethod
    async def build(self, retention: Retention) -> Backend:
        """A backend on an empty store, not opened yet."""

    @abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass for the store."""

    @property
    def announced(self) -> list[Message]:
        return self.listener.messages

    async def reopen(self, **retention: int) -> None:
        """Start over with another retention."""
        await self.close()
        backend = await self.build(replace(Retention(), **retention))
        backend.subscribe(self.listener)
        self._opened.append(backend)
        await backend.open()
        self.listener.messages.clear()
        self.backend = backend

    async def publish(self, channel: str, data: bytes = b"1", **options: object) -> int:
        publication = parse_publication(
            b'{"channel":"%b","data":%b}' % (channel.encode(), data), PublishRules()
        )
        published = await self.backend.publish(replace(publication, **options))
        return published.message_id

    async def ids(self, channel: str, after_id: int = 0, **bounds: int) -> list[int]:
        return [each.message_id for each in (await self.read(channel, after_id, **bounds)).messages]

    async def last_ids(self, *channels: str) -> dict[str, int]:
        found = await self.backend.last_ids(channels)
        return {name: last.message_id for name, last in found.items()}

    async def read(self, channel, after_id=0, max_messages=10_000, max_bytes=2**30):
        return await self.backend.backlog(
            channel, after_id, max_messages=max_messages, max_bytes=max_bytes
        )

    async def announcements(self, count: int) -> list[Message]:
        """Wait until so many messages have been announced."""
        async with asyncio.timeout(5):
            while len(self.announced) < count:
                await asyncio.sleep(0)
        return self.announced

    async def close(self) -> None:
        while self._opened:
            await self._opened.pop().close()


class MemoryStore(Store):
    def __init__(self) -> None:
        super().__init__()
        self._clock = FakeClock()

    async def build(self, retention: Retention) -> Backend:
        return MemoryBackend(retention, max_bytes=2**26, clock=self._clock)

    async def pass_time(self, seconds: float) -> None:
        self._clock.advance(seconds)
