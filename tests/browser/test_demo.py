"""``messagebusd demo``: the chat, as people use it."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import sys
import time
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
COOKIE = "messagebusd_chat"
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

    async def log_in(self, name: str | None = None) -> None:
        """Choose a name, or take the one that is proposed."""
        if name is not None:
            await self.page.get_by_label("What shall we call you?").fill(name)
        await self.page.get_by_role("button", name="Join").click()

    async def has_a_name(self, name: str) -> None:
        await expect(self.page.get_by_role("button", name="You are")).to_have_text(
            f"You are {name}"
        )

    async def log_out(self) -> None:
        await self.page.get_by_role("button", name="Log out").click()
        await self.is_asked()

    async def is_asked(self) -> None:
        """The page shows nothing but the login."""
        await expect(self.page.get_by_label("What shall we call you?")).to_be_visible()
        await expect(self.page.locator("#log")).to_be_hidden()

    async def cookie(self) -> dict[str, Any]:
        """The login's cookie."""
        cookies = await self.page.context.cookies()
        (found,) = [dict(each) for each in cookies if each.get("name") == COOKIE]
        return found

    async def poll(self, **headers: str) -> tuple[int, str]:
        """Ask for all that is stored as this browser does, from another client; the answer."""
        answer = await self.page.context.request.post(
            f"{self.page.url}message-bus/another/poll?dlp=t",
            form={"/chat/room": "0", "/chat/private": "0"},
            headers=headers,
        )
        return answer.status, await answer.text()

    async def is_streaming(self) -> None:
        await expect(self.page.get_by_role("status")).to_have_text("Streaming")


@pytest_asyncio.fixture(loop_scope="session")
async def demo() -> AsyncIterator[Demo]:
    demo = Demo()
    await demo.start()
    yield demo
    assert await demo.stop() == 0


class Join:
    """Bring people into the chat, each by name and with a browser of their own."""

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
        await page.goto(url or self._demo.url)
        person = Person(page)
        await person.log_in(name)
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
    # Whatever the page may claim to be.
    ids = [(await each.cookie())["value"].partition(".")[0] for each in (ada, grace)]
    for claimed in ("ada", *ids):
        status, body = await carl.poll(**{"X-MessageBus-User": claimed, "X-Forwarded-For": "::1"})
        assert status == 200
        assert "all of you" in body
        assert "only you" not in body
    assert "only you too" in (await ada.poll())[1]


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
    names = ("42", "null", "true", "Zoë", "李小龙", "नमस्ते", "a.b_c-d", "x" * 32)
    for name in names:
        await other.rename(name)
        await other.has_a_name(name)
        await ada.say(f"@{name} hello")
        await other.say("@ada hello, ada")
    await expect(other.texts).to_have_text(["hello", "hello, ada"] * len(names))
    await expect(ada.texts).to_have_text(["hello", "hello, ada"] * len(names))


async def test_another_name_is_the_same_person(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    await ada.say("@grace to grace")
    await expect(grace.texts).to_have_text(["to grace"])
    cookie = await grace.cookie()

    await grace.rename("not a name")
    await expect(grace.page.get_by_role("alert").filter(has_text="1 to 32")).to_be_visible()
    await grace.rename("Ada")
    await expect(grace.page.get_by_role("alert").filter(has_text="already")).to_be_visible()
    await grace.rename("carl")
    await grace.has_a_name("carl")
    await ada.say("@carl to carl")
    await expect(grace.texts).to_have_text(["to grace", "to carl"])
    assert (await grace.cookie())["value"] == cookie["value"]
    # The earlier name is nobody's now.
    await ada.say("@carl and")
    await ada.page.get_by_label("Message", exact=True).fill("@grace to nobody")
    await ada.page.keyboard.press("Enter")
    await expect(ada.page.get_by_role("alert").filter(has_text="Nobody here")).to_be_visible()
    await expect(ada.page.get_by_label("Message", exact=True)).to_have_value("@grace to nobody")


async def test_a_name_taken_over_brings_no_messages(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    await ada.say("@grace to the first")
    await expect(grace.texts).to_have_text(["to the first"])
    await grace.log_out()
    second = await join("grace")
    await ada.say("@grace to the second")
    await expect(second.texts).to_have_text(["to the second"])
    # Nor to the same browser, after somebody else has logged in there.
    await grace.log_in("carl")
    await ada.say("to all")
    await expect(grace.texts).to_have_text(["to all"])


async def test_the_cookie_is_kept_from_scripts_and_other_sites(join: Join) -> None:
    ada = await join("ada")
    cookie = await ada.cookie()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
    assert 0 < cookie["expires"] - time.time() <= 12 * 3600
    assert await ada.page.evaluate("document.cookie") == ""


async def test_logging_out_ends_the_polls(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    second_tab = Person(await grace.page.context.new_page())
    await second_tab.page.goto(grace.page.url)
    await second_tab.is_streaming()  # without another login
    await second_tab.has_a_name("grace")
    cookie = (await grace.cookie())["value"]

    await grace.log_out()
    await second_tab.is_asked()
    assert COOKIE not in [each.get("name") for each in await grace.page.context.cookies()]
    # The cookie is worth nothing, should somebody have kept it.
    assert (await grace.poll(Cookie=f"{COOKIE}={cookie}"))[0] == 403
    await ada.say("to all")
    await expect(ada.texts).to_have_text(["to all"])
    await expect(grace.texts).to_have_text([])
    await expect(second_tab.texts).to_have_text([])


async def test_a_poll_without_a_login_is_ended_while_it_waits(demo: Demo, join: Join) -> None:
    """The stream of somebody who keeps it open over the logout says nothing more."""
    ada, grace = await join("ada"), await join("grace")
    cookies = {COOKIE: (await grace.cookie())["value"]}
    body = {"/chat/room": "0", "/chat/private": "0"}
    async with aiohttp.ClientSession(cookies=cookies) as session:
        url = f"{demo.url}message-bus/kept/poll"
        async with session.post(url, data=body) as stream:
            assert await stream.content.readuntil(b"|\r\n") == b"[]\r\n|\r\n"
            await ada.say("@grace before")
            assert b"before" in await stream.content.readuntil(b"|\r\n")
            await grace.log_out()
            await stream.content.read()  # it ends, long before its time
        async with session.post(url, data=body) as refused:
            assert (refused.status, await refused.text()) == (403, "Log in first.")


async def test_forged_cookies(join: Join) -> None:
    ada, grace = await join("ada"), await join("grace")
    await ada.say("@ada a secret")
    await expect(ada.texts).to_have_text(["a secret"])
    target, own = (await ada.cookie())["value"], (await grace.cookie())["value"]
    identifier, expires, signature = target.split(".")
    later = str(int(expires) + 1)
    for value in (
        identifier,
        f"{identifier}.{expires}",
        f"{identifier}.{expires}.",
        f"{identifier}.{expires}.{'0' * 64}",
        f"{identifier}.{later}.{signature}",
        f"{identifier}.{expires}.{own.rpartition('.')[2]}",
        f"{own.partition('.')[0]}.{expires}.{signature}",
        f"{target}0",
        "",
    ):
        status, body = await grace.poll(Cookie=f"{COOKIE}={value}")
        assert (status, body) == (403, "Log in first."), value
    assert "a secret" in (await grace.poll(Cookie=f"{COOKIE}={target}"))[1]  # so the loop can fail


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
    """Its memory is gone then, logins too; open pages keep what they show, log in and go on."""
    ada = await join("ada")
    await ada.say("before")
    await expect(ada.texts).to_have_text(["before"])
    assert await demo.stop() == 0
    await expect(ada.page.get_by_role("status").filter(has_text="Reconnecting")).to_be_visible()
    await demo.start()
    await ada.is_asked()
    await expect(ada.page.get_by_text("does not know you any more")).to_be_visible()
    await ada.log_in()  # with the same name
    await ada.is_streaming()
    await ada.say("after")
    await expect(ada.texts).to_have_text(["before", "after"])
    await expect(ada.page.locator("#log .mine")).to_have_count(2)


class Visitor:
    """Somebody who talks to the demo without a browser."""

    def __init__(self, demo: Demo, session: aiohttp.ClientSession) -> None:
        self._demo = demo
        self._session = session

    async def __call__(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Send JSON, or bytes as they are; status and answer."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        url = f"{self._demo.url}{path}"
        async with self._session.request(method, url, data=sent, headers=headers) as response:
            assert response.headers["Cache-Control"] == "no-store"
            return response.status, await response.json()


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(shared_demo: Demo) -> AsyncIterator[Visitor]:
    """Logged in, under a name that only this test has."""
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address, too
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        visitor = Visitor(shared_demo, session)
        status, _ = await visitor("POST", "chat/session", {"name": f"v-{secrets.token_hex(8)}"})
        assert status == 200
        yield visitor


MESSAGE = {"text": "hello"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(MESSAGE, 201, id="good"),
        pytest.param({"text": "x" * 2000}, 201, id="long"),
        pytest.param({"text": "x" * 2001}, 422, id="text-too-long"),
        pytest.param({"text": " \n "}, 422, id="text-empty"),
        pytest.param({"text": 5}, 422, id="text-no-text"),
        pytest.param({}, 422, id="text-missing"),
        pytest.param(MESSAGE | {"to": "a/b"}, 422, id="recipient-with-slash"),
        pytest.param(MESSAGE | {"to": "nobody"}, 422, id="recipient-unknown"),
        pytest.param(MESSAGE | {"from": "ada"}, 422, id="name-claimed"),
        pytest.param([], 422, id="no-object"),
        pytest.param(b"{", 400, id="no-json"),
        pytest.param(b'{"text":"\xff"}', 400, id="no-utf-8"),
        pytest.param(b" " * 20_000, 413, id="too-large"),
    ],
)
async def test_what_the_chat_takes(visitor: Visitor, body: Any, status: int) -> None:
    answer = await visitor("POST", "chat/messages", body)
    assert answer[0] == status
    assert answer[1].keys() == ({"ok"} if status == 201 else {"error"})


@pytest.mark.parametrize("name", ["", "x" * 33, "a b", "a/b", "<b>", 5, None])
async def test_what_is_no_name(visitor: Visitor, name: Any) -> None:
    assert (await visitor("POST", "chat/session", {"name": name}))[0] == 422


async def test_pages_of_other_sites_can_do_nothing(visitor: Visitor, shared_demo: Demo) -> None:
    """Their requests carry the cookie where SameSite lets them: from other ports, it does."""
    before = await visitor("GET", "chat/session")
    own = shared_demo.url.rstrip("/")
    for origin in ("http://evil.example", "http://127.0.0.1:1", "null", f"{own}.evil.example"):
        assert (await visitor("POST", "chat/messages", MESSAGE, Origin=origin))[0] == 403
        assert (await visitor("POST", "chat/session", {"name": "evil"}, Origin=origin))[0] == 403
        assert (await visitor("DELETE", "chat/session", Origin=origin))[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        refused = await visitor("POST", "chat/messages", MESSAGE, **{"Content-Type": kind})
        assert refused[0] == 415
    assert await visitor("GET", "chat/session") == before
    assert (await visitor("POST", "chat/messages", MESSAGE, Origin=own))[0] == 201


async def test_only_who_is_logged_in_writes(visitor: Visitor) -> None:
    assert (await visitor("DELETE", "chat/session"))[0] == 200
    assert (await visitor("POST", "chat/messages", MESSAGE))[0] == 401
    assert await visitor("GET", "chat/session") == (200, {"person": None})


async def test_only_the_daemon_may_ask(shared_demo: Demo) -> None:
    """Its questions are signed; unsigned ones would tell whose cookie somebody has found."""
    question = {"headers": {"cookie": ""}}
    signed = {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    async with aiohttp.ClientSession() as session:
        for headers in ({}, signed, {**signed, "webhook-signature": "é v1, "}):
            url = f"{shared_demo.url}chat/lookup"
            async with session.post(url, json=question, headers=headers) as response:
                assert response.status == 401


async def test_files(shared_demo: Demo) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("", "chat.css", "chat.js", "icon.svg"):
            async with session.get(f"{shared_demo.url}{path}") as response:
                assert response.status == 200
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                assert await response.read() == (STATIC / (path or "index.html")).read_bytes()
        for path in ("chat.py", "index.html", "ajax.js", "..%2fchat.py", "static/../../chat.py"):
            async with session.get(f"{shared_demo.url}{path}") as response:
                assert response.status == 404


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_demo() -> AsyncIterator[Demo]:
    """For tests that do not care what was said before."""
    demo = Demo()
    await demo.start()
    yield demo
    assert await demo.stop() == 0
