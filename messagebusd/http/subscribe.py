"""``/api/v1/subscribe``: messages as they come, for other servers (SPEC 4).

A subscription is one long answer: NDJSON, or server-sent events if the request accepts those. It
begins with a heartbeat, so that the subscriber sees it open; then comes what it has missed, then
what is published, per channel in order, each message once. Where one cannot go on it ends with a
last line that says why, and the subscriber continues from the last message it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress

import msgspec
from aiohttp import web

from messagebusd.bus import MessageBus
from messagebusd.errors import LimitExceeded, MalformedRequest, RateLimited, StoreUnavailable
from messagebusd.http.auth import Key, KeyRing
from messagebusd.http.call import request_id
from messagebusd.http.exchange import (
    NDJSON,
    Position,
    Query,
    decoder,
    read_fields,
    refuse_query,
)
from messagebusd.http.following import Channels, Ending, Everything, Following, Inbox, Store
from messagebusd.metrics import Metrics
from messagebusd.protocol.channels import qualify, validate_channel, validate_site
from messagebusd.protocol.message import Message
from messagebusd.protocol.requests import MAX_ID, PollLimits

EVENT_STREAM = "text/event-stream"
MAX_SUBSCRIPTIONS = 1000
HEARTBEAT_SECONDS = 15.0

# A subscription that has nothing to write looks this often whether its peer is still there and
# its key still valid: aiohttp tells a handler of a disconnect only when it writes.
_LOOK_SECONDS = 1.0
# A reader that takes nothing for so long is cut off.
_STALL_SECONDS = 30.0
# One write.
_WRITE_BYTES = 64 * 1024
_TOO_MANY_RETRY_SECONDS = 10

_DETAILS = {
    Ending.OVERFLOW: "messages came in faster than they were read; continue after the last one",
    Ending.DRAINING: "the daemon is stopping; continue after the last message",
    Ending.INTERRUPTED: "the store was away for a while; continue after the last message",
    Ending.UNAUTHORIZED: "the key has expired or is no longer valid",
    Ending.STORE_UNAVAILABLE: "the store does not answer; continue after the last message",
    Ending.INTERNAL_ERROR: "something went wrong here; the log says more under the request id",
}
# After these, what waits may come after something that is missing.
_BREAKS = (Ending.DRAINING, Ending.INTERRUPTED)
# White space in JSON, and the end of a line or event in the formats here.
_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")

_fields = {
    "channels": decoder(dict[str, Position | None]),
    "site_id": decoder(str | None),
}
_log = logging.getLogger(__name__)


class SubscribeDoor:
    """Serves subscriptions. Times in seconds, ``clock`` is monotonic."""

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        limits: PollLimits,
        body_timeout: float,
        heartbeat: float = HEARTBEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._store = Store(bus.backend, metrics)
        self._keys = keys
        self._metrics = metrics
        self._limits = limits
        self._body_timeout = body_timeout
        self._heartbeat = heartbeat
        self._clock = clock

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Follow the channels of the query from one position, or all from a global id."""
        key = self._keys.authorize(request, "read")
        query = Query(request, "channel", "last_id", "site_id", repeatable=("channel",))
        channels, site_id = query.texts("channel"), query.site_id()
        if not channels:
            key.require_all_channels()
            key.require_site(site_id)
            position = query.integer("last_id", minimum=-1)
            resumed = _last_event_id(request)
            everything = Everything(site_id, position if resumed is None else resumed)
            return await self._serve(request, key, everything)
        position = query.integer("last_id", minimum=-MAX_ID)
        positions = dict.fromkeys(channels, position)
        if len(positions) < len(channels):
            raise MalformedRequest("a channel is named more than once")
        return await self._serve(request, key, self._channels(request, key, positions, site_id))

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Follow the channels of the body, each from its own position."""
        key = self._keys.authorize(request, "read")
        refuse_query(request)
        fields = await read_fields(request, self._body_timeout, _fields, required=("channels",))
        positions, site_id = fields["channels"], fields.get("site_id")
        if site_id is not None:
            validate_site(site_id)
        if not positions:
            raise MalformedRequest("name at least one channel; a GET without any follows them all")
        return await self._serve(request, key, self._channels(request, key, positions, site_id))

    def _channels(
        self,
        request: web.Request,
        key: Key,
        positions: Mapping[str, int | None],
        site_id: str | None,
    ) -> Channels:
        if len(positions) > self._limits.max_channels:
            raise LimitExceeded(
                f"a subscription may name {self._limits.max_channels} channels at most"
            )
        for channel in positions:
            validate_channel(channel, self._limits.max_channel)
            key.require_channel(channel, site_id)
        resumed = _last_event_id(request)
        if resumed is not None:
            if len(positions) > 1:
                raise MalformedRequest(
                    "Last-Event-ID cannot say where several channels are; send their positions"
                )
            positions = dict.fromkeys(positions, resumed)
        names = {qualify(channel, site_id): channel for channel in positions}
        return Channels(names, {stored: positions[name] for stored, name in names.items()})

    async def _serve(
        self, request: web.Request, key: Key, following: Following
    ) -> web.StreamResponse:
        if self._bus.hub.feeds >= MAX_SUBSCRIPTIONS:
            raise RateLimited(
                f"there are {MAX_SUBSCRIPTIONS} subscriptions already",
                retry_after=_TOO_MANY_RETRY_SECONDS,
            )
        inbox = Inbox(
            self._bus.max_backlog_bytes,
            following.wants,
            by_global_id=following.channels is None,
        )
        self._metrics.feeds.inc()
        self._bus.hub.add_feed(inbox, following.channels)
        try:
            # The first question to the store comes before the head: its failure is a plain 503.
            status = await following.start(self._store)
            stream = _Stream(request, self._clock)
            await stream.open()
            with suppress(ConnectionError):  # the subscriber has gone
                await self._follow(stream, key, following, inbox, status)
            return stream.response
        finally:
            self._bus.hub.remove_feed(inbox)
            self._metrics.feeds.dec()

    async def _follow(
        self,
        stream: _Stream,
        key: Key,
        following: Following,
        inbox: Inbox,
        status: bytes | None,
    ) -> None:
        """Write a subscription to its end. Raises ConnectionError when the subscriber has gone."""
        ending: Ending
        try:
            if status is not None:
                await stream.status(status, following.status_id())
            async with aclosing(following.replay(self._store)) as pages:
                async for page in pages:
                    if inbox.ending in _BREAKS:
                        break
                    await stream.messages(page, following)
            if inbox.ending in _BREAKS:
                ending = inbox.ending
            else:
                # Ids may start again later, so that they are compared only here.
                inbox.keep_only(following.is_news)
                ending = await self._live(stream, key, following, inbox)
        except StoreUnavailable as error:
            _log.warning("subscription ended", extra={"reason": str(error)})
            ending = Ending.STORE_UNAVAILABLE
        except ConnectionError:
            raise
        except Exception:
            # The head has gone out: what is left is to say that this is not the end of the news.
            _log.exception("subscription failed", extra={"request_id": request_id(stream.request)})
            ending = Ending.INTERNAL_ERROR
        await stream.end(ending)

    async def _live(self, stream: _Stream, key: Key, following: Following, inbox: Inbox) -> Ending:
        """Write live messages until there is a reason to end."""
        while self._keys.is_valid(key):
            messages = inbox.take(_WRITE_BYTES)
            if messages:
                await stream.messages(messages, following)
                continue
            if inbox.ending is not None:
                return inbox.ending
            quiet = self._clock() - stream.written_at
            if quiet >= self._heartbeat:
                await stream.heartbeat()
                quiet = 0.0
            stream.check()
            await inbox.wait(min(_LOOK_SECONDS, self._heartbeat - quiet))
        return Ending.UNAUTHORIZED


class _Stream:
    """The answer of a subscription, in the format that was asked for.

    Writing waits until the reader has taken what was written before, within limits; all methods
    raise ConnectionError once the reader has gone.
    """

    def __init__(self, request: web.Request, clock: Callable[[], float]) -> None:
        self._events = EVENT_STREAM in request.headers.get("Accept", "").lower()
        self._clock = clock
        self.request = request
        self.written_at = 0.0
        self.response = web.StreamResponse(
            headers={
                "Content-Type": EVENT_STREAM if self._events else NDJSON,
                # Against proxies that compress or collect what should be passed on at once.
                "Cache-Control": "no-store, no-transform",
                "X-Accel-Buffering": "no",
            }
        )

    async def open(self) -> None:
        """Send the head and a first heartbeat."""
        await self.response.prepare(self.request)
        await self.heartbeat()

    async def heartbeat(self) -> None:
        await self._write(b":\n\n" if self._events else b"\n")

    async def status(self, status: bytes, event_id: int | None) -> None:
        """Tell where channels are."""
        await self._write(self._line(status, event_id, b"status"))

    async def messages(self, messages: Sequence[Message], following: Following) -> None:
        """Write messages, some at a time."""
        lines: list[bytes] = []
        size = 0
        for message in messages:
            line = self._line(message.with_audience(), following.event_id(message))
            lines.append(line)
            size += len(line)
            if size >= _WRITE_BYTES:
                await self._write_lines(lines)
                lines, size = [], 0
        await self._write_lines(lines)

    async def end(self, ending: Ending) -> None:
        """Say why there is no more, and end the answer."""
        reason = {"end": {"code": ending.value, "detail": _DETAILS[ending]}}
        await self._write(self._line(msgspec.json.encode(reason), None, b"end"))
        await self.response.write_eof()

    def check(self) -> None:
        """Raise ConnectionError if the reader has gone."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError

    def _line(self, document: bytes, event_id: int | None, event: bytes = b"") -> bytes:
        if b"\n" in document or b"\r" in document:
            document = document.translate(_LINE_BREAKS)
        if not self._events:
            return document + b"\n"
        name = b"event: %b\n" % event if event else b""
        identifier = b"" if event_id is None else b"id: %d\n" % event_id
        return b"%b%bdata: %b\n\n" % (name, identifier, document)

    async def _write_lines(self, lines: Iterable[bytes]) -> None:
        if data := b"".join(lines):
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(_STALL_SECONDS):
                await self.response.write(data)
        except TimeoutError:
            if self.request.transport is not None:
                self.request.transport.abort()
            raise ConnectionResetError("the reader has stalled") from None
        self.written_at = self._clock()


def _last_event_id(request: web.Request) -> int | None:
    """Where a client that reconnects has been, from its header. Raises MalformedRequest."""
    sent = request.headers.get("Last-Event-ID", "")
    if not sent:
        return None
    if not (sent.isascii() and sent.isdigit() and len(sent) <= 18):
        raise MalformedRequest("Last-Event-ID is the id of an event: an integer")
    return int(sent)
