"""The bus of one worker: publish, and catch a poll up with its channels.

Floor 3: knows the store's contract and the hub, no HTTP. Every door publishes through `publish`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from messagebusd.backends.base import Backend, Published
from messagebusd.connection import Connection
from messagebusd.hub import Hub
from messagebusd.metrics import Metrics
from messagebusd.protocol import catchup, wire
from messagebusd.protocol.catchup import Position
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication

# Messages read from the store at a time, and in one turn of the loop.
PAGE_MESSAGES = 500


@dataclass(slots=True)
class News:
    """What a poll is told first: visible messages in order, then a status by channel.

    ``truncated`` says that the backlog goes on: the poll must be answered now, and its next one
    continues.
    """

    messages: list[Message] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)
    truncated: bool = False

    def __bool__(self) -> bool:
        return bool(self.messages or self.status)

    def array(self) -> bytes:
        """As one JSON array, the status last."""
        encoded = [each.encoded for each in self.messages]
        if self.status:
            encoded.append(wire.status_message(self.status))
        return wire.array(encoded)


class MessageBus:
    """See the module's docstring. ``max_backlog_bytes`` bounds one answer."""

    def __init__(
        self, backend: Backend, hub: Hub, metrics: Metrics, *, max_backlog_bytes: int
    ) -> None:
        self.backend = backend
        self.hub = hub
        self.max_backlog_bytes = max_backlog_bytes
        self._metrics = metrics
        backend.subscribe(hub.dispatch)

    async def publish(self, publication: Publication) -> Published:
        """Store and announce a message that passed the rules. Raises StoreUnavailable."""
        with self._metrics.store_operation("publish"):
            return await self.backend.publish(publication)

    async def check(self) -> None:
        """Prove that the store works. Raises StoreUnavailable."""
        with self._metrics.store_operation("check"):
            await self.backend.check()

    async def attach(self, connection: Connection, positions: Sequence[Position]) -> News:
        """Register a poll and find out what it has missed.

        ``positions`` go with ``connection.channels``. On return the connection is still registered:
        without another await, either park it or remove it. Where the news are truncated it must
        end after them: live messages may be beyond a part of the backlog that it has not seen.
        Raises StoreUnavailable, having removed it.
        """
        self.hub.add(connection)
        try:
            with self._metrics.store_operation("read"):
                return await _CatchUp(self.backend, connection, self.max_backlog_bytes).run(
                    positions
                )
        except BaseException:
            self.hub.remove_unanswered(connection)
            raise


class _CatchUp:
    """One poll's reading of the backlog: bounded in bytes, hidden messages included."""

    def __init__(self, backend: Backend, connection: Connection, max_bytes: int) -> None:
        self._backend = backend
        self._connection = connection
        self._bytes_left = max_bytes
        self._news = News()
        # Up to where each channel has been read, or need not be.
        self._reached: dict[str, int] = {}
        self._read_in_this_turn = 0

    async def run(self, positions: Sequence[Position]) -> News:
        """Read what the positions ask for, then add what came in meanwhile."""
        connection, news = self._connection, self._news
        last_ids = await self._backend.last_ids(connection.channels)
        plan = catchup.plan(zip(connection.channels, positions, strict=True), last_ids)
        self._reached.update(last_ids)
        status = plan.status
        for replay in plan.replays:
            if self._bytes_left <= 0:
                news.truncated = True
                break
            if await self._replay(replay):
                status[replay.channel] = self._reached[replay.channel]
        if connection.overflowed:
            news.truncated = True
        if not news.truncated:
            live = connection.settle(self._reached)
            for message in live:
                status.pop(message.stored_channel, None)
            news.messages += live
        news.status = {unqualify(name)[0]: last_id for name, last_id in status.items()}
        return news

    async def _replay(self, replay: catchup.Replay) -> bool:
        """Read one channel's part, page by page; whether some of it was hidden."""
        channel, after_id = replay.channel, replay.after_id
        if replay.lookback is not None:
            after_id = await self._backend.lookback(channel, replay.lookback)
        more, hidden = True, False
        while more and self._bytes_left > 0:
            page, more = await self._backend.backlog(
                channel, after_id, max_messages=PAGE_MESSAGES, max_bytes=self._bytes_left
            )
            for message in page:
                after_id = message.message_id
                self._bytes_left -= len(message.encoded)
                if self._connection.may_see(message):
                    self._news.messages.append(message)
                else:
                    hidden = True
            await self._give_way(len(page))
        if more:
            # What was read is all this answer may say about the channel; the rest comes next.
            self._news.truncated = True
            self._reached[channel] = after_id
        else:
            # A message may have come after the last id was read: a status never steps back.
            self._reached[channel] = max(self._reached[channel], after_id)
        return hidden

    async def _give_way(self, messages: int) -> None:
        """Let others have the loop between long reads."""
        self._read_in_this_turn += messages
        if self._read_in_this_turn >= PAGE_MESSAGES:
            self._read_in_this_turn = 0
            await asyncio.sleep(0)
