"""The client for servers: publish, read and follow channels over messagebusd's HTTP API.

::

    with Client("http://127.0.0.1:8090", key=os.environ["MESSAGEBUSD_KEY"]) as bus:
        bus.publish("/chat/1", {"text": "Hello"}, user_ids=[42])

`AsyncClient` is the same for asyncio. Calls that may be sent twice are tried again when the
connection fails and when the daemon says that it cannot just now (429, 503), for ``retry_for``
seconds altogether. Publishing is among them: each call has an idempotency key of its own, so that
a message whose answer got lost is not published again.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack

from messagebus_client import _calls
from messagebus_client._exchange import Patience
from messagebus_client._following import (
    SILENCE_SECONDS,
    Channels,
    Everything,
    Following,
    Reopening,
    StreamEnded,
)
from messagebus_client._http import Stream, Transport
from messagebus_client.errors import MessageBusError, RequestRefused
from messagebus_client.types import (
    Data,
    Message,
    Notice,
    Position,
    Publication,
    Published,
    PublishOptions,
)

_ONCE = 0.0


class Client:
    """Talks to one daemon, or to several behind one URL; may be used by several threads.

    ``url`` is where ``/api/v1/`` is found and ``key`` one of the daemon's API keys. ``timeout`` are
    the seconds that one try may take, ``retry_for`` those after which no other one is made.
    ``ssl_context`` is for servers with certificates of their own authority.

    All calls raise MessageBusError (see `messagebus_client.errors`), and ValueError or TypeError
    for what cannot be sent. Make it after forking.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 10.0,
        retry_for: float = 30.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._transport = Transport(url, key, timeout, ssl_context)
        self._patience = Patience(retry_for, time.monotonic, random.random)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Close subscriptions before."""
        self._transport.close()

    # -- publishing

    def publish(
        self,
        channel: str,
        data: Data,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> Published:
        """Publish a message; ``options`` are the fields of `Publication`.

        With an ``idempotency_key`` of your own the same message can be published again within a
        day, even by another process, and comes out once.
        """
        publication = Publication(channel, data, **options)
        return self._transport.run(_calls.publish(publication, idempotency_key, self._patience))

    def publish_batch(
        self, publications: Sequence[Publication], *, idempotency_key: str | None = None
    ) -> list[Published | RequestRefused]:
        """Publish up to 1000 messages in order, and return what became of each.

        One that is refused does not stop the others: its result is the error.
        """
        if not publications:
            return []
        flow = _calls.publish_batch(publications, idempotency_key, self._patience)
        return self._transport.run(flow)

    # -- reading

    def last_id(self, channel: str, *, site_id: str | None = None) -> int:
        """The last id of a channel, 0 if there is none. Put it into a page when you render it."""
        return self._transport.run(_calls.last_id(channel, site_id, self._patience))

    def last_ids(self, channels: Iterable[str], *, site_id: str | None = None) -> dict[str, int]:
        """The last ids of some channels."""
        return self._transport.run(_calls.last_ids(list(channels), site_id, self._patience))

    def backlog(
        self, channel: str, last_id: int = 0, *, site_id: str | None = None
    ) -> Iterator[Message]:
        """Iterate over a channel's stored messages after ``last_id``, read page by page."""
        more = True
        while more:
            query = {
                "channel": channel,
                "site_id": site_id,
                "last_id": last_id,
                "limit": _calls.PAGE_SIZE,
            }
            messages, more = self._transport.run(_calls.page("backlog", query, self._patience))
            yield from messages
            last_id = messages[-1].message_id if messages else last_id

    def global_backlog(self, last_id: int = 0) -> Iterator[Message]:
        """The same for all channels of all sites, by global id."""
        more = True
        while more:
            query = {"last_id": last_id, "limit": _calls.PAGE_SIZE}
            flow = _calls.page("global_backlog", query, self._patience)
            messages, more = self._transport.run(flow)
            yield from messages
            last_id = messages[-1].global_id if messages else last_id

    def message(
        self, channel: str, message_id: int | None = None, *, site_id: str | None = None
    ) -> Message | None:
        """The message of this id, or the last one; None if it is not stored."""
        flow = _calls.message(channel, message_id, site_id, self._patience)
        return self._transport.run(flow)

    def delete_backlog(self, channel: str, *, site_id: str | None = None) -> None:
        """Forget a channel's messages; its ids continue. Needs the scope ``admin``.

        It is not tried again: another try could take messages that came in meanwhile.
        """
        once = Patience(_ONCE, self._patience.clock, self._patience.random)
        self._transport.run(_calls.delete_backlog(channel, site_id, once))

    # -- following

    def subscribe(
        self,
        channels: Mapping[str, Position] | Iterable[str],
        *,
        site_id: str | None = None,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> Subscription:
        """Follow channels, from now on or each from its position, whoever messages are for.

        ::

            with bus.subscribe({"/orders": last_seen}) as messages:
                for message in messages:
                    ...

        It never ends by itself: when the stream breaks it is opened again where it was, so that
        every message comes once, as long as the backlog has it. ``on_notice`` is told what
        happened meanwhile (`Interrupted`, `Gap`, `Restarted`), in the thread that iterates.
        Iterating raises MessageBusError when going on is no use: the key is refused, for example.
        """
        return Subscription(self, Channels(channels, site_id), on_notice)

    def subscribe_all(
        self,
        last_id: Position = None,
        *,
        site_id: str | None = None,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> Subscription:
        """Follow all channels, of all sites or of one, after a global id or from now on."""
        return Subscription(self, Everything(last_id, site_id), on_notice)


class Subscription:
    """An endless iterator over messages; see `Client.subscribe`.

    One thread iterates; any thread may close it, which ends the iteration.
    """

    def __init__(
        self,
        client: Client,
        following: Following,
        on_notice: Callable[[Notice], None] | None,
    ) -> None:
        self._transport = client._transport
        self._patience = client._patience
        self._on_notice = on_notice
        self._reopening = Reopening(client._patience.random)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stream: Stream | None = None
        self._following = following
        self._messages = self._follow()

    @property
    def positions(self) -> dict[str, int]:
        """Where each channel is, empty if all are followed; the last message handed over counts.

        Saved when that message is dealt with, and given to `Client.subscribe`, they continue after
        it in another process.
        """
        return dict(self._following.positions)

    @property
    def last_id(self) -> int | None:
        """The same where all channels are followed: a global id; None if some are."""
        return self._following.last_id

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        return next(self._messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration; from any thread, and more than once."""
        with self._lock:
            self._closed.set()
            if self._stream is not None:
                self._stream.abort()
        with suppress(ValueError):  # it is iterating, and finds its stream broken
            self._messages.close()

    def _follow(self) -> Generator[Message, None, None]:
        while not self._closed.is_set():
            try:
                yield from self._read()
            except (StreamEnded, MessageBusError) as ending:
                if self._closed.is_set():
                    return
                notice = self._reopening.after(ending, self._following)
                self._tell(notice)
                self._closed.wait(notice.retry_in)

    def _read(self) -> Generator[Message, None, None]:
        """One stream, to its end, which is an exception always."""
        once = Patience(_ONCE, self._patience.clock, self._patience.random)
        request = self._transport.run(self._following.prepare(once))
        with self._transport.open(request, SILENCE_SECONDS) as stream:
            with self._lock:
                self._stream = stream
                if self._closed.is_set():
                    return
            try:
                for line in stream.lines():
                    self._reopening.line()
                    message, notices = self._following.take(line)
                    for notice in notices:
                        self._tell(notice)
                    if message is not None:
                        yield message
            finally:
                with self._lock:
                    self._stream = None

    def _tell(self, notice: Notice) -> None:
        if self._on_notice is not None:
            self._on_notice(notice)
