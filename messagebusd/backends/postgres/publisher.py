"""Publishing: whatever waits goes to the server together, as one statement and one transaction.

One group is under way at a time, so that the order of calls is the order of ids. Under load groups
grow, and a commit serves many callers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from messagebusd.backends.base import Once, Published
from messagebusd.backends.postgres import statements
from messagebusd.errors import IdempotencyConflict, StoreRefused, StoreUnavailable

# One group.
MAX_GROUP_MESSAGES = 500
MAX_GROUP_BYTES = 4 * 1024 * 1024
# What may wait for its turn.
MAX_WAITING_MESSAGES = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024

_log = logging.getLogger(__name__)

Fetch = Callable[..., Awaitable[Sequence[Any]]]


@dataclass(slots=True, eq=False)
class _Entry:
    channel: str
    value: str
    once: Once | None
    given_up_at: float
    outcome: asyncio.Future[Published]

    @property
    def size(self) -> int:
        return len(self.value)


class Publisher:
    """See the module's docstring. ``fetch`` runs a statement; ``timeout`` is in seconds."""

    def __init__(
        self, fetch: Fetch, notify_channel: str, large_channel: str, *, timeout: float
    ) -> None:
        self._fetch = fetch
        self._channels = (notify_channel, large_channel)
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def publish(self, channel: str, value: bytes, once: Once | None) -> Published:
        """Store and announce. Raises StoreUnavailable and IdempotencyConflict."""
        if self._task.done():
            raise StoreUnavailable("the store is closed")
        if (
            len(self._waiting) >= MAX_WAITING_MESSAGES
            or self._waiting_bytes + len(value) > MAX_WAITING_BYTES
        ):
            raise StoreUnavailable("too many messages wait for the server")
        outcome: asyncio.Future[Published] = self._loop.create_future()
        given_up_at = self._loop.time() + self._timeout
        entry = _Entry(channel, value.decode(), once, given_up_at, outcome)
        self._waiting.append(entry)
        self._waiting_bytes += entry.size
        self._wake.set()
        return await outcome

    async def close(self) -> None:
        """Publish nothing more; what waits fails."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail(self._take_all(), StoreUnavailable("the store is closed"))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while group := self._take_group():
                try:
                    await self._publish(group)
                except StoreUnavailable as error:
                    # Whoever waits behind them would wait for the same.
                    self._fail([*group, *self._take_all()], error)
                except asyncio.CancelledError:
                    self._fail(group, StoreUnavailable("the store is closed"))
                    raise
                except Exception:
                    _log.exception("messages could not be published")
                    self._fail(group, StoreUnavailable("an internal error"))

    def _take_group(self) -> list[_Entry]:
        """The entries that go next. A `Once` that comes twice goes into two groups."""
        group: list[_Entry] = []
        slots: set[bytes] = set()
        size = 0
        now = self._loop.time()
        while self._waiting and len(group) < MAX_GROUP_MESSAGES:
            entry = self._waiting[0]
            if group and size + entry.size > MAX_GROUP_BYTES:
                break
            if entry.once is not None and entry.once.slot in slots:
                break
            self._waiting.popleft()
            self._waiting_bytes -= entry.size
            if entry.outcome.done():
                continue  # its caller was cancelled
            if now > entry.given_up_at:
                self._fail([entry], StoreUnavailable("the server does not keep up"))
                continue
            group.append(entry)
            size += entry.size
            if entry.once is not None:
                slots.add(entry.once.slot)
        return group

    async def _publish(self, group: Sequence[_Entry]) -> None:
        try:
            await (self._store if any(each.once for each in group) else self._store_plain)(group)
        except StoreRefused as error:
            # Nothing of the group was stored; one of them is to blame.
            if len(group) == 1:
                self._fail(group, error)
                return
            for each in group:
                await self._publish([each])

    async def _store_plain(self, group: Sequence[_Entry]) -> None:
        rows = await self._fetch(
            statements.PUBLISH,
            *self._channels,
            [each.channel for each in group],
            [each.value for each in group],
        )
        for entry, row in zip(group, rows, strict=True):
            _settle(entry, Published(row["id"], row["id"]))

    async def _store(self, group: Sequence[_Entry]) -> None:
        rows = await self._fetch(
            statements.PUBLISH_ONCE,
            *self._channels,
            [each.channel for each in group],
            [each.value for each in group],
            [None if each.once is None else each.once.slot for each in group],
            [None if each.once is None else each.once.fingerprint for each in group],
        )
        for entry, row in zip(group, rows, strict=True):
            if entry.once is not None and row["fingerprint"] != entry.once.fingerprint:
                self._fail([entry], IdempotencyConflict())
            else:
                _settle(entry, Published(row["id"], row["id"], row["repeated"]))

    def _take_all(self) -> list[_Entry]:
        entries = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return entries

    def _fail(self, entries: Sequence[_Entry], error: Exception) -> None:
        for each in entries:
            if not each.outcome.done():
                each.outcome.set_exception(error)


def _settle(entry: _Entry, published: Published) -> None:
    if not entry.outcome.done():
        entry.outcome.set_result(published)
