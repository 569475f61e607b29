"""The bus of one worker: publish, and catch a poll up with its channels.

Floor 3: knows the store's contract and the hub, no HTTP. Every door publishes through `publish`.
"""

from __future__ import annotations

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

# Messages read from the store at a time while catching up.
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
                return await self._catch_up(connection, positions)
        except BaseException:
            self.hub.remove_unanswered(connection)
            raise

    async def _catch_up(self, connection: Connection, positions: Sequence[Position]) -> News:
        channels = connection.channels
        news = News()
        if not channels:
            connection.settle({})
            return news
        last_ids = await self.backend.last_ids(channels)
        plan = catchup.plan(zip(channels, positions, strict=True), last_ids)
        reached = dict(last_ids)
        status = plan.status
        budget = self.max_backlog_bytes
        for replay in plan.replays:
            if budget <= 0:
                news.truncated = True
                break
            budget = await self._replay(connection, replay, budget, news, reached, status)
        if connection.overflowed:
            news.truncated = True
        if not news.truncated:
            live = connection.settle(reached)
            for message in live:
                status.pop(message.stored_channel, None)
            news.messages += live
        news.status = {unqualify(name)[0]: last_id for name, last_id in status.items()}
        return news

    async def _replay(
        self,
        connection: Connection,
        replay: catchup.Replay,
        budget: int,
        news: News,
        reached: dict[str, int],
        status: dict[str, int],
    ) -> int:
        """Read one channel's part of the backlog, page by page; the bytes left to spend."""
        channel, after_id = replay.channel, replay.after_id
        if replay.lookback is not None:
            after_id = await self.backend.lookback(channel, replay.lookback)
        more = True
        hidden = False
        while more and budget > 0:
            page, more = await self.backend.backlog(
                channel, after_id, max_messages=PAGE_MESSAGES, max_bytes=budget
            )
            for message in page:
                after_id = message.message_id
                if connection.may_see(message):
                    news.messages.append(message)
                    budget -= len(message.encoded)
                else:
                    hidden = True
        if more:
            # What was read is all this answer may say about the channel; the rest comes next.
            news.truncated = True
            reached[channel] = after_id
        else:
            # A message may have come after the last id was read: a status never steps back.
            reached[channel] = max(reached[channel], after_id)
        if hidden:
            status[channel] = reached[channel]
        return budget
