"""The admin page, as people use it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Locator, Page, expect

from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response, encode_request

READER = "of-somebody-who-reads"
VIEWS = ("Overview", "Channels", "Live", "Clients", "Explain", "Lookups", "Store", "Settings")
# Would run if it were taken for markup; and does not fit.
HOSTILE = "/<img src=x onerror=hacked=1>\"'&{{7*7}}</td><script>hacked=1</script>" + "x" * 120

# Whatever the page is asked for is answered at once but for samples, which take some seconds.
expect.set_options(timeout=15_000)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostedDaemon]:
    config = {
        "server": {"internal_listen": "127.0.0.1:0", "trusted_proxies": ["127.0.0.1"]},
        "lookup": {"mode": "headers"},
        "api": {"keys": [{"name": "reader", "token": READER, "scopes": ["read", "publish"]}]},
    }
    async with HostedDaemon(tmp_path_factory.mktemp("admin"), config) as daemon:
        yield daemon


@dataclass
class Admin:
    """Somebody in front of the page. ``complaints`` are what the browser's console says."""

    page: Page
    daemon: HostedDaemon
    complaints: list[str] = field(default_factory=list)

    async def open(self, view: str = "") -> None:
        await self.page.goto(f"{self.daemon.internal_url}/admin/#/{view}")

    async def log_in(self, key: str = "") -> None:
        await self.page.get_by_label("API key").fill(key or self.daemon.key)
        await self.page.get_by_role("button", name="Log in").click()

    async def enter(self, view: str = "", key: str = "") -> None:
        """Open a view as somebody who has logged in."""
        await self.open(view)
        await self.log_in(key)
        await expect(self.page.get_by_role("navigation")).to_be_visible()

    async def go_to(self, view: str) -> None:
        await self.page.get_by_role("link", name=view, exact=True).click()
        await expect(self.heading(view)).to_be_visible()

    def heading(self, name: str) -> Locator:
        return self.page.get_by_role("heading", level=1, name=name)

    def region(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name, exact=True)


@pytest_asyncio.fixture(loop_scope="session")
async def admin(context: BrowserContext, daemon: HostedDaemon) -> Admin:
    return await make_admin(context, daemon)


async def make_admin(context: BrowserContext, daemon: HostedDaemon) -> Admin:
    page = await context.new_page()
    page.set_default_timeout(15_000)
    made = Admin(page, daemon)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on(
        "console",
        lambda said: (
            made.complaints.append(said.text) if said.type in ("error", "warning") else None
        ),
    )
    return made


async def poll(
    stack: AsyncExitStack, daemon: HostedDaemon, client: str, channel: str, user: str | None = None
) -> Response:
    """A stream that has begun."""
    connection = await stack.enter_async_context(await RawConnection.open(daemon.url))
    headers = [("Content-Type", "application/json")]
    if user is not None:
        headers.append(("X-MessageBus-User", user))
    body = json.dumps({channel: 0}).encode()
    response = connection.send(
        encode_request("POST", f"/message-bus/{client}/poll", headers=headers, body=body)
    )
    await response.chunk_count(1)
    return response


async def test_a_key_opens_the_page_and_stays_nowhere(
    admin: Admin, context: BrowserContext
) -> None:
    await admin.open()
    await admin.log_in("not-a-key")
    await expect(admin.page.get_by_role("alert")).to_have_text(
        "This key is not known, or has expired."
    )
    await admin.log_in()
    await expect(admin.heading("Overview")).to_be_focused()
    await expect(admin.region("State")).to_contain_text("Ready")
    kept = await admin.page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert admin.daemon.key not in kept
    assert json.loads(kept)[:3] == [{}, {}, ""]  # no script sees the cookie either
    [cookie] = await context.cookies()
    assert admin.daemon.key not in str(cookie)
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/admin/")

    await admin.page.reload()
    await expect(admin.heading("Overview")).to_be_visible()
    await admin.page.get_by_role("button", name="Log out").click()
    await expect(admin.page.get_by_role("alert")).to_have_text("You are logged out.")
    assert await context.cookies() == []
    await admin.page.reload()
    await expect(admin.page.get_by_label("API key")).to_be_visible()
    # The one that was refused is all that the browser has to say.
    assert [each for each in admin.complaints if "401" not in each] == []


async def test_plots_show_what_happens_and_can_be_read_with_keys(admin: Admin) -> None:
    await admin.enter()
    async with AsyncExitStack() as stack:
        await poll(stack, admin.daemon, "plotted", "/plotted")
        card = admin.page.locator(".card", has_text="Waiting polls")
        await expect(card.locator(".value")).to_have_text("1")
        plot = card.get_by_role("img")
        assert "Waiting polls: 1 now" in (await plot.get_attribute("aria-label") or "")
        await plot.focus()
        await plot.press("End")
        await expect(card.locator("[aria-live]")).to_contain_text("streams 1, long polls 0")
    await admin.page.get_by_role("button", name="10 min").click()
    await expect(admin.page.get_by_role("button", name="10 min")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert admin.complaints == []


async def test_a_message_goes_out_and_comes_in(admin: Admin) -> None:
    await admin.enter("live")
    publish, tail = admin.region("Publish"), admin.region("Live tail")
    await expect(tail).to_contain_text("Live")
    await publish.get_by_label("Channel").fill("/try")
    await publish.get_by_label("Data").fill('{"big": 12345678901234567890, "exact": 1.50}')
    await publish.get_by_text("For whom").click()
    await publish.get_by_label("Users").fill('7, "7", anna')
    await publish.get_by_label("Clients").fill("42")
    await publish.get_by_text("Options").click()
    await publish.get_by_label("Site").fill("forum")
    await publish.get_by_role("button", name="Publish").click()
    await expect(publish.get_by_role("status")).to_contain_text("Published. /try, message 1")

    message = tail.get_by_role("article")
    await expect(message).to_contain_text("12345678901234567890")
    await expect(message).to_contain_text("1.50")
    await expect(message).to_contain_text("site forum")
    await expect(message).to_contain_text('users 7, "7", anna')
    stored = await admin.daemon.api("GET", "backlog", query={"channel": "/try", "site_id": "forum"})
    [kept] = stored["messages"]
    assert (kept["user_ids"], kept["client_ids"]) == ([7, "7", "anna"], ["42"])

    await message.get_by_role("link", name="/try").click()
    await expect(admin.heading("/try")).to_be_visible()
    await expect(admin.page.get_by_role("article")).to_contain_text("1.50")
    assert admin.complaints == []


async def test_what_is_refused_says_why(admin: Admin) -> None:
    await admin.enter("live")
    publish = admin.region("Publish")
    outcome = publish.get_by_role("status")
    await publish.get_by_label("Channel").fill("/__status")
    await publish.get_by_role("button", name="Publish").click()
    await expect(outcome).to_contain_text("belongs to the bus")
    await expect(outcome).to_contain_text("reserved_channel")
    await publish.get_by_label("Data").fill("{not json")
    await publish.get_by_role("button", name="Publish").click()
    await expect(outcome).to_contain_text("The data are not JSON.")


async def test_disconnecting_a_client_ends_its_stream(admin: Admin) -> None:
    async with AsyncExitStack() as stack:
        await poll(stack, admin.daemon, "stays", "/room", "8")
        ended = await poll(stack, admin.daemon, "leaves", "/room", "7")
        await admin.enter("clients")
        await admin.page.get_by_label("User").fill("7")
        await admin.page.get_by_role("button", name="Search").click()
        rows = admin.page.locator("tbody tr")
        await expect(rows).to_have_count(1)
        await expect(rows).to_contain_text("leaves")
        await admin.page.get_by_role("button", name="Disconnect leaves").click()
        dialog = admin.page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Cancel").click()
        await expect(dialog).to_have_count(0)
        assert not ended.over
        await admin.page.get_by_role("button", name="Disconnect leaves").click()
        await dialog.get_by_role("button", name="Disconnect").click()
        await ended.finished()
        await expect(admin.page.get_by_text("leaves is disconnected.")).to_be_visible()
        await expect(admin.page.get_by_text("Nobody like that")).to_be_visible()
        await admin.page.get_by_label("User").fill("")
        await admin.page.get_by_role("button", name="Search").click()
        await expect(rows).to_contain_text(["stays"])
    assert admin.complaints == []


async def test_it_is_explained_who_got_a_message(admin: Admin) -> None:
    async with AsyncExitStack() as stack:
        stream = await poll(stack, admin.daemon, "explained-1", "/explained", "7")
        published = await admin.daemon.publish("/explained", "for 7", user_ids=[7])
        await stream.chunk_count(2)
        await admin.enter("channel?name=/explained")
        await admin.page.get_by_role("link", name="Why?").click()
        await expect(admin.heading("Explain")).to_be_visible()
        await expect(admin.page.get_by_label("Channel")).to_have_value("/explained")
        await expect(admin.page.get_by_label("Message id")).to_have_value(
            str(published["message_id"])
        )
        answer = admin.region("Answer")
        for user, says in (
            ("7", "user 7 was given message 1, by client explained-1"),
            ('"7"', 'message 1 was kept from user "7": it is for others'),
        ):
            await admin.page.get_by_label("User").fill(user)
            await admin.page.get_by_role("button", name="Explain").click()
            await expect(answer).to_contain_text(says)
    await expect(answer).to_contain_text("it is for the user 7 only")
    assert admin.complaints == []


async def test_long_lists_come_in_pages(admin: Admin) -> None:
    for number in range(120):
        await admin.daemon.publish(f"/many/{number:03}", number)
    await admin.enter("channels")
    await admin.page.get_by_label("Channel").fill("/many/")
    await admin.page.get_by_role("button", name="Search").click()
    names = admin.page.locator("tbody th")
    following = admin.page.get_by_role("button", name="Next")
    previous = admin.page.get_by_role("button", name="Previous")
    await expect(names.first).to_have_text("/many/000")
    await expect(names).to_have_count(50)
    await expect(previous).to_be_disabled()
    await following.click()
    await expect(names.first).to_have_text("/many/050")
    await following.click()
    await expect(names).to_have_count(20)
    await expect(following).to_be_disabled()
    await previous.click()
    await expect(names.first).to_have_text("/many/050")
    await admin.page.get_by_label("Channel").fill("nothing-like-this")
    await admin.page.get_by_role("button", name="Search").click()
    await expect(admin.page.get_by_text("No such channel")).to_be_visible()


async def test_a_backlog_is_read_from_its_end(admin: Admin) -> None:
    for number in range(60):
        await admin.daemon.publish("/long", {"number": number})
    await admin.enter("channel?name=/long")
    messages = admin.page.get_by_role("article")
    await expect(messages).to_have_count(25)
    await expect(messages.first).to_contain_text('"number": 59')
    older, newer = (admin.page.get_by_role("button", name=name) for name in ("Older", "Newer"))
    await older.click()
    await expect(messages.first).to_contain_text('"number": 34')
    await older.click()
    await expect(messages).to_have_count(10)
    await expect(messages.last).to_contain_text('"number": 0')
    await expect(older).to_be_disabled()
    await newer.click()
    await expect(messages.first).to_contain_text('"number": 34')


async def test_nothing_that_comes_becomes_markup(admin: Admin) -> None:
    async with AsyncExitStack() as stack:
        await poll(stack, admin.daemon, "<img>", HOSTILE, "<b>u</b>")
        await admin.enter("live")
        tail = admin.region("Live tail")
        await expect(tail).to_contain_text("Live")
        data = {"<script>hacked=1</script>": ["</pre><img src=x onerror=hacked=1>"]}
        await admin.daemon.publish(HOSTILE, data, group_ids=["<i>g</i>"], site_id="<s>")
        await admin.daemon.publish(HOSTILE, data)
        await expect(tail.get_by_role("article").first).to_contain_text("onerror")
        await expect(tail.get_by_text("<i>g</i>")).to_be_visible()
        await assert_harmless(admin)
        await admin.go_to("Channels")
        await expect(admin.page.get_by_role("link", name=HOSTILE).first).to_be_visible()
        await assert_harmless(admin)
        await admin.page.get_by_role("link", name=HOSTILE).first.click()
        await expect(admin.page.get_by_role("article")).to_contain_text("</pre>")
        await assert_harmless(admin)
        await admin.go_to("Clients")
        await expect(admin.page.get_by_role("rowheader", name="<img>")).to_be_visible()
        await expect(admin.page.get_by_text("<b>u</b>")).to_be_visible()
        await assert_harmless(admin)
    # The browser was never asked to run or to load anything that its policy forbids.
    assert admin.complaints == []


async def assert_harmless(admin: Admin) -> None:
    found = await admin.page.evaluate(
        """[
            typeof hacked,
            document.querySelectorAll("main img, main script, main i, main s").length,
            document.documentElement.scrollWidth <= innerWidth,
        ]"""
    )
    assert found == ["undefined", 0, True]


async def test_a_session_that_has_ended_leads_back_where_one_was(
    admin: Admin, context: BrowserContext
) -> None:
    await admin.enter("settings")
    await expect(admin.page.get_by_text("********").first).to_be_visible()
    assert admin.daemon.key not in await admin.page.content()
    await context.clear_cookies()
    # Nobody has to do anything: the page notices by itself.
    await expect(admin.page.get_by_role("alert")).to_contain_text("Your session has ended.")
    await admin.log_in()
    await expect(admin.heading("Settings")).to_be_visible()


async def test_a_key_sees_what_it_may(admin: Admin) -> None:
    await admin.daemon.publish("/readable", {"for": "readers"})
    await admin.enter(key=READER)
    links = admin.page.get_by_role("navigation").get_by_role("link")
    await expect(links).to_have_text(["Channels", "Live"])
    await admin.page.get_by_label("Channel").fill("/readable")
    await admin.page.get_by_role("button", name="Open").click()
    await expect(admin.page.get_by_role("article")).to_contain_text("readers")
    await admin.open("clients")
    await expect(admin.page.get_by_text("needs a key with the scope admin")).to_be_visible()
    assert admin.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
async def test_every_view_fits(
    browser: Browser, daemon: HostedDaemon, width: int, scheme: str
) -> None:
    context = await browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    try:
        await daemon.publish("/fits", {"text": "word " * 400 + "x" * 4000})
        admin = await make_admin(context, daemon)
        await admin.enter()
        for view in VIEWS:
            await admin.go_to(view)
            await expect(admin.page.locator(".view > *").first).to_be_visible()
            fits = "document.documentElement.scrollWidth <= innerWidth"
            assert await admin.page.evaluate(fits), view
        assert admin.complaints == []
    finally:
        await context.close()
