"""One process that serves, alone or as one of several workers: everything is built here, top to
bottom, then started, served and drained.

**Reload**: what other settings need is made beside what there is; then all of it is exchanged in
one turn of the loop. Requests and parked polls go on under the settings that they met.

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
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from aiohttp import web

from messagebusd.accepting import Listener
from messagebusd.backends import open_backend
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import MessageBus
from messagebusd.connection import CloseReason, MessageFilter
from messagebusd.doors import (
    INTERNAL,
    PUBLIC,
    SIBLINGS,
    Doors,
    Lasting,
    applications,
    publish_rules,
)
from messagebusd.errors import ConfigurationError
from messagebusd.filters.chain import FilterChain, load_filter
from messagebusd.http.admin.door import login_attempts
from messagebusd.http.admin.history import History
from messagebusd.http.admin.sessions import Sessions
from messagebusd.http.app import runner
from messagebusd.http.auth import KeyRing
from messagebusd.http.front import Front
from messagebusd.http.limits import PollGate
from messagebusd.http.middleware import Errors
from messagebusd.http.ops import OpsDoor
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.siblings import Siblings, sibling_socket
from messagebusd.http.switchboard import Switchboard
from messagebusd.hub import Hub
from messagebusd.identity import IdentityLookup, open_lookup
from messagebusd.ingest import RedisInbox
from messagebusd.listeners import (
    bind,
    listen_addresses,
    make_key,
    raise_descriptor_limit,
    shown_address,
)
from messagebusd.metrics import Metrics
from messagebusd.protocol.message import Id
from messagebusd.settings import FdAddress, LoadedSettings, Settings, Sources, UnixAddress
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
# A lookup that others have replaced still answers polls that met it: so long, once they are read.
RETIREMENT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class _Next(NamedTuple):
    """What other settings need, made and not yet in use."""

    settings: Settings
    doors: Doors
    ring: KeyRing
    filters: MessageFilter | None
    lookup: IdentityLookup


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

        self.metrics = Metrics() if place is None else Metrics.shared(place.folder, place.number)
        self.made_key = make_key(settings) if place is None else place.made_key
        self.metrics.config_read_at.set(time.time() if place is None else place.read_at)
        self.backend = open_backend(settings.backend, self.metrics)
        poll = settings.poll
        self.hub = Hub(
            loop,
            self.metrics,
            interval=poll.long_polling_interval,
            max_active_clients=_part(settings),
            max_client_buffer=poll.max_client_buffer,
            filters=self._filters(settings),
        )
        self.metrics.watch_parked(self.hub.parked_by_mode)
        if isinstance(self.backend, MemoryBackend):
            memory = self.backend
            self.metrics.backlog_bytes.set_function(lambda: memory.bytes_used)
        self.lookup = open_lookup(settings.lookup, self.metrics)
        # Those that others took the place of, each until it is closed.
        self._retired: dict[IdentityLookup, asyncio.Task[None]] = {}
        self._next: _Next | None = None
        self.bus = MessageBus(
            self.backend,
            self.hub,
            self.metrics,
            forget=self._forget,
            max_backlog_bytes=poll.max_backlog_bytes,
            max_waiting=settings.backend.max_in_memory_publish_backlog,
        )
        self.inbox = None
        if settings.ingest.redis.enabled:
            rules = publish_rules(settings)
            self.inbox = RedisInbox.from_settings(settings, self.bus, self.metrics, rules)
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
        apps = applications(self._doors, self._boards, self._errors, self._is_draining)
        if extend is not None:
            extend(apps[PUBLIC])
        apps.get(INTERNAL, apps[PUBLIC]).add_routes(self._ops.routes())
        self._runners = {
            listener: runner(app, self.metrics, HANDLER_TIMEOUT_SECONDS)
            for listener, app in apps.items()
        }
        self._fronts: dict[str, Front] = {}
        self._listeners: dict[str, Listener] = {}
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
        ring = self._ring(settings)
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

    def _ring(self, settings: Settings) -> KeyRing:
        """The keys. Raises ConfigurationError."""
        # The one made at start is for as long as there is no other.
        return KeyRing.from_settings(settings.api, None if settings.api.has_key else self.made_key)

    async def start(self) -> None:
        """Open the store, then the listeners. Raises MessageBusError or OSError."""
        self._make_room(_part(self._settings))
        await self.backend.open()
        await self.lookup.open()
        for listener, each in self._runners.items():
            await each.setup()
            assert each.server is not None
            find = self._doors.find[listener]
            front = Front(each.server, find, self._errors, self._is_draining)
            self._fronts[listener] = front
            address = listen_addresses(self._settings.server).get(listener)
            is_shared = isinstance(address, FdAddress)
            self._listeners[listener] = Listener(front, is_shared=is_shared)
            await self._listeners[listener].open(self._sockets(listener))
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
            [sockets] = bind(address, reuse_port=self._settings.server.reuse_port)
            self.addresses[listener] = shown_address(address, sockets)
            return sockets
        if listener == SIBLINGS:
            [sockets] = bind(UnixAddress(sibling_socket(self._place.folder, self._place.number)))
            return sockets
        return [socket.socket(fileno=each) for each in self._place.descriptors[listener]]

    # -- other settings

    async def prepare(self, loaded: LoadedSettings) -> None:
        """Make what these settings need, and change nothing yet; `adopt` or `abandon` follows.

        They differ from those of before in what may change only, see `settings.merge`. Raises
        MessageBusError or OSError.
        """
        await self.abandon()
        settings, before = loaded.settings, self._settings
        if settings.api.enabled and not settings.api.has_key and self.made_key is None:
            # A random one is made, and told, at start alone.
            raise ConfigurationError(["the last API key cannot be taken away without a restart"])
        ring = self._ring(settings)
        filters, lookup = self.hub.filters, self.lookup
        if settings.filters != before.filters:
            filters = self._filters(settings)
        if settings.lookup != before.lookup:
            lookup = open_lookup(settings.lookup, self.metrics)
        doors = Doors(settings, loaded.sources, self._lasting, lookup)
        if lookup is not self.lookup:
            await lookup.open()
        self._next = _Next(settings, doors, ring, filters, lookup)

    def adopt(self) -> None:
        """Go by the settings that were prepared, from this turn of the loop on.

        Polls that are parked stay so until their deadlines; what is published meanwhile passes the
        new filters, and their next requests meet the new rules.
        """
        assert self._next is not None, "nothing was prepared"
        (settings, doors, ring, filters, lookup), self._next = self._next, None
        seconds = self._settings.poll.body_timeout + RETIREMENT_SECONDS
        self._settings, self._doors = settings, doors
        poll, lasting = settings.poll, self._lasting
        self.hub.interval = poll.long_polling_interval
        self.hub.max_client_buffer = poll.max_client_buffer
        self.hub.filters = filters
        self.bus.max_backlog_bytes = poll.max_backlog_bytes
        if not self._draining:
            self.hub.max_active_clients = _part(settings)
            self._make_room(_part(settings))
        lasting.ring.adopt(ring)
        lasting.gate.adopt(poll, doors.proxies)
        if self.inbox is not None:
            self.inbox.rules = doors.rules
        if lookup is not self.lookup:
            self._retired[self.lookup] = self._loop.create_task(self._retire(self.lookup, seconds))
            self.lookup = lookup
            self.metrics.lookup_paused(False)
        for listener, board in self._boards.items():
            board.exchange(doors.routes[listener])
        for listener, front in self._fronts.items():
            front.lead(doors.find[listener])

    async def abandon(self) -> None:
        """Forget the settings that were prepared, if there are any."""
        waiting, self._next = self._next, None
        if waiting is not None and waiting.lookup is not self.lookup:
            await waiting.lookup.close()

    async def _retire(self, lookup: IdentityLookup, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            del self._retired[lookup]
            await lookup.close()
            self.metrics.lookup_paused(self.lookup.is_paused)  # and no longer what that one says

    def _forget(self, user_id: Id | None, site_id: str | None) -> None:
        """Have lookups forget, also those that answer their last polls."""
        for each in (self.lookup, *self._retired):
            each.forget(user_id, site_id)

    # -- the end

    async def drain(self, hurry: asyncio.Event, *, leave: bool = False) -> None:
        """Stop accepting, let parked polls end, then close everything.

        First, for ``shutdown_delay``, whoever routes requests may notice that we are not ready.
        Who watches and who publishes is served to the end, where there is a listener for them,
        unless a successor waits for all of our addresses (``leave``).
        """
        self._draining = True
        _log.info("draining", extra={"parked": self.hub.parked})
        if not leave:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.server.shutdown_delay):
                    await hurry.wait()
        self.hub.max_active_clients = 0
        leaving = (PUBLIC, INTERNAL) if leave else (PUBLIC,)
        await asyncio.gather(
            *(each.close() for name, each in self._listeners.items() if name in leaving)
        )
        await self._wait_for_polls(hurry)
        self.hub.end_feeds()
        await asyncio.gather(*(each.close() for each in self._listeners.values()))
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
        await self.abandon()
        retiring = tuple(self._retired.values())
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
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


def _part(settings: Settings) -> int:
    """How many of the polls one worker may hold, rounded up."""
    return -(-settings.poll.max_active_clients // settings.server.workers)
