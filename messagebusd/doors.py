"""Everything that serves requests as the settings say; made anew when they change.

What doors know of their visitors (keys, allowances, sessions) and all that they stand on stays: it
is in `Lasting`. Nothing here looks at whether settings are new: a door is made of those that it is
given, and a request is served to its end by the doors that it met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from messagebusd.bus import MessageBus
from messagebusd.http.admin.door import AdminDoor, Readiness
from messagebusd.http.admin.history import History
from messagebusd.http.admin.sessions import Sessions
from messagebusd.http.api import Api
from messagebusd.http.app import application
from messagebusd.http.auth import KeyRing
from messagebusd.http.call import through_aiohttp
from messagebusd.http.cors import CorsPolicy
from messagebusd.http.front import Route, routes
from messagebusd.http.limits import PollGate
from messagebusd.http.middleware import Errors
from messagebusd.http.poll import PollDoor
from messagebusd.http.probing import Probes
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.scripts import ClientScripts
from messagebusd.http.siblings import Siblings
from messagebusd.http.sites import SiteMap
from messagebusd.http.switchboard import Switchboard
from messagebusd.identity.base import IdentityLookup
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import PublishRules
from messagebusd.protocol.ratelimit import Buckets
from messagebusd.protocol.requests import PollLimits
from messagebusd.protocol.rules import ChannelRules
from messagebusd.settings import Settings, Sources
from messagebusd.settings.reference import effective_values

PUBLIC, INTERNAL = "public", "internal"
# The listener for the other workers.
SIBLINGS = "siblings"

Find = Callable[[str], Route | None]


@dataclass(frozen=True, slots=True)
class Lasting:
    """What stays while settings change. ``started`` is in monotonic seconds."""

    bus: MessageBus
    metrics: Metrics
    health: Readiness
    siblings: Siblings
    ring: KeyRing
    sessions: Sessions
    gate: PollGate
    login_attempts: Buckets
    history: History
    started: float


class Doors:
    """The doors of one worker.

    ``routes`` are for aiohttp and ``find`` for `front`, both by listener; ``rules`` are those of
    publishing, also for doors that are none of HTTP; ``proxies`` those that are believed.
    """

    def __init__(
        self, settings: Settings, sources: Sources, lasting: Lasting, lookup: IdentityLookup
    ) -> None:
        self._settings = settings
        self._lasting = lasting
        self.proxies = TrustedProxies(settings.server.trusted_proxies)
        self._probes = Probes(self.proxies)
        self.rules = publish_rules(settings)
        self.admin: AdminDoor | None = None

        public: list[web.RouteDef] = []
        internal: list[web.RouteDef] = []
        siblings: list[web.RouteDef] = []
        polls: Route | None = None
        plain: dict[str, Route] = {}
        # The path of polls, up to and including the name.
        prefix = f"{settings.server.base_route}message-bus/"
        if settings.poll.enabled:
            door = self._poll_door(prefix, lookup)
            polls = Route(door.handle, door.is_immediate)
            public.append(web.route("*", prefix + "{path:.*}", through_aiohttp(door.handle)))
        if settings.api.enabled:
            api = self._api(lasting.ring)
            plain = api.plain_routes()
            internal += api.routes()
            siblings += api.sibling_routes()
            if settings.admin.enabled:
                self.admin = self._admin_door(tuple(effective_values(settings, sources)))
                internal += self.admin.routes()
                siblings += self.admin.sibling_routes()
        split = settings.server.internal_listen is not None
        self.prefix = prefix
        self.has_polls = settings.poll.enabled
        self.routes = {PUBLIC: public if split else public + internal}
        self.find: dict[str, Find] = {PUBLIC: routes({} if split else plain, prefix, polls)}
        if split:
            self.routes[INTERNAL] = internal
            self.find[INTERNAL] = routes(plain)
        if settings.server.workers > 1:
            self.routes[SIBLINGS] = siblings
            self.find[SIBLINGS] = routes({})

    def _poll_door(self, prefix: str, lookup: IdentityLookup) -> PollDoor:
        settings, lasting = self._settings, self._lasting
        return PollDoor(
            prefix,
            lasting.bus,
            lookup,
            lasting.metrics,
            CorsPolicy(**settings.cors.model_dump()),
            self._probes,
            settings.poll,
            self.rules,
            SiteMap(settings.sites),
            lasting.gate,
        )

    def _api(self, keys: KeyRing) -> Api:
        poll, lasting = self._settings.poll, self._lasting
        return Api(
            lasting.bus,
            keys,
            lasting.metrics,
            self.rules,
            PollLimits(max_channels=poll.max_channels, max_channel=poll.max_channel),
            siblings=lasting.siblings,
            probes=self._probes,
            body_timeout=poll.body_timeout,
            started=lasting.started,
        )

    def _admin_door(self, rows: tuple[tuple[str, str, str], ...]) -> AdminDoor:
        lasting = self._lasting
        return AdminDoor(
            lasting.ring,
            lasting.sessions,
            self._api(lasting.sessions).routes(),
            lasting.history,
            lasting.health,
            lasting.siblings,
            self.proxies,
            rows,
            lasting.login_attempts,
            body_timeout=self._settings.poll.body_timeout,
        )


def applications(
    doors: Doors,
    boards: Mapping[str, Switchboard],
    errors: Errors,
    is_draining: Callable[[], bool],
) -> dict[str, web.Application]:
    """What aiohttp serves, by listener. The doors are the first ones; ``boards`` lead to others,
    too."""
    apps = {listener: application(errors, is_draining) for listener in boards}
    if doors.has_polls:
        # Before the poll's route, which takes whatever path is left.
        ClientScripts(doors.prefix).add_to(apps[PUBLIC])
    for listener, board in boards.items():
        apps[listener].add_routes(board.routes)
    if doors.admin is not None:
        doors.admin.attend(apps.get(INTERNAL, apps[PUBLIC]))
    return apps


def publish_rules(settings: Settings) -> PublishRules:
    """The rules of publishing, for whatever door."""
    return PublishRules(
        settings.backend.max_data_size,
        settings.poll.max_channel,
        ChannelRules([each.rule() for each in settings.channels]),
    )
