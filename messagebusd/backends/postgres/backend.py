"""The store in PostgreSQL, its table shared with Ruby processes. Its own traits:

* one id serves as message id and as global id: ids of a channel ascend, with gaps, and never start
  from 1 again
* messages become too old one by one, ``max_backlog_age`` after each was stored; a channel whose
  messages are all gone keeps its last id as long as this process remembers it, and at most for
  that age after its latest message
* the global backlog is the table: what leaves it leaves the channels' backlogs too, so that a quiet
  channel loses its messages to busy ones
* trimming follows a publish within a moment; until then reads return what is there
* Ruby processes store, notify and commit out of order. A message of theirs that is committed
  `listener.HOLD_BACK_SECONDS` later than one with a higher id, on the same channel, is not
  announced, and a client that has read the higher one does not get it
* an announcement of an id that was never given out is ignored, and so is one that cannot be read
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import asyncpg

from messagebusd.backends.base import (
    Backend,
    Backlog,
    ChannelInfo,
    Listener,
    Observer,
    Once,
    Published,
    Retention,
)
from messagebusd.backends.keepalive import Keepalive
from messagebusd.backends.postgres import statements
from messagebusd.backends.postgres.errors import describe, is_passing
from messagebusd.backends.postgres.listener import Subscriber
from messagebusd.backends.postgres.notices import large_channel
from messagebusd.backends.postgres.pool import Pool, connect
from messagebusd.backends.postgres.publisher import Publisher
from messagebusd.backends.postgres.rows import Rows
from messagebusd.backends.postgres.schema import require_tables
from messagebusd.backends.postgres.sharing import SharedLookups, SharedReads
from messagebusd.backends.postgres.trimming import Trimmer
from messagebusd.backends.publish_times import PublishTimes
from messagebusd.errors import IdempotencyConflict, StoreUnavailable
from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.channels import KEEPALIVE_CHANNEL, qualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.stored import JSON, EnvelopeCodec
from messagebusd.settings.backend import PostgresSettings

T = TypeVar("T")

# Between two attempts to find another server, or a table that was made anew.
LOOK_ANEW_SECONDS = 2.0
_CHANGES = (asyncpg.ReadOnlySQLTransactionError, asyncpg.UndefinedTableError)
# How long opening is tried for, in timeouts, and the pause between two attempts.
OPEN_TIMEOUTS = 3
OPEN_PAUSE_SECONDS = 0.2
# A read that many share may have to wait for the one before it.
CROWD_TIMEOUTS = 3


class PostgresBackend(Backend):
    """See the module's docstring. ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        retention: Retention,
        settings: PostgresSettings,
        observer: Observer,
        *,
        keepalive_interval: float,
        codec: EnvelopeCodec = JSON,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention = retention
        self._settings = settings
        self._observer = observer
        self._encode, self._rows = codec.encode, Rows(codec.decode, observer)
        self._clock = clock
        self._listener: Listener | None = None
        self._publish_times = PublishTimes(clock)
        self._looked_anew_at = float("-inf")
        self._last_ids = SharedLookups(self._read_last_ids)
        self._backlogs = SharedReads(self._read_backlog)
        self._keepalive = Keepalive(
            self.publish, interval=keepalive_interval, timeout=3 * settings.timeout, clock=clock
        )

    @property
    def is_hearing(self) -> bool:
        return self._subscriber.is_hearing

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + OPEN_TIMEOUTS * self._settings.timeout
        while True:
            try:
                return await self._open()
            except StoreUnavailable as error:
                if not is_passing(error) or loop.time() >= give_up_at:
                    raise StoreUnavailable(f"PostgreSQL cannot be used: {error}") from None
                await asyncio.sleep(OPEN_PAUSE_SECONDS)

    async def _open(self) -> None:
        settings = self._settings
        self._pool = Pool(
            lambda: connect(settings, settings.url),
            # Trimming may hold one of them for a while.
            max(2, settings.pool_size - 1),
            settings.timeout,
            self._on_failure,
        )
        # Publishes have a connection of their own: reading does not hold them up.
        self._publishing = Pool(
            lambda: connect(settings, settings.url), 1, settings.timeout, self._on_failure
        )
        self._subscriber = Subscriber(
            self._connect_directly,
            settings.notify_channel,
            self._observer,
            self._rows,
            timeout=settings.timeout,
            on_message=self._on_message,
            clock=self._clock,
        )
        self._subscriber.listener = self._listener
        self._trimmer = Trimmer(self._pool.fetch, self._retention)
        self._publisher = Publisher(
            self._publishing.fetch_unshielded,
            settings.notify_channel,
            large_channel(settings.notify_channel),
            timeout=settings.timeout,
        )
        try:
            await self._subscriber.start()
            await self._pool.fetch(statements.POSITION)
        except BaseException:
            await self.close()
            raise
        self._trimmer.start()
        self._keepalive.start(lambda: self._subscriber.reconnect("announcements do not come back"))

    async def close(self) -> None:
        await self._keepalive.stop()
        await self._publisher.close()
        await self._trimmer.close()
        await self._last_ids.close()
        await self._backlogs.close()
        await self._subscriber.stop()
        await self._publishing.close()
        await self._pool.close()

    def subscribe(self, listener: Listener) -> None:
        self._listener = listener

    async def publish(self, publication: Publication, once: Once | None = None) -> Published:
        name = qualify(publication.channel, publication.site_id)
        envelope = self._encode(publication.data, publication.audience)
        self._publish_times.note(name, publication.data)
        published = await self._publisher.publish(name, envelope, once)
        if not published.repeated:
            self._trimmer.note(
                name,
                published.message_id,
                publication.max_backlog_size,
                publication.max_backlog_age,
            )
        return published

    async def claim(self, once: Once) -> None:
        (row,) = await self._publishing.fetch(statements.CLAIM, once.slot, once.fingerprint)
        if row["fingerprint"] != once.fingerprint:
            raise IdempotencyConflict

    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        if not channels:
            return {}
        try:
            async with asyncio.timeout(CROWD_TIMEOUTS * self._settings.timeout):
                return await self._last_ids.get(channels)
        except TimeoutError:
            raise StoreUnavailable("too many reads wait for the server") from None

    async def backlog(
        self, channel: str, after_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        return await self._backlogs.get((channel, after_id, max_messages, max_bytes))

    async def lookback(self, channel: str, count: int) -> int:
        rows = await self._read(
            lambda last_id: self._pool.fetch(
                statements.LOOKBACK, channel, last_id, min(count, statements.LAST_ID)
            ),
            _highest,
        )
        return int(rows[0]["id"])

    async def global_backlog(
        self, after_global_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        return await self._page(statements.GLOBAL_PAGE, after_global_id, max_messages, max_bytes)

    async def last_global_id(self) -> int:
        async def read(last_id: int) -> int:
            (row,) = await self._pool.fetch(statements.POSITION)
            return min(int(row["stored"]), last_id)

        # What is trimmed away was announced before.
        return max(await self._read(read, int), self._subscriber.order.seen)

    async def message(self, channel: str, message_id: int) -> Message | None:
        if message_id > statements.LAST_ID:
            return None
        rows = await self._read(
            lambda last_id: self._pool.fetch(statements.MESSAGE, channel, message_id, last_id),
            _highest,
        )
        messages = self._rows.messages(rows)
        return messages[0] if messages else None

    async def delete_backlog(self, channel: str) -> None:
        await self.last_ids([channel])  # is remembered
        await self._pool.fetch(statements.DELETE_BACKLOG, channel)

    async def channels(self, after: str, limit: int) -> Sequence[ChannelInfo]:
        """See `Backend`. Looks at every row of the table."""
        rows = await self._pool.fetch(statements.CHANNELS, after, limit)
        return [
            ChannelInfo(row["channel"], row["id"], row["messages"], row["bytes"]) for row in rows
        ]

    async def check(self) -> None:
        await self._pool.fetch(statements.POSITION)
        await self._keepalive.prove()

    async def trim(self) -> None:
        """Drop now what would be dropped within a minute. Raises StoreUnavailable."""
        await self._trimmer.trim()

    # -- inside ------------------------------------------------------------------------------

    async def _read_last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        rows = await self._read(
            lambda last_id: self._pool.fetch(statements.LAST_IDS, channels, last_id), _highest
        )
        return {name: self._last_id(name, last_id) for name, last_id in rows}

    async def _read_backlog(self, part: tuple[str, int, int, int]) -> Backlog:
        channel, after_id, max_messages, max_bytes = part
        return await self._page(statements.CHANNEL_PAGE, after_id, max_messages, max_bytes, channel)

    async def _connect_directly(self) -> asyncpg.Connection:
        settings = self._settings
        connection = await connect(settings, settings.listen_url or settings.url)
        try:
            await require_tables(connection, create=settings.create_schema)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _on_message(self, message: Message) -> None:
        """See a message before it is announced."""
        if message.channel == KEEPALIVE_CHANNEL:
            self._keepalive.saw(message)
        self._publish_times.mark(message)

    def _on_failure(self, error: BaseException) -> None:
        """Look for the server, or for the table, anew where that may help."""
        if not isinstance(
            error, (asyncpg.ReadOnlySQLTransactionError, asyncpg.UndefinedTableError)
        ):
            return
        now = self._clock()
        if now >= self._looked_anew_at + LOOK_ANEW_SECONDS:
            self._looked_anew_at = now
            self._pool.refresh()
            self._publishing.refresh()
            self._subscriber.reconnect(describe(error))

    def _last_id(self, channel: str, stored: int) -> LastId:
        """The last id of a channel, which does not fall when its messages are trimmed away."""
        now = self._clock()
        order = self._subscriber.order
        latest = order.latest(channel)
        if latest is None or now - latest.at >= self._retention.max_backlog_age:
            last_id = stored
        else:
            last_id = max(stored, latest.id)
        if last_id:
            order.remember_read(channel, last_id, now)
        return LastId(last_id, last_id)

    async def _page(
        self, query: str, after_id: int, max_messages: int, max_bytes: int, *more: object
    ) -> Backlog:
        """One page; where all of its rows are unreadable, the next one."""
        messages: list[Message] = []
        has_more = after_id < statements.LAST_ID
        while has_more and not messages:
            bounds = (max_messages, max_bytes, *more)
            rows = await self._read(partial(self._fetch_page, query, after_id, bounds), _highest)
            messages = self._rows.messages(rows[:max_messages])
            has_more = bool(rows) and rows[0]["all"] > min(len(rows), max_messages)
            after_id = rows[:max_messages][-1]["id"] if rows else after_id
        for index, message in enumerate(messages):
            max_bytes -= len(message.encoded)
            if max_bytes < 0 and index:
                return Backlog(messages[:index], True)
        return Backlog(messages, has_more)

    def _fetch_page(
        self, query: str, after_id: int, bounds: tuple[object, ...], last_id: int
    ) -> Awaitable[Sequence[Any]]:
        return self._pool.fetch(query, after_id, last_id, *bounds)

    async def _read(self, read: Callable[[int], Awaitable[T]], highest: Callable[[T], int]) -> T:
        """Read up to an id; return nothing that has not been announced: the read barrier.

        A read that has seen more waits until that was announced, and is then done again: a message
        with a lower id may have been committed and announced meanwhile, which it had not seen.
        """
        subscriber = self._subscriber
        epoch, seen = subscriber.epoch, subscriber.order.seen
        result = await read(statements.LAST_ID)
        if highest(result) > seen:
            seen = await subscriber.reached(highest(result))
            result = await read(seen)
        if subscriber.epoch != epoch:
            raise StoreUnavailable("the store has begun anew")
        return result


def _highest(rows: Sequence[Any]) -> int:
    return max((int(row["id"]) for row in rows), default=0)
