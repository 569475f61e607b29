"""The ways in which the daemon learns who somebody is, each with what that person sends."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.security.people import PEOPLE, Person
from tests.support.tokens import SECRET, sign


class Way(NamedTuple):
    """A way of identification: settings, and the headers by which somebody proves who it is."""

    config: Mapping[str, Any]
    credentials: Callable[[Person], Mapping[str, str]]


@asynccontextmanager
async def by_headers() -> AsyncIterator[Way]:
    """A trusted proxy says it."""

    def credentials(person: Person) -> Mapping[str, str]:
        named = {"User": person.user_id, "Groups": list(person.group_ids)}
        headers = {
            f"X-MessageBus-{name}": json.dumps(value) for name, value in named.items() if value
        }
        if person.site_id is not None:
            headers["X-MessageBus-Site"] = person.site_id
        return headers

    config = {"server": {"trusted_proxies": ["127.0.0.1"]}, "lookup": {"mode": "headers"}}
    yield Way(config, credentials)


class Application:
    """A host application: a cookie names somebody, and it knows the rest."""

    def __init__(self, cache_ttl: int) -> None:
        self.people = {each.name: each for each in PEOPLE}
        self.cache_ttl = cache_ttl
        self.calls = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        question = await request.json()
        name = question["headers"].get("cookie", "").removeprefix("who=")
        person = self.people[name]
        return web.json_response(
            {
                "user_id": person.user_id,
                "group_ids": list(person.group_ids),
                "site_id": person.site_id,
                "is_admin": person.is_admin,
                "cache_ttl": self.cache_ttl,
            }
        )


@asynccontextmanager
async def serving(application: Application) -> AsyncIterator[Way]:
    """The application is asked."""
    app = web.Application()
    app.router.add_post("/lookup", application.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        webhook = {"url": str(server.make_url("/lookup"))}
        yield Way(
            {"lookup": {"mode": "webhook", "webhook": webhook}},
            lambda person: {"Cookie": f"who={person.name}"},
        )


@asynccontextmanager
async def by_webhook() -> AsyncIterator[Way]:
    """The application is asked for every poll."""
    async with serving(Application(cache_ttl=0)) as way:
        yield way


@asynccontextmanager
async def by_cached_webhook() -> AsyncIterator[Way]:
    """The application is asked once for each."""
    async with serving(Application(cache_ttl=60)) as way:
        yield way


@asynccontextmanager
async def by_token() -> AsyncIterator[Way]:
    """A token says it, which the application has signed."""

    def credentials(person: Person) -> Mapping[str, str]:
        said = {"sub": person.user_id, "groups": list(person.group_ids), "site": person.site_id}
        claims = {name: value for name, value in said.items() if value is not None}
        token = sign({**claims, "exp": time.time() + 3600})
        return {"Authorization": f"Bearer {token}"}

    config = {"lookup": {"mode": "jwt", "jwt": {"secret": SECRET}}}
    yield Way(config, credentials)


WAYS = {
    "headers": by_headers,
    "webhook": by_webhook,
    "cached webhook": by_cached_webhook,
    "jwt": by_token,
}
