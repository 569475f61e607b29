"""For operators and their machines: metrics, liveness, readiness (SPEC 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec
from aiohttp import web

from messagebusd.bus import MessageBus
from messagebusd.errors import StoreUnavailable
from messagebusd.metrics import CONTENT_TYPE, Metrics

CHECK_TIMEOUT_SECONDS = 5.0


class Inbox(Protocol):
    """A door that is no listener, as far as it matters here."""

    status: str


class OpsDoor:
    """``/livez``, ``/readyz`` and, if enabled, ``/metrics``."""

    def __init__(
        self,
        bus: MessageBus,
        metrics: Metrics,
        is_draining: Callable[[], bool],
        *,
        serve_metrics: bool,
        inbox: Inbox | None = None,
    ) -> None:
        self._bus = bus
        self._metrics = metrics
        self._is_draining = is_draining
        self._serve_metrics = serve_metrics
        self._inbox = inbox

    def routes(self) -> list[web.RouteDef]:
        """The routes of the internal listener that need no key."""
        routes = [web.get("/livez", self._livez), web.get("/readyz", self._readyz)]
        if self._serve_metrics:
            routes.append(web.get("/metrics", self._render))
        return routes

    async def _livez(self, request: web.Request) -> web.Response:
        """That this is answered is the answer: the loop turns."""
        return _json(200, {"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Whether this node should be sent polls and publishes, part by part."""
        ready, checks = await self.readiness()
        return _json(
            200 if ready else 503, {"status": "ok" if ready else "unavailable", "checks": checks}
        )

    async def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether this process is ready, and each part: ``ok``, or what is wrong with it."""
        checks = {
            "store": await self._check_store(),
            "accepting": "draining" if self._is_draining() else "ok",
        }
        ready = all(result == "ok" for result in checks.values())
        if self._inbox is not None:
            # Told, but no reason to send polls elsewhere: they can be served.
            checks["inbox"] = self._inbox.status
        return ready, checks

    async def _check_store(self) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await self._bus.check()
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT_SECONDS:g} seconds"
        except StoreUnavailable as error:
            return str(error)
        return "ok"

    async def _render(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})


def _json(status: int, body: object) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
