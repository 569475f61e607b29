"""All polls that one worker holds: found by channel, replaced by client, ended by deadline.

`dispatch` is a plain function: nothing in here awaits, locks, or starts a task. Scheduled are only
the next look at the deadlines, one timer for all polls, and the rest of a fan-out that is too large
for one turn of the loop (`fanout`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from messagebusd.connection import NEVER, CloseReason, Connection, Due, MessageFilter, State
from messagebusd.delivery import Delivery
from messagebusd.fanout import FanOuts, Observer, Scheduler, Timer, Topic
from messagebusd.feeds import Feed, Feeds
from messagebusd.people import People
from messagebusd.protocol.message import Id, Message
from messagebusd.protocol.requests import Mode
from messagebusd.recent import Recent

# Deadlines are kept in buckets of this many seconds; polls of one bucket end together.
TICK_SECONDS = 0.1
# Polls that came together do not all return together: their deadlines differ by up to this part.
JITTER = 0.05
# How long an ended response may make no progress before its connection is reset.
LINGER_SECONDS = 10.0


class Hub:
    """See the module's docstring. Intervals in seconds, buffers in bytes.

    ``max_active_clients``, ``interval``, ``max_client_buffer`` and ``filters`` may be changed
    while it runs: the first two apply to the next poll, the others to whatever comes next for all.
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
        self.recent = Recent(observer, scheduler.time)
        self._jitter = jitter
        # How many times something was announced.
        self.turn = 0
        # By stored name. A channel's only subscriber stands for itself.
        self._index: dict[str, Connection | Topic] = {}
        self._catching_up: set[Connection] = set()
        self._people = People()
        self._buckets: dict[int, Due] = {}
        self._fan_outs = FanOuts(scheduler, self.recent)
        # Ended responses that are still being sent: when to look again, and what was unsent then.
        self._lingering: dict[Connection, tuple[float, int]] = {}
        self._feeds = Feeds()
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._on_empty: Callable[[], None] | None = None

    # -- what is here ------------------------------------------------------------------------

    @property
    def parked(self) -> int:
        """How many polls are parked."""
        return len(self._people)

    @property
    def has_room(self) -> bool:
        """Whether one more poll may park. A client's own parked poll makes no room for its next:
        clients of the original rely on that one to stay."""
        return len(self._people) < self.max_active_clients

    def parked_by_mode(self) -> Counter[Mode]:
        """How many polls are parked in each mode. Walks over all of them."""
        return Counter(each.mode for each in self._people)

    def connections(self) -> Iterable[Connection]:
        """All parked polls."""
        return self._people

    def polls_of(self, client_id: str | None, user_id: Id | None) -> list[Connection]:
        """The polls of a client, or of a user at any site; among them others that catch up."""
        return [*self._people.of(client_id, user_id), *self._catching_up]

    def subscribers(self, channel: str) -> int:
        """How many polls wait for this channel (stored name)."""
        found = self._index.get(channel)
        return len(found.members) if isinstance(found, Topic) else int(found is not None)

    # -- polls come and go -------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        """Register a poll: from here on it misses nothing."""
        connection.state = State.CATCHING_UP
        index = self._index
        self._catching_up.add(connection)
        names = []
        for channel in connection.channels:
            found = index.setdefault(channel, connection)
            if isinstance(found, Topic):
                found.members[connection] = None
                channel = found.name  # the same text, kept once
            elif found is not connection:
                index[channel] = Topic(channel, found, connection)
            names.append(channel)
        connection.channels = tuple(names)

    def is_outdated(self, connection: Connection) -> bool:
        """Whether a newer poll of the same client is parked already, so that this one ends."""
        other = self._people.same_as(connection)
        return other is not None and other.seq > connection.seq

    def park(self, connection: Connection, until: float = math.inf) -> None:
        """Hold a poll that has its transport, until its deadline.

        That is no later than ``until``, in the scheduler's time: its viewer's identity is no longer
        true then. Of polls with the same site, user and client id the one with the higher or equal
        ``seq`` stays, the other one ends at once (SPEC 2.7).
        """
        if (other := self._people.same_as(connection)) is not None:
            if other.seq > connection.seq:
                connection.close(CloseReason.SUPERSEDED)
                return
            other.close(CloseReason.SUPERSEDED)
        self._catching_up.discard(connection)
        self._people.add(connection)
        now = self._scheduler.time()
        deadline = now + self.interval * (1 - JITTER * self._jitter())
        tick = math.ceil(deadline / TICK_SECONDS)
        if until < deadline:  # rounded the other way: it must not see what comes later
            tick = math.floor(until / TICK_SECONDS)
        due = self._buckets.get(tick)
        if due is None:
            due = self._buckets[tick] = Due(tick)
        due.connections[connection] = None
        connection.due = due
        self._schedule(tick * TICK_SECONDS)

    def remove(self, connection: Connection, reason: CloseReason) -> None:
        """Forget a poll: out of every index before this returns. Compares objects, never ids."""
        if connection.state is State.CLOSED:
            return
        self.recent.ended(connection, reason, self.turn)
        if connection.state is not State.NEW:
            self._unindex(connection)
        connection.state = State.CLOSED
        if (due := connection.due) is not None:  # else it is not parked
            self._people.remove(connection)
            connection.due = None
            del due.connections[connection]
            if not due.connections:
                del self._buckets[due.tick]
        if connection.transport is not None and reason is not CloseReason.DISCONNECTED:
            # Closing sends what is left first; a reader that never reads must not keep it here.
            self._linger(connection, self._scheduler.time())
        if connection.bucket is not None and reason is CloseReason.ANSWERED:
            connection.bucket.give_back()
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
        connection.since = NEVER
        self._catching_up.discard(connection)
        index = self._index
        for channel in connection.channels:
            found = index.get(channel)
            if found is connection:
                del index[channel]
            elif isinstance(found, Topic):
                found.remove(connection)
                if not found.members:
                    del index[channel]

    @property
    def feeds(self) -> int:
        """How many server-side subscribers there are."""
        return len(self._feeds)

    def add_feed(self, feed: Feed, channels: frozenset[str] | None) -> None:
        """Hand this subscriber the messages of these channels (stored names), or all (None)."""
        self._feeds.add(feed, channels)

    def remove_feed(self, feed: Feed) -> None:
        """Stop that."""
        self._feeds.remove(feed)

    # -- messages ----------------------------------------------------------------------------

    def channels(self) -> set[str]:
        """The channels (stored names) that somebody waits for."""
        return self._feeds.channels().union(self._index)

    def interrupted(self) -> None:
        """Messages were missed on channels that nobody named: who follows all of them ends."""
        self._feeds.interrupt()

    def restarted(self, channels: Collection[str]) -> None:
        """The ids of these channels count from 0 anew: tell who may be ahead of them."""
        self._fan_outs.finish()
        self.turn += 1
        self.recent.restarted(self.turn, channels)
        positions: dict[Connection, dict[str, int]] = {}
        for channel in channels:
            found = self._index.get(channel)
            if found is not None:
                members = found.members if isinstance(found, Topic) else (found,)
                for connection in members:
                    positions.setdefault(connection, {})[channel] = 0
        for connection, restarted in positions.items():
            connection.tell(restarted)
        for channel in channels:
            found = self._index.get(channel)
            if isinstance(found, Topic):
                found.note(self.turn, 0, set())
        self._feeds.restart(channels)

    def dispatch(self, messages: Sequence[Message]) -> None:
        """Deliver a batch, each channel's messages together and in order."""
        if self._feeds:
            self._feeds.offer(messages)
        self.turn += 1
        self.recent.announced(self.turn, messages)
        self._fan_outs.new_turn()
        if len(messages) == 1:
            self._deliver(messages[0].stored_channel, messages)
            return
        by_channel: dict[str, list[Message]] = {}
        for message in messages:
            by_channel.setdefault(message.stored_channel, []).append(message)
        for channel, news in by_channel.items():
            self._deliver(channel, news)

    def update(self, connection: Connection, owed: dict[str, int]) -> None:
        """Bring up to date what a poll's last frame has to say: see `Topic.update`."""
        for channel in connection.channels:
            found = self._index.get(channel)
            if isinstance(found, Topic):
                found.update(connection, owed)

    def _deliver(self, channel: str, messages: Sequence[Message]) -> None:
        found = self._index.get(channel)
        if isinstance(found, Topic):
            self._deliver_to_many(found, messages)
        elif found is not None:
            self._deliver_to_one(found, channel, messages)

    def _deliver_to_one(
        self, connection: Connection, channel: str, messages: Sequence[Message]
    ) -> None:
        if not connection.is_parked:
            connection.queue(messages)
            return
        delivery = Delivery()
        delivery.filtered = self._is_filtered(messages[0])
        chosen = [(connection,) if connection.is_meant(each) else () for each in messages]
        delivery.add(messages, chosen, 1, self.turn)
        delivery.give(connection)
        connection.note(channel, None if delivery.was_shown(connection) else delivery.last_id)
        self.recent.dispatched(delivery)

    def _deliver_to_many(self, topic: Topic, messages: Sequence[Message]) -> None:
        members = topic.members
        early = 0
        # Those who are reading their backlog may be done with it before a slice comes to them.
        if self._catching_up:
            for connection in members.keys() & self._catching_up:
                connection.queue(messages)
                early += 1
        parked = len(members) - early
        if not parked:
            return
        delivery = topic.waiting or Delivery()
        delivery.filtered |= self._is_filtered(messages[0])
        find = self._people.recipients
        chosen = [None if each.audience is None else find(each, members) for each in messages]
        delivery.add(messages, chosen, parked, self.turn)
        self._fan_outs.start(topic, delivery)

    def _is_filtered(self, message: Message) -> bool:
        return self.filters is not None and self.filters.concerns(message.channel)

    # -- ending ------------------------------------------------------------------------------

    def close_matching(
        self,
        matches: Callable[[Connection], bool],
        reason: CloseReason = CloseReason.ENDED,
        *,
        client_id: str | None = None,
        user_id: Id | None = None,
    ) -> int:
        """End all polls that match, parked or catching up; how many those were.

        Where all of them are of one client or user, saying so saves looking at the others: every
        logout comes by here.
        """
        found = [each for each in self._people.of(client_id, user_id) if matches(each)]
        early = [each for each in self._catching_up if matches(each)]
        for connection in found:
            connection.close(reason)
        for connection in early:
            connection.cut_short()
        return len(found) + len(early)

    def end_feeds(self) -> None:
        """End all server-side subscriptions."""
        self._feeds.end()

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
        self._fan_outs.stop()

    def _tell_if_empty(self) -> None:
        if self._on_empty is not None and not self._people and not self._lingering:
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
            for connection in tuple(self._buckets[due].connections):
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
