"""What happened in this worker lately, for whoever asks why somebody did not get a message.

Four rings: what was announced, what was delivered, how polls caught up, and how they ended. Each
takes a tuple and an append, whatever the number of recipients: who was given a message is not
noted but found out afterwards, from when his poll was live (`messagebusd.explain`). Polls that are
still live are known to the hub.

Positions are noted here and not in the poll, so that those that are parked in great numbers do not
grow. Everything is bounded: by count, and where clients choose how much, by the names of channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from messagebusd.connection import CloseReason, Connection
from messagebusd.delivery import Delivery
from messagebusd.fanout import Observer
from messagebusd.protocol.catchup import Position
from messagebusd.protocol.message import Id, Message
from messagebusd.protocol.requests import Mode

# So many of each kind, and of polls as many as name so many channels together.
MAX_RECORDS = 4096
MAX_CHANNELS = 16 * MAX_RECORDS
MAX_RESTARTS = 8
# What is kept when room is made.
KEPT_PART = 15 / 16


class Announced(NamedTuple):
    """A turn of the hub: what the store announced, by global ids, and when."""

    turn: int
    at: float
    first_global_id: int
    last_global_id: int


class Delivered(NamedTuple):
    """News of one channel that went out together; ``written`` and ``withheld`` are of all of them
    and all subscribers, ``ended`` is how many polls had ended until everybody had had his turn."""

    channel: str
    first_id: int
    last_id: int
    turn: int
    at: float
    messages: int
    written: int
    withheld: int
    ended: int


class CaughtUp(NamedTuple):
    """A poll that was told what it had missed; ``positions`` go with ``channels``, and ``began`` is
    the turn at which it was registered."""

    client_id: str
    seq: int
    since: int
    at: float
    channels: tuple[str, ...]
    positions: tuple[Position, ...]
    began: int
    truncated: bool


class Ended(NamedTuple):
    """A poll that is over; ``turn`` is the hub's then, ``parked_at`` 0.0 if it never was, and
    ``number`` counts those that ended."""

    client_id: str
    seq: int
    since: int
    at: float
    channels: tuple[str, ...]
    user_id: Id | None
    group_ids: frozenset[Id]
    site_id: str | None
    is_admin: bool
    mode: Mode
    parked_at: float
    turn: int
    reason: CloseReason
    number: int


class Restarted(NamedTuple):
    """Channels whose ids began anew."""

    turn: int
    at: float
    channels: frozenset[str]


# Where the records of polls have their channels.
_CHANNELS = CaughtUp._fields.index("channels")
assert Ended._fields.index("channels") == _CHANNELS


class _Polls:
    """A ring of records of polls: plain tuples, which cost half of named ones."""

    __slots__ = ("channels", "count", "dropped_at", "records")

    def __init__(self) -> None:
        self.records: deque[tuple[Any, ...]] = deque()
        # How many have ended so far, and how many channels are kept.
        self.count = 0
        self.channels = 0
        # When the latest record that is gone was made.
        self.dropped_at: float | None = None

    def append(self, record: tuple[Any, ...]) -> None:
        """Keep this one."""
        self.channels += len(record[_CHANNELS])
        self.records.append(record)
        if self.channels > MAX_CHANNELS or len(self.records) > MAX_RECORDS:
            self._make_room()

    def _make_room(self) -> None:
        """Forget the oldest ones, a part of all at a time."""
        records = self.records
        while len(records) > MAX_RECORDS * KEPT_PART or self.channels > MAX_CHANNELS * KEPT_PART:
            gone = records.popleft()
            self.channels -= len(gone[_CHANNELS])
            self.dropped_at = gone[_CHANNELS - 1]


class Recent:
    """See the module's docstring. ``clock`` is the hub's; all times are its seconds."""

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._clock = clock
        self._began_at = clock()
        self._announced: deque[tuple[Any, ...]] = deque(maxlen=MAX_RECORDS)
        self._delivered: deque[tuple[Any, ...]] = deque(maxlen=MAX_RECORDS)
        self._caught_up = _Polls()
        self._ended = _Polls()
        self._restarted: deque[Restarted] = deque(maxlen=MAX_RESTARTS)

    # -- noting ------------------------------------------------------------------------------

    def announced(self, turn: int, messages: Sequence[Message]) -> None:
        """The store announced these."""
        self._announced.append((turn, self._clock(), messages[0].global_id, messages[-1].global_id))

    def dispatched(self, delivery: Delivery) -> None:
        """One channel's news went to everybody who waits for it."""
        messages = delivery.messages
        self._delivered.append(
            (
                messages[0].stored_channel,
                messages[0].message_id,
                messages[-1].message_id,
                delivery.turn,
                self._clock(),
                len(messages),
                delivery.written,
                delivery.withheld,
                self._ended.count,
            )
        )
        self._observer.dispatched(delivery)

    def caught_up(
        self,
        connection: Connection,
        positions: Sequence[Position],
        began: int,
        truncated: bool = False,
    ) -> None:
        """A poll has read its backlog, from these positions on."""
        self._caught_up.append(
            (
                connection.client_id,
                connection.seq,
                connection.since,
                self._clock(),
                connection.channels,
                tuple(positions),
                began,
                truncated,
            )
        )

    def ended(self, connection: Connection, reason: CloseReason, turn: int) -> None:
        """A poll is about to be forgotten."""
        self._observer.poll_ended(connection.mode, reason)
        polls = self._ended
        polls.count += 1
        polls.append(
            (
                connection.client_id,
                connection.seq,
                connection.since,
                self._clock(),
                connection.channels,
                connection.user_id,
                connection.group_ids,
                connection.site_id,
                connection.is_admin,
                connection.mode,
                connection.parked_at,
                turn,
                reason,
                polls.count,
            )
        )

    def restarted(self, turn: int, channels: Collection[str]) -> None:
        """The ids of these channels began anew."""
        self._restarted.append(Restarted(turn, self._clock(), frozenset(channels)))

    # -- looking back ------------------------------------------------------------------------

    @property
    def announcements_since(self) -> float:
        """From when on it is known what was announced."""
        full = len(self._announced) == MAX_RECORDS
        return float(self._announced[0][1]) if full else self._began_at

    @property
    def polls_since(self) -> float:
        """From when on it is known which polls ended."""
        dropped_at = self._ended.dropped_at
        return self._began_at if dropped_at is None else dropped_at

    def announcements(self) -> Iterator[Announced]:
        """What was announced, latest first; as are the following."""
        return map(Announced._make, reversed(self._announced))

    def deliveries(self) -> Iterator[Delivered]:
        return map(Delivered._make, reversed(self._delivered))

    def catch_ups(self) -> Iterator[CaughtUp]:
        return map(CaughtUp._make, reversed(self._caught_up.records))

    def ends(self) -> Iterator[Ended]:
        return map(Ended._make, reversed(self._ended.records))

    def restarts(self) -> Iterator[Restarted]:
        return reversed(self._restarted)
