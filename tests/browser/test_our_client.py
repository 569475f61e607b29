"""The client that the daemon serves, in every browser: what the original never had.

Everything goes through nginx.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import BrowserContext, Error

from tests.browser.conftest import origin_of
from tests.browser.matrix import in_every_browser
from tests.browser.page import TIMEOUT_SECONDS, BusPage, Client, open_page
from tests.browser.proxies import buffering_proxy
from tests.browser.relay import Relay
from tests.support.daemon import Daemon

pytestmark = in_every_browser

# What the client tells is kept, from the first moment on.
NOTE_EVENTS = """() => {
    window.told = {state: [], error: [], gap: [], fallback: []};
    for (const name of Object.keys(told)) {
        MessageBus.on(name, (event) => told[name].push(
            event instanceof Error ? {name: event.name, message: event.message} : event));
    }
}"""
WITHOUT_FETCH = "delete window.fetch;"
WITHOUT_STREAMS = "delete window.ReadableStream;"


async def open_ours(
    context: BrowserContext, origin: str, before: str = "", client: Client = "ours"
) -> BusPage:
    page = await open_page(context, origin, client, before)
    await page.page.evaluate(NOTE_EVENTS)
    return page


async def told(page: BusPage, name: str) -> list[dict[str, Any]]:
    """The events of one name so far."""
    events: list[dict[str, Any]] = await page.page.evaluate("name => told[name]", name)
    return events


async def state(page: BusPage, status: str, **more: object) -> dict[str, Any]:
    """Wait until the connection is so, and return how it is."""
    handle = await page.page.wait_for_function(
        """wanted => Object.entries(wanted).every(([name, value]) =>
            MessageBus.connection[name] === value) && MessageBus.connection""",
        arg={"status": status, **more},
    )
    found: dict[str, Any] = await handle.json_value()
    return found


async def parked(bus: Daemon, channel: str) -> list[dict[str, Any]]:
    """The polls that the daemon holds for a channel."""
    answer = await bus.api("GET", "clients", query={"channel": channel})
    clients: list[dict[str, Any]] = answer["clients"]
    return clients


async def until_parked(bus: Daemon, channel: str, count: int) -> list[dict[str, Any]]:
    """Wait until the daemon holds so many polls for a channel."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(clients := await parked(bus, channel)) != count:
            await asyncio.sleep(0.02)
    return clients


@pytest.fixture
def way() -> str:
    return "nginx"


# -- transports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "transport"),
    [("", "fetch"), (WITHOUT_FETCH, "xhr"), (WITHOUT_STREAMS, "xhr")],
    ids=["fetch", "no-fetch", "fetch-without-streams"],
)
async def test_streaming(
    bus: Daemon, context: BrowserContext, origin: str, channel: str, before: str, transport: str
) -> None:
    page = await open_ours(context, origin, before)
    await page.start({channel: 0})
    await state(page, "connected", mode="streaming", transport=transport)
    expected: list[object] = []
    for number in range(1, 4):
        expected.append({"number": number, "text": "ä€🚌 \r\n|\r\n"})
        await bus.publish(channel, expected[-1])
        await page.wait_for(expected[-1])
    messages = [{"channel": channel, "data": number} for number in range(300)]
    await bus.api("POST", "publish/batch", {"messages": messages})
    await page.wait_for(299)
    assert await page.data() == [*expected, *range(300)]
    assert len(page.polls) == 1
    assert await told(page, "gap") == []


async def test_no_wait_after_subscribing(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    page = await open_ours(context, origin)
    # The original without jQuery waits for callbackInterval.
    await page.start({channel: -1}, callbackInterval=60_000)
    await state(page, "connected")
    await bus.publish(f"{channel}/second", "hello")
    await page.subscribe(f"{channel}/second", 0)
    await page.wait_for("hello")
    assert await told(page, "error") == []


# -- networks -------------------------------------------------------------------------------------


async def test_a_proxy_that_buffers(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    async with buffering_proxy(origin) as buffered:
        page = await open_ours(context, buffered)
        await page.start({channel: 0}, firstChunkTimeout=300, retryChunkedAfterRequests=5)
        await page.page.wait_for_function("told.fallback.length > 0")
        assert await told(page, "fallback") == [{"reason": "buffered", "requests": 5}]
        for number in (1, 2, 3):
            await bus.publish(channel, number)
            await page.wait_for(number)
        assert await state(page, "connected", mode="long-polling")
        assert await told(page, "error") == []


async def test_a_proxy_that_cuts_streams(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    async with Relay(origin) as network:
        page = await open_ours(context, network.url)
        await page.start({channel: 0})
        for number in (1, 2, 3):
            await state(page, "connected", mode="streaming")
            await bus.publish(channel, number)
            await page.wait_for(number)
            await network.cut()
            await state(page, "failing")
            await network.mend()
        await bus.publish(channel, 4)
        await page.wait_for(4)
        assert (await told(page, "fallback"))[0]["reason"] == "cut"
        assert await page.data() == [1, 2, 3, 4]
        await state(page, "connected", mode="long-polling")


async def test_offline_and_back(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    page = await open_ours(context, origin)
    # It would ask now and then, in case the browser is wrong.
    await page.start({channel: 0}, backgroundCallbackInterval=60_000)
    await state(page, "connected")
    await context.set_offline(True)
    await state(page, "offline")
    await until_parked(bus, channel, 0)
    await bus.publish(channel, "meanwhile")
    assert await told(page, "error") == []
    await context.set_offline(False)
    await page.wait_for("meanwhile")
    await state(page, "connected")


async def test_a_server_that_restarts(tmp_path: Path, context: BrowserContext, way: str) -> None:
    config = {
        "server": {"shutdown_timeout": 0.2},
        "backend": {"memory": {"snapshot_file": "snapshot"}},
    }
    async with Daemon(tmp_path, config) as daemon, origin_of(daemon, way, tmp_path) as origin:
        page = await open_ours(context, origin)
        await page.start({"/foo": 0})
        await daemon.publish("/foo", 1)
        await page.wait_for(1)
        assert await daemon.stop() == 0
        await state(page, "failing")
        assert (await told(page, "error"))[0]["name"] == "HttpError"  # nginx' 502
        await daemon.restart()
        await daemon.publish("/foo", 2)
        await page.wait_for(2)
        await state(page, "connected")
        assert await page.data() == [1, 2]
        assert await told(page, "gap") == []


async def test_a_hidden_tab(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    page = await open_ours(context, origin)
    await page.start({channel: 0}, backgroundCallbackInterval=60_000)
    await state(page, "connected", mode="streaming")
    await page.hide()
    # What is open stays; what follows does not wait.
    await page.subscribe(f"{channel}/other", 0)
    await state(page, "connected", mode="polling")
    await until_parked(bus, channel, 0)
    await bus.publish(channel, "while hidden")
    await page.show()
    await page.wait_for("while hidden")
    await state(page, "connected", mode="streaming")


# -- who it is ------------------------------------------------------------------------------------


class Application:
    """A host application that knows one token at a time."""

    def __init__(self) -> None:
        self.token = "first"
        self.refusals = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/lookup", self._lookup)
        async with TestServer(app) as server:
            yield str(server.make_url("/lookup"))

    async def _lookup(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["headers"].get("authorization") != f"Bearer {self.token}":
            self.refusals += 1
            return web.Response(status=401)
        return web.json_response({"user_id": 7, "cache_ttl": 0})


async def test_a_token_that_is_refreshed(
    tmp_path: Path, context: BrowserContext, way: str, origin: str
) -> None:
    """And across origins, where browsers ask before they send one."""
    application = Application()
    async with application.serve() as url:
        lookup = {"mode": "webhook", "webhook": {"url": url}}
        cors = {"allow_origins": [origin]}
        async with (
            Daemon(tmp_path, {"lookup": lookup, "cors": cors}) as daemon,
            origin_of(daemon, way, tmp_path) as far,
        ):
            # For loopback newer versions ask people, and older ones know no such permission.
            with suppress(Error):
                await context.grant_permissions(["local-network-access"])
            page = await open_ours(context, origin)
            await page.page.evaluate(
                """() => {
                    window.asked = [];
                    MessageBus.tokenProvider = async ({refresh}) => {
                        asked.push(refresh);
                        await new Promise((resolve) => setTimeout(resolve));
                        return refresh ? "second" : "first";
                    };
                }"""
            )
            await page.start({"/foo": 0}, baseUrl=far)
            await state(page, "connected", mode="streaming")
            application.token = "second"
            await page.subscribe("/bar", 0)
            await daemon.publish("/bar", "for seven", user_ids=[7])
            await page.wait_for("for seven")
            assert application.refusals == 1
            assert await page.page.evaluate("asked") == [False, True]
            assert await told(page, "error") == []


async def test_cookies_say_who_it_is(tmp_path: Path, context: BrowserContext, way: str) -> None:
    """Unless the page says otherwise."""
    seen: list[str | None] = []

    async def lookup(request: web.Request) -> web.Response:
        seen.append((await request.json())["headers"].get("cookie"))
        return web.json_response({"user_id": 7, "cache_ttl": 0} if seen[-1] else {})

    app = web.Application()
    app.router.add_post("/lookup", lookup)
    async with TestServer(app) as application:
        webhook = {"url": str(application.make_url("/lookup"))}
        config = {"lookup": {"mode": "webhook", "webhook": webhook}}
        async with (
            Daemon(tmp_path, config) as daemon,
            origin_of(daemon, way, tmp_path) as origin,
        ):
            await context.add_cookies([{"name": "_t", "value": "seven", "url": origin}])
            await daemon.publish("/foo", "for seven", user_ids=[7])
            page = await open_ours(context, origin)
            await page.start({"/foo": 0})
            await page.wait_for("for seven")
            assert seen == ["_t=seven"]
            stranger = await open_ours(context, origin)
            await stranger.start({"/foo": 0}, credentials="omit")
            await state(stranger, "connected", mode="streaming")
            assert seen[-1] is None
            assert await stranger.data() == []


# -- one connection for all tabs ------------------------------------------------------------------

BY = pytest.mark.parametrize("by", ["worker", "page"])


async def open_sharing(context: BrowserContext, origin: str, before: str = "") -> BusPage:
    return await open_ours(context, origin, before, "ours, sharing")


async def share(page: BusPage, by: str, channel: str, **settings: object) -> None:
    options = {"name": channel} | ({"worker": "/message-bus/worker.js"} if by == "worker" else {})
    await page.page.evaluate("options => MessageBus.share(options)", options)
    await page.start({channel: 0}, **settings)
    await state(page, "connected", sharedBy=by, mode="streaming")


async def three_tabs(context: BrowserContext, origin: str, by: str, channel: str) -> list[BusPage]:
    pages = []
    for _ in range(3):
        pages.append(await open_sharing(context, origin))
        await share(pages[-1], by, channel)
    return pages


@BY
async def test_three_tabs_have_one_connection(
    bus: Daemon, context: BrowserContext, origin: str, channel: str, by: str
) -> None:
    await bus.publish(channel, "before")
    pages = await three_tabs(context, origin, by, channel)
    for page in pages:
        await page.wait_for("before")
    [client] = await until_parked(bus, channel, 1)
    assert client["mode"] == "stream"
    for page in pages:
        assert await page.page.evaluate("MessageBus.clientId") == client["client_id"]

    # Each has subscriptions, positions and pauses of its own.
    await pages[0].subscribe(f"{channel}/first", 0)
    await pages[1].page.evaluate("MessageBus.pause()")
    await bus.publish(f"{channel}/first", "for the first")
    await bus.publish(channel, "for all")
    await pages[0].wait_for("for the first")
    for page in (pages[0], pages[2]):
        await page.wait_for("for all")
    assert await pages[1].data() == ["before"]
    await pages[1].page.evaluate("MessageBus.resume()")
    await pages[1].wait_for("for all")
    assert await pages[2].data() == ["before", "for all"]
    assert len(await until_parked(bus, channel, 1)) == 1


@BY
async def test_tabs_come_and_go(
    bus: Daemon, context: BrowserContext, origin: str, channel: str, by: str
) -> None:
    pages = await three_tabs(context, origin, by, channel)
    await pages[1].subscribe(f"{channel}/second", 0)
    await until_parked(bus, f"{channel}/second", 1)
    number = 0
    # The first one leads, if a page does: another takes over, and nothing is lost.
    for leaving in (0, 0):
        await bus.publish(channel, (number := number + 1))
        await pages.pop(leaving).page.close()
        await bus.publish(channel, (number := number + 1))
        for page in pages:
            await page.wait_for(number)
    await until_parked(bus, channel, 1)
    # What only the one that left had subscribed is not asked for any more.
    await until_parked(bus, f"{channel}/second", 0)
    await bus.publish(channel, "the last one")
    [page] = pages
    await page.wait_for("the last one")
    assert await page.data() == [1, 2, 3, 4, "the last one"]
    assert await told(page, "gap") == []
    await page.page.evaluate("MessageBus.stop()")
    await until_parked(bus, channel, 0)


@pytest.mark.parametrize("worker", ["/message-bus/missing.js", "https://other.example/worker.js"])
async def test_a_worker_that_cannot_start(
    bus: Daemon, context: BrowserContext, origin: str, channel: str, worker: str
) -> None:
    page = await open_sharing(context, origin)
    options = {"name": channel, "worker": worker}
    await page.page.evaluate("options => MessageBus.share(options)", options)
    await page.start({channel: 0})
    await state(page, "connected", sharedBy="page")


async def test_a_browser_that_cannot_share(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    without = "Object.defineProperty(navigator, 'locks', {value: undefined});"
    page = await open_sharing(context, origin, without)
    await page.page.evaluate("MessageBus.share()")
    await page.start({channel: 0})
    assert "sharedBy" not in await state(page, "connected", mode="streaming")


async def test_a_shown_page_takes_over_from_a_hidden_one(
    bus: Daemon, context: BrowserContext, origin: str, channel: str
) -> None:
    """Browsers slow the timers of hidden pages down: the shown one had to wait for them."""
    first = await open_sharing(context, origin)
    await share(first, "page", channel)
    [before] = await until_parked(bus, channel, 1)
    second = await open_sharing(context, origin)
    await share(second, "page", channel)
    polls = len(second.polls)
    await first.hide()
    await second.until(lambda: len(second.polls) > polls)
    await bus.publish(channel, "hello")
    for page in (first, second):
        await page.wait_for("hello")
        assert await page.data() == ["hello"]
    [now] = await until_parked(bus, channel, 1)
    assert now["client_id"] == before["client_id"]


@BY
async def test_tokens_come_from_a_page(
    tmp_path: Path, context: BrowserContext, way: str, by: str
) -> None:
    application = Application()
    async with application.serve() as url:
        lookup = {"mode": "webhook", "webhook": {"url": url}}
        async with (
            Daemon(tmp_path, {"lookup": lookup}) as daemon,
            origin_of(daemon, way, tmp_path) as origin,
        ):
            page = await open_sharing(context, origin)
            await page.page.evaluate("MessageBus.tokenProvider = () => 'first'")
            await share(page, by, "/foo")
            await daemon.publish("/foo", "for seven", user_ids=[7])
            await page.wait_for("for seven")
            application.token = "another"
            await page.subscribe("/bar", 0)
            await page.page.wait_for_function("told.error.length > 0")
            assert (await told(page, "error"))[0]["name"] == "HttpError"
