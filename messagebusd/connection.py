"""One poll that waits: who it is, what it may see, and the socket it is answered on.

A connection is registered in the hub before others have their turn while its backlog is read
(CATCHING_UP: live messages wait inside), then either is answered as an ordinary response, or is
given its transport and parks (PARKED) until news, its deadline, or a newer poll. It is its
transport's protocol itself, holds no task and no timer, and every write is a plain function call.

Closing is always safe, the backlog holds what was not delivered; it is harmless to do it twice.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from messagebusd.protocol import wire
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Id, Message
from messagebusd.protocol.ratelimit import Bucket
from messagebusd.protocol.requests import Mode

if TYPE_CHECKING:
    from messagebusd.hub import Hub


class State(enum.Enum):
    """The life of a connection, in this order. Of a new one nobody knows yet."""

    NEW = "new"
    CATCHING_UP = "catching_up"
    PARKED = "parked"
    CLOSED = "closed"


class CloseReason(enum.Enum):
    """Why a poll ended; the values are the metric's labels."""

    __hash__ = object.__hash__  # as that of Mode

    ANSWERED = "answered"
    DEADLINE = "deadline"
    SUPERSEDED = "superseded"
    DISCONNECTED = "disconnected"
    SLOW = "slow"
    ENDED = "ended"
    DRAINED = "drained"
    FULL = "full"


class Viewer(Protocol):
    """The part of an identity that decides what somebody sees."""

    @property
    def user_id(self) -> Id | None: ...
    @property
    def group_ids(self) -> frozenset[Id]: ...
    @property
    def site_id(self) -> str | None: ...
    @property
    def is_admin(self) -> bool: ...


class MessageFilter(Protocol):
    """The declared message filters (SPEC 6)."""

    def allow(self, message: Message, viewer: Viewer, client_id: str) -> bool: ...
    def concerns(self, channel: str) -> bool: ...
    def refusals(
        self, message: Message, viewer: Viewer, client_id: str, now: float
    ) -> list[str]: ...


# No turn of the hub comes after this one.
NEVER = sys.maxsize


class Due:
    """Polls that end together."""

    __slots__ = ("connections", "tick")

    def __init__(self, tick: int) -> None:
        self.tick = tick
        self.connections: dict[Connection, None] = {}


class Connection(asyncio.Protocol):
    """See the module's docstring. ``channels`` are stored names.

    Ten thousand of these are held: everything in here is counted in bytes. It is a `Viewer` itself
    rather than keeping one.
    """

    __slots__ = (
        "_owed",
        "_pending",
        "_pending_bytes",
        "allowance",
        "bucket",
        "channels",
        "client_id",
        "due",
        "group_ids",
        "headers",
        "hub",
        "is_admin",
        "is_cut_short",
        "mode",
        "parked_at",
        "seq",
        "since",
        "site_id",
        "state",
        "transport",
        "user_id",
    )

    def __init__(
        self,
        hub: Hub,
        viewer: Viewer,
        client_id: str,
        seq: int,
        mode: Mode,
        channels: tuple[str, ...],
        headers: wire.Headers,
    ) -> None:
        self.hub = hub
        self.user_id = viewer.user_id
        self.group_ids = viewer.group_ids
        self.site_id = viewer.site_id
        self.is_admin = viewer.is_admin
        self.client_id = client_id
        self.seq = seq
        self.mode = mode
        self.channels = channels
        # The headers that a long poll's answer will carry.
        self.headers = headers
        self.state = State.NEW
        # Ended before it was answered.
        self.is_cut_short = False
        self.transport: asyncio.Transport | None = None
        # Where the hub keeps it among the deadlines, and since when it is parked.
        self.due: Due | None = None
        self.parked_at = 0.0
        # The hub's turn at which it went live: what was announced until then it knows.
        self.since = NEVER
        # Unsent bytes that are not the reader's fault: a first frame larger than the limit.
        self.allowance = 0
        # Where a poll was counted that need not have been if messages end it.
        self.bucket: Bucket | None = None
        self._pending: list[Message] | None = []
        self._pending_bytes = 0
        # Channels whose latest news were kept from it, with their ids, as far as the hub does not
        # note that for all subscribers of a channel together.
        self._owed: dict[str, int] | None = None

    @property
    def viewer(self) -> Viewer:
        """Who polls."""
        return self

    @property
    def is_parked(self) -> bool:
        """Whether it is live."""
        return self.state is State.PARKED

    @property
    def overflowed(self) -> bool:
        """More came in while catching up than may wait."""
        return self._pending is None and self.state is State.CATCHING_UP

    def may_see(self, message: Message) -> bool:
        """Whether audience and filters let this viewer have the message."""
        return self.is_meant(message) and self.passes_filters(message)

    def visible(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Those of these messages that this viewer may have."""
        if self.hub.filters is None:
            return [each for each in messages if each.audience is None or self.is_meant(each)]
        return [each for each in messages if self.may_see(each)]

    def is_meant(self, message: Message) -> bool:
        """Whether the audience includes this viewer."""
        audience = message.audience
        return audience is None or audience.allows(self.user_id, self.group_ids, self.client_id)

    def passes_filters(self, message: Message) -> bool:
        """Whether the declared filters let this viewer have the message."""
        filters = self.hub.filters
        return filters is None or filters.allow(message, self, self.client_id)

    # -- catching up -------------------------------------------------------------------------

    def register(self) -> None:
        """Have the hub know of it, from when on it misses nothing, unless it does."""
        if self.state is State.NEW:
            self.hub.add(self)

    @property
    def has_heard(self) -> bool:
        """Whether anything happened that this poll has to know before it is answered."""
        return self._pending != []

    def settle(self, read_to: Mapping[str, int]) -> list[Message]:
        """Stop collecting; the visible live messages that the backlog did not already bring.

        ``read_to`` is the last global id that was read, or need not be, per channel: message ids
        may have begun anew meanwhile.
        """
        pending, self._pending = self._pending, None
        self.since = self.hub.turn
        if not pending:
            return []
        fresh = [each for each in pending if each.global_id > read_to[each.stored_channel]]
        visible = []
        for message in fresh:
            if self.may_see(message):
                visible.append(message)
                self.note(message.stored_channel, None)
            else:
                self.note(message.stored_channel, message.message_id)
        return visible

    def park(self, transport: asyncio.Transport, now: float) -> None:
        """Go live on this transport."""
        self.register()
        self.transport = transport
        self.parked_at = now
        self.state = State.PARKED
        if self.mode is Mode.STREAM:
            del self.headers  # its head has been written

    # -- delivering --------------------------------------------------------------------------

    def queue(self, messages: Sequence[Message]) -> None:
        """Keep live messages until the backlog has been read."""
        if self._pending is None:
            return
        self._pending.extend(messages)
        self._pending_bytes += sum(len(each.encoded) for each in messages)
        if self._pending_bytes > self.hub.max_client_buffer:
            # The next poll reads them from the backlog; this one ends after what it has.
            self._pending = None

    def write(self, frame: bytes) -> bool:
        """Write a frame to a stream. One that reads too slowly is ended instead."""
        transport = self.transport
        assert transport is not None
        if transport.is_closing():  # a reset that connection_lost will report; not our error
            return False
        if transport.get_write_buffer_size() > self.hub.max_client_buffer + self.allowance:
            self.close(CloseReason.SLOW)
            return False
        transport.write(frame)
        return True

    def answer(self, body: bytes) -> bool:
        """Answer with this JSON array; the connection ends with it."""
        return self._answer(body, CloseReason.ANSWERED)

    def note(self, channel: str, message_id: int | None) -> None:
        """Note that a channel's news up to this id were kept from it; None if it has the latest."""
        if message_id is not None:
            if self._owed is None:
                self._owed = {}
            self._owed[channel] = message_id
        elif self._owed is not None:
            self._owed.pop(channel, None)

    def tell(self, positions: Mapping[str, int]) -> None:
        """Let the client know that these channels (stored names) are now at these ids."""
        if self.state is State.PARKED:
            status = wire.status_message({unqualify(name)[0]: at for name, at in positions.items()})
            body = wire.array([status])
            if self.mode is Mode.LONG_POLL:
                self.answer(body)
                return
            self.write(wire.frame(body))
        else:
            # What it has read, and what waits for it, may be of the ids before or of those after.
            self.cut_short()
        for channel, position in positions.items():
            self.note(channel, position)

    def cut_short(self) -> None:
        """Have a poll that is still catching up answered without messages."""
        self.is_cut_short = True
        self._pending = None

    def _answer(self, body: bytes, reason: CloseReason) -> bool:
        """Answer with JSON; the connection ends with it."""
        transport = self.transport
        assert transport is not None
        if transport.is_closing():
            self._leave(reason)
            return False
        transport.write(wire.json_answer(self.headers, body))
        self._leave(reason)
        return True

    # -- closing -----------------------------------------------------------------------------

    def close(self, reason: CloseReason) -> None:
        """End the poll with its last frame: a status where live messages were withheld."""
        if self.state is not State.PARKED:
            if self.state is not State.CLOSED:
                self._leave(reason)
            return
        status = self.withheld_status()
        last = [wire.status_message(status)] if status else []
        if self.mode is Mode.LONG_POLL:
            self._answer(wire.array(last), reason)
            return
        transport = self.transport
        assert transport is not None
        if not transport.is_closing():
            body = wire.frame(wire.array(last)) if last else wire.EMPTY_FRAME
            transport.write(body + wire.LAST_CHUNK)
        self._leave(reason)

    def reset(self) -> None:
        """End the poll without a last frame: its client goes by what it has received."""
        if self.transport is not None:
            self.transport.abort()

    def withheld_status(self) -> dict[str, int]:
        """Positions that skip the messages withheld since the poll went live."""
        owed = {} if self._owed is None else self._owed.copy()
        self.hub.update(self, owed)
        return {unqualify(name)[0]: last_id for name, last_id in owed.items()}

    def _leave(self, reason: CloseReason) -> None:
        self.hub.remove(self, reason)
        self._pending = self._owed = None
        if self.transport is not None:
            self.transport.close()

    # -- asyncio.Protocol --------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Ignore a pipelined request: the head said that the connection closes."""

    def eof_received(self) -> None:
        """Take a half-closed peer for gone, as nginx does: browsers and proxies close that way."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a client that went away; its positions are its own."""
        if self.state is not State.CLOSED:
            self.hub.remove(self, CloseReason.DISCONNECTED)
        self.hub.transport_closed(self)
        self.transport = None
