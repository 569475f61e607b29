"""The routes of the admin page.

It shows what the API tells, by the doors that the API has, and a little more. All of it is served
below ``/admin/``, and the cookie is sent there only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from messagebusd.errors import RateLimited, Unauthorized
from messagebusd.http.admin.history import COLUMNS, INTERVAL_SECONDS, History, Sample, combine
from messagebusd.http.admin.sessions import (
    IDLE_SECONDS,
    PATH,
    Ended,
    SessionKey,
    Sessions,
    require_page,
)
from messagebusd.http.api import PREFIX as API
from messagebusd.http.auth import KeyRing
from messagebusd.http.exchange import Query, answer, decoder, read_fields, refuse_query
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.siblings import Siblings
from messagebusd.protocol.ratelimit import Buckets

CALLS = f"{PATH}api/"
_SESSION = f"{PATH}session"
_STATIC = Path(__file__).parent / "static"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Attempts to log in that fail, of one address. Keys are long: this is about noise, not safety.
LOGIN_ATTEMPTS = 10
LOGIN_SECONDS = 300.0

# Nothing but the page's own files runs, no text becomes markup, and nobody frames the page.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_KEY = web.RequestKey("admin session", SessionKey)

_login_fields = {"key": decoder(str)}
_log = logging.getLogger(__name__)


class Readiness(Protocol):
    """Whether this worker is ready, and what each part of it says."""

    async def readiness(self) -> tuple[bool, dict[str, str]]: ...


class AdminDoor:
    """Serves the page. ``body_timeout`` is in seconds.

    ``calls`` are the API's routes, served by doors that ask ``sessions`` whose request it is;
    ``settings`` are rows of a key, its value as it may be shown, and its source; ``attempts`` to
    log in are counted by address.
    """

    def __init__(
        self,
        ring: KeyRing,
        sessions: Sessions,
        calls: Sequence[web.RouteDef],
        history: History,
        health: Readiness,
        siblings: Siblings,
        proxies: TrustedProxies,
        settings: Sequence[tuple[str, str, str]],
        attempts: Buckets,
        *,
        body_timeout: float,
    ) -> None:
        self._ring = ring
        self._sessions = sessions
        self._calls = calls
        self._history = history
        self._health = health
        self._siblings = siblings
        self._proxies = proxies
        self._settings = settings
        self._body_timeout = body_timeout
        self._attempts = attempts

    def attend(self, app: web.Application) -> None:
        """Have this application, which serves the page, know and show who is logged in."""
        app.on_startup.append(self._learn)
        app.on_response_prepare.append(self._protect)

    def routes(self) -> list[web.RouteDef]:
        """What an application has to serve."""
        return [
            web.get(PATH.rstrip("/"), _to_page),
            *(web.get(PATH + name, _file(*file)) for name, file in _files().items()),
            web.post(_SESSION, self._log_in),
            web.get(_SESSION, self._who),
            web.delete(_SESSION, self._log_out),
            web.get(f"{CALLS}samples", self._samples),
            web.get(f"{CALLS}health", self._show_health),
            web.get(f"{CALLS}settings", self._show_settings),
            *(
                web.RouteDef(
                    each.method,
                    CALLS + each.path.removeprefix(API),
                    self._noted(each.handler),
                    each.kwargs,
                )
                for each in self._calls
            ),
        ]

    def sibling_routes(self) -> list[web.RouteDef]:
        """What only the other workers may ask."""
        return [
            web.post("/admin/samples", self._sibling_samples),
            web.post("/admin/health", self._sibling_health),
            web.post("/admin/logout", self._sibling_logout),
            web.post("/admin/ended", self._sibling_ended),
        ]

    # -- sessions

    async def _log_in(self, request: web.Request) -> web.Response:
        """Take a key, and answer with a cookie that stands for it."""
        require_page(request)
        refuse_query(request)
        address = self._proxies.counted_address(request.transport, request.headers)
        # What comes by a proxy that does not say for whom shares one allowance.
        attempts = self._attempts.of(address)
        if wait := attempts.take():
            raise RateLimited(
                "too many attempts to log in; wait a little",
                retry_after=math.ceil(wait),
                limit="login",
            )
        fields = await read_fields(request, self._body_timeout, _login_fields, ("key",))
        try:
            key = self._ring.recognise(fields["key"].strip())
        except Unauthorized as error:
            _log.warning("login refused", extra={"address": address, "reason": error.detail})
            raise
        attempts.give_back()
        session = self._sessions.begin(key, request)
        _log.info("logged in", extra={"address": address, "key": key.name})
        response = answer(_describe(session))
        response.headers["Set-Cookie"] = self._sessions.set_cookie(session)
        return response

    async def _who(self, request: web.Request) -> web.Response:
        """Who is logged in, and what they may do; 204 if nobody is."""
        refuse_query(request)
        try:
            return answer(_describe(self._identify(request)))
        except Unauthorized:
            return web.Response(status=204)

    async def _log_out(self, request: web.Request) -> web.Response:
        """End the session, on every worker."""
        key = self._identify(request)
        self._sessions.end(key.session)
        await self._siblings.ask("/admin/logout", key.session)
        return web.Response(status=204, headers={"Set-Cookie": self._sessions.clear_cookie(key)})

    async def _learn(self, _app: web.Application) -> None:
        """Whoever takes the place of a worker that died has to know what that one knew."""
        for each in (await self._siblings.ask("/admin/ended")).bodies:
            self._sessions.learn(msgspec.convert(each, Ended))

    def _identify(self, request: web.Request) -> SessionKey:
        key = self._sessions.identify(request)
        request[_KEY] = key
        return key

    def _require_admin(self, request: web.Request) -> None:
        key = self._identify(request)
        key.require_scope("admin")
        key.require_unrestricted()

    async def _protect(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give every answer below our path its headers, and a session that is used a new cookie."""
        if not f"{request.path}/".startswith(PATH):
            return
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        key = request.get(_KEY)
        if (
            key is not None
            and "Set-Cookie" not in response.headers
            and self._sessions.needs_renewal(key, request)
        ):
            response.headers["Set-Cookie"] = self._sessions.set_cookie(key)

    def _noted(self, handler: Handler) -> Handler:
        """A call of the API, for whoever is logged in; changes are logged."""

        async def handle(request: web.Request) -> web.StreamResponse:
            key = self._identify(request)
            if request.method != "GET":
                _log.info("admin call", extra={"call": request.path, "key": key.name})
            return await handler(request)

        return handle

    # -- what the API has not

    async def _samples(self, request: web.Request) -> web.Response:
        """The daemon in numbers, since a time that an earlier answer ended with."""
        self._require_admin(request)
        after = (Query(request, "after").integer("after") or 0) // INTERVAL_SECONDS
        others = await self._siblings.ask("/admin/samples", after)
        theirs = [msgspec.convert(each, Sample) for samples in others.bodies for each in samples]
        rows = combine([*self._history.since(after), *theirs])
        body = {"interval": INTERVAL_SECONDS, "columns": COLUMNS, "rows": rows, **others.note()}
        return answer(msgspec.json.encode(body))

    async def _show_health(self, request: web.Request) -> web.Response:
        """What ``/readyz`` of each worker says."""
        self._require_admin(request)
        refuse_query(request)
        own, others = await asyncio.gather(self._own_health(), self._siblings.ask("/admin/health"))
        workers = sorted([own, *others.bodies], key=lambda each: int(each["worker"]))
        ready = all(each["ready"] for each in workers) and not others.missing
        body = {"ready": ready, "workers": workers, **others.note()}
        return answer(msgspec.json.encode(body))

    async def _show_settings(self, request: web.Request) -> web.Response:
        """The settings in effect, as ``messagebusd config`` shows them."""
        self._require_admin(request)
        refuse_query(request)
        names = ("key", "value", "source")
        rows = [dict(zip(names, each, strict=True)) for each in self._settings]
        return answer(msgspec.json.encode({"settings": rows}))

    async def _own_health(self) -> dict[str, Any]:
        ready, checks = await self._health.readiness()
        return {"worker": self._siblings.number, "ready": ready, "checks": checks}

    # -- for the other workers

    async def _sibling_samples(self, request: web.Request) -> web.Response:
        after = msgspec.json.decode(await request.read(), type=int)
        return answer(msgspec.json.encode(self._history.since(after)))

    async def _sibling_health(self, request: web.Request) -> web.Response:
        return answer(msgspec.json.encode(await self._own_health()))

    async def _sibling_logout(self, request: web.Request) -> web.Response:
        self._sessions.end(msgspec.json.decode(await request.read(), type=str))
        return answer(b"null")

    async def _sibling_ended(self, request: web.Request) -> web.Response:
        return answer(msgspec.json.encode(self._sessions.ended))


def _describe(key: SessionKey) -> bytes:
    return msgspec.json.encode(
        {
            "name": key.name,
            "scopes": sorted(key.scopes),
            "channels": None if key.channels is None else key.channels.patterns,
            "sites": key.sites,
            "expires_at": key.expires_at,
            "idle_seconds": IDLE_SECONDS,
        }
    )


async def _to_page(request: web.Request) -> web.Response:
    """Relative, for a proxy that serves the page below another path."""
    return web.Response(status=308, headers={"Location": "admin/"})


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """The page's files by their path below ours, read once."""
    files = {
        path.relative_to(_STATIC).as_posix(): (path.read_bytes(), _CONTENT_TYPES[path.suffix])
        for path in sorted(_STATIC.rglob("*"))
        if path.suffix in _CONTENT_TYPES
    }
    files[""] = files.pop("index.html")
    return files


def login_attempts(clock: Callable[[], float] = time.monotonic) -> Buckets:
    """The allowances of those who try to log in. ``clock`` is monotonic."""
    return Buckets(LOGIN_ATTEMPTS, LOGIN_SECONDS, clock)


def _file(content: bytes, content_type: str) -> Handler:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=content, headers={"Content-Type": content_type})

    return serve
