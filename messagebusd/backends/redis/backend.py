"""The store in Redis, in the layout of the Ruby library (`protocol.stored`), shared with it.

Its own traits:

* a channel is forgotten as a whole, its latest publish's age after that publish
* the global backlog's lifetime is never lowered by a short-lived message. It may outlive messages,
  or be shortened by Ruby processes
* members of a backlog above the channel's counter, or the global one, are left over from before the
  counter fell. They are not there for readers; and where several members have one id, only the
  newest is
* what the store has lost (a flush, a replica that was behind) is noticed by the global id, and by
  a mark of its own, ``__mb_messagebusd_life``
* ids above 2^53 are not counted right
"""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from messagebusd.backends.base import (
    ONCE_SECONDS,
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
from messagebusd.backends.publish_times import PublishTimes
from messagebusd.backends.redis.connection import Word
from messagebusd.backends.redis.history import History
from messagebusd.backends.redis.keys import Keys, count
from messagebusd.backends.redis.pages import bounded, names_after, surplus_of
from messagebusd.backends.redis.pipeline import BATCH_COMMANDS, Pipeline
from messagebusd.backends.redis.route import Route, Target
from messagebusd.backends.redis.scripts import BACKLOG, CLAIM, LOOKBACK, MISSED, PUBLISH
from messagebusd.backends.redis.subscriber import Subscriber
from messagebusd.errors import IdempotencyConflict, StoreUnavailable
from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.channels import KEEPALIVE_CHANNEL, escape, qualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.stored import JSON, EnvelopeCodec, decode_payload
from messagebusd.settings.backend import RedisSettings

# Opening takes several round trips; each has the timeout of the settings.
OPEN_STEPS = 5
# Listing channels walks over all keys of the database.
SCAN_SECONDS = 10.0
SCAN_COUNT = 1000
# Entries of the global backlog read at a time, for want of knowing how large their messages are.
FIRST_ENTRIES = 16
MAX_ENTRIES = 500
# Pages of backlogs that are asked for together.
PAGES_AT_A_TIME = 16
# More messages than any channel has.
MAX_COUNT = 2**31


class RedisBackend(Backend):
    """See the module's docstring. To be built in a running loop; ``clock`` is monotonic.

    Raises ConfigurationError if the settings cannot be used.
    """

    def __init__(
        self,
        retention: Retention,
        settings: RedisSettings,
        observer: Observer,
        *,
        keepalive_interval: float,
        codec: EnvelopeCodec = JSON,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        target = Target.from_settings(settings)
        route = Route(target, settings.timeout)
        keys = Keys(settings.key_prefix)
        pubsub_channel = settings.pubsub_channel
        if pubsub_channel is None:
            pubsub_channel = f"{settings.key_prefix}_message_bus_{target.database}"
        self._retention = retention
        self._timeout = settings.timeout
        self._observer = observer
        self._encode, self._decode = codec
        self._keys = keys
        self._pubsub_channel = pubsub_channel

        def pipeline(batch: int) -> Pipeline:
            return Pipeline(
                route,
                timeout=settings.timeout,
                on_elsewhere=self._start_over,
                batch=batch,
                clock=clock,
            )

        self._writing, self._reading = pipeline(BATCH_COMMANDS), pipeline(BATCH_COMMANDS)
        # Pages are large: what is quickly answered does not stand behind them.
        self._paging = pipeline(PAGES_AT_A_TIME)
        self._history = History(self._reading, keys, self._note_malformed, codec.decode)
        self._subscriber = Subscriber(
            route,
            self._history,
            pubsub_channel,
            observer,
            codec.decode,
            timeout=settings.timeout,
            on_message=self._notice,
            clock=clock,
        )
        self._keepalive = Keepalive(
            self.publish, interval=keepalive_interval, timeout=3 * settings.timeout, clock=clock
        )
        self._publish_times = PublishTimes(clock)

    @property
    def is_hearing(self) -> bool:
        return self._subscriber.is_hearing

    async def open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_STEPS * self._timeout):
                await self._reading.open()
                # Whether this is the right node of a cluster, should it be one.
                await self._reading.run("GET", self._keys.global_id)
                await self._writing.open()
                await self._reading.load(LOOKBACK, MISSED)
                await self._paging.open()
                await self._paging.load(BACKLOG)
                await self._writing.load(PUBLISH, CLAIM)
                await self._subscriber.start()
        except (StoreUnavailable, TimeoutError) as error:
            await self.close()
            reason = str(error) or "the server does not answer in time"
            raise StoreUnavailable(f"Redis cannot be used: {reason}") from None
        except BaseException:
            await self.close()
            raise
        self._keepalive.start(lambda: self._subscriber.reconnect("announcements do not come back"))

    async def close(self) -> None:
        await self._keepalive.stop()
        await self._subscriber.stop()
        await self._writing.close()
        await self._reading.close()
        await self._paging.close()

    def subscribe(self, listener: Listener) -> None:
        self._subscriber.listen(listener)

    # -- publishing --------------------------------------------------------------------------

    async def publish(self, publication: Publication, once: Once | None = None) -> Published:
        keys, retention = self._keys, self._retention
        channel = qualify(publication.channel, publication.site_id)
        size, age = publication.max_backlog_size, publication.max_backlog_age
        envelope = self._encode(publication.data, publication.audience)
        names: list[Word] = [
            keys.global_id,
            keys.channel_id(channel),
            keys.backlog(channel),
            keys.global_backlog,
        ]
        arguments: list[Word] = [
            self._pubsub_channel,
            b"%b|%b" % (escape(channel).encode(), envelope),
            channel,
            retention.max_backlog_age if age is None else age,
            retention.max_backlog_size if size is None else size,
            retention.max_global_backlog_size,
            retention.clear_every,
        ]
        if once is not None:
            names.append(keys.once(once))
            arguments += once.fingerprint.hex(), ONCE_SECONDS
        self._publish_times.note(channel, publication.data)
        answer = await self._writing.call(PUBLISH, names, arguments)
        if answer == b"CONFLICT":
            raise IdempotencyConflict
        return Published(answer[0], answer[1], len(answer) == 3)

    async def claim(self, once: Once) -> None:
        key = self._keys.once(once)
        if not await self._writing.call(CLAIM, (key,), (once.fingerprint.hex(), ONCE_SECONDS)):
            raise IdempotencyConflict

    def _notice(self, message: Message) -> None:
        """See an announcement before it is announced."""
        if message.channel == KEEPALIVE_CHANNEL:
            self._keepalive.saw(message)
        self._publish_times.mark(message)

    # -- reading -----------------------------------------------------------------------------

    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        keys, seen = self._keys, self._subscriber.seen
        *ids, global_id, life = await self._reading.run(
            "MGET", *map(keys.channel_id, channels), keys.global_id, keys.life
        )
        now = count(global_id)
        self._subscriber.compare(life)
        await self._subscriber.barrier(now, has_fallen=now < seen)
        return {
            channel: LastId(count(value), now) for channel, value in zip(channels, ids, strict=True)
        }

    async def backlog(
        self, channel: str, after_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        keys, seen = self._keys, self._subscriber.seen
        names = (keys.global_id, keys.channel_id(channel), keys.backlog(channel))
        surplus = surplus_of(channel)
        after: int | bytes = after_id
        while True:
            global_id, reached, more, *members = await self._paging.call(
                BACKLOG, names, (after, max_messages, max_bytes, surplus)
            )
            messages = self._parse(members, channel, after_id)
            if messages or not more:
                break
            after = reached
        page = bounded(messages, max_messages, max_bytes, is_part=bool(more))
        highest = max((each.global_id for each in page.messages), default=0)
        await self._subscriber.barrier(highest, has_fallen=count(global_id) < seen)
        return page

    async def lookback(self, channel: str, count_: int) -> int:
        keys, seen = self._keys, self._subscriber.seen
        names = (keys.global_id, keys.channel_id(channel), keys.backlog(channel))
        global_id, after_id = await self._reading.call(LOOKBACK, names, (min(count_, MAX_COUNT),))
        now = count(global_id)
        await self._subscriber.barrier(now, has_fallen=now < seen)
        return int(after_id)

    async def global_backlog(
        self, after_global_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        seen = self._subscriber.seen
        messages: list[Message] = []
        size, after, entries, more = 0, after_global_id, FIRST_ENTRIES, True
        while more and len(messages) <= max_messages and size <= max_bytes:
            listed, now = await asyncio.gather(
                self._reading.run(
                    "ZRANGEBYSCORE",
                    self._keys.global_backlog,
                    f"({after}",
                    "+inf",
                    "WITHSCORES",
                    "LIMIT",
                    0,
                    entries,
                ),
                self._reading.run("GET", self._keys.global_id),
            )
            scores = [int(float(score)) for score in listed[1::2]]
            found = await self._look_up(zip(listed[::2], scores, strict=True), count(now))
            messages += found
            size += sum(len(each.encoded) for each in found)
            more = len(scores) == entries
            if scores:
                after = scores[-1]
            mean = size // len(messages) + 1 if messages else 1
            entries = max(1, min(MAX_ENTRIES, (max_bytes - size) // mean + 1))
        page = bounded(messages, max_messages, max_bytes, is_part=more)
        highest = page.messages[-1].global_id if page.messages else 0
        await self._subscriber.barrier(highest, has_fallen=count(now) < seen)
        return page

    async def _look_up(
        self, entries: Iterable[tuple[bytes, int]], last_global_id: int
    ) -> list[Message]:
        """The messages that entries of the global backlog stand for, if they still are there."""
        wanted = []
        for entry, global_id in entries:
            message_id, _, name = entry.partition(b"|")
            try:
                channel = name.decode()
            except UnicodeDecodeError:
                continue
            if message_id.isdigit() and global_id <= last_global_id:
                wanted.append((global_id, message_id, channel))
        answers = await asyncio.gather(
            *(
                self._paging.run(
                    "ZRANGEBYSCORE", self._keys.backlog(channel), message_id, message_id
                )
                for _, message_id, channel in wanted
            )
        )
        return [
            message
            for (global_id, _, channel), members in zip(wanted, answers, strict=True)
            if (message := self._history.find(members, global_id, channel)) is not None
        ]

    async def last_global_id(self) -> int:
        seen = self._subscriber.seen
        now = count(await self._reading.run("GET", self._keys.global_id))
        await self._subscriber.barrier(now, has_fallen=now < seen)
        return now

    async def message(self, channel: str, message_id: int) -> Message | None:
        page = await self.backlog(channel, message_id - 1, max_messages=1, max_bytes=0)
        for found in page.messages:
            if found.message_id == message_id:
                return found
        return None

    async def delete_backlog(self, channel: str) -> None:
        await self._reading.run("DEL", self._keys.backlog(channel))

    async def channels(self, after: str, limit: int) -> Sequence[ChannelInfo]:
        """See `Backend`. Walks over all keys of the database: for a person, not for a program."""
        start = self._keys.channel_id("")
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", start) + "*"
        names: set[str] = set()
        cursor = b"0"
        try:
            async with asyncio.timeout(SCAN_SECONDS):
                while True:
                    cursor, found = await self._reading.run(
                        "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT
                    )
                    names.update(names_after(found, start, after))
                    if len(names) > SCAN_COUNT + 2 * limit:
                        names = set(heapq.nsmallest(limit, names))
                    if cursor == b"0":
                        break
        except TimeoutError:
            raise StoreUnavailable("there are too many keys to list the channels") from None
        listed = await asyncio.gather(*map(self._describe, heapq.nsmallest(limit, names)))
        return [each for each in listed if each is not None]

    async def _describe(self, channel: str) -> ChannelInfo | None:
        backlog = self._keys.backlog(channel)
        last_id, messages, size = await asyncio.gather(
            self._reading.run("GET", self._keys.channel_id(channel)),
            self._reading.run("ZCARD", backlog),
            self._reading.run("MEMORY", "USAGE", backlog),
        )
        if last_id is None:
            return None
        return ChannelInfo(channel, count(last_id), messages, size or 0)

    async def check(self) -> None:
        self._subscriber.check()
        await self._reading.run("GET", self._keys.global_id)
        await self._keepalive.prove()

    # -- inside ------------------------------------------------------------------------------

    def _start_over(self, reason: str) -> None:
        """This is not the server any more that we want: find it anew, with all connections."""
        self._writing.disconnect(reason)
        self._reading.disconnect(reason)
        self._paging.disconnect(reason)
        self._subscriber.reconnect(reason)

    def _parse(self, members: Iterable[bytes], channel: str, after_id: int) -> list[Message]:
        """The messages of a backlog's members, which anybody may have written."""
        messages = []
        for member in members:
            try:
                message = decode_payload(member, self._decode)
            except ValueError:
                self._note_malformed()
                continue
            if message.stored_channel != channel or message.message_id <= after_id:
                self._note_malformed()
                continue
            after_id = message.message_id
            messages.append(message)
        return messages

    def _note_malformed(self) -> None:
        self._observer.store_ignored("malformed")
