"""What a poller asks, and what it makes of the answer: no I/O.

The protocol is the one of the Ruby gem's pages (SPEC 2): the positions of all channels go out,
messages and statuses come back, as one JSON array or as a stream of them.
"""

from __future__ import annotations

import enum
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

from messagebus_client import _json
from messagebus_client._chunks import FrameSplitter
from messagebus_client._positions import Catchup, Subscriber
from messagebus_client._schedule import Answered, Failed, Intervals, Outcome, RateLimited
from messagebus_client.errors import UnexpectedAnswer

STATUS_CHANNEL = "/__status"
# A stream begins within two seconds (SPEC 2.4): something on the way holds it back.
FIRST_CHUNK_SECONDS = 3.0
# Then streaming is left for so many polls.
_POLLS_WITHOUT_STREAM = 30

C = TypeVar("C", bound=Callable[..., Any])


Headers: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str]] | None
Callback: TypeAlias = Callable[[Any, int, int], object]
"""Called with data, message id and global id."""


class PollerStatus(enum.Enum):
    """Whether a poller polls."""

    STOPPED = "stopped"
    STARTED = "started"


class PollerOptions(TypedDict, total=False):
    """What `Poller` and `AsyncPoller` can be told besides the URL; `AsyncPoller` explains it."""

    enable_long_polling: bool
    enable_chunked_encoding: bool
    min_poll_interval: float
    max_poll_interval: float
    callback_interval: float
    background_callback_interval: float
    headers: Headers


@dataclass(frozen=True, slots=True)
class Settings:
    """The options with their defaults; times are in seconds."""

    enable_long_polling: bool = True
    enable_chunked_encoding: bool = True
    min_poll_interval: float = 0.1
    max_poll_interval: float = 180.0
    callback_interval: float = 15.0
    background_callback_interval: float = 60.0
    headers: Headers = None

    @property
    def intervals(self) -> Intervals:
        return Intervals(
            self.min_poll_interval,
            self.max_poll_interval,
            self.callback_interval,
            self.background_callback_interval,
        )


@dataclass(slots=True)
class PollerStats:
    """Polls: ``failed`` in a row, ``success`` altogether."""

    failed: int = 0
    success: int = 0


@dataclass(frozen=True, slots=True)
class Delivery(Generic[C]):
    """A message for a callback."""

    callback: C
    data: Any
    message_id: int
    global_id: int


class PollerState(Generic[C]):
    """Who is subscribed to what, from where, and what polls have shown."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client_id = uuid.uuid4().hex
        self.stats = PollerStats()
        self._subscribers: dict[str, list[Subscriber[C]]] = {}
        self._sequence = 0
        self._polls_without_stream = 0
        # `Poller` subscribes from other threads; never held while anything waits.
        self._lock = threading.Lock()

    @property
    def channels(self) -> Mapping[str, int]:
        """The position of each channel: that of its callback which is least far."""
        with self._lock:
            return {
                channel: min(each.position for each in subscribers)
                for channel, subscribers in self._subscribers.items()
            }

    def subscribe(self, channel: str, callback: C, last_message_id: int) -> None:
        if not channel.startswith("/"):
            raise ValueError("a channel begins with a slash")
        if not callable(callback):
            raise TypeError("the callback must be callable")
        subscriber = Subscriber(callback, last_message_id)
        with self._lock:
            self._subscribers.setdefault(channel, []).append(subscriber)

    def unsubscribe(self, channel: str, callback: C | None) -> bool:
        """Returns whether there was somebody to forget."""
        with self._lock:
            kept: list[Subscriber[C]] = []
            gone: list[Subscriber[C]] = []
            for each in self._subscribers.get(channel, ()):
                (gone if callback is None or each.callback == callback else kept).append(each)
            for each in gone:
                each.is_active = False
            if kept:
                self._subscribers[channel] = kept
            else:
                self._subscribers.pop(channel, None)
            return bool(gone)

    def poll(self) -> Poll[C]:
        """The next poll; there must be channels."""
        self._sequence += 1
        with self._lock:
            catchups = {channel: Catchup(each) for channel, each in self._subscribers.items()}
        is_urgent = any(each.ask.is_alone for each in catchups.values())
        waits = self.settings.enable_long_polling and not is_urgent
        streams = waits and self.settings.enable_chunked_encoding and not self._polls_without_stream
        if self._polls_without_stream:
            self._polls_without_stream -= 1
        headers = {"content-type": "application/json", "x-silence-logger": "true"}
        if not streams:
            headers["dont-chunk"] = "true"
        more = self.settings.headers
        headers |= (more() if callable(more) else more) or {}
        positions = {channel: each.ask.position for channel, each in catchups.items()}
        body = _json.encode({**positions, "__seq": self._sequence})
        path = f"/message-bus/{quote(self.client_id)}/poll" + ("" if waits else "?dlp=t")
        return Poll(path, headers, body, streams, is_urgent, catchups)

    def has_channels(self) -> bool:
        return bool(self._subscribers)

    def give_streaming_up(self) -> None:
        """A stream did not begin in time: do without for a while."""
        self._polls_without_stream = _POLLS_WITHOUT_STREAM

    def heard(self) -> None:
        """The server has answered: the next failure is the first one again."""
        self.stats.failed = 0

    def succeeded(self, *, got_data: bool) -> Outcome:
        self.stats.success += 1
        return Answered(got_data)

    def refused(self, status: int, retry_after: float | None) -> Outcome:
        if status == 429:
            return RateLimited(retry_after)
        return self.failed(retry_after)

    def failed(self, retry_after: float | None = None) -> Outcome:
        self.stats.failed += 1
        return Failed(self.stats.failed, retry_after)


class Poll(Generic[C]):
    """One poll. ``is_urgent``: the next one follows at once, for those who were not asked for."""

    def __init__(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        streams: bool,
        is_urgent: bool,
        catchups: Mapping[str, Catchup[C]],
    ) -> None:
        self.path = path
        self.headers = headers
        self.body = body
        self.streams = streams
        self.is_urgent = is_urgent
        self.got_data = False
        self._catchups = catchups

    def answer(self, content_type: str) -> FrameSplitter | None:
        """How to take the answer apart; None if it is one array. Raises UnexpectedAnswer."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "text/plain":
            return FrameSplitter()
        if kind == "application/json":
            return None
        raise UnexpectedAnswer(f"an answer of the type {kind or 'nothing'!r}; is it messagebusd?")

    def take(self, text: bytes) -> Iterator[Delivery[C]]:
        """Read one array; yields what is to be delivered. Raises UnexpectedAnswer."""
        messages = decode(text)
        self.got_data = self.got_data or bool(messages)
        return self._deliveries(messages)

    def _deliveries(self, messages: list[dict[str, Any]]) -> Iterator[Delivery[C]]:
        for message in messages:
            if message["channel"] == STATUS_CHANNEL:
                self._take_status(message["data"])
                continue
            catchup = self._catchups.get(message["channel"])
            if catchup is not None:
                message_id, global_id = message["message_id"], message["global_id"]
                for each in catchup.message(message_id):
                    yield Delivery(each.callback, message["data"], message_id, global_id)
        for catchup in self._catchups.values():
            catchup.told()

    def _take_status(self, data: Any) -> None:
        if not isinstance(data, dict):
            raise UnexpectedAnswer("a status without positions")
        for channel, last_id in data.items():
            if not isinstance(last_id, int):
                raise UnexpectedAnswer("a status whose position is no integer")
            if channel in self._catchups:
                self._catchups[channel].status(last_id)


def decode(text: bytes) -> list[dict[str, Any]]:
    """Read an array of messages. Raises UnexpectedAnswer."""
    messages = _json.decode(text)
    if not isinstance(messages, list):
        raise UnexpectedAnswer("the answer is not a JSON array")
    for each in messages:
        if (
            not isinstance(each, dict)
            or not isinstance(each.get("channel"), str)
            or not isinstance(each.get("message_id"), int)
            or not isinstance(each.get("global_id"), int)
            or "data" not in each
        ):
            raise UnexpectedAnswer("the answer is not an array of messages")
    return messages
