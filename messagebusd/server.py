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
from messagebusd.doors import INTERNAL, PUBLIC, SIBLINGS, Doors, Lasting, poll_prefix, publish_rules
from messagebusd.errors import ConfigurationError, MessageBusError
from messagebusd.filters.chain import FilterChain, load_filter
from messagebusd.http.admin.door import login_attempts
from messagebusd.http.admin.history import History
from messagebusd.http.admin.sessions import Sessions
from messagebusd.http.app import application, runner
from messagebusd.http.auth import KeyRing
from messagebusd.http.front import Front
from messagebusd.http.limits import PollGate
from messagebusd.http.middleware import Errors
from messagebusd.http.ops import OpsDoor
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.scripts import ClientScripts
from messagebusd.http.siblings import Siblings, sibling_socket
from messagebusd.http.switchboard import Switchboard
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
from messagebusd.settings import Settings, Sources, UnixAddress
from messagebusd.supervisor.assignment import Place

# Adds routes to the public application, for a host application in the same process.
Extend = Callable[[web.Application], None]

LAG_INTERVAL_SECONDS = 1.0
# Descriptors besides one for each parked poll: listeners, the store, requests being answered.
SPARE_DESCRIPTORS = 512
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
        self._place = place
        self._draining = False
        self._loop = loop = asyncio.get_running_loop()

        if place is None:
            self.metrics = Metrics()
            self.made_key = make_key(settings)
        else:
            self.metrics = Metrics.shared(place.folder, place.number)
            self.made_key = place.made_key
        self.backend = open_backend(settings.backend, self.metrics)
        poll = settings.poll
        self._max_polls = -(-poll.max_active_clients // settings.server.workers)
        self.hub = Hub(
            loop,
            self.metrics,
            interval=poll.long_polling_interval,
            max_active_clients=self._max_polls,
            max_client_buffer=poll.max_client_buffer,
            filters=self._filters(settings),
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
        self.inbox = self._inbox(settings) if settings.ingest.redis.enabled else None
        self._ops = OpsDoor(
            self.bus,
            self.metrics,
            self._is_draining,
            serve_metrics=settings.metrics.enabled,
            inbox=self.inbox,
        )
        self._lasting = self._last(settings)
        self._doors = Doors(settings, sources or {}, self._lasting, self.lookup)
        self._errors = Errors(self.metrics)
        self._boards = {name: Switchboard(each) for name, each in self._doors.routes.items()}
        self._runners = {
            listener: runner(app, self.metrics, HANDLER_TIMEOUT_SECONDS)
            for listener, app in self._applications(settings, extend).items()
        }
        self._fronts: dict[str, Front] = {}
        self._listeners: dict[str, list[asyncio.Server]] = {}
        self.addresses: dict[str, str] = {}
        self._lag_timer: asyncio.TimerHandle | None = None

    def _filters(self, settings: Settings) -> FilterChain | None:
        """The declared filters. Raises ConfigurationError."""
        filters = [load_filter(each) for each in settings.filters]
        if not filters:
            return None
        return FilterChain(filters, self.metrics.filter_failed, self._loop.call_soon, time.time)

    def _last(self, settings: Settings) -> Lasting:
        place = self._place
        workers = settings.server.workers
        ring = KeyRing.from_settings(settings.api, self.made_key)
        return Lasting(
            self.bus,
            self.metrics,
            self._ops,
            Siblings() if place is None else Siblings(place.number, workers, place.folder),
            ring,
            Sessions(ring, secrets.token_bytes() if place is None else place.session_secret),
            PollGate(settings.poll, TrustedProxies(settings.server.trusted_proxies)),
            login_attempts(),
            History(self.metrics),
            time.monotonic(),
        )

    def _applications(
        self, settings: Settings, extend: Extend | None
    ) -> dict[str, web.Application]:
        """What aiohttp serves, by listener."""
        split = settings.server.internal_listen is not None
        names = [PUBLIC, *([INTERNAL] if split else []), *([SIBLINGS] if self._place else [])]
        apps = {each: application(self._errors, self._is_draining) for each in names}
        if settings.poll.enabled:
            # Before the poll's route, which takes whatever path is left.
            ClientScripts(poll_prefix(settings)).add_to(apps[PUBLIC])
        if extend is not None:
            extend(apps[PUBLIC])
        for name, app in apps.items():
            app.add_routes(self._boards[name].routes)
        internal = apps.get(INTERNAL, apps[PUBLIC])
        internal.add_routes(self._ops.routes())
        if self._doors.admin is not None:
            self._doors.admin.attend(internal)
        return apps

    def _inbox(self, settings: Settings) -> RedisInbox:
        redis = settings.ingest.redis
        return RedisInbox(
            redis.connection(settings.backend),
            self.bus,
            self.metrics,
            publish_rules(settings),
            stream=redis.stream,
            secret=redis.secret.get_secret_value() if redis.secret else None,
            max_dead=redis.max_dead,
        )

    async def start(self) -> None:
        """Open the store, then the listeners. Raises MessageBusError or OSError."""
        self._make_room(self._max_polls)
        await self.backend.open()
        await self.lookup.open()
        for listener, each in self._runners.items():
            await each.setup()
            assert each.server is not None
            find = self._doors.find[listener]
            front = Front(each.server, find, self._errors, self._is_draining)
            self._fronts[listener] = front
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
        await asyncio.gather(
            *(each.close(HANDLER_TIMEOUT_SECONDS) for each in self._fronts.values())
        )
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
        self._lasting.history.observe(lag)
        due = now + LAG_INTERVAL_SECONDS
        self._lag_timer = self._loop.call_at(due, self._measure_lag, due)
