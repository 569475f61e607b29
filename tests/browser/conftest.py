"""The browsers, one daemon and one nginx for all tests here, and a fresh page for each.

Tests run in Chromium, and some of them in Firefox as well: tests/browser/matrix.py. All of it lives
in one event loop, the session's. The tests use channels of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext

from tests.browser.page import BusPage, open_page
from tests.support.browsers import BrowserName, Browsers, open_browsers
from tests.support.daemon import Daemon
from tests.support.nginx import Nginx

OpenPage = Callable[[str], Awaitable[BusPage]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browsers() -> AsyncIterator[Browsers]:
    async with open_browsers() as browsers:
        yield browsers


@pytest.fixture
def browser_name() -> BrowserName:
    """Which browser a test runs in, unless it is marked for others as well."""
    return "chromium"


@pytest_asyncio.fixture(loop_scope="session")
async def browser(browsers: Browsers, browser_name: BrowserName) -> Browser:
    return await browsers.get(browser_name)


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """What one person's browser is: storage and network of its own."""
    context = await browser.new_context()
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_bus_page(context: BrowserContext) -> OpenPage:
    async def open_in_context(origin: str) -> BusPage:
        return await open_page(context, origin)

    return open_in_context


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The daemon of all tests that leave it running."""
    config = {
        "server": {"trusted_proxies": ["127.0.0.1"]},
        "lookup": {"mode": "headers"},
    }
    async with Daemon(tmp_path_factory.mktemp("daemon"), config) as daemon:
        yield daemon


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nginx(bus: Daemon, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nginx]:
    """nginx in front of it."""
    async with Nginx(bus.url.removeprefix("http://"), tmp_path_factory.mktemp("nginx")) as nginx:
        yield nginx


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel that no other test uses, and that further ones may be put below."""
    return f"/{request.node.name}"


@pytest.fixture(params=["straight", "nginx"])
def way(request: pytest.FixtureRequest) -> str:
    """How a browser gets to the daemon."""
    way: str = request.param
    return way


@pytest.fixture
def origin(way: str, bus: Daemon, nginx: Nginx) -> str:
    """Where pages reach the daemon of all tests."""
    return nginx.url if way == "nginx" else bus.url


@asynccontextmanager
async def origin_of(daemon: Daemon, way: str, folder: Path) -> AsyncIterator[str]:
    """Where pages reach a daemon of the test's own."""
    if way == "straight":
        yield daemon.url
    else:
        async with Nginx(daemon.url.removeprefix("http://"), folder) as nginx:
            yield nginx.url
