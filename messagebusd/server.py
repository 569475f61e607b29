"""One process that serves, alone or as one of several workers: everything is built here, top to
bottom, then started, served and drained.

**Start**: store, listeners, ready. **Drain** on SIGTERM or SIGINT: not ready, no new connections,
parked polls end at their own deadlines (ending them early would leave pages deaf until their next
poll), server-side subscriptions end, the store closes. A second signal, or ``shutdown_timeout``,
ends the polls at once with their last frame.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain

import uvloop
from aiohttp import web

from messagebusd.backends import open_backend
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import MessageBus
from messagebusd.connection import CloseReason
from messagebusd.errors import ConfigurationError, MessageBusError
from messagebusd.filters.chain import FilterChain, load_filter
from messagebusd.http.admin.door import AdminDoor
from messagebusd.http.admin.history import History
from messagebusd.http.admin.sessions import Sessions
from messagebusd.http.api import Api
from messagebusd.http.app import internal_app, public_app, runner
from messagebusd.http.auth import KeyRing
from messagebusd.http.cors import CorsPolicy
from messagebusd.http.front import Front, Route, routes
from messagebusd.http.middleware import Errors
from messagebusd.http.ops import OpsDoor
from messagebusd.http.poll import PollDoor
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.siblings import Siblings, sibling_socket
from messagebusd.http.sites import SiteMap
from messagebusd.hub import Hub
from messagebusd.identity import open_lookup
from messagebusd.ingest import RedisInbox
from messagebusd.listeners import (
    LISTEN_BACKLOG,
    announce,
    bind,
    listen_addresses,
    make_key,
    raise_descriptor_limit,
    shown_address,
)
from messagebusd.log import configure_logging
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import PublishRules
from messagebusd.protocol.requests import PollLimits
from messagebusd.protocol.rules import ChannelRules
from messagebusd.settings import Settings, Sources, UnixAddress
from messagebusd.settings.reference import effective_values
from messagebusd.supervisor.assignment import Place

# Adds routes to the public application, for a host application in the same process.
Extend = Callable[[web.Application], None]

LAG_INTERVAL_SECONDS = 1.0
# Descriptors besides one for each parked poll: listeners, the store, requests being answered.
SPARE_DESCRIPTORS = 512
# The listener for the other workers, and the largest body there: a page of channel names.
SIBLINGS = "siblings"
MAX_BODY_BYTES = 16 * 1024 * 1024
# Handlers get this long to finish once nothing is parked any more.
HANDLER_TIMEOUT_SECONDS = 5.0
# Messages that wait for the store get this long when the daemon stops.
OUTAGE_SECONDS = 5.0

_log = logging.getLogger(__name__)


def run(settings: Settings, extend: Extend | None = None, sources: Sources | None = None) -> int:
    """Serve alone, until a signal; the process' exit status.

    ``sources`` says of each key where it is set, for those who look at the settings.
    """
    configure_logging(settings.log.level, settings.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        try:
            return loop_runner.run(_serve(settings, extend, sources))
        except (MessageBusError, OSError) as error:
            for problem in problems_of(error):
                print(f"error: {problem}", file=sys.stderr)
    return 1


def problems_of(error: Exception) -> list[str]:
    """What to say of an error that ends the process."""
    return error.problems if isinstance(error, ConfigurationError) else [str(error)]


async def _serve(settings: Settings, extend: Extend | None, sources: Sources | None) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = Server(settings, extend, sources=sources)
    await server.start()
    announce(settings, server.addresses, server.made_key)
    try:
        await stop.wait()
    finally:
        await server.drain(hurry)
    return 0


class Server:
    """The parts of one process and their life. Built inside a running loop.

    Given a place among several workers it uses what the supervisor made for all of them.
    """

    def __init__(
        self,
        settings: Settings,
        extend: Extend | None = None,
        place: Place | None = None,
        sources: Sources | None = None,
    ) -> None:
        self._settings = settings
        self._sources = sources or {}
        self._place = place
        self._draining = False
        loop = asyncio.get_running_loop()
        self._loop = loop
        workers = settings.server.workers

        if place is None:
            self.metrics = Metrics()
            self._siblings = Siblings()
            self.made_key = make_key(settings)
        else:
            self.metrics = Metrics.shared(place.folder, place.number)
            self._siblings = Siblings(place.number, workers, place.folder)
            self.made_key = place.made_key
        self.backend = open_backend(settings.backend, self.metrics)
        filters = [load_filter(each) for each in settings.filters]
        poll = settings.poll
        self._max_polls = -(-poll.max_active_clients // workers)
        self.hub = Hub(
            loop,
            self.metrics,
            interval=poll.long_polling_interval,
            max_active_clients=self._max_polls,
            max_client_buffer=poll.max_client_buffer,
            filters=FilterChain(filters, self.metrics.filter_failed, loop.call_soon, time.time)
            if filters
            else None,
        )
        self.metrics.watch_parked(self.hub.parked_by_mode)
        if isinstance(self.backend, MemoryBackend):
            memory = self.backend
            self.metrics.backlog_bytes.set_function(lambda: memory.bytes_used)
        self.lookup = open_lookup(settings.lookup, self.metrics)
        self.bus = MessageBus(
            self.backend,
            self.hub,
            self.metrics,
            forget=self.lookup.forget,
            max_backlog_bytes=poll.max_backlog_bytes,
            max_waiting=settings.backend.max_in_memory_publish_backlog,
        )
        rules = PublishRules(
            settings.backend.max_data_size,
            poll.max_channel,
            ChannelRules([each.rule() for each in settings.channels]),
        )
        self.inbox = self._inbox(rules) if settings.ingest.redis.enabled else None

        prefix = f"{settings.server.base_route}message-bus/"
        door = None
        if poll.enabled:
            door = PollDoor(
                prefix,
                self.bus,
                self.lookup,
                self.metrics,
                CorsPolicy(**settings.cors.model_dump()),
                TrustedProxies(settings.server.trusted_proxies),
                poll,
                rules,
                SiteMap(settings.sites),
            )
        errors = Errors(self.metrics)
        public = public_app(prefix, door, errors, poll.max_body, self._is_draining)
        if extend is not None:
            extend(public)
        split = settings.server.internal_listen is not None
        internal = internal_app(errors, poll.max_body, self._is_draining) if split else public
        ops = OpsDoor(
            self.bus,
            self.metrics,
            self._is_draining,
            serve_metrics=settings.metrics.enabled,
            inbox=self.inbox,
        )
        internal.add_routes(ops.routes())
        apps = {"public": public, "internal": internal} if split else {"public": public}
        plain: dict[str, Route] = {}
        self._history: History | None = None
        if settings.api.enabled:
            ring = KeyRing.from_settings(settings.api, self.made_key)
            api = self._api(rules, ring)
            internal.add_routes(api.routes())
            plain = api.plain_routes()
            if place is not None:
                apps[SIBLINGS] = internal_app(errors, MAX_BODY_BYTES, self._is_draining)
                apps[SIBLINGS].add_routes(api.sibling_routes())
            if settings.admin.enabled:
                admin = self._admin(rules, ring, ops)
                admin.add_to(internal)
                if place is not None:
                    apps[SIBLINGS].add_routes(admin.sibling_routes())

        self._runners = {
            listener: runner(app, self.metrics, HANDLER_TIMEOUT_SECONDS)
            for listener, app in apps.items()
        }
        self._errors = errors
        polls = None if door is None else Route(door.handle, door.is_immediate)
        self._find = {
            "public": routes({} if split else plain, prefix, polls),
            "internal": routes(plain),
            SIBLINGS: routes({}),
        }
        self._fronts: list[Front] = []
        self._listeners: dict[str, list[asyncio.Server]] = {}
        self.addresses: dict[str, str] = {}
        self._lag_timer: asyncio.TimerHandle | None = None

    def _api(self, rules: PublishRules, keys: KeyRing) -> Api:
        poll = self._settings.poll
        return Api(
            self.bus,
            keys,
            self.metrics,
            rules,
            PollLimits(max_channels=poll.max_channels, max_channel=poll.max_channel),
            siblings=self._siblings,
            body_timeout=poll.body_timeout,
        )

    def _admin(self, rules: PublishRules, ring: KeyRing, ops: OpsDoor) -> AdminDoor:
        settings, place = self._settings, self._place
        sessions = Sessions(ring, place.session_secret if place else secrets.token_bytes())
        self._history = History(self.metrics)
        return AdminDoor(
            ring,
            sessions,
            self._api(rules, sessions).routes(),
            self._history,
            ops,
            self._siblings,
            TrustedProxies(settings.server.trusted_proxies),
            tuple(effective_values(settings, self._sources)),
            body_timeout=settings.poll.body_timeout,
        )

    def _inbox(self, rules: PublishRules) -> RedisInbox:
        settings = self._settings.ingest.redis
        return RedisInbox(
            settings.connection(self._settings.backend),
            self.bus,
            self.metrics,
            rules,
            stream=settings.stream,
            secret=settings.secret.get_secret_value() if settings.secret else None,
            max_dead=settings.max_dead,
        )

    async def start(self) -> None:
        """Open the store, then the listeners. Raises MessageBusError or OSError."""
        self._make_room(self._max_polls)
        await self.backend.open()
        await self.lookup.open()
        for listener, each in self._runners.items():
            await each.setup()
            assert each.server is not None
            front = Front(each.server, self._find[listener], self._errors, self._is_draining)
            self._fronts.append(front)
            self._listeners[listener] = []
            for opened in self._sockets(listener):
                # Connections inherit it: a peer that is silently gone is noticed some day.
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._listeners[listener].append(
                    await self._loop.create_server(front, sock=opened, backlog=LISTEN_BACKLOG)
                )
        if self.inbox is not None:
            self.inbox.start()
        self._measure_lag(self._loop.time())
        # What was built so far lives as long as the process: the collector need not look at it
        # again, and with few cycles made per poll it may look less often at the rest.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)

    def _sockets(self, listener: str) -> Sequence[socket.socket]:
        """What to listen on."""
        if self._place is None:
            address = listen_addresses(self._settings.server)[listener]
            [sockets] = bind(address)
            self.addresses[listener] = shown_address(address, sockets)
            return sockets
        if listener == SIBLINGS:
            [sockets] = bind(UnixAddress(sibling_socket(self._place.folder, self._place.number)))
            return sockets
        return [socket.socket(fileno=each) for each in self._place.descriptors[listener]]

    async def drain(self, hurry: asyncio.Event, *, leave: bool = False) -> None:
        """Stop accepting, let parked polls end, then close everything.

        Who watches and who publishes is served to the end, where there is a listener for them,
        unless a successor waits for all of our addresses (``leave``).
        """
        self._draining = True
        self.hub.max_active_clients = 0
        _log.info("draining", extra={"parked": self.hub.parked})
        for listener, servers in self._listeners.items():
            if listener == "public" or (leave and listener == "internal"):
                for each in servers:
                    each.close()
        await self._wait_for_polls(hurry)
        self.hub.end_feeds()
        for server in chain.from_iterable(self._listeners.values()):
            server.close()
        # First those who may still hand their connections on.
        await asyncio.gather(*(each.close(HANDLER_TIMEOUT_SECONDS) for each in self._fronts))
        for served in self._runners.values():
            await served.cleanup()
        self.hub.abort()
        if self._lag_timer is not None:
            self._lag_timer.cancel()
        self.metrics.refresh()  # who comes after us counts on
        if self.inbox is not None:
            await self.inbox.close()
        await self.lookup.close()
        await self.bus.close(OUTAGE_SECONDS)
        await self.backend.close()
        _log.info("stopped")

    async def _wait_for_polls(self, hurry: asyncio.Event) -> None:
        empty = asyncio.Event()
        self.hub.when_empty(empty.set)
        either = [asyncio.ensure_future(empty.wait()), asyncio.ensure_future(hurry.wait())]
        try:
            await asyncio.wait(
                either,
                timeout=self._settings.server.shutdown_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            ended = self.hub.close_matching(lambda _: True, CloseReason.DRAINED)
            if ended:
                _log.info("polls ended before their deadline", extra={"polls": ended})
            # The last frames still have to leave.
            await asyncio.wait(either[:1], timeout=HANDLER_TIMEOUT_SECONDS)
        finally:
            for each in either:
                each.cancel()

    def _make_room(self, polls: int) -> None:
        """Get the descriptors for so many polls, or hold fewer: running out would lose requests."""
        room = raise_descriptor_limit(polls + SPARE_DESCRIPTORS) - SPARE_DESCRIPTORS
        if room < polls:
            self.hub.max_active_clients = max(0, room)
            _log.warning(
                "the file descriptor limit allows fewer polls than poll.max_active_clients",
                extra={"allowed": room, "wanted": polls},
            )

    def _is_draining(self) -> bool:
        return self._draining

    def _measure_lag(self, due: float) -> None:
        now = self._loop.time()
        if self._place is not None:
            self.metrics.refresh()
        lag = max(0.0, now - due)
        self.metrics.loop_lag.set(lag)
        if self._history is not None:
            self._history.observe(lag)
        due = now + LAG_INTERVAL_SECONDS
        self._lag_timer = self._loop.call_at(due, self._measure_lag, due)
