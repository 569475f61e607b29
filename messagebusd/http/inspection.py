"""What this node knows and holds, for administrators: channels, clients, numbers."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from messagebusd import __version__
from messagebusd.backends.base import ChannelInfo
from messagebusd.bus import MessageBus
from messagebusd.connection import Connection
from messagebusd.errors import MalformedRequest
from messagebusd.http.auth import KeyRing
from messagebusd.http.exchange import (
    MAX_LIMIT,
    Query,
    answer,
    decoder,
    read_fields,
    refuse_query,
)
from messagebusd.metrics import Metrics
from messagebusd.protocol.channels import ChannelPatterns, qualify, unqualify, validate_site
from messagebusd.protocol.message import Id
from messagebusd.protocol.requests import Mode

# Channels that one request looks at; with a filter a page may end before it is full.
MAX_SCANNED = 10 * MAX_LIMIT

_disconnect_fields = {
    "client_id": decoder(str),
    "user_id": decoder(Id),
    "site_id": decoder(str | None),
}


class InspectionDoor:
    """Answers to keys with the scope admin. ``clock`` is monotonic, timeouts in seconds."""

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        subscriptions: Callable[[], int],
        body_timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._hub = bus.hub
        self._keys = keys
        self._metrics = metrics
        self._subscriptions = subscriptions
        self._body_timeout = body_timeout
        self._clock = clock
        self._started = clock()

    async def channels(self, request: web.Request) -> web.Response:
        """The channels that the store knows, in the order of their stored names."""
        self._keys.authorize(request, "admin").require_unrestricted()
        query = Query(request, "after", "limit", "channel", "site_id")
        after, limit, site_id = query.text("after") or "", query.limit(), query.site_id()
        pattern = query.text("channel")
        patterns = None if pattern is None else ChannelPatterns([pattern])
        found: list[dict[str, Any]] = []
        left = MAX_SCANNED
        while True:
            with self._metrics.store_operation("read"):
                page = await self._bus.backend.channels(after, MAX_LIMIT)
            for info in page:
                after = info.channel
                item = self._describe_channel(info)
                if (patterns is None or item["channel"] in patterns) and (
                    site_id is None or item["site_id"] == site_id
                ):
                    found.append(item)
                    if len(found) == limit:
                        break
            left -= len(page)
            if len(found) == limit or left <= 0:
                return _page("channels", found, after)
            if len(page) < MAX_LIMIT:
                return _page("channels", found, None)

    async def clients(self, request: web.Request) -> web.Response:
        """The polls that are parked here, in an order that stays."""
        self._keys.authorize(request, "admin").require_unrestricted()
        query = Query(request, "after", "limit", "client_id", "user_id", "site_id", "channel")
        after, limit = query.text("after"), query.limit()
        matches = _client_filter(query)
        polls = ((_place(each), each) for each in self._hub.connections() if matches(each))
        page = heapq.nsmallest(
            limit + 1, (each for each in polls if after is None or each[0] > after), _first
        )
        now = self._clock()
        clients = [_describe_client(each, now) for _, each in page[:limit]]
        return _page("clients", clients, page[limit - 1][0] if len(page) > limit else None)

    async def stats(self, request: web.Request) -> web.Response:
        """A few numbers; ``/metrics`` has more."""
        self._keys.authorize(request, "admin").require_unrestricted()
        refuse_query(request)
        with self._metrics.store_operation("read"):
            last_global_id = await self._bus.backend.last_global_id()
        parked = self._hub.parked_by_mode()
        body = {
            "version": __version__,
            "uptime": round(self._clock() - self._started, 3),
            "last_global_id": last_global_id,
            "clients": {mode.value: parked[mode] for mode in (Mode.LONG_POLL, Mode.STREAM)},
            "subscriptions": self._subscriptions(),
        }
        return answer(msgspec.json.encode(body))

    async def disconnect(self, request: web.Request) -> web.Response:
        """End the parked polls of a client or a user; they come back by themselves.

        Without a site_id it is every site's client or user of that id.
        """
        key = self._keys.authorize(request, "admin")
        key.require_all_channels()
        refuse_query(request)
        fields = await read_fields(request, self._body_timeout, _disconnect_fields)
        site_id = fields.get("site_id")
        if site_id is not None:
            validate_site(site_id)
        key.require_site(site_id)
        if ("client_id" in fields) == ("user_id" in fields):
            raise MalformedRequest("name either a client_id or a user_id")
        matches = _matcher(fields.get("client_id"), fields.get("user_id"), site_id)
        body = {"disconnected": self._hub.close_matching(matches)}
        return answer(msgspec.json.encode(body))

    def _describe_channel(self, info: ChannelInfo) -> dict[str, Any]:
        channel, site_id = unqualify(info.channel)
        return {
            "channel": channel,
            "site_id": site_id,
            "last_id": info.last_id,
            "backlog_size": info.backlog_size,
            "backlog_bytes": info.backlog_bytes,
            "subscribers": self._hub.subscribers(info.channel),
        }


def _page(name: str, items: list[dict[str, Any]], after: str | None) -> web.Response:
    return answer(msgspec.json.encode({name: items, "next": after}))


def _first(pair: tuple[str, Connection]) -> str:
    return pair[0]


def _place(connection: Connection) -> str:
    """Where a poll stands in the list: no two have the same place."""
    viewer = connection.viewer
    return msgspec.json.encode((connection.client_id, viewer.site_id, viewer.user_id)).decode()


def _describe_client(connection: Connection, now: float) -> dict[str, Any]:
    return {
        "client_id": connection.client_id,
        "user_id": connection.viewer.user_id,
        "site_id": connection.viewer.site_id,
        "mode": connection.mode.value,
        "channels": len(connection.channels),
        "age": round(now - connection.parked_at, 3),
    }


def _client_filter(query: Query) -> Callable[[Connection], bool]:
    """What the query asks for. A user_id that is JSON is read as JSON, any other as text."""
    site_id, channel = query.site_id(), query.text("channel")
    matches = _matcher(query.text("client_id"), _user_id(query.text("user_id")), site_id)
    if channel is None:
        return matches

    def listens(connection: Connection) -> bool:
        stored = qualify(channel, connection.viewer.site_id)
        return stored in connection.channels and matches(connection)

    return listens


def _user_id(text: str | None) -> Id | None:
    if text is None:
        return None
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if type(value) in (int, str) else text


def _matcher(
    client_id: str | None, user_id: Id | None, site_id: str | None
) -> Callable[[Connection], bool]:
    """Which polls are meant; ids are compared by type as well, None is any."""

    def matches(connection: Connection) -> bool:
        viewer = connection.viewer
        return (
            (client_id is None or connection.client_id == client_id)
            and (user_id is None or viewer.user_id == user_id)
            and (site_id is None or viewer.site_id == site_id)
        )

    return matches
