"""All polls that one worker holds: found by channel, replaced by client, ended by deadline.

`dispatch` is a plain function: nothing in here awaits, locks, or starts a task. The only thing
scheduled is the next look at the deadlines, one timer for all polls.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from messagebusd.connection import CloseReason, Connection, Delivery, State, Viewer
from messagebusd.protocol.message import Id, Message
from messagebusd.protocol.requests import Mode

# Deadlines are kept in buckets of this many seconds; polls of one bucket end together.
TICK_SECONDS = 0.1
# Polls that came together do not all return together: their deadlines differ by up to this part.
JITTER = 0.05
# How long an ended response may make no progress before its connection is reset.
LINGER_SECONDS = 10.0


class Timer(Protocol):
    """What the loop gives for a scheduled call."""

    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """The part of an event loop that the hub uses."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class MessageFilter(Protocol):
    """The declared message filters (SPEC 6)."""

    def allow(self, message: Message, viewer: Viewer, client_id: str) -> bool: ...
    def concerns(self, channel: str) -> bool: ...


class Observer(Protocol):
    """Where the hub reports what happened, for the metrics."""

    def poll_ended(self, mode: Mode, reason: CloseReason) -> None: ...
    def dispatched(self, delivery: Delivery) -> None: ...


class Feed(Protocol):
    """A server-side subscriber: sees everything, and must not raise or wait."""

    def offer(self, messages: Sequence[Message]) -> None: ...
    def interrupt(self) -> None: ...
    def restart(self) -> None: ...
    def end(self) -> None: ...


class Hub:
    """See the module's docstring. Intervals in seconds, buffers in bytes.

    ``max_active_clients``, ``interval``, ``max_client_buffer`` and ``filters`` may be changed
    while it runs; they apply to the next poll.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        observer: Observer,
        *,
        interval: float,
        max_active_clients: int,
        max_client_buffer: int,
        filters: MessageFilter | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.interval = interval
        self.max_active_clients = max_active_clients
        self.max_client_buffer = max_client_buffer
        self.filters = filters
        self._scheduler = scheduler
        self._observer = observer
        self._jitter = jitter
        self._index: dict[str, set[Connection]] = {}
        self._catching_up: set[Connection] = set()
        self._parked: dict[tuple[str | None, Id | None, str], Connection] = {}
        self._buckets: dict[int, set[Connection]] = {}
        # Ended responses that are still being sent: when to look again, and what was unsent then.
        self._lingering: dict[Connection, tuple[float, int]] = {}
        self._feeds: dict[Feed, frozenset[str] | None] = {}
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._on_empty: Callable[[], None] | None = None

    # -- what is here ------------------------------------------------------------------------

    @property
    def parked(self) -> int:
        """How many polls are parked."""
        return len(self._parked)

    @property
    def has_room(self) -> bool:
        """Whether one more poll may park. A client's own parked poll makes no room for its next:
        clients of the original rely on that one to stay."""
        return len(self._parked) < self.max_active_clients

    def parked_by_mode(self) -> Counter[Mode]:
        """How many polls are parked in each mode. Walks over all of them."""
        return Counter(each.mode for each in self._parked.values())

    def connections(self) -> Iterable[Connection]:
        """All parked polls."""
        return self._parked.values()

    def subscribers(self, channel: str) -> int:
        """How many polls wait for this channel (stored name)."""
        return len(self._index.get(channel, ()))

    # -- polls come and go -------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        """Register a poll, before its backlog is read: from here on it misses nothing."""
        index = self._index
        self._catching_up.add(connection)
        for channel in connection.channels:
            subscribers = index.get(channel)
            if subscribers is None:
                index[channel] = {connection}
            else:
                subscribers.add(connection)

    def is_outdated(self, connection: Connection) -> bool:
        """Whether a newer poll of the same client is parked already, so that this one ends."""
        other = self._parked.get(connection.key)
        return other is not None and other.seq > connection.seq

    def park(self, connection: Connection, until: float = math.inf) -> None:
        """Hold a poll that has its transport, until its deadline.

        That is no later than ``until``, in the scheduler's time: its viewer's identity is no longer
        true then. Of polls with the same key the one with the higher or equal ``seq`` stays, the
        other one ends at once (SPEC 2.7).
        """
        if self.is_outdated(connection):
            connection.close(CloseReason.SUPERSEDED)
            return
        if (other := self._parked.get(connection.key)) is not None:
            other.close(CloseReason.SUPERSEDED)
        self._catching_up.discard(connection)
        self._parked[connection.key] = connection
        now = self._scheduler.time()
        deadline = now + self.interval * (1 - JITTER * self._jitter())
        connection.deadline = math.ceil(deadline / TICK_SECONDS)
        if until < deadline:  # rounded the other way: it must not see what comes later
            connection.deadline = math.floor(until / TICK_SECONDS)
        self._buckets.setdefault(connection.deadline, set()).add(connection)
        self._schedule(connection.deadline * TICK_SECONDS)

    def remove(self, connection: Connection, reason: CloseReason) -> None:
        """Forget a poll: out of every index before this returns. Compares objects, never ids."""
        if connection.state is State.CLOSED:
            return
        self._unindex(connection)
        if self._parked.get(connection.key) is connection:
            del self._parked[connection.key]
        if (bucket := self._buckets.get(connection.deadline)) is not None:
            bucket.discard(connection)
            if not bucket:
                del self._buckets[connection.deadline]
        transport = connection.transport
        if transport is not None and reason is not CloseReason.DISCONNECTED:
            # Closing sends what is left first; a reader that never reads must not keep it here.
            self._linger(connection, self._scheduler.time())
        if connection.bucket is not None and reason is CloseReason.ANSWERED:
            connection.bucket.give_back()
        self._observer.poll_ended(connection.mode, reason)
        self._tell_if_empty()

    def remove_unanswered(self, connection: Connection) -> None:
        """Forget a poll that never parked: it is answered as an ordinary response."""
        if connection.state is State.CATCHING_UP:
            self._unindex(connection)

    def transport_closed(self, connection: Connection) -> None:
        """The connection's socket is gone for good."""
        self._lingering.pop(connection, None)
        self._tell_if_empty()

    def _unindex(self, connection: Connection) -> None:
        connection.state = State.CLOSED
        self._catching_up.discard(connection)
        for channel in connection.channels:
            subscribers = self._index.get(channel)
            if subscribers is not None:
                subscribers.discard(connection)
                if not subscribers:
                    del self._index[channel]

    def add_feed(self, feed: Feed, channels: frozenset[str] | None) -> None:
        """Hand this subscriber the messages of these channels (stored names), or all (None)."""
        self._feeds[feed] = channels

    def remove_feed(self, feed: Feed) -> None:
        """Stop that."""
        self._feeds.pop(feed, None)

    # -- messages ----------------------------------------------------------------------------

    def channels(self) -> set[str]:
        """The channels (stored names) that somebody waits for."""
        return set(self._index).union(*(each for each in self._feeds.values() if each is not None))

    def interrupted(self) -> None:
        """Messages were missed on channels that nobody named: who follows all of them ends."""
        for feed, channels in tuple(self._feeds.items()):
            if channels is None:
                feed.interrupt()

    def restarted(self, channels: Collection[str]) -> None:
        """The ids of these channels count from 0 anew: tell who may be ahead of them."""
        positions: dict[Connection, dict[str, int]] = {}
        for channel in channels:
            for connection in self._index.get(channel, ()):
                positions.setdefault(connection, {})[channel] = 0
        for connection, restarted in positions.items():
            connection.tell(restarted)
        for feed, followed in tuple(self._feeds.items()):
            if followed is not None and not followed.isdisjoint(channels):
                feed.restart()

    def dispatch(self, messages: Sequence[Message]) -> None:
        """Deliver a batch, each channel's messages together and in order."""
        if self._feeds:
            self._feed(messages)
        if len(messages) == 1:
            self._deliver(messages[0].stored_channel, messages)
            return
        by_channel: dict[str, list[Message]] = {}
        for message in messages:
            by_channel.setdefault(message.stored_channel, []).append(message)
        for channel, news in by_channel.items():
            self._deliver(channel, news)

    def _deliver(self, channel: str, messages: Sequence[Message]) -> None:
        subscribers = self._index.get(channel)
        if not subscribers:
            return
        filters = self.filters
        unrestricted = all(each.audience is None for each in messages) and not (
            filters is not None and filters.concerns(messages[0].channel)
        )
        delivery = Delivery(channel, messages, unrestricted=unrestricted)
        # A copy, because whoever is answered or found too slow leaves the set meanwhile.
        for connection in tuple(subscribers):
            connection.deliver(delivery)
        self._observer.dispatched(delivery)

    def _feed(self, messages: Sequence[Message]) -> None:
        for feed, channels in tuple(self._feeds.items()):
            wanted = (
                messages
                if channels is None
                else [each for each in messages if each.stored_channel in channels]
            )
            if wanted:
                feed.offer(wanted)

    # -- ending ------------------------------------------------------------------------------

    def close_matching(
        self, matches: Callable[[Connection], bool], reason: CloseReason = CloseReason.ENDED
    ) -> int:
        """End all polls that match, parked or catching up; how many those were."""
        found = [each for each in self._parked.values() if matches(each)]
        early = [each for each in self._catching_up if matches(each)]
        for connection in found:
            connection.close(reason)
        for connection in early:
            connection.cut_short()
        return len(found) + len(early)

    def end_feeds(self) -> None:
        """End all server-side subscriptions."""
        for feed in tuple(self._feeds):
            feed.end()

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call back once no poll is parked and every answer has been sent."""
        self._on_empty = callback
        self._tell_if_empty()

    def abort(self) -> None:
        """Reset whatever is still being sent, and stop the timer."""
        for connection in tuple(self._lingering):
            self._abort(connection)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell_if_empty(self) -> None:
        if self._on_empty is not None and not self._parked and not self._lingering:
            callback, self._on_empty = self._on_empty, None
            callback()

    def _linger(self, connection: Connection, now: float) -> None:
        """Look again later whether the rest of this response is being read; last in line."""
        self._lingering.pop(connection, None)
        assert connection.transport is not None
        until = now + LINGER_SECONDS
        self._lingering[connection] = (until, connection.transport.get_write_buffer_size())
        self._schedule(until)

    def _abort(self, connection: Connection) -> None:
        self._lingering.pop(connection, None)
        if connection.transport is not None:
            connection.transport.abort()

    def _schedule(self, when: float) -> None:
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self._scheduler.call_at(when, self._sweep)

    def _sweep(self) -> None:
        """End what is due, then look at when to come again."""
        now = self._scheduler.time()
        self._timer, self._timer_at = None, math.inf
        tick = math.floor(now / TICK_SECONDS + 1e-6)
        for due in sorted(each for each in self._buckets if each <= tick):
            for connection in tuple(self._buckets.get(due, ())):
                connection.close(CloseReason.DEADLINE)
        for connection, (until, unsent) in tuple(self._lingering.items()):
            if until > now:
                break  # the others were looked at later
            transport = connection.transport
            if transport is None or transport.get_write_buffer_size() >= unsent:
                self._abort(connection)
            else:
                self._linger(connection, now)
        if self._buckets:
            self._schedule(min(self._buckets) * TICK_SECONDS)
        if self._lingering:
            self._schedule(next(iter(self._lingering.values()))[0])
