"""The unmodified message-bus.js in every browser, straight at the daemon and through nginx."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest

from tests.browser.conftest import OpenPage
from tests.browser.matrix import every_way
from tests.browser.page import TIMEOUT_SECONDS, BusPage
from tests.support.daemon import Daemon

STREAMING: dict[str, object] = {}
LONG_POLLING: dict[str, object] = {"enableChunkedEncoding": False}
POLLING: dict[str, object] = {"enableLongPolling": False}

every_mode = pytest.mark.parametrize(
    "mode",
    [
        pytest.param(STREAMING, id="streaming"),
        pytest.param(LONG_POLLING, id="long-polling"),
        pytest.param(POLLING, id="polling"),
    ],
)


async def assert_nothing_more(page: BusPage, bus: Daemon, channel: str) -> None:
    """Assert that no message comes a second time: everything up to a last one is known."""
    before = await page.data(channel)
    await bus.publish(channel, "the last one")
    await page.wait_for("the last one")
    assert await page.data(channel) == [*before, "the last one"]


@every_way
async def test_streaming(bus: Daemon, origin: str, open_bus_page: OpenPage, channel: str) -> None:
    page = await open_bus_page(origin)
    await page.start({channel: -1})
    await page.settled(channel)

    for number in range(1, 6):
        await bus.publish(channel, number)
        await page.wait_for(number)

    # Each came before the next was published, and all of them in one response that is still open.
    [poll] = page.polls
    assert poll.outcome == "open"
    assert poll.asks_to_stream
    assert await poll.content_type() == "text/plain; charset=utf-8"
    assert await page.data() == [1, 2, 3, 4, 5]


@every_way
async def test_a_burst_while_streaming(
    bus: Daemon, origin: str, open_bus_page: OpenPage, channel: str
) -> None:
    page = await open_bus_page(origin)
    await page.start({channel: -1})
    await page.settled(channel)

    for number in range(200):
        await bus.publish(channel, {"number": number, "text": "ä€🚌 \r\n|\r\n" * 20})
    await bus.publish(channel, "end")
    await page.wait_for("end")

    numbers = [m["data"]["number"] for m in (await page.messages())[:-1]]
    assert numbers == list(range(200))
    assert (await page.messages())[0]["data"]["text"] == "ä€🚌 \r\n|\r\n" * 20
    assert len(page.polls) == 1


@every_way
async def test_long_polling(
    bus: Daemon, origin: str, open_bus_page: OpenPage, channel: str
) -> None:
    page = await open_bus_page(origin)
    await page.start({channel: -1}, **LONG_POLLING)
    await page.settled(channel)

    for number in (1, 2, 3):
        await page.until(lambda: page.polls[-1] is not page.polls[0])
        poll = await page.poll_in_flight()
        await bus.publish(channel, number)
        await page.wait_for(number)
        await page.answered(poll)
        assert not poll.asks_to_stream
        assert poll.asks_to_wait
        assert await poll.content_type() == "application/json; charset=utf-8"

    # They were held until there was news: one for the position, one for each message, one open.
    assert len(page.polls) <= 5
    await assert_nothing_more(page, bus, channel)


@every_way
async def test_polling(bus: Daemon, origin: str, open_bus_page: OpenPage, channel: str) -> None:
    page = await open_bus_page(origin)
    await page.start({channel: -1}, **POLLING)
    await page.settled(channel)

    for number in (1, 2):
        await bus.publish(channel, number)
        await page.wait_for(number)
        await page.further_polls(2)

    # Answered at once, with news and without.
    for poll in page.polls[:-1]:
        assert poll.outcome == "finished"
        assert not poll.asks_to_wait
        assert await poll.content_type() == "application/json; charset=utf-8"
    await assert_nothing_more(page, bus, channel)


@every_mode
async def test_positions(
    bus: Daemon,
    origin: str,
    open_bus_page: OpenPage,
    channel: str,
    mode: dict[str, object],
) -> None:
    expected = {
        -1: [],
        -2: [5],
        -3: [4, 5],
        -4: [3, 4, 5],
        -100: [1, 2, 3, 4, 5],
        0: [1, 2, 3, 4, 5],
        3: [4, 5],
        5: [],
        99: [],  # ahead of the channel, as after a flush: go on from where it is
    }

    async def fill(position: int) -> None:
        for number in range(1, 6):
            await bus.publish(f"{channel}/{position}", number)

    await asyncio.gather(*map(fill, expected))

    page = await open_bus_page(origin)
    await page.start({f"{channel}/{position}": position for position in expected}, **mode)
    await page.page.wait_for_function("() => MessageBus.callbacks.every((c) => c.last_id === 5)")
    for position, data in expected.items():
        assert await page.data(f"{channel}/{position}") == data, position

    for position in expected:
        await bus.publish(f"{channel}/{position}", f"new {position}")
    for position, data in expected.items():
        await page.wait_for(f"new {position}")
        assert await page.data(f"{channel}/{position}") == [*data, f"new {position}"], position


@every_mode
async def test_several_channels(
    bus: Daemon,
    origin: str,
    open_bus_page: OpenPage,
    channel: str,
    mode: dict[str, object],
) -> None:
    channels = [f"{channel}/a", f"{channel}/ä b&c=d", f"{channel}/c"]
    page = await open_bus_page(origin)
    await page.start(dict.fromkeys(channels, -1), **mode)
    await page.settled(*channels)
    assert page.polls[0].channels == set(channels)

    for number in range(5):
        for each in [*channels, f"{channel}/not subscribed"]:
            await bus.publish(each, f"{each} {number}")
    for each in channels:
        await page.wait_for(f"{each} 4")

    for each in channels:
        assert await page.data(each) == [f"{each} {number}" for number in range(5)]
        assert [m["message_id"] for m in await page.messages(each)] == [1, 2, 3, 4, 5]
    assert len(await page.messages()) == 15


@every_mode
async def test_subscribing_and_unsubscribing_while_polling(
    bus: Daemon,
    origin: str,
    open_bus_page: OpenPage,
    channel: str,
    mode: dict[str, object],
) -> None:
    kept, added = f"{channel}/kept", f"{channel}/added"
    page = await open_bus_page(origin)
    await page.start({kept: -1}, **mode)
    await page.settled(kept)

    await bus.publish(added, "before")
    await page.subscribe(added, 0)
    await page.wait_for("before")
    await bus.publish(added, "meanwhile")
    await page.wait_for("meanwhile")
    await bus.publish(kept, 1)
    await page.wait_for(1)

    await page.unsubscribe(added)
    await page.until(lambda: page.polls[-1].channels == {kept})
    await bus.publish(added, "after")
    await bus.publish(kept, 2)
    await page.wait_for(2)
    await assert_nothing_more(page, bus, kept)
    assert await page.data(added) == ["before", "meanwhile"]


@every_way
@every_mode
async def test_subscribing_elsewhere_loses_nothing(
    bus: Daemon,
    origin: str,
    open_bus_page: OpenPage,
    channel: str,
    mode: dict[str, object],
) -> None:
    page = await open_bus_page(origin)
    await page.start({channel: -1}, **mode)
    await page.settled(channel)

    # Every change aborts the open poll and sends a new one, while messages come in.
    number = 0
    for other in ("a", "b", "c", "d"):
        for change in (page.subscribe, page.unsubscribe):
            await bus.publish(channel, (number := number + 1))
            await change(f"{channel}/{other}")
            await bus.publish(channel, (number := number + 1))
    await page.wait_for(number)
    await assert_nothing_more(page, bus, channel)
    assert await page.data(channel) == [*range(1, number + 1), "the last one"]
    assert await page.position(channel) == number + 1


async def wait_until_parked(bus: Daemon, count: int) -> None:
    """Wait until the daemon holds so many polls."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            async with session.get(f"{bus.internal_url}/metrics") as response:
                values = re.findall(
                    r"^messagebusd_parked_polls{.*} (.*)$", await response.text(), re.M
                )
            assert values
            if sum(map(float, values)) == count:
                return
            await asyncio.sleep(0.02)


@every_way
@pytest.mark.parametrize(
    "mode",
    [pytest.param(STREAMING, id="streaming"), pytest.param(LONG_POLLING, id="long-polling")],
)
async def test_a_closed_page_leaves_nothing_behind(
    bus: Daemon, origin: str, open_bus_page: OpenPage, channel: str, mode: dict[str, object]
) -> None:
    await wait_until_parked(bus, 0)
    page = await open_bus_page(origin)
    await page.start({channel: -1}, **mode)
    await wait_until_parked(bus, 1)
    await page.page.close()
    await wait_until_parked(bus, 0)
