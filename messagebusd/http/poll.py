"""``POST {base_route}message-bus/{client_id}[/anything]``: the subscribers' door (SPEC 2).

The way of a poll: who is it, what does it ask for, what has it missed (`MessageBus.attach`); then
it is either answered at once as an ordinary response, or parked on its socket (`Call.hold`).
Between ``attach`` and parking nothing awaits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from messagebusd.bus import MessageBus, News
from messagebusd.connection import CloseReason, Connection
from messagebusd.errors import (
    LookupRefused,
    LookupUnavailable,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    RequestError,
    StoreUnavailable,
    Unauthorized,
)
from messagebusd.http.call import Answer, Call
from messagebusd.http.cors import CorsPolicy
from messagebusd.http.limits import PollGate
from messagebusd.http.probing import Probes
from messagebusd.http.problems import problem_answer
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.sites import SiteMap
from messagebusd.identity.base import Identity, IdentityLookup
from messagebusd.metrics import Metrics
from messagebusd.protocol import requests, wire
from messagebusd.protocol.catchup import Position
from messagebusd.protocol.channels import INTERNAL_CHANNELS, qualify
from messagebusd.protocol.publication import PublishRules, check_publication
from messagebusd.protocol.requests import Mode, PollLimits, PollRequest
from messagebusd.settings import PollSettings

DOOR = "poll"
METHODS = ("POST", "OPTIONS")
BROADCAST = "broadcast"
PLAIN_TYPE = "text/plain; charset=utf-8"
# Every client that was turned away comes back at its own second.
RETRY_AFTER_SECONDS = (5, 15)
LOG_EVERY_SECONDS = 5.0
# From the request's body to the first bytes of its answer, whatever the host application or the
# store does: message-bus.js gives up streaming after three (REFERENCE H3), and SPEC 2.4 says two.
FIRST_FRAME_SECONDS = 1.9
# An answer is kept for as long as its reader does not read; the hub sees to it that large ones are
# read, or dropped.
LARGE_ANSWER_BYTES = 2 * 1024 * 1024

_log = logging.getLogger(__name__)


class _Caller:
    """A poll's request as lookups see it."""

    __slots__ = ("_call", "_proxies", "client_id", "headers", "query")

    def __init__(self, call: Call, proxies: TrustedProxies, client_id: str) -> None:
        self._call = call
        self._proxies = proxies
        self.headers = call.headers
        self.client_id = client_id
        self.query = call.raw_query

    @property
    def trusted(self) -> bool:
        return self._proxies.trusts(self._call.transport)

    @property
    def method(self) -> str:
        return self._call.method

    @property
    def path(self) -> str:
        return self._call.path

    @property
    def remote_addr(self) -> str:
        return self._proxies.client_address(self._call.transport, self.headers)


class PollDoor:
    """Answers polls below ``prefix``, the path up to and including ``message-bus/``."""

    def __init__(
        self,
        prefix: str,
        bus: MessageBus,
        lookup: IdentityLookup,
        metrics: Metrics,
        cors: CorsPolicy,
        probes: Probes,
        settings: PollSettings,
        publish_rules: PublishRules,
        sites: SiteMap,
        gate: PollGate,
    ) -> None:
        self._prefix = prefix
        self._bus = bus
        self._lookup = lookup
        self._metrics = metrics
        self._cors = cors
        self._probes = probes
        self._proxies = probes.proxies
        self._settings = settings
        self._publish_rules = publish_rules
        self._channels = publish_rules.channels
        self._sites = sites
        self._limits = PollLimits(
            max_channels=settings.max_channels,
            max_channel=settings.max_channel,
            max_client_id=settings.max_client_id,
        )
        self._gate = gate
        # The same few objects for all polls: each parked one keeps its headers.
        headers = wire.poll_headers(settings.extra_response_headers.items())
        self._headers = {each: cors.add_to(headers, each) for each in (None, *cors.origins)}
        self._log_again_at = 0.0
        # Whether there is nobody who could keep a poll waiting.
        self.is_immediate = bus.backend.is_immediate and lookup.is_immediate

    async def handle(self, call: Call) -> Answer | None:
        """Answer whatever comes below the prefix."""
        origin = call.headers.get("Origin")
        headers = self._headers.get(origin) or self._headers[None]
        try:
            client_id = self._client_id(call)
            if client_id in self._probes.expected:
                self._probes.note(client_id, call)
            if call.method == "OPTIONS":
                return Answer(200, b"OK", headers=self._cors.add_preflight(headers))
            if call.method != "POST":
                raise MethodNotAllowed(call.method, METHODS)
            if client_id == BROADCAST and self._settings.allow_broadcast:
                return await self._broadcast(call)
            return await self._poll(call, client_id, headers)
        except RequestError as error:
            self._metrics.refused(DOOR, error.counted_as)
            return problem_answer(error, call.request_id, headers)
        except LookupRefused as refusal:
            self._metrics.refused(DOOR, "lookup_refused")
            # The type belongs to the application's own body.
            plain = (("content-type", PLAIN_TYPE),)
            return Answer(
                refusal.status,
                refusal.body,
                headers=self._cors.add_to(
                    wire.merge_headers(headers, plain, refusal.headers), origin
                ),
            )
        except StoreUnavailable as error:
            return self._turn_away(call, headers, "store_unavailable", error)
        except LookupUnavailable as error:
            return self._turn_away(call, headers, "lookup_unavailable", error)

    def _turn_away(self, call: Call, headers: wire.Headers, code: str, error: Exception) -> Answer:
        """Tell a client to come back: 429 is the only answer that it does not take for a failure
        of its own (REFERENCE H22, H23)."""
        self._metrics.refused(DOOR, code)
        now = time.monotonic()
        if now >= self._log_again_at:  # one line tells as much as one for every poll
            self._log_again_at = now + LOG_EVERY_SECONDS
            _log.warning("polls are turned away", extra={"code": code, "reason": str(error)})
        later = RateLimited(
            "the poll cannot be answered right now",
            retry_after=random.randint(*RETRY_AFTER_SECONDS),
        )
        return problem_answer(later, call.request_id, headers)

    def _client_id(self, call: Call) -> str:
        """The client id as sent: escapes in it are kept (SPEC 2.1)."""
        path = call.path
        client_id = path[len(self._prefix) :].partition("/")[0]
        # The router also takes an escaped prefix, of another length.
        if not client_id or not path.startswith(self._prefix):
            raise NotFound("a poll's path names the client: message-bus/{client_id}/poll")
        requests.validate_client_id(client_id, self._limits)
        return client_id

    async def _poll(self, call: Call, client_id: str, headers: wire.Headers) -> Answer | None:
        bucket = self._gate.enter(call, client_id)
        started = time.monotonic()
        pairs = await self._read_pairs(call)
        asked = requests.parse_poll(pairs, self._limits)
        if asked.ignored:
            self._metrics.ignored(asked.ignored)
        if self.is_immediate:
            connection, news, until = await self._catch_up(call, client_id, headers, asked)
        else:
            try:
                async with asyncio.timeout(FIRST_FRAME_SECONDS):
                    connection, news, until = await self._catch_up(call, client_id, headers, asked)
            except TimeoutError:
                raise StoreUnavailable("the store does not answer in time") from None
        # No await from here to parking: a message in between would be lost on this poll.
        instead = self._instead_of_parking(until)
        if bucket is not None and news and news.go_beyond(asked.positions):
            bucket.give_back()
            bucket = None
        self._metrics.first_frame(time.monotonic() - started)
        mode = connection.mode
        if mode is Mode.STREAM:
            begin = partial(
                self._stream, connection=connection, news=news, instead=instead, until=until
            )
            await call.hold(connection, begin)
            return None
        if mode is Mode.POLL or news or news.truncated or instead is not None:
            body = news.array()
            if len(body) > LARGE_ANSWER_BYTES:
                await call.hold(connection, partial(_answer, connection, body))
                return None
            turned_away = mode is not Mode.POLL and not news and instead is CloseReason.FULL
            reason = CloseReason.FULL if turned_away else CloseReason.ANSWERED
            self._bus.hub.remove(connection, reason)
            return Answer(200, body, connection.headers)
        connection.bucket = bucket
        begin = partial(self._park, connection=connection, until=until)
        await call.hold(connection, begin)
        return None

    def _instead_of_parking(self, until: float) -> CloseReason | None:
        """How a poll ends that cannot wait; None if it can. ``until`` is its identity's end."""
        if not self._settings.long_polling_enabled or (
            until < math.inf and asyncio.get_running_loop().time() >= until
        ):
            return CloseReason.ENDED
        return None if self._bus.hub.has_room else CloseReason.FULL

    async def _catch_up(
        self,
        call: Call,
        client_id: str,
        headers: wire.Headers,
        asked: PollRequest,
    ) -> tuple[Connection, News, float]:
        """Find out who polls, and what they have missed; and until when, in the loop's time, it
        is they."""
        identity = await self._identify(call, client_id)
        self._gate.count_user(identity)
        if identity.response_headers:
            headers = wire.merge_headers(headers, identity.response_headers)
            headers = self._cors.add_to(headers, call.headers.get("Origin"))
        mode = requests.choose_mode(
            call.raw_query,
            call.version,
            chunks=self._settings.chunked_encoding_enabled and "Dont-Chunk" not in call.headers,
        )
        connection, positions = self._connection(client_id, asked, identity, mode, headers)
        until = math.inf
        if identity.expires_at is not None:
            until = asyncio.get_running_loop().time() + identity.expires_at - time.time()
        will_park = mode is not Mode.POLL and self._instead_of_parking(until) is None
        news = await self._bus.attach(connection, positions, will_park=will_park)
        return connection, news, until

    def _connection(
        self,
        client_id: str,
        asked: PollRequest,
        identity: Identity,
        mode: Mode,
        headers: wire.Headers,
    ) -> tuple[Connection, list[Position]]:
        channels = []
        positions = []
        forced, allowed = identity.forced_channels, identity.allowed_channels
        may_subscribe = self._channels.may_subscribe
        for channel, position in (asked.positions if forced is None else forced).items():
            named = True if forced is not None else None
            if allowed is not None:
                named = channel in allowed
            # What is denied is neither delivered nor mentioned.
            if channel not in INTERNAL_CHANNELS and may_subscribe(channel, identity.user_id, named):
                channels.append(qualify(channel, identity.site_id))
                positions.append(position)
        connection = Connection(
            self._bus.hub, identity, client_id, asked.seq, mode, tuple(channels), headers
        )
        return connection, positions

    def _stream(
        self,
        transport: asyncio.Transport,
        connection: Connection,
        news: News,
        instead: CloseReason | None,
        until: float,
    ) -> None:
        hub = self._bus.hub
        end = CloseReason.ENDED if news.truncated else instead
        if end is None and hub.is_outdated(connection):
            end = CloseReason.SUPERSEDED
        first = wire.stream_head(connection.headers)
        connection.headers = ()  # said, and streams are the ones to be kept in great numbers
        if news or end is None:  # else the last frame, which is empty too, is the only one
            first += wire.frame(news.array())
        # A backlog larger than a slow reader's limit is not the reader's fault.
        connection.allowance = len(first)
        connection.park(transport, time.monotonic())
        transport.write(first)
        if end is not None:
            connection.close(end)
        else:
            hub.park(connection, until)

    def _park(self, transport: asyncio.Transport, connection: Connection, until: float) -> None:
        connection.park(transport, time.monotonic())
        self._bus.hub.park(connection, until)

    async def _identify(self, call: Call, client_id: str) -> Identity:
        caller = _Caller(call, self._proxies, client_id)
        started = time.monotonic()
        try:
            identity = await self._lookup.identify(caller)
        except (LookupRefused, Unauthorized):
            self._metrics.looked_up("refused", time.monotonic() - started)
            raise
        except LookupUnavailable:
            self._metrics.looked_up("unavailable", time.monotonic() - started)
            raise
        self._metrics.looked_up("identified", time.monotonic() - started)
        return self._sites.place(identity, call.headers.get("Host", ""))

    async def _read_pairs(self, call: Call) -> Iterable[tuple[str, Any]]:
        """Keys and values of the body: JSON if the type says so, a form otherwise (SPEC 2.1)."""
        settings = self._settings
        body = await call.read_body(settings.max_body, settings.body_timeout)
        content_type = call.headers.get("Content-Type", "")
        kind = content_type.lower()
        max_fields = 2 * settings.max_channels  # generous: a key may be repeated
        if "application/json" in kind:
            return requests.json_pairs(body)
        if "multipart/form-data" in kind and "boundary=" in kind:
            return requests.multipart_pairs(body, content_type, max_fields)
        return requests.form_pairs(body, max_fields)

    async def _broadcast(self, call: Call) -> Answer:
        """The Ruby library's debug route: publish to everybody, no key asked (SPEC 4)."""
        fields = dict(await self._read_pairs(call))
        channel = fields.get("channel")
        if not isinstance(channel, str) or "data" not in fields:
            raise MalformedRequest("a broadcast has the fields channel and data")
        identity = await self._identify(call, BROADCAST)
        data = msgspec.json.encode(fields["data"])
        await self._bus.publish(
            check_publication(channel, data, self._publish_rules, site_id=identity.site_id)
        )
        self._metrics.published(BROADCAST)
        return Answer(200, b"sent", (("Content-Type", "text/html"),))


def _answer(connection: Connection, body: bytes, transport: asyncio.Transport) -> None:
    connection.park(transport, time.monotonic())
    connection.answer(body)
