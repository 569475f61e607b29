"""The Python client against a real daemon: calls and subscriptions, blocking and not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

import messagebus_client.async_client
from messagebus_client import (
    AsyncClient,
    Client,
    Gap,
    Interrupted,
    InvalidRequest,
    Message,
    NotAllowed,
    Notice,
    Publication,
    Published,
    Restarted,
)
from tests.clients.conftest import Host
from tests.conftest import StartDaemon
from tests.ruby.stores import PostgresPlace, RedisPlace
from tests.support.daemon import Daemon
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

WAIT_SECONDS = 30.0


class Blocking:
    """`Client` with the face of `AsyncClient`: each call in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        @wraps(method)
        async def call(*args: Any, **options: Any) -> Any:
            result = await asyncio.to_thread(method, *args, **options)
            return await asyncio.to_thread(list, result) if isinstance(result, Iterator) else result

        return call


@pytest.fixture
async def daemon(host: Host) -> Daemon:
    return await host()


@pytest.fixture(params=["blocking", "asyncio"])
async def bus(request: pytest.FixtureRequest, daemon: Daemon) -> Any:
    if request.param == "blocking":
        with Client(daemon.internal_url, daemon.key) as client:
            yield Blocking(client)
    else:
        async with AsyncClient(daemon.internal_url, daemon.key) as client:
            yield client


async def everything(result: Any) -> list[Any]:
    """What an iterating call yields."""
    return await result if isinstance(result, Awaitable) else [each async for each in result]


# -- calls


async def test_a_message_is_published_with_all_that_is_said_of_it(bus: Any) -> None:
    published = await bus.publish(
        "/a",
        {"größe": [1.5, None, "🚌"]},
        site_id="forum",
        user_ids=(42, "42"),
        group_ids=["staff"],
        client_ids=["c1"],
        max_backlog_size=2,
        max_backlog_age=60,
    )
    assert published == Published("/a", 1, 1)
    stored = await bus.message("/a", 1, site_id="forum")
    assert (stored.data, stored.user_ids) == ({"größe": [1.5, None, "🚌"]}, (42, "42"))
    assert (stored.group_ids, stored.client_ids) == (("staff",), ("c1",))
    for number in range(2):
        await bus.publish("/a", number, site_id="forum", max_backlog_size=2)
    assert await bus.message("/a", 1, site_id="forum") is None
    last = await bus.message("/a", site_id="forum")
    assert last == Message("/a", 3, 3, 1, "forum")
    assert await bus.message("/a") is None
    await bus.publish("/b", 1, user_ids=[7], queue_in_memory=True)
    assert await bus.message("/b", 1) == Message("/b", 1, 4, 1, None, user_ids=(7,))


async def test_a_message_is_published_once_however_often_it_is_sent(bus: Any) -> None:
    first = await bus.publish("/a", 1, idempotency_key="order-1")
    again = await bus.publish("/a", 1, idempotency_key="order-1")
    assert (first.repeated, again.repeated) == (False, True)
    assert again.message_id == first.message_id
    with pytest.raises(InvalidRequest) as caught:
        await bus.publish("/a", 2, idempotency_key="order-1")
    assert caught.value.code == "idempotency_conflict"
    assert await bus.last_id("/a") == 1


async def test_a_batch_says_what_became_of_each(bus: Any) -> None:
    assert await bus.publish_batch([]) == []
    taken, refused, nobody, last = await bus.publish_batch(
        [
            Publication("/a", 1),
            Publication("", 2),
            Publication("/a", 3, user_ids=[]),
            Publication("/a", 4),
        ]
    )
    assert (taken, last) == (Published("/a", 1, 1), Published("/a", 2, 2))
    assert (refused.code, nobody.code) == ("invalid_channel", "invalid_audience")
    with pytest.raises(InvalidRequest, match="limit_exceeded"):
        await bus.publish_batch([Publication("/a", 1)] * 1001)


async def test_channels_are_read(bus: Any) -> None:
    await bus.publish_batch([Publication("/a", number) for number in range(1, 1000)])
    await bus.publish_batch([Publication("/b", number) for number in range(1, 201)])
    assert await bus.last_ids(["/a", "/b", "/c"]) == {"/a": 999, "/b": 200, "/c": 0}
    assert [each.data for each in await everything(bus.backlog("/a", 997))] == [998, 999]
    # More than a page.
    every = await everything(bus.global_backlog())
    assert [each.global_id for each in every] == list(range(1, 1200))
    assert [each.data for each in await everything(bus.global_backlog(1198))] == [200]
    await bus.delete_backlog("/a")
    assert await everything(bus.backlog("/a")) == []
    assert (await bus.publish("/a", "next")).message_id == 1000


async def test_refusals_say_why(bus: Any, daemon: Daemon) -> None:
    with pytest.raises(InvalidRequest) as invalid:
        await bus.publish("/__status", 1)
    assert (invalid.value.status, invalid.value.code) == (422, "reserved_channel")
    assert invalid.value.request_id
    async with AsyncClient(daemon.internal_url, "another key") as stranger:
        with pytest.raises(NotAllowed) as refused:
            await stranger.last_id("/a")
        assert refused.value.code == "unauthorized"
        assert "another key" not in str(refused.value)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://a", "http://", "http://a?b=c", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Client(url)


async def test_a_publish_whose_answer_is_lost_comes_out_once(bus: Any, daemon: Daemon) -> None:
    async with FaultProxy(port_of(daemon)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        with Client(url, daemon.key) as client:
            proxy.cut_after(b"POST /api/v1/publish")
            published = await asyncio.to_thread(client.publish, "/a", 1)
        async with AsyncClient(url, daemon.key) as other:
            proxy.cut_after(b"POST /api/v1/publish/batch")
            (batched,) = await other.publish_batch([Publication("/a", 2)])
    assert published == Published("/a", 1, 1, repeated=True)
    assert batched == Published("/a", 2, 2, repeated=True)
    assert [each.data for each in await everything(bus.backlog("/a"))] == [1, 2]


async def test_a_daemon_that_comes_late_is_waited_for(daemon: Daemon) -> None:
    async with FaultProxy(port_of(daemon)) as proxy:
        proxy.refuse()
        url = f"http://127.0.0.1:{proxy.port}"
        async with AsyncClient(url, daemon.key) as client:
            waiting = asyncio.create_task(client.publish("/a", 1))
            await asyncio.sleep(0)
            await proxy.accept()
            async with asyncio.timeout(WAIT_SECONDS):
                assert (await waiting).message_id == 1


# -- subscriptions


class Listener:
    """A subscription whose messages are collected, in a thread or a task."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.notices: list[Notice] = []
        self.error: BaseException | None = None
        self.subscription: Any = None
        self._end: Callable[[], Awaitable[None]] | None = None

    @property
    def data(self) -> list[Any]:
        return [each.data for each in self.messages]

    async def counted(self, count: int) -> None:
        """Wait until so many have come."""
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        while len(self.messages) < count:
            assert self.error is None, self.error
            assert asyncio.get_running_loop().time() < deadline, self.data
            await asyncio.sleep(0.01)

    async def received(self, *data: Any) -> None:
        """Wait until exactly this has come."""
        await self.counted(len(data))
        assert self.data == list(data)

    async def noticed(self, kind: type[Notice]) -> Any:
        """Wait for a notice and return the first one of its kind."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for each in self.notices:
                    if isinstance(each, kind):
                        return each
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        if self._end is not None:
            await self._end()


Listen = Callable[..., Awaitable[Listener]]


@pytest.fixture(params=["blocking", "asyncio"])
async def listen(request: pytest.FixtureRequest, daemon: Daemon) -> Any:
    """Follow what is asked for; ``port`` is that of a proxy."""
    listeners: list[Listener] = []

    async def start(*args: Any, port: int = 0, every: bool = False, **options: Any) -> Listener:
        url = f"http://127.0.0.1:{port}" if port else daemon.internal_url
        listener = Listener()
        listeners.append(listener)
        options["on_notice"] = listener.notices.append
        begin = _blocking if request.param == "blocking" else _asynchronous
        listener._end = await begin(listener, url, daemon.key, every, args, options)
        return listener

    yield start
    for each in listeners:
        await each.end()


async def _blocking(
    listener: Listener, url: str, key: str, every: bool, args: Any, options: Any
) -> Callable[[], Awaitable[None]]:
    client = Client(url, key)
    call = client.subscribe_all if every else client.subscribe
    subscription = listener.subscription = call(*args, **options)

    def iterate() -> None:
        try:
            for message in subscription:
                listener.messages.append(message)
        except Exception as error:
            listener.error = error

    thread = threading.Thread(target=iterate)
    thread.start()

    async def end() -> None:
        subscription.close()
        await asyncio.to_thread(thread.join, WAIT_SECONDS)
        assert not thread.is_alive()
        client.close()

    return end


async def _asynchronous(
    listener: Listener, url: str, key: str, every: bool, args: Any, options: Any
) -> Callable[[], Awaitable[None]]:
    client = AsyncClient(url, key)
    call = client.subscribe_all if every else client.subscribe
    subscription = listener.subscription = call(*args, **options)

    async def iterate() -> None:
        try:
            async with subscription:
                async for message in subscription:
                    listener.messages.append(message)
        except Exception as error:
            listener.error = error

    task = asyncio.create_task(iterate())

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])
        await client.close()

    return end


def port_of(daemon: Daemon) -> int:
    return int(daemon.internal_url.rpartition(":")[2])


async def test_channels_are_followed_from_their_positions(daemon: Daemon, listen: Listen) -> None:
    for number in range(3):
        await daemon.publish("/a", number)
        await daemon.publish("/b", -number, user_ids=[7])
    listener = await listen({"/a": 1, "/b": -2})
    await listener.received(1, 2, -2)
    await daemon.publish("/a", "live")
    await daemon.publish("/c", "not asked for")
    await daemon.publish("/b", "live too")
    await listener.received(1, 2, -2, "live", "live too")
    assert listener.messages[2].user_ids == (7,)
    assert listener.subscription.positions == {"/a": 4, "/b": 4}
    assert listener.subscription.last_id is None


async def test_all_channels_are_followed_by_global_id(daemon: Daemon, listen: Listen) -> None:
    await daemon.publish("/a", 1, site_id="forum")
    listener = await listen(0, every=True)
    await daemon.publish("/b", 2)
    await listener.received(1, 2)
    assert [each.site_id for each in listener.messages] == ["forum", None]
    assert listener.subscription.last_id == 2
    assert listener.subscription.positions == {}


@pytest.mark.parametrize("every", [False, True], ids=["some", "all"])
async def test_a_stream_that_breaks_loses_and_repeats_nothing(
    daemon: Daemon, listen: Listen, every: bool
) -> None:
    async with FaultProxy(port_of(daemon)) as proxy:
        listener = await listen(*(() if every else (["/a", "/b"],)), every=every, port=proxy.port)
        async with asyncio.timeout(WAIT_SECONDS):  # from now on: when it knows where that is
            while -1 in (listener.subscription.last_id, *listener.subscription.positions.values()):
                await asyncio.sleep(0.01)
        for number in range(30):
            await daemon.publish("/a" if number % 2 else "/b", number)
            if number % 10 == 5:
                await listener.counted(number + 1)
                proxy.reset()
            if number % 10 == 8:
                proxy.reset()
        await listener.counted(30)
        for channel, first in (("/a", 1), ("/b", 0)):
            came = [each.data for each in listener.messages if each.channel == channel]
            assert came == list(range(first, 30, 2))
        assert {each.code for each in listener.notices if isinstance(each, Interrupted)} == {
            "broken"
        }
        assert {type(each) for each in listener.notices} == {Interrupted}


async def test_a_stream_that_is_silent_is_given_up(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messagebus_client.async_client, "SILENCE_SECONDS", 0.3)
    async with FaultProxy(port_of(daemon)) as proxy:
        listener = Listener()
        url = f"http://127.0.0.1:{proxy.port}"
        options = {"on_notice": listener.notices.append}
        end = await _asynchronous(listener, url, daemon.key, False, ({"/a": 0},), options)
        await daemon.publish("/a", 1)
        await listener.received(1)
        proxy.blackhole()
        await daemon.publish("/a", 2)
        told = await listener.noticed(Interrupted)
        assert "in time" in told.detail
        proxy.restore()
        await listener.received(1, 2)
        await end()


async def test_a_daemon_that_restarts_is_followed(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    snapshot = {"backend": {"memory": {"snapshot_file": str(tmp_path / "snapshot")}}}
    daemon = await start_daemon(snapshot)
    listener = Listener()
    options = {"on_notice": listener.notices.append}
    end = await _blocking(listener, daemon.url, daemon.key, False, (["/a"],), options)
    async with asyncio.timeout(WAIT_SECONDS):
        while listener.subscription.positions == {"/a": -1}:
            await asyncio.sleep(0.01)
    for number in (1, 2):
        await daemon.publish("/a", number)
    await listener.received(1, 2)
    await daemon.restart()
    assert (await listener.noticed(Interrupted)).code == "draining"
    await daemon.publish("/a", 3)
    await listener.received(1, 2, 3)
    assert not [each for each in listener.notices if isinstance(each, Gap | Restarted)]
    # After a crash the store is what it was at its latest clean stop.
    await daemon.kill()
    (tmp_path / "snapshot").unlink()
    await daemon.restart()
    assert await listener.noticed(Restarted) == Restarted("/a", 0)
    await daemon.publish("/a", "anew")
    await listener.received(1, 2, 3, "anew")
    await end()


@pytest.fixture(params=["redis", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[RedisPlace | PostgresPlace]:
    """An empty store on a server."""
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        redis.flush()
        yield RedisPlace(redis)
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        name = postgres.create_database()
        yield PostgresPlace(postgres, name)
        postgres.drop_database(name)


async def test_other_stores_count_otherwise(place: RedisPlace | PostgresPlace, host: Host) -> None:
    """With PostgreSQL the ids of a channel have holes, which are no gaps."""
    daemon = await host({"backend": place.backend})
    for number in range(4):
        await daemon.publish("/a", number)
        await daemon.publish("/b", -number)
    async with FaultProxy(port_of(daemon)) as proxy:
        listener = Listener()
        url = f"http://127.0.0.1:{proxy.port}"
        options = {"on_notice": listener.notices.append}
        positions = {"/a": -3, "/b": 0, "/c": -2}
        end = await _asynchronous(listener, url, daemon.key, False, (positions,), options)
        await listener.counted(6)
        proxy.reset()
        for number in range(4, 8):
            await daemon.publish("/a", number)
            await daemon.publish("/b", -number)
            await daemon.publish("/c", 10 * number)
        await listener.counted(18)
        await end()
    for channel, data in (
        ("/a", [2, 3, 4, 5, 6, 7]),
        ("/b", [0, -1, -2, -3, -4, -5, -6, -7]),
        ("/c", [40, 50, 60, 70]),
    ):
        assert [each.data for each in listener.messages if each.channel == channel] == data
    assert {type(each) for each in listener.notices} == {Interrupted}


async def test_what_is_gone_is_told(daemon: Daemon, listen: Listen) -> None:
    await daemon.publish("/other", 0)
    for number in range(1, 6):
        await daemon.publish("/a", number, max_backlog_size=2)
    listener = await listen({"/a": 1})
    await listener.received(4, 5)
    assert listener.notices == [Gap("/a", 1, 4)]


PROCESS = """
import json, os, sys
from messagebus_client import Client
positions = json.loads(sys.argv[1])
with Client(os.environ["URL"], os.environ["KEY"]) as bus, bus.subscribe(positions) as messages:
    for message in messages:
        if message.data == "stop":
            break
        print(message.data)
    print(json.dumps(messages.positions))
"""


async def test_another_process_goes_on_where_one_stopped(daemon: Daemon) -> None:
    async def run(positions: str) -> list[str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", PROCESS, positions],
            env={
                **os.environ,
                "URL": daemon.url,
                "KEY": daemon.key,
                "PYTHONPATH": ":".join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    for data in ("a1", "a2", "stop"):
        await daemon.publish("/a", data)
    *received, positions = await run('{"/a": 0}')
    assert received == ["a1", "a2"]
    for data in ("a4", "stop"):
        await daemon.publish("/a", data)
    assert await run(positions) == ["a4", '{"/a": 5}']


async def test_what_cannot_go_on_is_raised(daemon: Daemon) -> None:
    with (
        Client(daemon.url, "another key") as stranger,
        pytest.raises(NotAllowed),
        stranger.subscribe(["/a"]) as messages,
    ):
        await asyncio.to_thread(next, messages)
    async with (
        AsyncClient(daemon.url, daemon.key) as bus,
        bus.subscribe(["no channel\n"]) as messages,
    ):
        with pytest.raises(InvalidRequest, match="invalid_channel"):
            await anext(messages)


async def test_a_subscription_ends_where_it_iterates(daemon: Daemon) -> None:
    for number in range(3):
        await daemon.publish("/a", number)

    def iterate() -> list[Any]:
        received = []
        with Client(daemon.url, daemon.key) as bus:
            messages = bus.subscribe({"/a": 0})
            for message in messages:
                received.append(message.data)
                if message.data == 1:
                    messages.close()
            assert messages.positions == {"/a": 2}
        return received

    assert await asyncio.to_thread(iterate) == [0, 1]
