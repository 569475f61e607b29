"""One worker: everything is built here, top to bottom, then started, served and drained.

**Start**: store, listeners, ready. **Drain** on SIGTERM or SIGINT: not ready, no new connections,
parked polls end at their own deadlines (ending them early would leave pages deaf until their next
poll), server-side subscriptions end, the store closes. A second signal, or ``shutdown_timeout``,
ends the polls at once with their last frame.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop
from aiohttp import web

from messagebusd import __version__
from messagebusd.backends import open_backend
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import MessageBus
from messagebusd.connection import CloseReason
from messagebusd.errors import ConfigurationError, MessageBusError
from messagebusd.filters import FilterChain, load_filter
from messagebusd.http.api import Api
from messagebusd.http.app import internal_app, public_app, runner
from messagebusd.http.auth import KeyRing
from messagebusd.http.cors import CorsPolicy
from messagebusd.http.ops import OpsDoor
from messagebusd.http.poll import PollDoor
from messagebusd.http.proxies import TrustedProxies
from messagebusd.hub import Hub
from messagebusd.identity import open_lookup
from messagebusd.log import configure_logging
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import PublishLimits
from messagebusd.protocol.requests import PollLimits
from messagebusd.settings import FdAddress, Settings, TcpAddress, UnixAddress
from messagebusd.settings.values import Address

# Adds routes to the public application, for a host application in the same process.
Extend = Callable[[web.Application], None]

LISTEN_BACKLOG = 4096
LAG_INTERVAL_SECONDS = 1.0
# Descriptors besides one for each parked poll: listeners, the store, requests being answered.
SPARE_DESCRIPTORS = 512
# Handlers get this long to finish once nothing is parked any more.
HANDLER_TIMEOUT_SECONDS = 5.0

_log = logging.getLogger(__name__)


def run(settings: Settings, extend: Extend | None = None) -> int:
    """Serve until a signal; the process' exit status."""
    configure_logging(settings.log.level, settings.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        try:
            return loop_runner.run(_serve(settings, extend))
        except ConfigurationError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
        except (MessageBusError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
    return 1


async def _serve(settings: Settings, extend: Extend | None) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = Server(settings, extend)
    await server.start()
    try:
        await stop.wait()
    finally:
        await server.drain(hurry)
    return 0


class Server:
    """The parts of one worker and their life. Built inside a running loop."""

    def __init__(self, settings: Settings, extend: Extend | None = None) -> None:
        self._settings = settings
        self._draining = False
        loop = asyncio.get_running_loop()
        self._loop = loop

        self.metrics = Metrics()
        self.backend = open_backend(settings.backend)
        filters = [load_filter(each.channel_prefix, each.callable) for each in settings.filters]
        poll = settings.poll
        self.hub = Hub(
            loop,
            self.metrics,
            interval=poll.long_polling_interval,
            max_active_clients=poll.max_active_clients,
            max_client_buffer=poll.max_client_buffer,
            filters=FilterChain(filters, self.metrics.filter_failed) if filters else None,
        )
        self.metrics.watch_parked(self.hub.parked_by_mode)
        if isinstance(self.backend, MemoryBackend):
            memory = self.backend
            self.metrics.backlog_bytes.set_function(lambda: memory.bytes_used)
        self.bus = MessageBus(
            self.backend, self.hub, self.metrics, max_backlog_bytes=poll.max_backlog_bytes
        )
        limits = PublishLimits(settings.backend.max_data_size, poll.max_channel)

        prefix = f"{settings.server.base_route}message-bus/"
        door = None
        self.lookup = open_lookup(settings.lookup)
        if poll.enabled:
            door = PollDoor(
                prefix,
                self.bus,
                self.lookup,
                self.metrics,
                CorsPolicy(**settings.cors.model_dump()),
                TrustedProxies(settings.server.trusted_proxies),
                poll,
                limits,
            )
        public = public_app(prefix, door, self.metrics, poll.max_body, self._is_draining)
        if extend is not None:
            extend(public)
        split = settings.server.internal_listen is not None
        internal = internal_app(self.metrics, poll.max_body, self._is_draining) if split else public
        self.generated_key: str | None = None
        ops = OpsDoor(
            self.bus,
            self.metrics,
            self._is_draining,
            serve_metrics=settings.metrics.enabled,
        )
        internal.add_routes(ops.routes())
        if settings.api.enabled:
            internal.add_routes(self._api(limits).routes())

        self._runners = {"public": runner(public, self.metrics, HANDLER_TIMEOUT_SECONDS)}
        if split:
            self._runners["internal"] = runner(internal, self.metrics, HANDLER_TIMEOUT_SECONDS)
        self._sites: dict[str, web.BaseSite] = {}
        self.addresses: dict[str, str] = {}
        self._lag_timer: asyncio.TimerHandle | None = None

    def _api(self, limits: PublishLimits) -> Api:
        api = self._settings.api
        if not api.has_key:
            # Settings allow this on loopback and Unix sockets only.
            self.generated_key = f"mb_{secrets.token_urlsafe(32)}"
        poll = self._settings.poll
        return Api(
            self.bus,
            KeyRing.from_settings(api, self.generated_key),
            self.metrics,
            limits,
            PollLimits(max_channels=poll.max_channels, max_channel=poll.max_channel),
            body_timeout=poll.body_timeout,
        )

    async def start(self) -> None:
        """Open the store, then the listeners. Raises MessageBusError or OSError."""
        self._make_room(self._settings.poll.max_active_clients)
        await self.backend.open()
        await self.lookup.open()
        for listener, each in self._runners.items():
            await each.setup()
            address = getattr(self._settings.server, _SETTING_OF[listener])
            site = _site(each, address)
            await site.start()
            self._sites[listener] = site
            where = self.addresses[listener] = _where(site, address)
            _log.info("listening", extra={"listener": listener, "address": where})
        self._measure_lag(self._loop.time())
        # What was built so far lives as long as the process: the collector need not look at it
        # again, and with few cycles made per poll it may look less often at the rest.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        _log.info("ready", extra={"version": __version__, "backend": self._settings.backend.kind})
        if self.generated_key is not None:
            self._introduce(self.generated_key)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Stop accepting, let parked polls end, then close everything."""
        self._draining = True
        self.hub.max_active_clients = 0
        _log.info("draining", extra={"parked": self.hub.parked})
        # Who watches and who publishes is served to the end, where there is a listener for them.
        await self._sites["public"].stop()
        await self._wait_for_polls(hurry)
        self.hub.end_feeds()
        for each in self._runners.values():
            await each.cleanup()
        self.hub.abort()
        if self._lag_timer is not None:
            self._lag_timer.cancel()
        await self.lookup.close()
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
        self.metrics.loop_lag.set(max(0.0, now - due))
        due = now + LAG_INTERVAL_SECONDS
        self._lag_timer = self._loop.call_at(due, self._measure_lag, due)

    def _introduce(self, key: str) -> None:
        """Say once what a newcomer needs; on stdout, so that the key is in no log."""
        public = self.addresses["public"]
        internal = self.addresses.get("internal", public)
        route = self._settings.server.base_route
        print(
            f"""
messagebusd {__version__} is listening on {public}

No API key is configured; this one is valid until the daemon stops:
  export MESSAGEBUSD_KEY={key}

Try, in a shell with that key:
  curl -N -d '/hello=0' {public}{route}message-bus/me/poll
and in another:
  curl -H "Authorization: Bearer $MESSAGEBUSD_KEY" \\
       -d '{{"channel":"/hello","data":{{"text":"Hello!"}}}}' {internal}/api/v1/publish
""",
            flush=True,
        )


_SETTING_OF = {"public": "listen", "internal": "internal_listen"}


def _site(app_runner: web.AppRunner, address: Address) -> web.BaseSite:
    match address:
        case TcpAddress(host, port):
            return web.TCPSite(app_runner, host, port, backlog=LISTEN_BACKLOG, reuse_address=True)
        case UnixAddress(path):
            _claim_socket_path(path)
            return web.UnixSite(app_runner, str(path), backlog=LISTEN_BACKLOG)
        case FdAddress(number):
            return web.SockSite(
                app_runner, socket.socket(fileno=os.dup(number)), backlog=LISTEN_BACKLOG
            )


def _claim_socket_path(path: Path) -> None:
    """Make way for our socket, unless somebody listens there.

    The loop would replace any socket file, and take the path from a running daemon. Raises OSError.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # left behind by a process that is gone
        else:
            raise OSError(errno.EADDRINUSE, f"{path} is in use")


def _where(site: web.BaseSite, address: Address) -> str:
    """The address as others may use it; only now is the port known that 0 stands for."""
    if not isinstance(address, TcpAddress):
        return str(address)
    server: asyncio.Server = site._server  # type: ignore[assignment]
    port = server.sockets[0].getsockname()[1]
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{port}"


def raise_descriptor_limit(wanted: int) -> int:
    """Every parked poll is a descriptor: take as many as the hard limit gives; how many we have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    available = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (available, hard))
    return available
