"""``messagebusd demo``: the chat, as people use it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.relay import Relay

START_SECONDS = 30.0
STOP_SECONDS = 15.0
STATIC = Path(__file__).parents[2] / "messagebusd" / "demo" / "static"


# The page waits up to 10 s between polls when several in a row have failed.
expect.set_options(timeout=20_000)


class Demo:
    """The process; keeps its port over ``stop`` and ``start``."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    async def start(self) -> None:
        """Start it, and return when it accepts connections."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "messagebusd", "demo", "--port", str(self._port)),
            stdin=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(START_SECONDS):
            while True:
                assert self._process.returncode is None, "the demo did not start"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                except ConnectionError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return await writer.wait_closed()

    async def stop(self) -> int:
        """Stop it as Ctrl-C does, and return its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            raise


class Person:
    """Somebody with a browser of their own, in the chat."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.texts = page.locator("#log .text")

    async def say(self, text: str) -> None:
        """Write and send; whether it has been sent shows when it arrives."""
        box = self.page.get_by_label("Message", exact=True)
        await box.fill(text)
        await box.press("Enter")
        await expect(box).to_have_value("")

    async def rename(self, name: str) -> None:
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_role("button", name="Change").click()

    async def is_streaming(self) -> None:
        await expect(self.page.get_by_role("status")).to_have_text("Streaming")


@pytest_asyncio.fixture(loop_scope="session")
async def demo() -> AsyncIterator[Demo]:
    demo = Demo()
    await demo.start()
    yield demo
    assert await demo.stop() == 0


class Join:
    """Bring people into the chat, each by name and with storage of their own."""

    def __init__(self, browser: Browser, demo: Demo, stack: AsyncExitStack) -> None:
        self._browser = browser
        self._demo = demo
        self._stack = stack
        self.problems: list[str] = []

    async def __call__(self, name: str | None = None, url: str | None = None) -> Person:
        context = await self._browser.new_context()
        self._stack.push_async_callback(context.close)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        if name is not None:
            await context.add_init_script(f"localStorage.setItem('name', '{name}')")
        await page.goto(url or self._demo.url)
        person = Person(page)
        await person.is_streaming()
        return person


@pytest_asyncio.fixture(loop_scope="session")
async def join(browser: Browser, demo: Demo) -> AsyncIterator[Join]:
    async with AsyncExitStack() as stack:
        join = Join(browser, demo, stack)
        yield join
        assert join.problems == []


async def test_two_people_talk(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    await ada.say("hello")
    await expect(grace.texts).to_have_text(["hello"])
    await grace.say("hi ada\nhow are you?")
    await expect(ada.texts).to_have_text(["hello", "hi ada\nhow are you?"])
    # Their own messages came over the bus too, and each message once.
    await expect(grace.texts).to_have_text(["hello", "hi ada\nhow are you?"])


async def test_private_messages_reach_two_people(join: Join) -> None:
    ada, grace, carl = await join("ada"), await join("grace"), await join("carl")
    await ada.say("@grace only you")
    await expect(grace.texts).to_have_text(["only you"])

    # Answer by selecting the name.
    await grace.page.get_by_role("button", name="ada").click()
    await grace.say("only you too")
    await expect(ada.texts).to_have_text(["only you", "only you too"])

    await grace.page.get_by_role("button", name="Write to everyone instead").click()
    await grace.say("all of you")
    await expect(ada.texts).to_have_text(["only you", "only you too", "all of you"])
    await expect(carl.texts).to_have_text(["all of you"])
    # Nor do they reach a page that asks for what is stored.
    await carl.page.reload()
    await expect(carl.texts).to_have_text(["all of you"])


async def test_reload_shows_the_last_messages(join: Join) -> None:
    ada = await join("ada")
    for number in range(3):
        await ada.say(f"message {number}")
    await ada.say("@ada a note to myself")
    texts = ["message 0", "message 1", "message 2", "a note to myself"]
    await expect(ada.texts).to_have_text(texts)

    await ada.page.reload()
    await expect(ada.texts).to_have_text(texts)
    await expect(ada.page.get_by_label("Your name")).to_have_value("ada")


async def test_texts_are_never_markup(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    text = "<img src=x onerror=\"alert('ada')\"><script>alert(1)</script>"
    await ada.say(text)
    await expect(grace.texts).to_have_text([text])
    assert await grace.page.locator("#log img, #log script").count() == 0


async def test_names(join: Join) -> None:
    ada, other = await join("ada"), await join()
    for name in ("42", "null", "true", "Zoë", "李小龙", "नमस्ते", "a.b_c-d", "x" * 32):
        await other.rename(name)
        await ada.say(f"@{name} hello")
        # Private messages to earlier names have left the page.
        await expect(other.texts).to_have_text(["hello"])
        await other.say("@ada hello, ada")
        await expect(ada.texts.last).to_have_text("hello, ada")


async def test_another_name_sees_other_private_messages(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    await ada.say("to all")
    await ada.say("@grace to grace")
    await ada.say("@carl to carl")
    await expect(grace.texts).to_have_text(["to all", "to grace"])

    await grace.rename("carl")
    await expect(grace.texts).to_have_text(["to all", "to carl"])
    await grace.rename("not a name")
    await expect(grace.page.get_by_role("alert").filter(has_text="1 to 32")).to_be_visible()
    await grace.rename("grace")
    await expect(grace.texts).to_have_text(["to all", "to grace"])


async def test_nothing_is_missed_while_away(join: Join, demo: Demo) -> None:
    async with Relay(demo.url) as network:
        ada, grace = await join("ada"), await join("grace", network.url)
        message = grace.page.get_by_label("Message", exact=True)
        await ada.say("before")
        await expect(grace.texts).to_have_text(["before"])

        await network.cut()
        await expect(grace.page.get_by_role("status")).to_have_text("Reconnecting")
        await ada.say("meanwhile")
        await ada.say("@grace meanwhile, to you")
        await message.fill("unsent")
        await message.press("Enter")
        await expect(grace.page.get_by_role("alert").filter(has_text="Not sent")).to_be_visible()

        await network.mend()
        await expect(grace.texts).to_have_text(["before", "meanwhile", "meanwhile, to you"])
        await message.press("Enter")
        await expect(ada.texts.last).to_have_text("unsent")
        await expect(grace.page.get_by_role("alert").filter(has_text="Not sent")).to_be_hidden()
        await ada.say("after")
        await expect(grace.texts).to_have_text(
            ["before", "meanwhile", "meanwhile, to you", "unsent", "after"]
        )


async def test_disconnecting_keeps_the_place(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    await ada.say("before")
    await expect(grace.texts).to_have_text(["before"])

    await grace.page.get_by_role("button", name="Disconnect").click()
    await expect(grace.page.get_by_role("status")).to_have_text("Disconnected")
    await ada.say("meanwhile")
    await expect(ada.texts).to_have_text(["before", "meanwhile"])
    await expect(grace.texts).to_have_text(["before"])

    await grace.page.get_by_role("button", name="Connect", exact=True).click()
    await grace.is_streaming()
    await ada.say("after")
    await expect(grace.texts).to_have_text(["before", "meanwhile", "after"])


async def test_the_demo_restarts(join: Join, demo: Demo) -> None:
    """Its memory is gone then; open pages keep what they show and go on."""
    ada = await join("ada")
    await ada.say("before")
    await expect(ada.texts).to_have_text(["before"])
    assert await demo.stop() == 0
    await expect(ada.page.get_by_role("status")).to_have_text("Reconnecting")
    await demo.start()
    await ada.is_streaming()
    await ada.say("after")
    await expect(ada.texts).to_have_text(["before", "after"])


MESSAGE = {"from": "ada", "text": "hello"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(MESSAGE, 201, id="good"),
        pytest.param(MESSAGE | {"text": "x" * 2000, "from": "x" * 32}, 201, id="long"),
        pytest.param(MESSAGE | {"text": "x" * 2001}, 422, id="text-too-long"),
        pytest.param(MESSAGE | {"text": " \n "}, 422, id="text-empty"),
        pytest.param(MESSAGE | {"text": 5}, 422, id="text-no-text"),
        pytest.param({"from": "ada"}, 422, id="text-missing"),
        pytest.param(MESSAGE | {"from": ""}, 422, id="name-empty"),
        pytest.param(MESSAGE | {"from": "x" * 33}, 422, id="name-too-long"),
        pytest.param(MESSAGE | {"from": "a b"}, 422, id="name-with-space"),
        pytest.param(MESSAGE | {"to": "a/b"}, 422, id="recipient-with-slash"),
        pytest.param(MESSAGE | {"admin": True}, 422, id="unknown-field"),
        pytest.param([], 422, id="no-object"),
        pytest.param(b"{", 400, id="no-json"),
        pytest.param(b'{"from":"\xff","text":"hello"}', 400, id="no-utf-8"),
        pytest.param(b" " * 20_000, 413, id="too-large"),
    ],
)
async def test_what_the_chat_takes(shared_demo: Demo, body: Any, status: int) -> None:
    content: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
    async with (
        aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session,
        session.post(f"{shared_demo.url}chat/messages", **content) as response,
    ):
        assert response.status == status
        assert response.content_type == "application/json"
        answer = await response.json()
        assert answer.keys() == ({"ok"} if status == 201 else {"error"})


async def test_other_sites_forms_are_refused(shared_demo: Demo) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{shared_demo.url}chat/messages", data='{"from":"a","text":"b"}') as response,
    ):
        assert response.status == 415


async def test_files(shared_demo: Demo) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("", "chat.css", "chat.js", "ajax.js", "icon.svg", "vendor/message-bus.js"):
            async with session.get(f"{shared_demo.url}{path}") as response:
                assert response.status == 200
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                assert await response.read() == (STATIC / (path or "index.html")).read_bytes()
        for path in ("chat.py", "index.html", "vendor/", "..%2fchat.py", "static/../../chat.py"):
            async with session.get(f"{shared_demo.url}{path}") as response:
                assert response.status == 404


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_demo() -> AsyncIterator[Demo]:
    """For tests that do not care what was said before."""
    demo = Demo()
    await demo.start()
    yield demo
    assert await demo.stop() == 0
