"""Reads that many polls have in common.

Polls come in crowds: after a break all of them ask for the same few channels from the same few
positions. Who asks while such a read is under way shares the next one with all others who do. It
may not share the present one: what it asks for must be read after it has asked, or a message in
between would be missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from messagebusd.errors import StoreUnavailable

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")

# Channels that are asked about in one statement; a crowd with more needs several.
MAX_CHANNELS = 5000


class SharedReads(Generic[K, R]):
    """See the module's docstring: at any time one read for each key, and one that waits."""

    def __init__(self, read: Callable[[K], Awaitable[R]]) -> None:
        self._read = read
        self._present: dict[K, asyncio.Task[R]] = {}
        self._next: dict[K, asyncio.Task[R]] = {}

    async def get(self, key: K) -> R:
        """Read, or share a read that has not begun. Raises what the read raises."""
        shared = self._next.get(key)
        if shared is None:
            shared = asyncio.create_task(self._run(key, self._present.get(key)))
            shared.add_done_callback(_look_at)
            self._next[key] = shared
        return await _result(shared)

    async def close(self) -> None:
        """Give up what is under way."""
        await _cancel((*self._present.values(), *self._next.values()))

    async def _run(self, key: K, present: asyncio.Task[R] | None) -> R:
        if present is not None:
            await asyncio.wait((present,))
        self._present[key] = self._next.pop(key)
        mine = self._present[key]
        try:
            return await self._read(key)
        finally:
            if self._present.get(key) is mine:
                del self._present[key]


class SharedLookups(Generic[R]):
    """The same for lookups by name, of which one read does many. ``read`` returns all names."""

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[Mapping[str, R]]]) -> None:
        self._read = read
        self._tasks: set[asyncio.Task[Mapping[str, R]]] = set()
        self._last: asyncio.Task[Mapping[str, R]] | None = None
        # The names of the read that has not begun, and may still get more.
        self._names: set[str] | None = None

    async def get(self, names: Sequence[str]) -> Mapping[str, R]:
        """What these names stand for. Raises what the read raises."""
        if self._names is None or self._last is None or len(self._names) >= MAX_CHANNELS:
            self._names = set()
            self._last = asyncio.create_task(self._run(self._names, self._last))
            self._last.add_done_callback(_look_at)
            self._last.add_done_callback(self._tasks.discard)
            self._tasks.add(self._last)
        self._names.update(names)
        found = await _result(self._last)
        return {name: found[name] for name in names}

    async def close(self) -> None:
        """Give up what is under way."""
        await _cancel(list(self._tasks))

    async def _run(
        self, names: set[str], before: asyncio.Task[Mapping[str, R]] | None
    ) -> Mapping[str, R]:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        del before  # else each would keep all earlier ones
        if names is self._names:
            self._names = None
        return await self._read(list(names))


async def _result(task: asyncio.Task[R]) -> R:
    """What a shared read returns; its end is not the caller's. Raises StoreUnavailable."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise StoreUnavailable("the store is closed") from None
        raise


def _look_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever asked has it; perhaps nobody waits any more


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
