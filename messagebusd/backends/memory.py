"""The embedded store: everything in this process, bounded, nothing to install.

It is also the reference implementation of the contract. Its own traits:

* one process only; announcing is a function call in the next turn of the loop
* ``max_bytes`` bounds all of it. Where it is reached, the oldest message of the whole store goes
  first, and a channel's ids outlive its messages; but channels may not take more than half of the
  room: then the one that is nearest to its expiry is forgotten
* what was published once (`base.Once`) is remembered until the daemon stops
* with a snapshot file, ids and backlogs survive a clean stop. After a crash the store starts from
  the latest clean stop: clients are then ahead of it, and are told the new positions
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from messagebusd.backends import snapshot
from messagebusd.backends.agenda import Agenda
from messagebusd.backends.base import (
    Backend,
    Backlog,
    ChannelInfo,
    Listener,
    Once,
    Published,
    Retention,
)
from messagebusd.backends.ledger import OnceLedger
from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.channels import qualify, unqualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication

# What a message and a channel take besides the message's bytes, measured on CPython 3.11.
MESSAGE_OVERHEAD_BYTES = 300
CHANNEL_OVERHEAD_BYTES = 1000
# An id of an audience: itself, and its places in a tuple and in a set.
AUDIENCE_ID_BYTES = 110


class _Channel:
    """A channel's counter and messages. Message ids are contiguous: only the left end is cut."""

    __slots__ = ("bytes", "channel", "expires_at", "last_id", "messages", "name", "site_id")

    def __init__(self, name: str, last_id: int = 0) -> None:
        self.name = name
        self.channel, self.site_id = unqualify(name)
        self.last_id = last_id
        self.messages: deque[Message] = deque()
        self.bytes = 0
        self.expires_at = 0.0


class MemoryBackend(Backend):
    """See the module's docstring. ``clock`` is monotonic, in seconds; ``wall`` is for snapshots."""

    is_immediate = True

    def __init__(
        self,
        retention: Retention,
        *,
        max_bytes: int,
        snapshot_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._retention = retention
        self._max_bytes = max_bytes
        self._snapshot_file = snapshot_file
        self._clock = clock
        self._wall = wall
        self._channels: dict[str, _Channel] = {}
        self._global_id = 0
        self._global_backlog: deque[tuple[int, str, int]] = deque()
        self._bytes = 0
        self._channel_bytes = 0
        self._oldest = Agenda[_Channel](lambda c: c.messages[0].global_id if c.messages else None)
        self._expiring = Agenda[_Channel](
            lambda c: c.expires_at if self._channels.get(c.name) is c else None
        )
        self._ledger = OnceLedger(clock=clock)
        self._listener: Listener | None = None
        self._unannounced: list[Message] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def bytes_used(self) -> int:
        """What counts towards ``max_bytes``."""
        return self._bytes + self._channel_bytes

    @property
    def is_hearing(self) -> bool:
        return True

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._snapshot_file is None:
            return
        snapshot.prepare(self._snapshot_file)
        loaded = snapshot.load(self._snapshot_file)
        if loaded is not None:
            self._restore(loaded)

    async def close(self) -> None:
        self._announce()
        self._loop = None
        if self._snapshot_file is not None:
            snapshot.save(self._snapshot_file, self._capture())

    def subscribe(self, listener: Listener) -> None:
        self._listener = listener

    async def publish(self, publication: Publication, once: Once | None = None) -> Published:
        if once is None:
            return self._publish(publication)
        if (before := self._ledger.find(once)) is not None:
            return before._replace(repeated=True)
        published = self._publish(publication)
        self._ledger.remember(once, published)
        return published

    async def claim(self, once: Once) -> None:
        self._ledger.find(once)
        self._ledger.remember(once)

    def _publish(self, publication: Publication) -> Published:
        now = self._clock()
        while (expired := self._expiring.due(now)) is not None:
            self._forget(expired)
        name = qualify(publication.channel, publication.site_id)
        channel = self._get(name)
        if channel is None:
            channel = self._add_channel(_Channel(name))
        self._global_id += 1
        channel.last_id += 1
        message = Message(
            self._global_id,
            channel.last_id,
            channel.name,
            channel.channel,
            channel.site_id,
            publication.data,
            publication.audience,
            published_at=now,
        )
        self._append(channel, message)
        self._retain(channel, publication, now)
        if not self._unannounced and self._loop is not None:
            self._loop.call_soon(self._announce)
        self._unannounced.append(message)
        return Published(message.message_id, message.global_id)

    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        self._before_reading()
        get, now = self._get, self._global_id
        return {
            name: LastId(found.last_id if (found := get(name)) else 0, now) for name in channels
        }

    async def backlog(
        self, channel: str, after_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        self._before_reading()
        found = self._get(channel)
        if found is None:
            return Backlog((), False)
        newer = min(found.last_id - after_id, len(found.messages))
        if newer <= 0:
            return Backlog((), False)
        # One more than asked for tells whether there are more.
        return _bounded(_last(found.messages, newer, max_messages + 1), max_messages, max_bytes)

    async def lookback(self, channel: str, count: int) -> int:
        self._before_reading()
        found = self._get(channel)
        return 0 if found is None else max(0, found.last_id - min(count, len(found.messages)))

    async def global_backlog(
        self, after_global_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        self._before_reading()
        # A channel that was forgotten and published to again has the same ids for other messages.
        stored = (
            found
            for global_id, name, message_id in self._global_backlog
            if global_id > after_global_id
            and (found := self._find(name, message_id)) is not None
            and found.global_id == global_id
        )
        return _bounded(stored, max_messages, max_bytes)

    async def last_global_id(self) -> int:
        self._before_reading()
        return self._global_id

    async def message(self, channel: str, message_id: int) -> Message | None:
        self._before_reading()
        return self._find(channel, message_id)

    async def delete_backlog(self, channel: str) -> None:
        self._before_reading()
        if (found := self._get(channel)) is not None:
            self._trim(found, 0)

    async def channels(self, after: str, limit: int) -> Sequence[ChannelInfo]:
        self._before_reading()
        now = self._clock()
        names = heapq.nsmallest(
            limit,
            (
                each.name
                for each in self._channels.values()
                if each.name > after and each.expires_at > now
            ),
        )
        known = (self._channels[name] for name in names)
        return [ChannelInfo(c.name, c.last_id, len(c.messages), c.bytes) for c in known]

    async def check(self) -> None:
        """A store in this process is there as long as the process is."""

    # -- inside ------------------------------------------------------------------------------

    def _before_reading(self) -> None:
        """The read barrier: nobody reads what has not been announced."""
        if self._unannounced:
            self._announce()

    def _announce(self) -> None:
        batch, self._unannounced = self._unannounced, []
        if batch and self._listener is not None:
            self._listener.dispatch(batch)

    def _get(self, name: str) -> _Channel | None:
        """A channel that has not expired; the agenda may come to it later than we do."""
        channel = self._channels.get(name)
        if channel is not None and channel.expires_at <= self._clock():
            self._forget(channel)
            return None
        return channel

    def _find(self, name: str, message_id: int) -> Message | None:
        channel = self._get(name)
        if channel is None or not channel.messages:
            return None
        index = message_id - channel.messages[0].message_id
        return channel.messages[index] if 0 <= index < len(channel.messages) else None

    def _add_channel(self, channel: _Channel) -> _Channel:
        self._channels[channel.name] = channel
        self._channel_bytes += _channel_size(channel)
        return channel

    def _append(self, channel: _Channel, message: Message) -> None:
        size = _size(message)
        channel.messages.append(message)
        channel.bytes += size
        self._bytes += size
        self._oldest.add(channel)
        self._global_backlog.append((message.global_id, channel.name, message.message_id))

    def _retain(self, channel: _Channel, publication: Publication, now: float) -> None:
        """Apply size, age, the global backlog's size and the store's bound, in this order."""
        retention = self._retention
        size, age = publication.max_backlog_size, publication.max_backlog_age
        if channel.last_id % retention.clear_every == 0:
            self._trim(channel, retention.max_backlog_size if size is None else size)
        if self._global_id % retention.clear_every == 0:
            while len(self._global_backlog) > retention.max_global_backlog_size:
                self._global_backlog.popleft()
        channel.expires_at = now + (retention.max_backlog_age if age is None else age)
        self._expiring.add(channel)
        if age == 0:  # nothing to keep, not even until the next turn of the clock
            self._forget(channel)
        if self._bytes + self._channel_bytes > self._max_bytes:
            self._fit()

    def _trim(self, channel: _Channel, size: int) -> None:
        while len(channel.messages) > size:
            dropped = _size(channel.messages.popleft())
            channel.bytes -= dropped
            self._bytes -= dropped

    def _fit(self) -> None:
        """Make room until everything is within the bound."""
        while self.bytes_used > self._max_bytes:
            crowded = self._channel_bytes > self._max_bytes // 2
            if not crowded and (oldest := self._oldest.first()) is not None:
                self._trim(oldest, len(oldest.messages) - 1)
            elif (expiring := self._expiring.first()) is not None:
                self._forget(expiring)
            else:
                break

    def _forget(self, channel: _Channel) -> None:
        self._trim(channel, 0)
        del self._channels[channel.name]
        self._channel_bytes -= _channel_size(channel)

    def _capture(self) -> snapshot.Snapshot:
        until = self._wall() - self._clock()
        return snapshot.Snapshot(
            self._global_id,
            [
                snapshot.ChannelState(
                    each.name, each.last_id, each.expires_at + until, list(each.messages)
                )
                for each in self._channels.values()
            ],
        )

    def _restore(self, loaded: snapshot.Snapshot) -> None:
        until = self._wall() - self._clock()
        self._global_id = loaded.global_id
        for state in loaded.channels:
            channel = self._add_channel(_Channel(state.name, state.last_id))
            channel.expires_at = state.expires_at - until
            self._expiring.add(channel)
            for message in state.messages:
                self._append(channel, message)
        newest = sorted(self._global_backlog)[-self._retention.max_global_backlog_size :]
        self._global_backlog = deque(newest)
        self._fit()


def _size(message: Message) -> int:
    """What a message counts towards ``max_bytes``."""
    size = len(message.encoded) + MESSAGE_OVERHEAD_BYTES
    if (audience := message.audience) is not None:
        for ids in (audience.user_ids, audience.group_ids, audience.client_ids):
            size += AUDIENCE_ID_BYTES * len(ids or ())
    return size


def _channel_size(channel: _Channel) -> int:
    """What a channel counts towards ``max_bytes``: its name is kept with and without the site."""
    return CHANNEL_OVERHEAD_BYTES + 2 * sys.getsizeof(channel.name)


def _last(messages: deque[Message], count: int, limit: int) -> list[Message]:
    """The first few of the last messages in order, walking over as few others as possible."""
    if count > limit:
        start = len(messages) - count
        return list(islice(messages, start, start + limit))
    found = list(islice(reversed(messages), count))
    found.reverse()
    return found


def _bounded(messages: Iterable[Message], max_messages: int, max_bytes: int) -> Backlog:
    kept: list[Message] = []
    for message in messages:
        max_bytes -= len(message.encoded)
        if len(kept) == max_messages or (max_bytes < 0 and kept):
            return Backlog(kept, True)
        kept.append(message)
    return Backlog(kept, False)
