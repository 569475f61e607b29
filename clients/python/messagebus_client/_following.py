"""Where a subscription is, and what it makes of what comes: no I/O, for both clients.

A stream is asked for from the positions that are known, and every line moves them. So each message
is handed over once, however often the stream breaks, as long as the backlog has it. The lines are
described in docs/http-api.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from messagebus_client import _calls, _json, _schedule
from messagebus_client._exchange import Flow, Patience, Request, retry_delay
from messagebus_client._schedule import Random
from messagebus_client.errors import (
    ConnectionFailed,
    MessageBusError,
    RequestRefused,
    TemporarilyRefused,
    UnexpectedAnswer,
)
from messagebus_client.types import Gap, Interrupted, Message, Notice, Position, Restarted

STATUS_CHANNEL = "/__status"
FROM_NOW = -1
# The daemon sends a heartbeat every 15 seconds.
SILENCE_SECONDS = 30.0

_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_BROKEN = "broken"
_INTERRUPTED = "interrupted"


class StreamEnded(Exception):
    """The stream's last line: why it ends. Not an error; caught by whoever reads the stream."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Following(Protocol):
    """Some channels, or all."""

    def prepare(self, patience: Patience) -> Flow[Request]:
        """The request for the stream from here on."""

    def take(self, line: bytes) -> tuple[Message | None, list[Notice]]:
        """Read one line. Raises StreamEnded at the last one, UnexpectedAnswer."""

    @property
    def positions(self) -> Mapping[str, int]:
        """Where each channel is; empty for all."""

    @property
    def last_id(self) -> int | None:
        """Where all channels are, as a global id; None for some."""


class Channels:
    """Channels of one site, each from a position of its own."""

    last_id = None

    def __init__(self, channels: Mapping[str, Position] | Iterable[str], site_id: str | None):
        if isinstance(channels, str):
            raise TypeError("name the channels in a list, or with their positions in a mapping")
        asked = channels if isinstance(channels, Mapping) else dict.fromkeys(channels)
        if not asked:
            raise ValueError("name at least one channel")
        self._site_id = site_id
        # Without a position the stream would not tell where it began, and could not go on there.
        self.positions = {
            channel: FROM_NOW if position is None else position
            for channel, position in asked.items()
        }
        # Where the channels were of which the last few messages are wanted.
        self._floors: dict[str, int] = {}

    def prepare(self, patience: Patience) -> Flow[Request]:
        positions = dict(self.positions)
        looking_back = [channel for channel, position in positions.items() if position < FROM_NOW]
        if looking_back:
            # What is published until the stream is open, perhaps at a later try, is wanted as well.
            last_ids = yield from _calls.last_ids(looking_back, self._site_id, patience)
            for channel, last_id in last_ids.items():
                floor = self._floors.setdefault(channel, last_id)
                positions[channel] -= max(0, last_id - floor)
        fields: dict[str, Any] = {"channels": positions}
        if self._site_id is not None:
            fields["site_id"] = self._site_id
        return Request("POST", _calls.PREFIX + "subscribe", body=_json.encode(fields))

    def take(self, line: bytes) -> tuple[Message | None, list[Notice]]:
        document = _document(line)
        if document is None:
            return None, []
        if document.get("channel") == STATUS_CHANNEL:
            return None, self._take_status(document.get("data"))
        message = _calls.message_of(document)
        channel, message_id = message.channel, message.message_id
        if channel not in self.positions:
            raise UnexpectedAnswer("a message of a channel that was not asked for")
        position = self.positions[channel]
        self.positions[channel] = message_id
        if position >= message_id:
            return message, [Restarted(channel, message_id - 1)]
        # PostgreSQL has one id for both, so that a channel's own ids have holes.
        if 0 <= position < message_id - 1 and message_id != message.global_id:
            return message, [Gap(channel, position, message_id)]
        return message, []

    def _take_status(self, data: Any) -> list[Notice]:
        if not isinstance(data, dict):
            raise UnexpectedAnswer("a status without positions")
        notices: list[Notice] = []
        for channel, last_id in data.items():
            if channel not in self.positions or not isinstance(last_id, int):
                raise UnexpectedAnswer("a status of something that was not asked for")
            if self.positions[channel] > last_id:
                notices.append(Restarted(channel, last_id))
            self.positions[channel] = last_id
        return notices


class Everything:
    """All channels, of all sites or of one, by global id."""

    positions: Mapping[str, int] = MappingProxyType({})

    def __init__(self, last_id: Position, site_id: str | None) -> None:
        self._site_id = site_id
        self.last_id: int = FROM_NOW if last_id is None else last_id
        if self.last_id < FROM_NOW:
            raise ValueError("all channels begin at a global id, or at -1")

    def prepare(self, patience: Patience) -> Flow[Request]:
        yield from ()
        query = {"last_id": self.last_id, "site_id": self._site_id}
        return Request("GET", _calls.PREFIX + "subscribe", query)

    def take(self, line: bytes) -> tuple[Message | None, list[Notice]]:
        document = _document(line)
        if document is None:
            return None, []
        position = self.last_id
        if document.get("channel") == STATUS_CHANNEL:
            last_id = document.get("global_id")
            if not isinstance(last_id, int):
                raise UnexpectedAnswer("a status without a position")
            self.last_id = last_id
            return None, [Restarted(None, last_id)] if position > last_id else []
        message = _calls.message_of(document)
        self.last_id = message.global_id
        if position >= message.global_id:
            return message, [Restarted(None, message.global_id - 1)]
        return message, []


def _document(line: bytes) -> dict[str, Any] | None:
    """What a line says, None for a heartbeat. Raises StreamEnded at the last one."""
    if not line.strip():
        return None
    document = _json.decode(line)
    if not isinstance(document, dict):
        raise UnexpectedAnswer("a line that is not a JSON object")
    end = document.get("end")
    if isinstance(end, dict):
        raise StreamEnded(str(end.get("code")), str(end.get("detail")))
    return document


class Reopening:
    """When to open a stream again that ended, and what to tell of it."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._failures = 0
        self._lines = 0

    def line(self) -> None:
        """A line came. Streams begin with a heartbeat: after more, failures count anew."""
        self._lines += 1
        if self._lines > 1:
            self._failures = 0

    def after(self, ending: StreamEnded | MessageBusError, following: Following) -> Interrupted:
        """Tell of an ending, and of the wait. Raises it if opening the stream again is no use."""
        # What was missed of a channel is in its backlog; of all channels only the store knows.
        is_everything = following.last_id is not None
        if isinstance(ending, StreamEnded):
            code, detail = ending.code, str(ending)
            delay = _schedule.backoff(
                self._failures, _BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, self._random
            )
        elif isinstance(ending, ConnectionFailed) or _is_fault(ending):
            code = ending.code if isinstance(ending, RequestRefused) else _BROKEN
            detail = str(ending)
            delay = retry_delay(
                ending, self._failures, self._random, _BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS
            )
        else:
            raise ending
        self._failures += 1
        self._lines = 0
        return Interrupted(code or _BROKEN, detail, delay, is_everything and code == _INTERRUPTED)


def _is_fault(error: MessageBusError) -> bool:
    """Whether the daemon refused for reasons that pass, its own faults among them."""
    return isinstance(error, TemporarilyRefused) or (
        isinstance(error, RequestRefused) and error.status >= 500
    )
