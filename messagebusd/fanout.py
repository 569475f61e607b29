"""Many recipients: slice by slice, and what every channel's last frames have to say.

A large fan-out is done in slices, between which the loop serves others. What comes for the same
channel meanwhile waits behind, and leaves in one frame. Nothing in here awaits, and everything
holds between any two slices:

* who is recipient is settled when a message is announced: connections that go live later know it
  from their backlog (`Connection.since`), those that are catching up were given it at once
* whoever leaves before his turn comes was not sent the message, and no status skips it: his next
  poll reads it
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from typing import Protocol

from messagebusd.connection import CloseReason, Connection
from messagebusd.delivery import Delivery, Members
from messagebusd.protocol.requests import Mode

# How many polls are written to in one turn of the loop: a few milliseconds.
SLICE = 256
# What may wait behind a fan-out for the same channel. Above it the loop stops for the rest of that
# fan-out: publishers that are faster than the writes have to wait somewhere.
MAX_WAITING_MESSAGES = 100
MAX_WAITING_BYTES = 64 * 1024

_log = logging.getLogger(__name__)


class Timer(Protocol):
    """What the loop gives for a scheduled call."""

    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """The part of an event loop that the hub uses."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...
    def call_soon(self, callback: Callable[[], object], /) -> Timer: ...


class DeliveryObserver(Protocol):
    """Where finished deliveries are reported."""

    def dispatched(self, delivery: Delivery) -> None: ...


class Observer(DeliveryObserver, Protocol):
    """Where it is reported what happened, for the metrics."""

    def poll_ended(self, mode: Mode, reason: CloseReason) -> None: ...


class FanOut:
    """A delivery on its way to those that it is for."""

    __slots__ = (
        "_at",
        "_known",
        "_plain",
        "_recipients",
        "_served",
        "_transports",
        "delivery",
        "topic",
    )

    def __init__(self, topic: Topic, delivery: Delivery) -> None:
        self.topic = topic
        self.delivery = delivery
        # As they are now: whoever is answered or found too slow leaves the channel meanwhile.
        self._recipients = tuple(topic.members if delivery.common else delivery.masks)
        # One that is for nobody here has no recipients at all.
        self._plain = bool(delivery.common) and not delivery.masks and not delivery.filtered
        self._transports = tuple(topic.members.values()) if self._plain else ()
        self._at = 0
        # The first so many of them as a set; made when somebody asks.
        self._served: set[Connection] = set()
        self._known = 0

    @property
    def is_finished(self) -> bool:
        """Whether everybody has had his turn."""
        return self._at >= len(self._recipients)

    def has_served(self, connection: Connection) -> bool:
        """Whether this one has had his turn."""
        self._served.update(self._recipients[self._known : self._at])
        self._known = self._at
        return connection in self._served

    def advance(self, limit: int) -> int:
        """Serve so many more at most; how many those were."""
        part = self._recipients[self._at : self._at + limit]
        try:
            if self._plain:
                transports = self._transports[self._at : self._at + limit]
                self.delivery.give_all(part, transports, self.topic.members)
            else:
                give = self.delivery.give
                for connection in part:
                    give(connection)
        except Exception:
            # Who was sent what is not known any more. All of them come back with their positions.
            _log.exception("a delivery failed, its recipients are reset")
            for connection in part:
                connection.reset()
        self._at += len(part)
        return len(part)


class Topic:
    """A channel (stored name) that several subscribe to, and what its latest news were."""

    __slots__ = ("_last_id", "_seen", "_turn", "current", "members", "name", "waiting")

    def __init__(self, name: str, *members: Connection) -> None:
        self.name = name
        # A dictionary takes half of a set's room here, and keeps the order of arrival.
        self.members: Members = dict.fromkeys(members)
        # What is being delivered, and what comes after it.
        self.current: FanOut | None = None
        self.waiting: Delivery | None = None
        self._turn = 0
        self._last_id = 0
        self._seen: set[Connection] | None = None

    def remove(self, connection: Connection) -> None:
        """Forget a subscriber."""
        self.members.pop(connection, None)
        if self._seen:
            self._seen.discard(connection)

    def finish(self) -> None:
        """Note what was delivered, by which last frames are written from now on."""
        assert self.current is not None
        delivery, self.current = self.current.delivery, None
        seen = delivery.seen()
        if seen is not None:  # those who have left meanwhile are not to be kept
            seen = {each for each in seen if each in self.members}
        self.note(delivery.turn, delivery.last_id, seen)

    def note(self, turn: int, last_id: int, seen: set[Connection] | None) -> None:
        """Note that the channel is at this id, and who was shown it; None is everybody."""
        self._turn, self._last_id, self._seen = turn, last_id, seen

    def update(self, connection: Connection, owed: dict[str, int]) -> None:
        """Bring up to date what a connection's last frame has to say of this channel.

        That is the id of the latest news, if these were kept from it; nothing, if it was shown
        them. News that it has yet to be given are not skipped.
        """
        turn, last_id, current = self._turn, self._last_id, self.current
        if current is not None and current.has_served(connection):
            turn, last_id = current.delivery.turn, current.delivery.last_id
            shown = current.delivery.was_shown(connection)
        else:
            shown = self._seen is None or connection in self._seen
        if turn <= connection.since:
            return
        if shown:
            owed.pop(self.name, None)
        else:
            owed[self.name] = last_id


class FanOuts:
    """All fan-outs under way. Channels take turns."""

    def __init__(self, scheduler: Scheduler, observer: DeliveryObserver) -> None:
        self._scheduler = scheduler
        self._observer = observer
        self._unfinished: deque[FanOut] = deque()
        # How many may still be served in this turn of the loop.
        self._left = 0
        self._continuation: Timer | None = None

    def new_turn(self) -> None:
        """Something was announced, and may have a slice at once."""
        self._left = SLICE

    def start(self, topic: Topic, delivery: Delivery) -> None:
        """Deliver: at once as far as there is room in this turn, and behind what is under way."""
        if topic.current is None:
            self._begin(topic, delivery)
            return
        topic.waiting = delivery
        if len(delivery.messages) > MAX_WAITING_MESSAGES or delivery.bytes > MAX_WAITING_BYTES:
            self._finish(topic.current)

    def finish(self) -> None:
        """Serve everybody at once."""
        while self._unfinished:
            self._finish(self._unfinished[0])

    def stop(self) -> None:
        """Forget what is under way."""
        self._unfinished.clear()
        if self._continuation is not None:
            self._continuation.cancel()
            self._continuation = None

    def _begin(self, topic: Topic, delivery: Delivery) -> None:
        topic.current = fan_out = FanOut(topic, delivery)
        if not self._advance(fan_out, self._left):
            self._unfinished.append(fan_out)
            self._go_on_soon()

    def _advance(self, fan_out: FanOut, limit: int) -> bool:
        """Serve the next ones; whether those were the last."""
        self._left -= min(self._left, fan_out.advance(limit))
        if not fan_out.is_finished:
            return False
        fan_out.topic.finish()
        self._observer.dispatched(fan_out.delivery)
        return True

    def _continue(self) -> None:
        self._continuation = None
        self._left = SLICE
        while self._unfinished and self._left > 0:
            fan_out = self._unfinished.popleft()
            if self._advance(fan_out, self._left):
                self._begin_waiting(fan_out.topic)
            else:
                self._unfinished.append(fan_out)
        if self._unfinished:
            self._go_on_soon()

    def _go_on_soon(self) -> None:
        if self._continuation is None:
            self._continuation = self._scheduler.call_soon(self._continue)

    def _begin_waiting(self, topic: Topic) -> None:
        delivery, topic.waiting = topic.waiting, None
        if delivery is not None:
            self._begin(topic, delivery)

    def _finish(self, fan_out: FanOut) -> None:
        self._unfinished.remove(fan_out)
        self._advance(fan_out, sys.maxsize)
        self._begin_waiting(fan_out.topic)
