"""The bus of one worker: publish, and catch a poll up with its channels.

Floor 3: knows the store's contract and the hub, no HTTP. Every door publishes through `publish`.
It is the store's listener, and hands on to the hub what is not for the daemons themselves.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from messagebusd.backends.base import Backend, Once, Published
from messagebusd.connection import Connection
from messagebusd.control import Command, read_command
from messagebusd.hub import Hub
from messagebusd.known_ids import KnownIds
from messagebusd.metrics import Metrics
from messagebusd.outage import OutageQueue
from messagebusd.protocol import catchup, wire
from messagebusd.protocol.catchup import LastId, Position
from messagebusd.protocol.channels import CONTROL_CHANNEL, qualify, unqualify
from messagebusd.protocol.message import Id, Message
from messagebusd.protocol.publication import Publication

# Messages read from the store at a time, and in one turn of the loop.
PAGE_MESSAGES = 500
# A poll that reads for longer is answered with what it has: it must be answered in time, and if it
# were refused, its next one would not get any further.
READING_SECONDS = 0.9

Forget = Callable[[Id | None, str | None], object]


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

    def go_beyond(self, positions: Mapping[str, Position]) -> bool:
        """Whether a client that asked from these positions (unqualified names) has got anywhere.

        To be told a position that it asked for, or that its own was ahead, is nothing new.
        """
        if self.messages:
            return True
        for channel, last_id in self.status.items():
            position = positions.get(channel)
            if position is not None and 0 <= position < last_id:
                return True
        return False

    def array(self) -> bytes:
        """As one JSON array, the status last."""
        if not self:
            return wire.EMPTY_ARRAY
        encoded = [each.encoded for each in self.messages]
        if self.status:
            encoded.append(wire.status_message(self.status))
        return wire.array(encoded)


# Of polls that have missed nothing, which most have.
NO_NEWS = News()


class MessageBus:
    """See the module's docstring. ``max_backlog_bytes`` bounds one answer, ``max_waiting`` the
    messages that wait while the store is away. ``forget`` is told of which user at which site
    nothing may be used any more that was found out before; None is any. ``clock`` is monotonic."""

    def __init__(
        self,
        backend: Backend,
        hub: Hub,
        metrics: Metrics,
        *,
        max_backlog_bytes: int,
        max_waiting: int = 1000,
        forget: Forget = lambda user_id, site_id: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.hub = hub
        self.max_backlog_bytes = max_backlog_bytes
        self._metrics = metrics
        self._forget = forget
        self._outage = OutageQueue(self._store, max_waiting)
        self._clock = clock
        self._known = KnownIds(clock)
        self._name = secrets.token_hex(8)
        metrics.waiting_messages.set_function(lambda: len(self._outage))
        backend.subscribe(self)

    async def publish(self, publication: Publication, once: Once | None = None) -> Published | None:
        """Store and announce a message that passed the rules.

        None if it waits for the store to come back, which its publisher has to allow. Raises
        StoreUnavailable and IdempotencyConflict.
        """
        return await self._outage.publish(publication, once)

    async def publish_all(
        self, publications: Sequence[tuple[Publication, Once | None]]
    ) -> list[Published | Exception | None]:
        """The same for several, in order: what it returned or raised for each of them.

        One that fails does not stop those behind it.
        """
        if not publications:
            return []
        may_wait = bool(self._outage) or any(each.queue_in_memory for each, _ in publications)
        if may_wait or not self.backend.is_immediate:
            # Together, so that they share the way to the store: it keeps their order.
            return await asyncio.gather(*(self._outcome(*each) for each in publications))
        found: list[Published | Exception | None] = []
        with self._metrics.store_operation("publish", len(publications)) as operation:
            for publication, once in publications:
                try:
                    found.append(await self.backend.publish(publication, once))
                except Exception as error:
                    operation.failed(error)
                    found.append(error)
        return found

    async def _outcome(
        self, publication: Publication, once: Once | None
    ) -> Published | Exception | None:
        try:
            return await self.publish(publication, once)
        except Exception as error:
            return error

    async def _store(self, publication: Publication, once: Once | None) -> Published:
        with self._metrics.store_operation("publish"):
            published = await self.backend.publish(publication, once)
        if not self.backend.is_immediate:
            channel = qualify(publication.channel, publication.site_id)
            self._known.published(channel, published.global_id)
        return published

    async def claim(self, once: Once) -> None:
        """See `Backend.claim`."""
        with self._metrics.store_operation("publish"):
            await self.backend.claim(once)

    async def end_polls(
        self,
        op: Literal["disconnect", "invalidate"],
        *,
        client_id: str | None = None,
        user_id: Id | None = None,
        site_id: str | None = None,
    ) -> int:
        """End polls here and in every other process; how many those were here.

        To invalidate is also to forget who these are: first, so that a poll that comes back meets
        nothing of before. Raises StoreUnavailable, having done it here.
        """
        command = Command(
            op=op, origin=self._name, client_id=client_id, user_id=user_id, site_id=site_id
        )
        ended = self._obey(command)
        await self._store(command.publication(), None)
        return ended

    async def close(self, seconds: float) -> None:
        """Give messages that wait for the store so many seconds."""
        await self._outage.close(seconds)

    # -- the store's listener ----------------------------------------------------------------

    def dispatch(self, messages: Sequence[Message]) -> None:
        """Hand the hub its messages, and obey commands."""
        if not self.backend.is_hearing:
            self._known.clear()
        elif not self.backend.is_immediate:
            self._known.announced(messages)
        for message in messages:
            if message.stored_channel == CONTROL_CHANNEL:
                command = read_command(message)
                if command is not None and command.origin != self._name:
                    self._obey(command)
        self.hub.dispatch(messages)

    def _obey(self, command: Command) -> int:
        if command.op == "invalidate":
            self._forget(command.user_id, command.site_id)
        return self.hub.close_matching(
            command.includes, client_id=command.client_id, user_id=command.user_id
        )

    def channels(self) -> Collection[str]:
        """The channels that somebody waits for, this bus included."""
        return self.hub.channels() | {CONTROL_CHANNEL}

    def interrupted(self) -> None:
        """See `Listener`. After a long break commands may have expired, too: forget everybody."""
        self._known.clear()
        self._forget(None, None)
        self.hub.interrupted()

    def restarted(self, channels: Collection[str]) -> None:
        """See `Listener`. What the store has lost may have been commands."""
        self._known.clear()
        self._forget(None, None)
        self.hub.restarted(channels)

    # -- polls -------------------------------------------------------------------------------

    async def check(self) -> None:
        """Prove that the store works. Raises StoreUnavailable."""
        with self._metrics.store_operation("check"):
            await self.backend.check()

    async def attach(
        self, connection: Connection, positions: Sequence[Position], *, will_park: bool = False
    ) -> News:
        """Find out what a poll has missed, and register it before others have their turn.

        ``positions`` go with ``connection.channels``. On return, without another await, either park
        it or remove it: a store that is immediate was read in one go, and nobody knows the poll.
        Where the news are truncated it must end after them: live messages may be beyond a part of
        the backlog that it has not seen. The same goes for a poll that was cut short, whose news
        have no messages. Raises StoreUnavailable, having removed it.

        ``will_park`` says that the poll parks if it has missed nothing, so that messages which are
        on their way to this worker need not be in what it is told first.
        """
        began = self.hub.turn
        if will_park and self._is_up_to_date(connection.channels, positions):
            connection.settle({})
            self.hub.recent.caught_up(connection, positions, began)
            return NO_NEWS
        if not self.backend.is_immediate:
            self.hub.add(connection)
        try:
            with self._metrics.store_operation("read"):
                last_ids = await self.backend.last_ids(connection.channels)
                if self._is_current(connection):
                    self._known.read(last_ids)
                asked = zip(connection.channels, positions, strict=True)
                plan = catchup.plan(asked, last_ids)
                if plan.replays or connection.has_heard:
                    catch_up = _CatchUp(
                        self.backend, connection, last_ids, self.max_backlog_bytes, self._clock
                    )
                    news = await catch_up.run(plan)
                    self.hub.recent.caught_up(connection, positions, began, news.truncated)
                    return news
        except BaseException:
            self.hub.remove_unanswered(connection)
            raise
        connection.settle({})
        self.hub.recent.caught_up(connection, positions, began)
        return News(status=_unqualified(plan.status)) if plan.status else NO_NEWS

    def _is_current(self, connection: Connection) -> bool:
        """Whether what a poll has read of the last ids is no older than what was announced."""
        return (
            self.backend.is_hearing and not self.backend.is_immediate and not connection.has_heard
        )

    def _is_up_to_date(self, channels: Sequence[str], positions: Sequence[Position]) -> bool:
        """Whether these are known to be the last ids, and what comes after them will be heard."""
        return self.backend.is_hearing and self._known.are(channels, positions)


class _CatchUp:
    """One poll's reading of the backlog: bounded in time and in bytes, hidden messages included."""

    def __init__(
        self,
        backend: Backend,
        connection: Connection,
        last_ids: Mapping[str, LastId],
        max_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._bytes_left = max_bytes
        self._clock = clock
        self._until = clock() + READING_SECONDS
        self._news = News()
        # Up to which message id each channel has been read, or need not be; and global id.
        self._reached = {channel: last.message_id for channel, last in last_ids.items()}
        self._read_to = {channel: last.global_id for channel, last in last_ids.items()}
        self._read_in_this_turn = 0

    async def run(self, plan: catchup.Plan) -> News:
        """Read what is planned, then add what came in meanwhile."""
        connection, news = self._connection, self._news
        status = plan.status
        for replay in plan.replays:
            if self._is_enough:
                news.truncated = True
                break
            if await self._replay(replay):
                status[replay.channel] = self._reached[replay.channel]
        if connection.is_cut_short:
            return News(status=connection.withheld_status(), truncated=True)
        if connection.overflowed:
            news.truncated = True
        if not news.truncated:
            live = connection.settle(self._read_to)
            for message in live:
                status.pop(message.stored_channel, None)
            news.messages += live
        news.status = _unqualified(status)
        return news

    @property
    def _is_enough(self) -> bool:
        """Whether what has been read is to be answered, and the next poll goes on."""
        return self._bytes_left <= 0 or self._clock() >= self._until

    async def _replay(self, replay: catchup.Replay) -> bool:
        """Read one channel's part, page by page; whether some of it was hidden."""
        channel, after_id = replay.channel, replay.after_id
        if replay.lookback is not None:
            after_id = await self._backend.lookback(channel, replay.lookback)
        more, hidden = True, False
        while more:
            page, more = await self._backend.backlog(
                channel, after_id, max_messages=PAGE_MESSAGES, max_bytes=self._bytes_left
            )
            if page:
                after_id = page[-1].message_id
                newest = max([each.global_id for each in page])
                self._read_to[channel] = max(self._read_to[channel], newest)
                self._bytes_left -= sum([len(each.encoded) for each in page])
                visible = self._connection.visible(page)
                self._news.messages += visible
                hidden = hidden or len(visible) < len(page)
            await self._give_way(len(page))
            if self._is_enough:
                break
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
            self._connection.register()
            await asyncio.sleep(0)


def _unqualified(status: Mapping[str, int]) -> dict[str, int]:
    return {unqualify(name)[0]: last_id for name, last_id in status.items()}
