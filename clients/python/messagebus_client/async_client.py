"""`Client` for asyncio: the same calls, with the same promises, see `messagebus_client.client`.

::

    async with AsyncClient("http://127.0.0.1:8090", key=os.environ["MESSAGEBUSD_KEY"]) as bus:
        await bus.publish("/chat/1", {"text": "Hello"}, user_ids=[42])
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
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
from messagebus_client._http import AsyncTransport
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


class AsyncClient:
    """Talks to one daemon, or to several behind one URL.

    See `Client` for the arguments and errors. It belongs to one event loop.
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
        self._transport = AsyncTransport(url, key, timeout, ssl_context)
        self._patience = Patience(retry_for, time.monotonic, random.random)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Close subscriptions before."""
        await self._transport.close()

    # -- publishing

    async def publish(
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
        return await self._transport.run(
            _calls.publish(publication, idempotency_key, self._patience)
        )

    async def publish_batch(
        self, publications: Sequence[Publication], *, idempotency_key: str | None = None
    ) -> list[Published | RequestRefused]:
        """Publish up to 1000 messages in order, and return what became of each.

        One that is refused does not stop the others: its result is the error.
        """
        if not publications:
            return []
        flow = _calls.publish_batch(publications, idempotency_key, self._patience)
        return await self._transport.run(flow)

    # -- reading

    async def last_id(self, channel: str, *, site_id: str | None = None) -> int:
        """The last id of a channel, 0 if there is none. Put it into a page when you render it."""
        return await self._transport.run(_calls.last_id(channel, site_id, self._patience))

    async def last_ids(
        self, channels: Iterable[str], *, site_id: str | None = None
    ) -> dict[str, int]:
        """The last ids of some channels."""
        return await self._transport.run(_calls.last_ids(list(channels), site_id, self._patience))

    async def backlog(
        self, channel: str, last_id: int = 0, *, site_id: str | None = None
    ) -> AsyncIterator[Message]:
        """Iterate over a channel's stored messages after ``last_id``, read page by page."""
        more = True
        while more:
            query = {
                "channel": channel,
                "site_id": site_id,
                "last_id": last_id,
                "limit": _calls.PAGE_SIZE,
            }
            messages, more = await self._transport.run(
                _calls.page("backlog", query, self._patience)
            )
            for each in messages:
                yield each
            last_id = messages[-1].message_id if messages else last_id

    async def global_backlog(self, last_id: int = 0) -> AsyncIterator[Message]:
        """The same for all channels of all sites, by global id."""
        more = True
        while more:
            query = {"last_id": last_id, "limit": _calls.PAGE_SIZE}
            flow = _calls.page("global_backlog", query, self._patience)
            messages, more = await self._transport.run(flow)
            for each in messages:
                yield each
            last_id = messages[-1].global_id if messages else last_id

    async def message(
        self, channel: str, message_id: int | None = None, *, site_id: str | None = None
    ) -> Message | None:
        """The message of this id, or the last one; None if it is not stored."""
        flow = _calls.message(channel, message_id, site_id, self._patience)
        return await self._transport.run(flow)

    async def delete_backlog(self, channel: str, *, site_id: str | None = None) -> None:
        """Forget a channel's messages; its ids continue. Needs the scope ``admin``.

        It is not tried again: another try could take messages that came in meanwhile.
        """
        once = Patience(_ONCE, self._patience.clock, self._patience.random)
        await self._transport.run(_calls.delete_backlog(channel, site_id, once))

    # -- following

    def subscribe(
        self,
        channels: Mapping[str, Position] | Iterable[str],
        *,
        site_id: str | None = None,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> AsyncSubscription:
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
        return AsyncSubscription(self, Channels(channels, site_id), on_notice)

    def subscribe_all(
        self,
        last_id: Position = None,
        *,
        site_id: str | None = None,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> AsyncSubscription:
        """Follow all channels, of all sites or of one, after a global id or from now on."""
        return AsyncSubscription(self, Everything(last_id, site_id), on_notice)


class AsyncSubscription:
    """An endless asynchronous iterator over messages; see `AsyncClient.subscribe`.

    One task iterates. It may be cancelled: what was handed over until then is not sent again.
    """

    def __init__(
        self,
        client: AsyncClient,
        following: Following,
        on_notice: Callable[[Notice], None] | None,
    ) -> None:
        self._transport = client._transport
        self._patience = client._patience
        self._on_notice = on_notice
        self._reopening = Reopening(client._patience.random)
        self._following = following
        self._messages = self._follow()

    @property
    def positions(self) -> dict[str, int]:
        """Where each channel is, see `Subscription.positions`."""
        return dict(self._following.positions)

    @property
    def last_id(self) -> int | None:
        """Where all channels are, see `Subscription.last_id`."""
        return self._following.last_id

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await anext(self._messages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the subscription, when nobody iterates; more than once is harmless."""
        await self._messages.aclose()

    async def _follow(self) -> AsyncGenerator[Message, None]:
        while True:
            try:
                async with aclosing(self._read()) as messages:
                    async for message in messages:
                        yield message
            except (StreamEnded, MessageBusError) as ending:
                notice = self._reopening.after(ending, self._following)
                self._tell(notice)
                await asyncio.sleep(notice.retry_in)

    async def _read(self) -> AsyncGenerator[Message, None]:
        """One stream, to its end, which is an exception always."""
        once = Patience(_ONCE, self._patience.clock, self._patience.random)
        request = await self._transport.run(self._following.prepare(once))
        async with self._transport.open(request, SILENCE_SECONDS) as lines:
            async for line in lines:
                self._reopening.line()
                message, notices = self._following.take(line)
                for notice in notices:
                    self._tell(notice)
                if message is not None:
                    yield message

    def _tell(self, notice: Notice) -> None:
        if self._on_notice is not None:
            self._on_notice(notice)
