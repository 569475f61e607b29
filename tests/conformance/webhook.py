"""The host application of the recordings, asked by webhook (SPEC 5).

It believes what the poll's forwarded headers say: user and groups as JSON, the site as text, and
a whole refusal, ``{"status", "headers", "body"}``, in a header of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


@asynccontextmanager
async def application(user: str, groups: str, site: str, fail: str) -> AsyncIterator[str]:
    """Run it on a free port; the names of the headers are the caller's. Yields its URL."""

    async def lookup(request: web.Request) -> web.Response:
        headers = (await request.json())["headers"]
        refusal = headers.get(fail.lower())
        if refusal is not None:
            answer = json.loads(refusal)
            return web.Response(
                status=answer["status"], headers=answer["headers"], text=answer["body"]
            )
        identity: dict[str, Any] = {}
        if user.lower() in headers:
            identity["user_id"] = json.loads(headers[user.lower()])
        if groups.lower() in headers:
            identity["group_ids"] = json.loads(headers[groups.lower()])
        if site.lower() in headers:
            identity["site_id"] = headers[site.lower()]
        return web.json_response(identity)

    app = web.Application()
    app.router.add_post("/lookup", lookup)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/lookup"))
