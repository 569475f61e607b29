"""A page of one origin polls a daemon on another, in a browser that holds both to the rules.

The pages come from a server: nothing is intercepted, because that would keep the browser from
sending preflights of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import BrowserContext, Page

from tests.browser.matrix import in_every_browser
from tests.browser.page import ADAPTER, CLIENT, TIMEOUT_SECONDS
from tests.support.daemon import Daemon

_POLL = """async ([url, headers]) => {
    const answer = await fetch(url, {method: "POST", headers, body: '{"/a":0}'});
    const body = await answer.text();
    return {status: answer.status, retryAfter: answer.headers.get("Retry-After"), body};
}"""
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(loop_scope="session")
async def port() -> AsyncIterator[int]:
    """Where a site serves its pages."""

    async def page(_: web.Request) -> web.Response:
        scripts = f"{CLIENT.read_text()}\n{ADAPTER.read_text()}\nMessageBus.stop();"
        html = f"<!doctype html><title>page</title><script>{scripts}</script>"
        return web.Response(text=html, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    async with TestServer(app, host="127.0.0.1") as server:
        assert server.port is not None
        yield server.port


@pytest.fixture
def forum(port: int) -> str:
    """The origin that may poll."""
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def stranger(port: int) -> str:
    """Another one."""
    return f"http://localhost:{port}"


async def open_page(context: BrowserContext, origin: str) -> Page:
    page = await context.new_page()
    page.set_default_timeout(TIMEOUT_SECONDS * 1000)
    await page.goto(f"{origin}/")
    return page


def config(forum: str, **poll: Any) -> dict[str, Any]:
    return {"cors": {"allow_origins": [forum]}, "poll": poll}


@in_every_browser
async def test_the_client_streams_from_another_origin(
    tmp_path: Path, context: BrowserContext, forum: str
) -> None:
    async with Daemon(tmp_path, config(forum)) as daemon:
        page = await open_page(context, forum)
        await page.evaluate(
            """url => {
                window.received = [];
                Object.assign(MessageBus, {baseUrl: url, minPollInterval: 10});
                MessageBus.headers = {Authorization: "Bearer t", "X-SILENCE-LOGGER": "true"};
                MessageBus.subscribe("/a", data => received.push(data), 0);
                MessageBus.start();
            }""",
            f"{daemon.url}/",
        )
        await daemon.publish("/a", "hello")
        await page.wait_for_function("received.includes('hello')")


@in_every_browser
async def test_a_page_can_read_that_it_is_to_come_back_later(
    tmp_path: Path, context: BrowserContext, forum: str
) -> None:
    async with Daemon(tmp_path, config(forum, client_rate="1/h")) as daemon:
        page = await open_page(context, forum)
        url = f"{daemon.url}/message-bus/me/poll?dlp=t"
        first = await page.evaluate(_POLL, [url, JSON])
        assert first == {"status": 200, "retryAfter": None, "body": "[]"}
        second = await page.evaluate(_POLL, [url, JSON])
        assert second["status"] == 429
        assert int(second["retryAfter"]) >= 3600
        assert '"code":"rate_limited"' in second["body"]


async def test_a_browser_asks_once_whether_it_may(
    tmp_path: Path, context: BrowserContext, forum: str
) -> None:
    async with Daemon(tmp_path, config(forum)) as daemon:
        page = await open_page(context, forum)
        methods: list[str] = []

        def note(event: Any) -> None:
            if event["request"]["url"].startswith(daemon.url):  # not the page's own icon
                methods.append(event["request"]["method"])

        session = await context.new_cdp_session(page)
        session.on("Network.requestWillBeSent", note)
        await session.send("Network.enable")
        url = f"{daemon.url}/message-bus/me/poll?dlp=t"
        for _ in range(3):
            assert (await page.evaluate(_POLL, [url, JSON]))["status"] == 200
        assert sorted(methods) == ["OPTIONS", "POST", "POST", "POST"]


@in_every_browser
async def test_a_stranger_reads_nothing(
    tmp_path: Path, context: BrowserContext, forum: str, stranger: str
) -> None:
    async with Daemon(tmp_path, config(forum)) as daemon:
        page = await open_page(context, stranger)
        url = f"{daemon.url}/message-bus/me/poll?dlp=t"
        for headers in (JSON, {}):  # stopped at the preflight, or on reading
            failure = await page.evaluate(
                f"args => ({_POLL})(args).catch(error => error.name)", [url, headers]
            )
            assert failure == "TypeError"
