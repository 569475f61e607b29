"""A page with a client on it, the unmodified npm one or ours, and what a test does to it.

The page is put under the origin of the bus by intercepting the browser's requests for it, so that
the daemon and nginx serve nothing but the bus and our client. Polls are not intercepted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from playwright.async_api import BrowserContext, Page, Request, Route

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "node_modules" / "message-bus-client" / "assets" / "message-bus.js"
ADAPTER = Path(__file__).parent / "ajax.js"
TIMEOUT_SECONDS = 10.0

Client = Literal["original", "ours", "ours, sharing"]
_SCRIPTS: dict[Client, str] = {
    "original": '<script src="message-bus.js"></script>\n<script src="ajax.js"></script>',
    "ours": '<script src="/message-bus/client.js"></script>',
    "ours, sharing": '<script src="/message-bus/sharing.js"></script>',
}
_HTML = """<!doctype html>
<title>bus</title>
SCRIPTS
<script>
  "use strict";
  const received = [];
  function listen(channel, position) {
    const receive = (data, global_id, message_id) =>
      received.push({channel, data, global_id, message_id});
    MessageBus.subscribe(channel, receive, position);
  }
  // Short waits, and no automatic start: the tests say when the first poll is sent.
  Object.assign(MessageBus, {callbackInterval: 100, backgroundCallbackInterval: 100});
  Object.assign(MessageBus, {minPollInterval: 10, maxPollInterval: 200});
  MessageBus.stop();
</script>
"""


Outcome = Literal["open", "finished", "failed"]


@dataclass(eq=False, slots=True)
class Poll:
    """One request of the client."""

    request: Request
    outcome: Outcome = "open"

    @property
    def asks_to_stream(self) -> bool:
        return "dont-chunk" not in self.request.headers

    @property
    def channels(self) -> set[str]:
        """In Chromium only: other browsers do not tell bodies."""
        return {name for name, _ in parse_qsl(self.request.post_data or "")} - {"__seq"}

    @property
    def asks_to_wait(self) -> bool:
        return not self.request.url.endswith("?dlp=t")

    async def content_type(self) -> str:
        response = await self.request.response()
        assert response is not None
        return response.headers["content-type"]


@dataclass(eq=False, slots=True)
class BusPage:
    """An open page."""

    page: Page
    polls: list[Poll] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _in_front: Page | None = None

    async def start(self, positions: dict[str, int], **settings: object) -> None:
        """Change settings of the client, subscribe, and send the first poll."""
        await self.page.evaluate(
            """([settings, positions]) => {
                Object.assign(MessageBus, settings);
                for (const [channel, position] of positions) listen(channel, position);
                MessageBus.start();
            }""",
            [settings, list(positions.items())],
        )

    async def subscribe(self, channel: str, position: int = -1) -> None:
        await self.page.evaluate(
            "([channel, position]) => listen(channel, position)",
            [channel, position],
        )

    async def unsubscribe(self, channel: str) -> None:
        await self.page.evaluate("channel => MessageBus.unsubscribe(channel)", channel)

    async def hide(self) -> None:
        """Have it hidden, as behind another tab (how: tests/browser/matrix.py)."""
        browser = self.page.context.browser
        assert browser is not None
        if browser.browser_type.name == "firefox":
            async with self.page.context.expect_page() as opened:
                await self.page.evaluate("void open('about:blank')")
            self._in_front = await opened.value
        else:
            await self._say_hidden(True)
        await self.page.wait_for_function("document.hidden", polling=20)

    async def show(self) -> None:
        """Have it shown again."""
        if self._in_front is not None:
            await self._in_front.close()
        else:
            await self._say_hidden(False)
        await self.page.wait_for_function("!document.hidden", polling=20)

    async def _say_hidden(self, hidden: bool) -> None:
        await self.page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    def changed(self) -> None:
        """Wake up whoever waits in ``until``."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it may depend on ``polls`` only."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                await self._changed.wait()

    async def poll_in_flight(self) -> Poll:
        """Wait until the newest poll is unanswered, and return it."""
        await self.until(lambda: bool(self.polls) and self.polls[-1].outcome == "open")
        return self.polls[-1]

    async def answered(self, poll: Poll) -> None:
        """Wait until the response has ended."""
        await self.until(lambda: poll.outcome == "finished")

    async def further_polls(self, count: int) -> None:
        """Wait until the client has sent so many polls more."""
        known = len(self.polls)
        await self.until(lambda: len(self.polls) >= known + count)

    async def position(self, channel: str) -> int:
        """Return the id after which the client would ask next."""
        position: int = await self.page.evaluate(
            "channel => MessageBus.callbacks.find((c) => c.channel === channel).last_id", channel
        )
        return position

    async def settled(self, *channels: str) -> None:
        """Wait until the client knows its position on the channels."""
        await self.page.wait_for_function(
            """channels => channels.every((channel) =>
                MessageBus.callbacks.some((c) => c.channel === channel && c.last_id >= 0))""",
            arg=channels,
        )

    async def wait_for(self, data: object) -> None:
        """Wait until a message with these data has been received."""
        await self.page.wait_for_function(
            "wanted => received.some((m) => JSON.stringify(m.data) === wanted)",
            arg=json.dumps(data, separators=(",", ":"), ensure_ascii=False),
        )

    async def messages(self, channel: str | None = None) -> list[dict[str, Any]]:
        """Return everything received so far, in order, on one channel or on all."""
        received: list[dict[str, Any]] = await self.page.evaluate("() => received")
        return [m for m in received if channel in (None, m["channel"])]

    async def data(self, channel: str | None = None) -> list[object]:
        return [message["data"] for message in await self.messages(channel)]


async def open_page(
    context: BrowserContext, origin: str, client: Client = "original", before: str = ""
) -> BusPage:
    """Open the page under ``origin``; nothing is subscribed yet.

    ``before`` is a script that runs before the client's.
    """
    if not CLIENT.is_file():
        raise RuntimeError("message-bus-client is missing and these tests need it: npm ci")
    scripts = f"<script>{before}</script>\n{_SCRIPTS[client]}"
    files = {"": ("text/html", _HTML.replace("SCRIPTS", scripts))}
    for path in (CLIENT, ADAPTER):
        files[path.name] = ("text/javascript", path.read_text())

    async def serve(route: Route) -> None:
        name = route.request.url.removeprefix(f"{origin}/page/")
        content_type, body = files[name]
        await route.fulfill(content_type=content_type, body=body)

    page = await context.new_page()
    page.set_default_timeout(TIMEOUT_SECONDS * 1000)
    bus_page = BusPage(page)

    def note_start(request: Request) -> None:
        if "/message-bus/" in request.url and request.method == "POST":
            bus_page.polls.append(Poll(request))
            bus_page.changed()

    def note_end(outcome: Outcome) -> Callable[[Request], None]:
        def note(request: Request) -> None:
            for poll in bus_page.polls:
                if poll.request == request:
                    poll.outcome = outcome
            bus_page.changed()

        return note

    page.on("request", note_start)
    page.on("requestfinished", note_end("finished"))
    page.on("requestfailed", note_end("failed"))
    await page.route(f"{origin}/page/*", serve)
    await page.goto(f"{origin}/page/")
    return bus_page
