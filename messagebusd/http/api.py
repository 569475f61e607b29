"""The API's calls on one screen (SPEC 4)."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from messagebusd.bus import MessageBus
from messagebusd.http import openapi
from messagebusd.http.auth import KeyRing
from messagebusd.http.call import through_aiohttp
from messagebusd.http.exchange import answer, refuse_query
from messagebusd.http.explaining import ExplainDoor
from messagebusd.http.front import Route
from messagebusd.http.inspection import InspectionDoor
from messagebusd.http.probing import ProbeDoor, Probes
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.publishing import PublishDoor
from messagebusd.http.reading import ReadDoor
from messagebusd.http.siblings import Siblings
from messagebusd.http.subscribe import HEARTBEAT_SECONDS, SubscribeDoor
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import PublishRules
from messagebusd.protocol.requests import PollLimits

PREFIX = "/api/v1/"
PUBLISH = f"{PREFIX}publish"


class Api:
    """All of the API. Times in seconds; ``clock`` is monotonic. ``started`` is when the daemon did.

    Errors leave the handlers as exceptions: `middleware.problem_middleware` answers them.
    """

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        publish_rules: PublishRules,
        poll_limits: PollLimits,
        *,
        siblings: Siblings | None = None,
        probes: Probes | None = None,
        body_timeout: float,
        heartbeat: float = HEARTBEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self._publish = PublishDoor(bus, keys, metrics, publish_rules, body_timeout)
        self._read = ReadDoor(bus, keys, metrics, poll_limits, body_timeout)
        self._subscribe = SubscribeDoor(
            bus, keys, metrics, poll_limits, body_timeout, heartbeat, clock
        )
        siblings = siblings or Siblings()
        self._inspect = InspectionDoor(bus, keys, metrics, siblings, body_timeout, clock, started)
        self._explain = ExplainDoor(
            bus, keys, metrics, poll_limits, publish_rules.channels, siblings
        )
        self._probe = ProbeDoor(probes or Probes(TrustedProxies(())), keys, siblings)
        self._document = msgspec.json.encode(openapi.document())

    def routes(self) -> list[web.RouteDef]:
        """What an application has to serve."""
        publish, read, inspect = self._publish, self._read, self._inspect
        return [
            web.post(PUBLISH, through_aiohttp(publish.publish)),
            web.post(f"{PUBLISH}/batch", through_aiohttp(publish.batch)),
            _get(f"{PREFIX}last_id", read.last_id),
            web.post(f"{PREFIX}last_ids", read.last_ids),
            _get(f"{PREFIX}backlog", read.backlog),
            web.delete(f"{PREFIX}backlog", read.delete_backlog),
            _get(f"{PREFIX}global_backlog", read.global_backlog),
            _get(f"{PREFIX}message", read.message),
            _get(f"{PREFIX}subscribe", self._subscribe.get),
            web.post(f"{PREFIX}subscribe", self._subscribe.post),
            _get(f"{PREFIX}channels", inspect.channels),
            _get(f"{PREFIX}clients", inspect.clients),
            web.post(f"{PREFIX}clients/disconnect", inspect.disconnect),
            web.post(f"{PREFIX}lookups/invalidate", inspect.invalidate),
            _get(f"{PREFIX}explain", self._explain.explain),
            web.post(f"{PREFIX}probes", self._probe.announce),
            _get(f"{PREFIX}probes", self._probe.tell),
            _get(f"{PREFIX}stats", inspect.stats),
            _get(f"{PREFIX}openapi.json", self._openapi),
        ]

    def plain_routes(self) -> dict[str, Route]:
        """What `front` may serve as well."""
        publish = self._publish
        return {
            PUBLISH: Route(publish.publish, publish.is_immediate, is_api=True),
            f"{PUBLISH}/batch": Route(publish.batch, publish.is_immediate, is_api=True),
        }

    def sibling_routes(self) -> list[web.RouteDef]:
        """What only the other workers may ask."""
        inspect = self._inspect
        return [
            web.post("/subscribers", inspect.sibling_subscribers),
            web.post("/clients", inspect.sibling_clients),
            web.post("/explain", self._explain.sibling_explain),
            web.post("/probes/expect", self._probe.sibling_expect),
            web.post("/probes/tell", self._probe.sibling_tell),
            web.post("/stats", inspect.sibling_stats),
        ]

    async def _openapi(self, request: web.Request) -> web.Response:
        """The description of the API; it holds no secret and needs no key."""
        refuse_query(request)
        return answer(self._document)


def _get(path: str, handler: Handler) -> web.RouteDef:
    # Not HEAD as well, which aiohttp would add: a subscription has no end to wait for.
    return web.get(path, handler, allow_head=False)
