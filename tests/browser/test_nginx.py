"""What the shipped nginx configuration lets through, seen without a browser."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from tests.support.daemon import Daemon
from tests.support.nginx import Nginx


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1/publish",
        "/metrics",
        "/readyz",
        "/message-bus/../api/v1/publish",
        "/message-bus/%2e%2e/api/v1/publish",
        "/message-bus/..%2fapi/v1/publish",
        "/message-bus/x/../../api/v1/publish",
    ],
)
async def test_only_the_subscribers_path_is_forwarded(bus: Daemon, nginx: Nginx, path: str) -> None:
    headers = {"Authorization": f"Bearer {bus.key}"}
    url = URL(f"{nginx.url}{path}", encoded=True)
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"channel": "/through/nginx", "data": 1}) as response,
    ):
        assert response.status == 404
        assert response.headers["Server"] == "nginx"
    assert await bus.api("GET", "last_id", query={"channel": "/through/nginx"}) == {
        "channel": "/through/nginx",
        "last_id": 0,
    }


async def test_browsers_cannot_say_who_they_are(bus: Daemon, nginx: Nginx) -> None:
    await bus.publish("/identity", "for ada", user_ids=["ada"])

    async def poll(origin: str) -> list[object]:
        headers = {"X-MessageBus-User": "ada"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{origin}/message-bus/c1/poll?dlp=t", json={"/identity": 0}) as response,
        ):
            messages = await response.json()
            return [m["data"] for m in messages if m["channel"] == "/identity"]

    assert await poll(bus.url) == ["for ada"]  # the daemon itself believes this machine
    assert await poll(nginx.url) == []


async def test_what_the_daemon_sees(tmp_path: Path) -> None:
    """Played by a server that only takes notes."""
    seen: list[web.Request] = []
    connections: set[object] = set()

    async def note(request: web.Request) -> web.Response:
        seen.append(request)
        connections.add(request.transport)
        return web.json_response([])

    app = web.Application()
    app.router.add_post("/{path:.*}", note)
    async with TestServer(app) as upstream, Nginx(f"127.0.0.1:{upstream.port}", tmp_path) as nginx:
        headers = {
            "Host": "forum.example",
            "X-Forwarded-For": "203.0.113.9",
            "X-Forwarded-Host": "other.example",
            "X-Forwarded-User": "1",
            "X-Forwarded-Prefix": "/other",
            "Forwarded": "for=203.0.113.9;host=other.example",
            "X-MessageBus-User": "1",
            "X-MessageBus-Groups": "[1]",
            "X-MessageBus-Site": "other",
            "Cookie": "_t=abc",
        }
        async with aiohttp.ClientSession(headers=headers) as session:
            for _ in range(20):
                url = URL(f"{nginx.url}/message-bus/a%2Fb/poll?dlp=t", encoded=True)
                async with session.post(url, data={"/foo": "5"}) as response:
                    assert response.status == 200

    request = seen[0]
    assert request.version == aiohttp.HttpVersion11
    assert request.path_qs == "/message-bus/a%2Fb/poll?dlp=t"
    assert request.headers["Host"] == "forum.example"
    assert request.headers["X-Real-IP"] == "127.0.0.1"
    assert request.headers["X-Forwarded-For"] == "203.0.113.9, 127.0.0.1"
    assert request.headers["X-Forwarded-Proto"] == "http"
    assert request.headers["X-Forwarded-Host"] == "forum.example"
    assert not {"X-Forwarded-User", "X-Forwarded-Prefix", "Forwarded"} & request.headers.keys()
    assert request.headers["Cookie"] == "_t=abc"
    assert "Connection" not in request.headers
    assert not [name for name in request.headers if name.lower().startswith("x-messagebus")]
    # Each worker of nginx keeps its connection and uses it again.
    assert len(connections) <= nginx.workers < len(seen)
