"""News of one channel that go out together, and what each subscriber gets of them.

A message without a restriction is for all subscribers of its channel; one with an audience for
those that were found for it, and nobody else is visited. What a subscriber gets is a mask of bits,
one for each message, so that each wire form is built once however many share it.
"""

from __future__ import annotations

from asyncio import Transport
from collections.abc import Collection, Iterable, Sequence

from messagebusd.connection import Connection
from messagebusd.protocol import wire
from messagebusd.protocol.message import Message
from messagebusd.protocol.requests import Mode

# The subscribers of a channel in the order of their arrival. Who has been written to before is live
# for all that comes later, and so stands here with its transport: what is for everybody goes there
# without a look at the connection. Of thousands, none is still in the processor's cache.
Members = dict[Connection, Transport | None]


class Delivery:
    """See the module's docstring.

    ``turn`` is the hub's count of announcements at the latest of them: a connection that went live
    at that turn or later knows them from its backlog. ``filtered`` says that filters want to see
    each recipient.
    """

    __slots__ = (
        "_arrays",
        "_frames",
        "_seen",
        "_turns",
        "bytes",
        "common",
        "filtered",
        "masks",
        "messages",
        "turn",
        "withheld",
        "written",
    )

    def __init__(self) -> None:
        self.filtered = False
        self.messages: list[Message] = []
        self.turn = 0
        # What is for everybody, and what is for some besides.
        self.common = 0
        self.masks: dict[Connection, int] = {}
        self.bytes = 0
        # How many messages were written to, and kept from, all subscribers together.
        self.written = 0
        self.withheld = 0
        # Which messages came at this turn or before.
        self._turns: list[tuple[int, int]] = []
        # Who was shown the latest message, as far as filters decide.
        self._seen: set[Connection] = set()
        self._arrays: dict[int, bytes] = {}
        self._frames: dict[int, bytes] = {}

    def add(
        self,
        messages: Iterable[Message],
        recipients: Iterable[Collection[Connection] | None],
        parked: int,
        turn: int,
    ) -> None:
        """Add what was announced in a turn: each message with its recipients, None for all.

        ``parked`` is how many subscribers there are.
        """
        for message, chosen in zip(messages, recipients, strict=True):
            bit = 1 << len(self.messages)
            self.messages.append(message)
            self.bytes += len(message.encoded)
            if chosen is None:
                self.common |= bit
            else:
                masks = self.masks
                for each in chosen:
                    masks[each] = masks.get(each, 0) | bit
                self.withheld += parked - len(chosen)
        self.turn = turn
        self._turns.append((turn, (1 << len(self.messages)) - 1))

    @property
    def first_turn(self) -> int:
        """The turn of the earliest of them."""
        return self._turns[0][0]

    @property
    def last_id(self) -> int:
        """The latest message's id."""
        return self.messages[-1].message_id

    def after(self, turn: int) -> int:
        """The messages that were announced after this turn, as a mask."""
        known = 0
        for each, so_far in self._turns:
            if each <= turn:
                known = so_far
        return ~known

    def array(self, mask: int) -> bytes:
        """Some of the messages as one JSON array."""
        found = self._arrays.get(mask)
        if found is None:
            chosen = (each for at, each in enumerate(self.messages) if mask >> at & 1)
            found = self._arrays[mask] = wire.array([each.encoded for each in chosen])
        return found

    def frame(self, mask: int) -> bytes:
        """Some of the messages as one frame."""
        found = self._frames.get(mask)
        if found is None:
            found = self._frames[mask] = wire.frame(self.array(mask))
        return found

    def give(self, connection: Connection) -> None:
        """Write to a connection what it may see, if it was live when these came."""
        mask = self.masks.get(connection, 0) | self.common
        if connection.since >= self.first_turn:
            mask &= self.after(connection.since)
        if self.filtered:
            mask = self._filter(connection, mask)
        if not mask:
            return
        if connection.mode is Mode.LONG_POLL:
            sent = connection.answer(self.array(mask))
        else:
            sent = connection.write(self.frame(mask))
        if sent:
            self.written += mask.bit_count()

    def give_all(
        self,
        connections: Sequence[Connection],
        transports: Sequence[Transport | None],
        members: Members,
    ) -> None:
        """The same for many, where all get the same.

        ``transports`` are theirs, as far as an earlier delivery has noted them in ``members``.
        """
        frame, turn, count = self.frame(self.common), self.first_turn, self.common.bit_count()
        written = 0
        for connection, transport in zip(connections, transports, strict=True):
            if not (
                transport is None or transport.is_closing() or transport.get_write_buffer_size()
            ):
                transport.write(frame)
                written += count
            elif connection.since < turn and connection.mode is Mode.STREAM:
                if connection.write(frame):
                    written += count
                    members[connection] = connection.transport
            else:
                self.give(connection)
        self.written += written

    def was_shown(self, connection: Connection) -> bool:
        """Whether a connection was given the latest message."""
        last = 1 << (len(self.messages) - 1)
        if self.filtered:
            return connection in self._seen
        return bool((self.masks.get(connection, 0) | self.common) & last)

    def seen(self) -> set[Connection] | None:
        """Who was given the latest message; None is everybody."""
        if self.filtered:
            return self._seen
        last = 1 << (len(self.messages) - 1)
        if self.common & last:
            return None
        return {connection for connection, mask in self.masks.items() if mask & last}

    def _filter(self, connection: Connection, mask: int) -> int:
        for at, message in enumerate(self.messages):
            if mask >> at & 1 and not connection.passes_filters(message):
                mask ^= 1 << at
                self.withheld += 1
        if mask >> (len(self.messages) - 1):
            self._seen.add(connection)
        return mask
