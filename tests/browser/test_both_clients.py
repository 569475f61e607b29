"""The tables of the original client's README, for the original and for ours: one suite.

What pages rely on is in here; what a browser has a part in runs in all of them. Where the two
differ on purpose, a test says so by name.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from playwright.async_api import BrowserContext

from tests.browser.matrix import in_every_browser
from tests.browser.page import BusPage, Client, open_page
from tests.support.daemon import Daemon

# Notes when requests are sent.
NOTES = """
window.sent = [];
const note = () => sent.push(performance.now());
const {fetch} = window, {send} = XMLHttpRequest.prototype;
window.fetch = (...given) => (note(), fetch(...given));
XMLHttpRequest.prototype.send = function (...given) { note(); send.apply(this, given); };
"""
# The original looks at the name that browsers had first, while they still have it.
HIDDEN = """
for (const name of ['hidden', 'webkitHidden']) {
  Object.defineProperty(document, name, {get: () => window.isHidden ?? true});
}"""


class Open:
    """Open pages with the client of this run."""

    def __init__(self, context: BrowserContext, origin: str, client: Client) -> None:
        self._context = context
        self._origin = origin
        self.client = client

    async def __call__(self, before: str = "") -> BusPage:
        return await open_page(self._context, self._origin, self.client, NOTES + before)


@pytest.fixture(params=["original", "ours"])
def opened(request: pytest.FixtureRequest, context: BrowserContext, bus: Daemon) -> Open:
    return Open(context, bus.url, request.param)


async def sent(page: BusPage, count: int) -> list[float]:
    """When the page has sent so many polls, in milliseconds of its own clock."""
    times: list[float] = await (
        await page.page.wait_for_function("count => sent.length >= count && sent", arg=count)
    ).json_value()
    return times


async def gap(page: BusPage) -> float:
    """Milliseconds from the first poll to the second."""
    times = await sent(page, 2)
    return times[1] - times[0]


# -- settings -------------------------------------------------------------------------------------


async def test_enable_long_polling(bus: Daemon, opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: -1}, enableLongPolling=False)
    await page.further_polls(2)
    assert not any(poll.asks_to_wait or poll.asks_to_stream for poll in page.polls)


async def test_callback_interval(opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: 0}, enableLongPolling=False, callbackInterval=400)
    assert await gap(page) >= 380


async def test_background_callback_interval(opened: Open, channel: str) -> None:
    page = await opened()
    await page.page.evaluate("MessageBus.shouldLongPollCallback = () => false")
    await page.start({channel: -1}, callbackInterval=10, backgroundCallbackInterval=400)
    assert await gap(page) >= 380
    assert not page.polls[0].asks_to_wait


async def test_min_poll_interval(bus: Daemon, opened: Open, channel: str) -> None:
    await bus.publish(channel, 1)
    page = await opened()
    # Answered at once, because there is data.
    settings = {"enableChunkedEncoding": False, "minPollInterval": 400, "callbackInterval": 10}
    await page.start({channel: 0}, **settings)
    await page.until(lambda: len(page.polls) >= 2)
    await bus.publish(channel, 2)
    await page.wait_for(2)
    times = await sent(page, 3)
    assert times[1] - times[0] >= 380


async def test_max_poll_interval(opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: -1}, baseUrl="/nowhere/", callbackInterval=20)
    await page.further_polls(4)
    # Far beyond the test's patience, if the other did not bound it.
    settings = "{callbackInterval: 1e8, maxPollInterval: 50}"
    await page.page.evaluate(f"Object.assign(MessageBus, {settings})")
    await page.further_polls(3)


async def test_always_long_poll(opened: Open, channel: str) -> None:
    page = await opened(HIDDEN)
    await page.start({channel: -1}, alwaysLongPoll=True)
    poll = await page.poll_in_flight()
    assert poll.asks_to_stream


@in_every_browser
async def test_hidden(opened: Open, channel: str) -> None:
    page = await opened(HIDDEN)
    await page.start({channel: -1}, backgroundCallbackInterval=60_000)
    await page.until(lambda: len(page.polls) == 1 and page.polls[0].outcome == "finished")
    assert not page.polls[0].asks_to_wait
    # Shown: it asks at once.
    await page.page.evaluate(
        "isHidden = false; document.dispatchEvent(new Event('visibilitychange'))"
    )
    poll = await page.poll_in_flight()
    assert poll.asks_to_stream


async def test_should_long_poll_callback(opened: Open, channel: str) -> None:
    page = await opened(HIDDEN)
    await page.page.evaluate("MessageBus.shouldLongPollCallback = () => true")
    await page.start({channel: -1})
    assert (await page.poll_in_flight()).asks_to_stream


async def test_min_hidden_poll_interval(opened: Open, channel: str) -> None:
    page = await opened(HIDDEN)
    await page.page.evaluate("localStorage.setItem('__mbLastAjax', Date.now())")
    before: float = await page.page.evaluate("performance.now()")
    await page.start({channel: -1}, minHiddenPollInterval=700)
    [first, *_] = await sent(page, 1)
    assert first - before >= 480


async def test_base_url(opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: -1}, baseUrl="/sub/path/")
    await page.until(lambda: len(page.polls) >= 1)
    assert "/sub/path/message-bus/" in page.polls[0].request.url
    assert page.polls[0].request.url.endswith("/poll")


@in_every_browser
async def test_headers(opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: -1}, headers={"X-Foo": "bar"})
    poll = await page.poll_in_flight()
    assert poll.request.headers["x-foo"] == "bar"
    assert poll.request.headers["x-silence-logger"] == "true"


async def test_enable_chunked_encoding(opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: -1}, enableChunkedEncoding=False)
    await page.settled(channel)
    assert not page.polls[0].asks_to_stream
    assert page.polls[0].asks_to_wait


@in_every_browser
@pytest.mark.parametrize("chunked", [True, False], ids=["streaming", "long-polling"])
async def test_ajax(bus: Daemon, opened: Open, channel: str, chunked: bool) -> None:
    """A page may wrap the function that sends polls, as it may jQuery's."""
    page = await opened()
    await page.page.evaluate(
        """() => {
            window.seen = [];
            const ajax = MessageBus.ajax;
            MessageBus.ajax = (options) => {
                seen.push({...options, data: {...options.data}, headers: {...options.headers},
                    messageBus: {chunked: options.messageBus.chunked}});
                options.headers["X-Wrapped"] = "yes";
                return ajax(options);
            };
        }"""
    )
    await page.start({channel: -1}, enableChunkedEncoding=chunked)
    await page.settled(channel)
    await bus.publish(channel, 1)
    await page.wait_for(1)
    await page.subscribe(f"{channel}/other")
    await page.page.wait_for_function("seen.length > 1 && Object.keys(seen.at(-1).data).length > 2")
    assert page.polls[0].request.headers["x-wrapped"] == "yes"
    seen: list[dict[str, Any]] = await page.page.evaluate("JSON.parse(JSON.stringify(seen))")
    assert seen[0]["type"] == "POST"
    assert seen[0]["async"] is True
    assert seen[0]["dataType"] == ("text" if chunked else "json")
    assert seen[0]["messageBus"] == {"chunked": chunked}
    assert seen[0]["data"][channel] == -1
    assert seen[0]["data"]["__seq"] > 0
    assert seen[0]["url"].startswith("/message-bus/")
    assert ("Dont-Chunk" in seen[0]["headers"]) == (not chunked)


@in_every_browser
async def test_defaults(opened: Open) -> None:
    page = await opened()
    fresh: dict[str, Any] = await page.page.evaluate(
        """async () => {
            const other = document.createElement("iframe");
            other.srcdoc = document.querySelectorAll("script[src]")[0].outerHTML;
            document.body.append(other);
            await new Promise((resolve) => (other.onload = resolve));
            return JSON.parse(JSON.stringify(other.contentWindow.MessageBus));
        }"""
    )
    assert fresh | {"clientId": ""} == fresh | {
        "clientId": "",
        "minHiddenPollInterval": 1500,
        "enableChunkedEncoding": True,
        "enableLongPolling": True,
        "callbackInterval": 15000,
        "backgroundCallbackInterval": 60000,
        "minPollInterval": 100,
        "maxPollInterval": 180000,
        "callbacks": [],
        "alwaysLongPoll": False,
        "firstChunkTimeout": 3000,
        "retryChunkedAfterRequests": 30,
        "baseUrl": "/",
        "headers": {},
    }
    assert len(fresh["clientId"]) == 32


# -- methods --------------------------------------------------------------------------------------


async def test_subscribe_starts(bus: Daemon, opened: Open, channel: str) -> None:
    page = await opened("")
    await page.page.evaluate("MessageBus.start(); MessageBus.start()")
    await page.subscribe(channel)
    await page.settled(channel)
    assert len(page.polls) == 1


async def test_positions(bus: Daemon, opened: Open, channel: str) -> None:
    for number in range(1, 4):
        await bus.publish(channel, number)
    page = await opened()
    # As in the README: new ones; after id 2; the last two; all of them. Each on its own page,
    # because the original cannot have two positions on one channel.
    seen = {}
    for position in (None, -1, 2, -3, 0):
        await page.page.evaluate(
            "([channel, position]) => { received.length = 0; listen(channel, position); }",
            [channel, position],
        )
        await page.page.evaluate("MessageBus.start()")
        await page.page.wait_for_function("MessageBus.callbacks[0].last_id === 3")
        seen[position] = await page.data()
        await page.page.evaluate("MessageBus.stop(); MessageBus.unsubscribe('/*')")
    assert seen == {None: [], -1: [], 2: [3], -3: [2, 3], 0: [1, 2, 3]}


async def test_callbacks_get_data_global_id_and_message_id(
    bus: Daemon, opened: Open, channel: str
) -> None:
    page = await opened()
    await page.start({channel: 0})
    published = await bus.publish(channel, {"a": [1, None]})
    await page.wait_for({"a": [1, None]})
    [message] = await page.messages()
    assert message["global_id"] == published["global_id"]
    assert message["message_id"] == published["message_id"]


async def test_subscribe_returns_the_callback_and_checks_its_arguments(opened: Open) -> None:
    page = await opened()
    results: list[object] = await page.page.evaluate(
        """() => {
            const callback = () => {};
            const refused = (...given) => {
                try { MessageBus.subscribe(...given); } catch (error) { return String(error); }
            };
            return [MessageBus.subscribe("/a", callback) === callback,
                refused("/a", callback, "5"), refused(5, callback), MessageBus.callbacks.length];
        }"""
    )
    ours = "TypeError: " if opened.client == "ours" else ""
    assert results == [
        True,
        f"{ours}lastId has type string but a number was expected.",
        f"{ours}Channel name must be a string!",
        1,
    ]


async def test_unsubscribe(opened: Open) -> None:
    page = await opened()
    results: list[object] = await page.page.evaluate(
        """() => {
            const one = () => {}, two = () => {};
            for (const channel of ["/a", "/a/1", "/a/2", "/b"])
                for (const each of [one, two]) MessageBus.subscribe(channel, each);
            const left = () => MessageBus.callbacks.map((each) => each.channel).join(" ");
            const {unsubscribe} = MessageBus;
            return [unsubscribe("/b", one), left(), unsubscribe("/a/*", two), left(),
                unsubscribe("/a*"), left(), unsubscribe("/c"), unsubscribe("/b"), left()];
        }"""
    )
    assert results == [
        *(True, "/a /a /a/1 /a/1 /a/2 /a/2 /b"),
        *(True, "/a /a /a/1 /a/2 /b"),
        *(True, "/b"),
        *(False, True, ""),
    ]


@in_every_browser
async def test_pause_and_resume(bus: Daemon, opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: 0})
    await bus.publish(channel, 1)
    await page.wait_for(1)
    await page.page.evaluate("MessageBus.pause()")
    assert await page.page.evaluate("MessageBus.status()") == "paused"
    # The bus is alive: somebody else hears it.
    other = await opened()
    await other.start({channel: 1})
    await bus.publish(channel, 2)
    await other.wait_for(2)
    assert await page.data() == [1]
    await page.page.evaluate("MessageBus.resume()")
    await page.wait_for(2)
    assert await page.page.evaluate("MessageBus.status()") == "started"
    assert await page.data() == [1, 2]


@in_every_browser
async def test_stop_and_start(bus: Daemon, opened: Open, channel: str) -> None:
    page = await opened()
    await page.start({channel: 0})
    await bus.publish(channel, 1)
    await page.wait_for(1)
    assert await page.page.evaluate("MessageBus.status()") == "started"
    await page.page.evaluate("MessageBus.stop()")
    assert await page.page.evaluate("MessageBus.status()") == "stopped"
    await page.until(lambda: all(poll.outcome != "open" for poll in page.polls))
    await bus.publish(channel, 2)
    known = len(page.polls)
    await asyncio.sleep(0.3)  # far longer than the intervals of these pages
    assert len(page.polls) == known
    await page.page.evaluate("MessageBus.start()")
    await page.wait_for(2)
    assert await page.data() == [1, 2]


async def test_diagnostics(opened: Open, channel: str) -> None:
    page = await opened()
    lines: list[str] = []
    page.page.on("console", lambda line: lines.append(line.text))
    await page.start({channel: -1})
    await page.settled(channel)
    await page.page.evaluate("void MessageBus.diagnostics()")
    assert lines


async def test_a_callback_that_throws(bus: Daemon, opened: Open, channel: str) -> None:
    page = await opened()
    await page.page.evaluate(
        "channel => MessageBus.subscribe(channel, () => { throw new Error('oops'); }, 0)", channel
    )
    await page.start({channel: 0})
    await bus.publish(channel, 1)
    await page.wait_for(1)
    await bus.publish(channel, 2)
    await page.wait_for(2)


async def test_two_callbacks_with_positions_of_their_own(
    bus: Daemon, opened: Open, channel: str
) -> None:
    """The original asks for what the last one wants, and the first one loses its messages."""
    for number in (1, 2, 3):
        await bus.publish(channel, number)
    page = await opened()
    await page.page.evaluate(
        """channel => {
            window.first = [];
            MessageBus.subscribe(channel, (data) => first.push(data), 1);
        }""",
        channel,
    )
    await page.start({channel: -1})
    await page.page.wait_for_function("MessageBus.callbacks.every((each) => each.last_id === 3)")
    await bus.publish(channel, 4)
    await page.wait_for(4)
    assert await page.data() == [4]
    caught_up = [2, 3, 4] if opened.client == "ours" else [4]
    assert await page.page.evaluate("first") == caught_up
