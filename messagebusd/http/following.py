"""What a server-side subscription follows: some channels, or all of them.

Both kinds work alike. First the subscription's `Inbox` is registered with the hub, so that nothing
published from then on is missed; then `start` finds out what the subscriber has to be told and
`replay` reads what it has missed; last come the live messages, of which `is_news` leaves out
those that the replay has brought already.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from messagebusd.backends.base import Backend
from messagebusd.metrics import Metrics
from messagebusd.protocol import catchup, wire
from messagebusd.protocol.catchup import LastId, Position, Replay
from messagebusd.protocol.channels import (
    CONTROL_CHANNEL,
    GLOBAL_PREFIX,
    KEEPALIVE_CHANNEL,
    STATUS_CHANNEL,
)
from messagebusd.protocol.message import Message

PAGE_MESSAGES = 500
PAGE_BYTES = 1024 * 1024
# What a message that waits takes besides its encoded form.
MESSAGE_OVERHEAD_BYTES = 200


class Ending(enum.Enum):
    """Why a subscription ends; the values are the codes of its last line."""

    OVERFLOW = "overflow"
    DRAINING = "draining"
    INTERRUPTED = "interrupted"
    UNAUTHORIZED = "unauthorized"
    STORE_UNAVAILABLE = "store_unavailable"
    INTERNAL_ERROR = "internal_error"


class Inbox:
    """The hub's end of a subscription: what came in and was not yet written (`feeds.Feed`).

    Above ``max_bytes`` it takes no more and ends; what it has so far is in order and without a
    hole, and the subscriber continues after that.
    """

    def __init__(
        self,
        max_bytes: int,
        wants: Callable[[Message], bool] | None,
        *,
        by_global_id: bool = False,
    ) -> None:
        self._max_bytes = max_bytes
        self._wants = wants
        # Who resumes by one global id cannot be given what comes below one they have.
        self._by_global_id = by_global_id
        self._last_global_id = 0
        self._is_live = False
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._something = asyncio.Event()
        self.ending: Ending | None = None

    def offer(self, messages: Sequence[Message]) -> None:
        """Take some news."""
        if self.ending is not None:
            return
        wants = self._wants
        for message in messages:
            if wants is not None and not wants(message):
                continue
            if self._by_global_id:
                if message.global_id <= self._last_global_id:
                    continue
                self._last_global_id = message.global_id
            self._bytes += _size(message)
            if self._bytes > self._max_bytes:
                self._finish(Ending.OVERFLOW)
                return
            self._messages.append(message)
        self._something.set()

    def interrupt(self) -> None:
        """Something was missed here: only the store knows."""
        self._finish(Ending.INTERRUPTED)

    def restart(self) -> None:
        """Ids of a channel that is followed began anew: what is replayed may be of either."""
        if not self._is_live:
            self._finish(Ending.INTERRUPTED)

    def end(self) -> None:
        """The daemon is about to stop."""
        self._finish(Ending.DRAINING)

    def take(self, max_bytes: int) -> list[Message]:
        """The oldest messages that wait, up to this size, but at least one if there is one."""
        taken: list[Message] = []
        while self._messages and max_bytes > 0:
            message = self._messages.popleft()
            size = _size(message)
            self._bytes -= size
            max_bytes -= size
            taken.append(message)
        return taken

    def keep_only(self, is_news: Callable[[Message], bool]) -> None:
        """Go live: forget what the replay has brought already."""
        self._is_live = True
        self._messages = deque(each for each in self._messages if is_news(each))
        self._bytes = sum(map(_size, self._messages))

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to do, or for so long."""
        if self._messages or self.ending is not None:
            return
        self._something.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._something.wait()
        except TimeoutError:
            pass

    def _finish(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
        self._something.set()


def _size(message: Message) -> int:
    return len(message.encoded) + MESSAGE_OVERHEAD_BYTES


class Store:
    """The reads that subscriptions need, measured. All raise StoreUnavailable."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics

    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        with self._metrics.store_operation("read"):
            return await self._backend.last_ids(channels)

    async def last_global_id(self) -> int:
        with self._metrics.store_operation("read"):
            return await self._backend.last_global_id()

    async def backlog(self, channel: str, after_id: int) -> tuple[Sequence[Message], bool]:
        with self._metrics.store_operation("read"):
            return await self._backend.backlog(
                channel, after_id, max_messages=PAGE_MESSAGES, max_bytes=PAGE_BYTES
            )

    async def lookback(self, channel: str, count: int) -> int:
        with self._metrics.store_operation("read"):
            return await self._backend.lookback(channel, count)

    async def global_backlog(self, after_id: int) -> tuple[Sequence[Message], bool]:
        with self._metrics.store_operation("read"):
            return await self._backend.global_backlog(
                after_id, max_messages=PAGE_MESSAGES, max_bytes=PAGE_BYTES
            )


class Following(Protocol):
    """See the module's docstring."""

    @property
    def channels(self) -> frozenset[str] | None:
        """The stored names that are followed, None for all."""

    def wants(self, message: Message) -> bool:
        """Whether a message of these channels is meant."""

    async def start(self, store: Store) -> bytes | None:
        """Compare the positions with the store; the status to begin with, if one is due."""

    def replay(self, store: Store) -> AsyncGenerator[Sequence[Message], None]:
        """What was missed, page by page."""

    def is_news(self, message: Message) -> bool:
        """Whether a message that came in meanwhile was not in the replay."""

    def event_id(self, message: Message) -> int | None:
        """The position from which to resume after this message, if one number can say it."""

    def status_id(self) -> int | None:
        """The same after the status."""


class Channels:
    """Some channels, each from its own position (SPEC 2.2).

    ``names`` maps stored names to the channels that were asked for.
    """

    def __init__(self, names: Mapping[str, str], positions: Mapping[str, Position]) -> None:
        self._names = names
        self._positions = positions
        self._replays: Sequence[Replay] = ()
        # Up to where each channel has been read, or need not be.
        self._reached: dict[str, LastId] = {}

    @property
    def channels(self) -> frozenset[str]:
        return frozenset(self._names)

    def wants(self, message: Message) -> bool:
        return True

    async def start(self, store: Store) -> bytes | None:
        last_ids = await store.last_ids(tuple(self._names))
        plan = catchup.plan(self._positions.items(), last_ids)
        self._replays = plan.replays
        self._reached = dict(last_ids)
        if not plan.status:
            return None
        return wire.status_message({self._names[name]: at for name, at in plan.status.items()})

    async def replay(self, store: Store) -> AsyncGenerator[Sequence[Message], None]:
        for channel, after_id, lookback in self._replays:
            if lookback is not None:
                after_id = await store.lookback(channel, lookback)
            more = True
            while more:
                page, more = await store.backlog(channel, after_id)
                if page:
                    after_id = page[-1].message_id
                    reached = self._reached[channel]
                    self._reached[channel] = LastId(
                        max(reached.message_id, after_id),
                        max(reached.global_id, page[-1].global_id),
                    )
                    yield page

    def is_news(self, message: Message) -> bool:
        return message.global_id > self._reached[message.stored_channel].global_id

    def event_id(self, message: Message) -> int | None:
        return message.message_id if len(self._names) == 1 else None

    def status_id(self) -> int | None:
        return next(iter(self._reached.values())).message_id if len(self._names) == 1 else None


class Everything:
    """All channels from a global id on, perhaps of one site only.

    Positions are those of SPEC 2.2 as far as they make sense: an id, -1, or None.
    """

    def __init__(self, site_id: str | None, position: Position) -> None:
        self._site_id = site_id
        self._position = position
        self._reached = 0
        self._is_behind = False

    @property
    def channels(self) -> None:
        return None

    def wants(self, message: Message) -> bool:
        if message.channel in (KEEPALIVE_CHANNEL, CONTROL_CHANNEL):
            return False
        return (
            self._site_id is None
            or message.site_id == self._site_id
            or message.channel.startswith(GLOBAL_PREFIX)
        )

    async def start(self, store: Store) -> bytes | None:
        last_id = await store.last_global_id()
        position = self._position
        self._is_behind = position is not None and 0 <= position < last_id
        self._reached = position if self._is_behind and position is not None else last_id
        if position is None or 0 <= position <= last_id:
            return None
        return b'{"global_id":%d,"message_id":-1,"channel":%b,"data":{}}' % (
            last_id,
            msgspec.json.encode(STATUS_CHANNEL),
        )

    async def replay(self, store: Store) -> AsyncGenerator[Sequence[Message], None]:
        more = self._is_behind
        while more:
            page, more = await store.global_backlog(self._reached)
            if page:
                self._reached = page[-1].global_id
                if wanted := [each for each in page if self.wants(each)]:
                    yield wanted

    def is_news(self, message: Message) -> bool:
        return message.global_id > self._reached

    def event_id(self, message: Message) -> int:
        return message.global_id

    def status_id(self) -> int:
        return self._reached
