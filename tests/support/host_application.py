"""A host application that answers lookups, on a real port (SPEC 5)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.daemon import Daemon
from tests.support.rawhttp import RawConnection, Response, encode_request

JSON = ("Content-Type", "application/json")
Answer = Callable[[web.Request], Any]


@asynccontextmanager
async def application(answer: Answer, port: int | None = None) -> AsyncIterator[str]:
    """A host application; what ``answer`` returns is its JSON, unless it is a response."""

    async def handle(request: web.Request) -> web.StreamResponse:
        found = answer(request)
        if asyncio.iscoroutine(found):
            found = await found
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    app = web.Application()
    app.router.add_post("/lookup", handle)
    async with TestServer(app, host="127.0.0.1", port=port) as server:
        yield str(server.make_url("/lookup"))


def config(url: str, **webhook: Any) -> dict[str, Any]:
    return {
        "lookup": {"mode": "webhook", "webhook": {"url": url, **webhook}},
        "poll": {"extra_response_headers": {"X-Extra": "e"}, "client_rate": "0"},
    }


async def poll(
    daemon: Daemon, body: Any, *headers: tuple[str, str], query: str = "?dlp=t"
) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        request = encode_request(
            "POST",
            f"/message-bus/me/poll{query}",
            headers=[JSON, *headers],
            body=json.dumps(body).encode(),
        )
        return await connection.request(request)


def told(response: Response) -> list[Any]:
    assert response.status == 200, response.body
    return [each["data"] for each in json.loads(response.body)]
