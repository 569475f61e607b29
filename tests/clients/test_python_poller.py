"""The Python client as a page: every way of polling, against a real daemon."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import messagebus_client.async_poller
from messagebus_client import AsyncPoller, Poller, PollerStatus
from tests.clients.conftest import Host
from tests.support.daemon import Daemon
from tests.support.fault_proxy import FaultProxy

WAIT_SECONDS = 30.0
# Answers come at once, so that tests need not wait for schedules.
QUICK = {"min_poll_interval": 0.01, "callback_interval": 0.05, "background_callback_interval": 0.05}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


class Inbox:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, int, int]] = []

    def __call__(self, data: Any, message_id: int, global_id: int) -> None:
        self.calls.append((data, message_id, global_id))

    async def received(self, *data: Any) -> None:
        await until(lambda: len(self.calls) >= len(data))
        assert [each[0] for each in self.calls] == list(data)


async def modes_of(daemon: Daemon) -> list[str]:
    """How the polls that wait are answered."""
    return [each["mode"] for each in (await daemon.api("GET", "clients"))["clients"]]


async def parked(daemon: Daemon, mode: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await modes_of(daemon) != [mode]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "stream"),
        ({"enable_chunked_encoding": False}, "long_poll"),
        ({"enable_long_polling": False}, None),
    ],
)
async def test_messages_arrive_in_every_mode(
    host: Host, options: dict[str, Any], mode: str | None
) -> None:
    daemon = await host({"poll": {"long_polling_interval": 2.0}})
    for number in range(3):
        await daemon.publish("/a", number)
    await daemon.publish("/a", "not for everybody", user_ids=[42])
    every, last, new = Inbox(), Inbox(), Inbox()
    async with AsyncPoller(daemon.url, **{**QUICK, **options}) as poller:
        poller.subscribe("/a", every, 0)
        await every.received(0, 1, 2)
        poller.subscribe("/a", last, -3)
        await until(lambda: last.calls)
        poller.subscribe("/a", new)
        await until(lambda: poller.channels == {"/a": 4})
        if mode is not None:
            await parked(daemon, mode)
        await daemon.publish("/a", {"live": True})
        await every.received(0, 1, 2, {"live": True})
        await last.received(2, {"live": True})
        await new.received({"live": True})
        assert new.calls == [({"live": True}, 5, 5)]
        assert poller.stats.success > 0
        assert poller.stats.failed == 0


async def test_channels_come_and_go_while_a_poll_waits(host: Host) -> None:
    daemon = await host()
    a, b, b_too = Inbox(), Inbox(), Inbox()
    async with AsyncPoller(daemon.url, min_poll_interval=0.01) as poller:
        poller.subscribe("/a", a, 0)
        await parked(daemon, "stream")
        poller.subscribe("/b", b, 0)
        poller.subscribe("/b", b_too, 0)
        await daemon.publish("/b", 1)
        await b.received(1)
        await b_too.received(1)
        poller.unsubscribe("/b", b)
        await daemon.publish("/b", 2)
        await b_too.received(1, 2)
        poller.unsubscribe("/b")
        await until(lambda: poller.channels == {"/a": 0})
        await daemon.publish("/b", 3)
        await daemon.publish("/a", 4)
        await a.received(4)
        assert [each[0] for each in b.calls + b_too.calls] == [1, 1, 2]
        poller.unsubscribe("/a")
        async with asyncio.timeout(WAIT_SECONDS):
            while await modes_of(daemon):
                await asyncio.sleep(0.01)


async def test_one_who_is_known_sees_more(host: Host) -> None:
    daemon = await host(
        {
            "server": {"trusted_proxies": ["127.0.0.1"], "base_route": "/forum/"},
            "lookup": {"mode": "headers"},
        }
    )
    await daemon.publish("/a", "for 42", user_ids=[42])
    asked = 0

    def headers() -> dict[str, str]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise LookupError("no token at the moment")
        return {"X-MessageBus-User": "42"}

    inbox = Inbox()
    options = {"max_poll_interval": 0.1, "headers": headers}
    async with AsyncPoller(f"{daemon.url}/forum/", **options) as poller:
        poller.subscribe("/a", inbox, 0)
        await inbox.received("for 42")
        await daemon.publish("/a", "for this client", client_ids=[poller.client_id])
        await inbox.received("for 42", "for this client")
    assert asked == 2


async def test_nothing_is_lost_or_repeated_when_connections_break(host: Host) -> None:
    daemon = await host()
    inbox = Inbox()
    async with FaultProxy(int(daemon.url.rpartition(":")[2])) as proxy:
        # Failures wait for a second and more otherwise.
        options = {**QUICK, "max_poll_interval": 0.1}
        async with AsyncPoller(f"http://127.0.0.1:{proxy.port}", **options) as poller:
            poller.subscribe("/a", inbox, 0)
            for number in range(30):
                await daemon.publish("/a", number)
                if number % 10 == 5:
                    await inbox.received(*range(number + 1))
                    proxy.reset()
            await inbox.received(*range(30))
            proxy.refuse()
            proxy.reset()
            await until(lambda: poller.stats.failed > 2)
            await daemon.publish("/a", "meanwhile")
            await proxy.accept()
            await inbox.received(*range(30), "meanwhile")
            await until(lambda: poller.stats.failed == 0)


async def test_a_stop_is_a_pause(host: Host) -> None:
    daemon = await host()
    inbox = Inbox()
    poller = AsyncPoller(daemon.url)
    poller.subscribe("/a", inbox, 0)
    await daemon.publish("/a", 1)
    poller.start()
    poller.start()
    await inbox.received(1)
    await poller.stop()
    await poller.stop()
    assert poller.status is PollerStatus.STOPPED
    await daemon.publish("/a", 2)
    poller.start()
    assert poller.status is PollerStatus.STARTED
    await inbox.received(1, 2)
    await poller.stop()


async def test_a_callback_that_fails_is_logged_and_others_called(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = await host()
    inbox, awaited = Inbox(), Inbox()

    async def slowly(*call: Any) -> None:
        await asyncio.sleep(0)
        awaited(*call)

    def fail(*call: Any) -> None:
        raise LookupError("the callback's own")

    async with AsyncPoller(daemon.url) as poller:
        for callback in (fail, slowly, inbox):
            poller.subscribe("/a", callback, 0)
        for number in range(2):
            await daemon.publish("/a", number)
        await inbox.received(0, 1)
        await awaited.received(0, 1)
    assert "the callback's own" in caplog.text


@asynccontextmanager
async def proxy_that(
    answer: Callable[[web.Request, aiohttp.ClientSession], Any],
) -> AsyncIterator[str]:
    """A server between, which answers as it likes."""
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            response: web.StreamResponse = await answer(request, session)
            return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("/")).rstrip("/")


async def test_streams_that_are_held_back_become_long_polls(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a proxy does that buffers whole answers."""
    monkeypatch.setattr(messagebus_client.async_poller, "FIRST_CHUNK_SECONDS", 0.3)
    daemon = await host({"poll": {"long_polling_interval": 5.0}})

    async def buffer(request: web.Request, session: aiohttp.ClientSession) -> web.Response:
        names = ("Content-Type", "Dont-Chunk")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        async with session.post(
            daemon.url + request.path_qs, data=await request.read(), headers=headers
        ) as upstream:
            body = await upstream.read()
            kind = upstream.headers["Content-Type"]
            return web.Response(body=body, headers={"Content-Type": kind})

    inbox = Inbox()
    async with proxy_that(buffer) as url, AsyncPoller(url, min_poll_interval=0.01) as poller:
        poller.subscribe("/a", inbox)
        async with asyncio.timeout(WAIT_SECONDS):
            while "long_poll" not in await modes_of(daemon):
                await asyncio.sleep(0.01)
        await daemon.publish("/a", 1)
        await inbox.received(1)
    assert "long polls instead" in caplog.text


async def test_a_server_that_says_later_is_asked_later(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[float] = []

    async def refuse(request: web.Request, session: aiohttp.ClientSession) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        return web.Response(status=429, headers={"Retry-After": "1"})

    async with proxy_that(refuse) as url, AsyncPoller(url, **QUICK) as poller:
        poller.subscribe("/a", print)
        await until(lambda: asked)
        # Not even for another channel.
        poller.subscribe("/b", print)
        await until(lambda: len(asked) > 1)
        assert asked[1] - asked[0] >= 1
        assert poller.stats.failed == 0
    assert "429" in caplog.text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("text/html", "<html>"),
        ("application/json", "<html>"),
        ("application/json", "{}"),
        ("text/plain", "<html>\r\n|\r\n"),
        ("application/json", '[{"channel":"/__status","data":1,"message_id":1,"global_id":1}]'),
    ],
)
async def test_what_is_no_answer_is_a_failure(kind: str, text: str) -> None:
    async def answer(request: web.Request, session: aiohttp.ClientSession) -> web.Response:
        return web.Response(text=text, content_type=kind)

    async with proxy_that(answer) as url, AsyncPoller(url, **QUICK) as poller:
        poller.subscribe("/a", print)
        await until(lambda: poller.stats.failed)
        assert poller.stats.success == 0


async def test_arguments_are_checked() -> None:
    poller = AsyncPoller("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="slash"):
        poller.subscribe("a", print)
    with pytest.raises(TypeError):
        poller.subscribe("/a", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        AsyncPoller("http://127.0.0.1:1", unheard_of=True)  # type: ignore[call-arg]


# -- in a thread


async def test_a_thread_polls(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "messagebus_client")
    daemon = await host()
    threads = set()
    inbox, later = Inbox(), Inbox()

    def callback(*call: Any) -> None:
        threads.add(threading.current_thread().name)
        inbox(*call)
        if call[0] == 1:
            poller.subscribe("/b", later, 0)

    with Poller(daemon.url, **QUICK) as poller:
        poller.subscribe("/a", callback, 0)
        await daemon.publish("/a", 1)
        await inbox.received(1)
        await daemon.publish("/b", 2)
        await later.received(2)
        assert poller.status is PollerStatus.STARTED
        assert poller.channels == {"/a": 1, "/b": 1}
        assert len(poller.client_id) == 32
        poller.unsubscribe("/b")
        await daemon.publish("/b", 3)
        await daemon.publish("/a", 4)
        await inbox.received(1, 4)
        await asyncio.to_thread(poller.stop)
        assert poller.status is PollerStatus.STOPPED
        await daemon.publish("/a", 5)
        poller.start()
        poller.start()
        await inbox.received(1, 4, 5)
    assert threads == {"messagebus-poller"}
    assert [each[0] for each in later.calls] == [2]
    assert "messagebus_client" not in {each.name for each in caplog.records}


async def test_a_callback_may_stop_and_start_the_thread(host: Host) -> None:
    daemon = await host()
    inbox = Inbox()
    poller = Poller(daemon.url, **QUICK)

    def callback(*call: Any) -> None:
        inbox(*call)
        poller.stop()
        if call[0] == 1:
            poller.start()

    poller.subscribe("/a", callback, 0)
    poller.start()
    await daemon.publish("/a", 1)
    await inbox.received(1)
    await daemon.publish("/a", 2)
    await inbox.received(1, 2)
    await until(lambda: poller.status is PollerStatus.STOPPED)
    await until(lambda: "messagebus-poller" not in {each.name for each in threading.enumerate()})
