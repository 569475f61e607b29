"""One poll that waits: who it is, what it may see, and the socket it is answered on.

A connection is registered in the hub before its backlog is read (CATCHING_UP: live messages wait
inside), then either leaves the hub again to be answered as an ordinary response, or is given its
transport and parks (PARKED) until news, its deadline, or a newer poll. It is its transport's
protocol itself, holds no task and no timer, and every write is a plain function call.

Closing is always safe, the backlog holds what was not delivered; it is harmless to do it twice.
"""

from __future__ import annotations

import asyncio
import enum
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
    """The life of a connection, in this order."""

    CATCHING_UP = "catching_up"
    PARKED = "parked"
    CLOSED = "closed"


class CloseReason(enum.Enum):
    """Why a poll ended; the values are the metric's labels."""

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


class Delivery:
    """The news of one channel in one turn of the loop; each wire form is built at most once."""

    __slots__ = (
        "_frame",
        "channel",
        "last_id",
        "messages",
        "unrestricted",
        "withheld",
        "written",
    )

    def __init__(self, channel: str, messages: Sequence[Message], *, unrestricted: bool) -> None:
        self.channel = channel
        self.messages = messages
        self.unrestricted = unrestricted
        self.last_id = messages[-1].message_id
        # How many messages were written to, and kept from, all subscribers together.
        self.written = 0
        self.withheld = 0
        self._frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """All of it as one frame."""
        if self._frame is None:
            self._frame = wire.frame(wire.array([each.encoded for each in self.messages]))
        return self._frame


class Connection(asyncio.Protocol):
    """See the module's docstring. ``channels`` are stored names."""

    __slots__ = (
        "_filtered",
        "_pending",
        "_pending_bytes",
        "allowance",
        "bucket",
        "channels",
        "client_id",
        "deadline",
        "headers",
        "hub",
        "is_cut_short",
        "mode",
        "parked_at",
        "seq",
        "state",
        "transport",
        "viewer",
    )

    def __init__(
        self,
        hub: Hub,
        viewer: Viewer,
        client_id: str,
        seq: int,
        mode: Mode,
        channels: tuple[str, ...],
        headers: Mapping[str, str],
    ) -> None:
        self.hub = hub
        self.viewer = viewer
        self.client_id = client_id
        self.seq = seq
        self.mode = mode
        self.channels = channels
        # The headers that a long poll's answer will carry.
        self.headers = headers
        self.state = State.CATCHING_UP
        # Ended before it was answered.
        self.is_cut_short = False
        self.transport: asyncio.Transport | None = None
        # Where the hub keeps it among the deadlines, and since when it is parked.
        self.deadline = 0
        self.parked_at = 0.0
        # Unsent bytes that are not the reader's fault: a first frame larger than the limit.
        self.allowance = 0
        # Where a poll was counted that need not have been if messages end it.
        self.bucket: Bucket | None = None
        self._pending: list[Message] | None = []
        self._pending_bytes = 0
        # Channels whose latest live messages this viewer must not see, with their ids.
        self._filtered: dict[str, int] | None = None

    @property
    def key(self) -> tuple[str | None, Id | None, str]:
        """Polls with the same key replace each other (SPEC 2.7)."""
        return (self.viewer.site_id, self.viewer.user_id, self.client_id)

    @property
    def overflowed(self) -> bool:
        """More came in while catching up than may wait."""
        return self._pending is None and self.state is State.CATCHING_UP

    def may_see(self, message: Message) -> bool:
        """Whether audience and filters let this viewer have the message."""
        audience = message.audience
        if audience is not None and not audience.allows(
            self.viewer.user_id, self.viewer.group_ids, self.client_id
        ):
            return False
        filters = self.hub.filters
        return filters is None or filters.allow(message, self.viewer, self.client_id)

    # -- catching up -------------------------------------------------------------------------

    def settle(self, read_to: Mapping[str, int]) -> list[Message]:
        """Stop collecting; the visible live messages that the backlog did not already bring.

        ``read_to`` is the last global id that was read, or need not be, per channel: message ids
        may have begun anew meanwhile.
        """
        pending, self._pending = self._pending or [], None
        fresh = [each for each in pending if each.global_id > read_to[each.stored_channel]]
        visible = []
        for message in fresh:
            if self.may_see(message):
                visible.append(message)
                self._note_seen(message.stored_channel)
            else:
                self._note_filtered(message.stored_channel, message.message_id)
        return visible

    def park(self, transport: asyncio.Transport, now: float) -> None:
        """Go live on this transport."""
        self.transport = transport
        self.parked_at = now
        self.state = State.PARKED

    # -- delivering --------------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Write, queue or withhold some news."""
        if self.state is not State.PARKED:
            if self.state is State.CATCHING_UP:
                self._queue(delivery.messages)
            return
        messages = delivery.messages
        if not delivery.unrestricted:
            messages = [each for each in messages if self.may_see(each)]
            delivery.withheld += len(delivery.messages) - len(messages)
            if not messages:
                self._note_filtered(delivery.channel, delivery.last_id)
                return
        if self.mode is Mode.LONG_POLL:
            body = wire.array([each.encoded for each in messages])
            sent = self._answer(body, CloseReason.ANSWERED)
        elif len(messages) == len(delivery.messages):
            sent = self._write(delivery.frame)
        else:
            sent = self._write(wire.frame(wire.array([each.encoded for each in messages])))
        if not sent:
            return  # nor may a status skip what was not sent
        delivery.written += len(messages)
        if messages[-1].message_id == delivery.last_id:
            self._note_seen(delivery.channel)
        else:
            self._note_filtered(delivery.channel, delivery.last_id)

    def tell(self, positions: Mapping[str, int]) -> None:
        """Let the client know that these channels (stored names) are now at these ids."""
        if self.state is State.PARKED:
            status = wire.status_message({unqualify(name)[0]: at for name, at in positions.items()})
            body = wire.array([status])
            if self.mode is Mode.LONG_POLL:
                self._answer(body, CloseReason.ANSWERED)
                return
            self._write(wire.frame(body))
        else:
            # What it has read, and what waits for it, may be of the ids before or of those after.
            self.cut_short()
        for channel, position in positions.items():
            self._note_filtered(channel, position)

    def cut_short(self) -> None:
        """Have a poll that is still catching up answered without messages."""
        self.is_cut_short = True
        self._pending = None

    def _queue(self, messages: Sequence[Message]) -> None:
        if self._pending is None:
            return
        self._pending.extend(messages)
        self._pending_bytes += sum(len(each.encoded) for each in messages)
        if self._pending_bytes > self.hub.max_client_buffer:
            # The next poll reads them from the backlog; this one ends after what it has.
            self._pending = None

    def _note_filtered(self, channel: str, message_id: int) -> None:
        if self._filtered is None:
            self._filtered = {}
        self._filtered[channel] = message_id

    def _note_seen(self, channel: str) -> None:
        if self._filtered is not None:
            self._filtered.pop(channel, None)

    def _write(self, frame: bytes) -> bool:
        transport = self.transport
        assert transport is not None
        if transport.is_closing():  # a reset that connection_lost will report; not our error
            return False
        unsent = transport.get_write_buffer_size()
        if unsent > self.hub.max_client_buffer + self.allowance:
            self.close(CloseReason.SLOW)
            return False
        transport.write(frame)
        return True

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

    def answer(self, body: bytes) -> None:
        """Answer at once with this JSON array, on a transport of its own."""
        self._answer(body, CloseReason.ANSWERED)

    # -- closing -----------------------------------------------------------------------------

    def close(self, reason: CloseReason) -> None:
        """End the poll with its last frame: a status where live messages were withheld."""
        if self.state is not State.PARKED:
            if self.state is State.CATCHING_UP:
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

    def withheld_status(self) -> dict[str, int]:
        """Positions that skip the messages withheld since the poll went live."""
        if not self._filtered:
            return {}
        return {unqualify(name)[0]: last_id for name, last_id in self._filtered.items()}

    def _leave(self, reason: CloseReason) -> None:
        self.hub.remove(self, reason)
        self._pending = None
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
