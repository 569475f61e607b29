"""What this node knows and holds, for administrators: channels, clients, numbers."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, Self

import msgspec
from aiohttp import web

from messagebusd import __version__
from messagebusd.backends.base import ChannelInfo
from messagebusd.bus import MessageBus
from messagebusd.connection import Connection
from messagebusd.control import Selection
from messagebusd.errors import MalformedRequest
from messagebusd.http.auth import KeyRing
from messagebusd.http.exchange import (
    MAX_LIMIT,
    Decode,
    Query,
    answer,
    decoder,
    id_of,
    read_fields,
    refuse_query,
)
from messagebusd.http.siblings import Answers, Siblings
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
_invalidate_fields = {
    "user_id": decoder(Id),
    "site_id": decoder(str | None),
    "all": decoder(bool),
}


class _Search(msgspec.Struct, frozen=True):
    """Which parked polls are asked for, and how many at most."""

    after: str | None
    limit: int
    selection: Selection
    channel: str | None

    @classmethod
    def of(cls, query: Query) -> Self:
        """What the query asks for. A user_id that is JSON is read as JSON, any other as text."""
        return cls(
            query.text("after"),
            query.limit(),
            Selection(
                client_id=query.text("client_id"),
                user_id=None if (user_id := query.text("user_id")) is None else id_of(user_id),
                site_id=query.site_id(),
            ),
            query.text("channel"),
        )


class InspectionDoor:
    """Answers to keys with the scope admin. ``clock`` is monotonic, timeouts in seconds.

    What is said of this node is of all its workers; the routes for siblings tell this one's part.
    """

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        siblings: Siblings,
        body_timeout: float,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self._bus = bus
        self._hub = bus.hub
        self._keys = keys
        self._metrics = metrics
        self._siblings = siblings
        self._body_timeout = body_timeout
        self._clock = clock
        self._started = clock() if started is None else started

    async def channels(self, request: web.Request) -> web.Response:
        """The channels that the store knows, in the order of their stored names."""
        self._keys.authorize(request, "admin").require_unrestricted()
        query = Query(request, "after", "limit", "channel", "site_id")
        after, limit, site_id = query.text("after") or "", query.limit(), query.site_id()
        pattern = query.text("channel")
        patterns = None if pattern is None else ChannelPatterns([pattern])
        found: list[ChannelInfo] = []
        left = MAX_SCANNED
        while True:
            with self._metrics.store_operation("read"):
                page = await self._bus.backend.channels(after, MAX_LIMIT)
            for info in page:
                after = info.channel
                name, site = unqualify(info.channel)
                if (patterns is None or name in patterns) and (site_id is None or site == site_id):
                    found.append(info)
                    if len(found) == limit:
                        break
            left -= len(page)
            if len(found) == limit or left <= 0:
                return await self._channel_page(found, after)
            if len(page) < MAX_LIMIT:
                return await self._channel_page(found, None)

    async def _channel_page(self, found: Sequence[ChannelInfo], after: str | None) -> web.Response:
        names = [each.channel for each in found]
        others = await self._siblings.ask("/subscribers", names)
        counts = map(sum, zip(self._subscribers(names), *others.bodies, strict=True))
        channels = [_describe_channel(*each) for each in zip(found, counts, strict=True)]
        return _page("channels", channels, after, others)

    async def clients(self, request: web.Request) -> web.Response:
        """The polls that are parked here, in an order that stays."""
        self._keys.authorize(request, "admin").require_unrestricted()
        search = _Search.of(
            Query(request, "after", "limit", "client_id", "user_id", "site_id", "channel")
        )
        others = await self._siblings.ask("/clients", search)
        found = heapq.nsmallest(
            search.limit + 1, chain(self._find_clients(search), *others.bodies), _first
        )
        page = found[: search.limit]
        after = page[-1][0] if len(found) > len(page) else None
        return _page("clients", [described for _, described in page], after, others)

    async def stats(self, request: web.Request) -> web.Response:
        """A few numbers; ``/metrics`` has more."""
        self._keys.authorize(request, "admin").require_unrestricted()
        refuse_query(request)
        with self._metrics.store_operation("read"):
            last_global_id = await self._bus.backend.last_global_id()
        others = await self._siblings.ask("/stats")
        all_numbers = [self._numbers(), *others.bodies]
        body = {
            "version": __version__,
            # Of several workers the first: the others may have been replaced.
            "uptime": max(each["uptime"] for each in all_numbers),
            "last_global_id": last_global_id,
            "clients": {
                mode.value: sum(each[mode.value] for each in all_numbers)
                for mode in (Mode.LONG_POLL, Mode.STREAM)
            },
            "subscriptions": sum(each["subscriptions"] for each in all_numbers),
            **others.note(),
        }
        return answer(msgspec.json.encode(body))

    async def disconnect(self, request: web.Request) -> web.Response:
        """End the polls of a client or a user; they come back by themselves.

        Without a site_id it is every site's client or user of that id.
        """
        fields = await self._read_selection(request, _disconnect_fields)
        if ("client_id" in fields) == ("user_id" in fields):
            raise MalformedRequest("name either a client_id or a user_id")
        return await self._end_polls("disconnect", fields)

    async def invalidate(self, request: web.Request) -> web.Response:
        """Have it asked anew who a user is, or everybody: their polls end."""
        fields = await self._read_selection(request, _invalidate_fields)
        if ("user_id" in fields) == ("all" in fields):
            raise MalformedRequest("name a user_id, or say all")
        if not fields.pop("all", True):
            raise MalformedRequest("all can only be true")
        return await self._end_polls("invalidate", fields)

    async def _read_selection(
        self, request: web.Request, known: dict[str, Decode]
    ) -> dict[str, Any]:
        key = self._keys.authorize(request, "admin")
        key.require_all_channels()
        refuse_query(request)
        fields = await read_fields(request, self._body_timeout, known)
        site_id = fields.get("site_id")
        if site_id is not None:
            validate_site(site_id)
        key.require_site(site_id)
        return fields

    async def _end_polls(
        self, op: Literal["disconnect", "invalidate"], selection: Mapping[str, Any]
    ) -> web.Response:
        body = {"disconnected": await self._bus.end_polls(op, **selection)}
        return answer(msgspec.json.encode(body))

    # -- for the other workers

    async def sibling_subscribers(self, request: web.Request) -> web.Response:
        """How many polls of ours wait for each of these channels."""
        names = msgspec.json.decode(await request.read(), type=list[str])
        return answer(msgspec.json.encode(self._subscribers(names)))

    async def sibling_clients(self, request: web.Request) -> web.Response:
        """Our part of a page: one more than wanted, which tells whether there are more."""
        search = msgspec.json.decode(await request.read(), type=_Search)
        return answer(msgspec.json.encode(self._find_clients(search)))

    async def sibling_stats(self, request: web.Request) -> web.Response:
        """Our numbers."""
        return answer(msgspec.json.encode(self._numbers()))

    def _subscribers(self, names: Sequence[str]) -> list[int]:
        return [self._hub.subscribers(each) for each in names]

    def _find_clients(self, search: _Search) -> list[tuple[str, dict[str, Any]]]:
        matches, after, worker = _client_filter(search), search.after, self._siblings.number
        polls = ((_place(each, worker), each) for each in self._hub.connections() if matches(each))
        page = heapq.nsmallest(
            search.limit + 1, (each for each in polls if after is None or each[0] > after), _first
        )
        now = self._clock()
        return [(place, _describe_client(each, now)) for place, each in page]

    def _numbers(self) -> dict[str, Any]:
        parked = self._hub.parked_by_mode()
        return {
            "uptime": round(self._clock() - self._started, 3),
            "subscriptions": self._hub.feeds,
            **{mode.value: parked[mode] for mode in (Mode.LONG_POLL, Mode.STREAM)},
        }


def _page(
    name: str, items: list[dict[str, Any]], after: str | None, others: Answers
) -> web.Response:
    return answer(msgspec.json.encode({name: items, "next": after, **others.note()}))


def _first(pair: Sequence[Any]) -> str:
    place: str = pair[0]
    return place


def _place(connection: Connection, worker: int) -> str:
    """Where a poll stands in the list: no two have the same place, not even on two workers."""
    viewer = connection.viewer
    place = (connection.client_id, viewer.site_id, viewer.user_id, worker)
    return msgspec.json.encode(place).decode()


def _describe_channel(info: ChannelInfo, subscribers: int) -> dict[str, Any]:
    channel, site_id = unqualify(info.channel)
    return {
        "channel": channel,
        "site_id": site_id,
        "last_id": info.last_id,
        "backlog_size": info.backlog_size,
        "backlog_bytes": info.backlog_bytes,
        "subscribers": subscribers,
    }


def _describe_client(connection: Connection, now: float) -> dict[str, Any]:
    return {
        "client_id": connection.client_id,
        "user_id": connection.viewer.user_id,
        "site_id": connection.viewer.site_id,
        "mode": connection.mode.value,
        "channels": len(connection.channels),
        "age": round(now - connection.parked_at, 3),
    }


def _client_filter(search: _Search) -> Callable[[Connection], bool]:
    selection, channel = search.selection, search.channel
    if channel is None:
        return selection.includes

    def listens(connection: Connection) -> bool:
        stored = qualify(channel, connection.viewer.site_id)
        return stored in connection.channels and selection.includes(connection)

    return listens
