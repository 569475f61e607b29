"""Proxies that spoil streams, as there are between browsers and servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

_HOP_BY_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}


@asynccontextmanager
async def buffering_proxy(target: str) -> AsyncIterator[str]:
    """Pass answers on when they are complete, never before; yields where it listens."""

    async def forward(request: web.Request) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        url, data = f"{target}{request.path_qs}", await request.read()
        try:
            async with session.request(request.method, url, headers=headers, data=data) as answer:
                body = await answer.read()
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
                return web.Response(status=answer.status, headers=kept, body=body)
        except aiohttp.ClientError:
            raise web.HTTPBadGateway from None

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    # Ended in this order: a server waits for its handlers, and they for polls.
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        yield str(server.make_url("")).rstrip("/")
