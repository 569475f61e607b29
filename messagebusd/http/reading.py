"""What is stored: last ids, backlogs, single messages. Sites and audiences are shown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from messagebusd.bus import MessageBus
from messagebusd.errors import LimitExceeded, MalformedRequest, NotFound
from messagebusd.http.auth import Key, KeyRing
from messagebusd.http.exchange import Query, answer, decoder, read_fields, refuse_query
from messagebusd.metrics import Metrics
from messagebusd.protocol.channels import qualify, validate_channel, validate_site
from messagebusd.protocol.message import Message
from messagebusd.protocol.requests import PollLimits

_fields = {"channels": decoder(list[str]), "site_id": decoder(str | None)}


class ReadDoor:
    """Reads what the request's key may see. ``body_timeout`` is in seconds."""

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        limits: PollLimits,
        body_timeout: float,
    ) -> None:
        self._bus = bus
        self._backend = bus.backend
        self._keys = keys
        self._metrics = metrics
        self._limits = limits
        self._body_timeout = body_timeout

    async def last_id(self, request: web.Request) -> web.Response:
        """The last id of one channel."""
        key = self._keys.authorize(request, "read")
        channel, stored = self._target(key, Query(request, "channel", "site_id"))
        with self._metrics.store_operation("read"):
            last_ids = await self._backend.last_ids((stored,))
        body = {"channel": channel, "last_id": last_ids[stored].message_id}
        return answer(msgspec.json.encode(body))

    async def last_ids(self, request: web.Request) -> web.Response:
        """The last ids of several channels."""
        key = self._keys.authorize(request, "read")
        refuse_query(request)
        fields = await read_fields(request, self._body_timeout, _fields, required=("channels",))
        channels, site_id = fields["channels"], fields.get("site_id")
        if site_id is not None:
            validate_site(site_id)
        if len(channels) > self._limits.max_channels:
            raise LimitExceeded(f"a request may name {self._limits.max_channels} channels at most")
        for channel in channels:
            validate_channel(channel, self._limits.max_channel)
            key.require_channel(channel, site_id)
        stored = {channel: qualify(channel, site_id) for channel in channels}
        with self._metrics.store_operation("read"):
            last_ids = await self._backend.last_ids(tuple(stored.values()))
        found = {channel: last_ids[name].message_id for channel, name in stored.items()}
        return answer(msgspec.json.encode({"last_ids": found}))

    async def backlog(self, request: web.Request) -> web.Response:
        """A part of a channel's backlog."""
        key = self._keys.authorize(request, "read")
        query = Query(request, "channel", "site_id", "last_id", "limit")
        _, stored = self._target(key, query)
        with self._metrics.store_operation("read"):
            messages, more = await self._backend.backlog(
                stored,
                query.last_id(),
                max_messages=query.limit(),
                max_bytes=self._bus.max_backlog_bytes,
            )
        return _page(messages, more)

    async def global_backlog(self, request: web.Request) -> web.Response:
        """A part of the backlog of all channels of all sites."""
        key = self._keys.authorize(request, "read")
        key.require_unrestricted()
        query = Query(request, "last_id", "limit")
        with self._metrics.store_operation("read"):
            messages, more = await self._backend.global_backlog(
                query.last_id(),
                max_messages=query.limit(),
                max_bytes=self._bus.max_backlog_bytes,
            )
        return _page(messages, more)

    async def message(self, request: web.Request) -> web.Response:
        """One stored message: by its id, or the channel's last."""
        key = self._keys.authorize(request, "read")
        query = Query(request, "channel", "site_id", "message_id", "last")
        channel, stored = self._target(key, query)
        message_id = query.integer("message_id")
        if query.text("last") not in (None, "true"):
            raise MalformedRequest("the query parameter 'last' can only be true")
        if (message_id is None) == ("last" not in query):
            raise MalformedRequest("ask for either a message_id or last=true")
        with self._metrics.store_operation("read"):
            if message_id is None:
                last_ids = await self._backend.last_ids((stored,))
                message_id = last_ids[stored].message_id
            message = await self._backend.message(stored, message_id)
        if message is None:
            raise NotFound(f"{channel} has no such message, or no longer")
        return answer(message.with_audience())

    async def delete_backlog(self, request: web.Request) -> web.Response:
        """Forget a channel's messages; its ids continue.

        This needs the scope admin: whoever may publish can add to what subscribers will see, but
        not take away what others published and subscribers have not read yet.
        """
        key = self._keys.authorize(request, "admin")
        query = Query(request, "channel", "site_id")
        _, stored = self._target(key, query, changes=True)
        with self._metrics.store_operation("publish"):
            await self._backend.delete_backlog(stored)
        return web.Response(status=204, headers={"Cache-Control": "no-store"})

    def _target(self, key: Key, query: Query, *, changes: bool = False) -> tuple[str, str]:
        """The channel that a query is about, and its stored name. Raises RequestError."""
        channel, site_id = query.channel(self._limits.max_channel), query.site_id()
        key.require_channel(channel, site_id, changes=changes)
        return channel, qualify(channel, site_id)


def _page(messages: Sequence[Message], more: bool) -> web.Response:
    encoded = b",".join([each.with_audience() for each in messages])
    return answer(b'{"messages":[%b],"more":%b}' % (encoded, b"true" if more else b"false"))
