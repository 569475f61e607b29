"""Responses end, processes restart, networks fail: nothing is lost, nothing comes twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.browser.conftest import OpenPage, origin_of
from tests.browser.matrix import every_way, in_every_browser
from tests.browser.page import BusPage
from tests.browser.relay import Relay
from tests.browser.test_client import LONG_POLLING, STREAMING, every_mode
from tests.support.daemon import Daemon
from tests.support.nginx import Nginx


async def publish(daemon: Daemon, channel: str, numbers: range) -> None:
    for number in numbers:
        await daemon.publish(channel, number)


async def assert_exactly(page: BusPage, daemon: Daemon, channel: str, numbers: range) -> None:
    """Assert that the page has received these, each once and in order."""
    await page.wait_for(numbers[-1])
    await daemon.publish(channel, "the last one")
    await page.wait_for("the last one")
    assert await page.data() == [*numbers, "the last one"]
    assert [m["message_id"] for m in await page.messages()] == [*numbers, len(numbers) + 1]


@every_way
@every_mode
async def test_the_daemon_restarts(
    tmp_path: Path, way: str, open_bus_page: OpenPage, channel: str, mode: dict[str, object]
) -> None:
    config = {
        "server": {"shutdown_timeout": 0.2},
        "backend": {"memory": {"snapshot_file": "snapshot"}},
    }
    async with (
        Daemon(tmp_path, config) as daemon,
        origin_of(daemon, way, tmp_path) as origin,
    ):
        page = await open_bus_page(origin)
        await page.start({channel: -1}, **mode)
        await page.settled(channel)
        await publish(daemon, channel, range(1, 6))
        await page.wait_for(5)

        # The page may hear of the sixth before the stop or after the start.
        await publish(daemon, channel, range(6, 7))
        assert await daemon.stop() == 0
        # Refused by the machine, or answered 502 by nginx: the client keeps asking.
        await page.further_polls(2)

        await daemon.restart()
        await publish(daemon, channel, range(7, 11))
        await assert_exactly(page, daemon, channel, range(1, 11))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def impatient_bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon that ends polls soon."""
    config = {"poll": {"long_polling_interval": 0.3}}
    async with Daemon(tmp_path_factory.mktemp("impatient"), config) as daemon:
        yield daemon


@every_way
@pytest.mark.parametrize(
    "mode",
    [pytest.param(STREAMING, id="streaming"), pytest.param(LONG_POLLING, id="long-polling")],
)
async def test_responses_end_at_their_deadline(
    impatient_bus: Daemon,
    tmp_path: Path,
    way: str,
    open_bus_page: OpenPage,
    channel: str,
    mode: dict[str, object],
) -> None:
    async with origin_of(impatient_bus, way, tmp_path) as origin:
        page = await open_bus_page(origin)
        await page.start({channel: -1}, **mode)
        await page.settled(channel)
        for first in (1, 11):
            await publish(impatient_bus, channel, range(first, first + 5))
            # In the middle of a response, and just after another has begun.
            await page.further_polls(2)
            await publish(impatient_bus, channel, range(first + 5, first + 10))
        await assert_exactly(page, impatient_bus, channel, range(1, 21))
        assert {poll.outcome for poll in page.polls[:-1]} == {"finished"}


@in_every_browser
async def test_nginx_restarts(
    bus: Daemon, tmp_path: Path, open_bus_page: OpenPage, channel: str
) -> None:
    async with Nginx(bus.url.removeprefix("http://"), tmp_path) as nginx:
        page = await open_bus_page(nginx.url)
        await page.start({channel: -1})
        await page.settled(channel)
        await publish(bus, channel, range(1, 4))

        await nginx.stop()
        await publish(bus, channel, range(4, 7))
        await page.further_polls(1)
        await nginx.start()
        await publish(bus, channel, range(7, 10))
        await assert_exactly(page, bus, channel, range(1, 10))
        assert "failed" in {poll.outcome for poll in page.polls}


@in_every_browser
async def test_nginx_reloads(
    bus: Daemon, tmp_path: Path, open_bus_page: OpenPage, channel: str
) -> None:
    async with Nginx(bus.url.removeprefix("http://"), tmp_path) as nginx:
        page = await open_bus_page(nginx.url)
        await page.start({channel: -1})
        await page.settled(channel)
        poll = await page.poll_in_flight()

        # The old workers keep what is open.
        await nginx.reload()
        await publish(bus, channel, range(1, 4))
        await page.wait_for(3)
        assert page.polls == [poll]
        assert poll.outcome == "open"

        # What follows goes to the new ones.
        await page.subscribe(f"{channel}/another")
        await page.until(lambda: page.polls[-1] is not poll)
        await publish(bus, channel, range(4, 7))
        await assert_exactly(page, bus, channel, range(1, 7))


@every_way
@every_mode
async def test_the_network_is_away(
    bus: Daemon, origin: str, open_bus_page: OpenPage, channel: str, mode: dict[str, object]
) -> None:
    async with Relay(origin) as network:
        page = await open_bus_page(network.url)
        await page.start({channel: -1}, **mode)
        await page.settled(channel)
        await publish(bus, channel, range(1, 4))
        await page.wait_for(3)

        await network.cut()
        await publish(bus, channel, range(4, 7))
        await page.further_polls(2)
        await network.mend()
        await publish(bus, channel, range(7, 10))
        await assert_exactly(page, bus, channel, range(1, 10))
