"""The socket's way from aiohttp to a parked poll, with real sockets.

Everything runs six times: on asyncio's and on uvloop's transports, by way of the front, taken over
from aiohttp, and in the plain fallback. What the daemon holds is looked at from inside, so that a
poll that leaks is found.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from messagebusd.backends.base import Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import MessageBus
from messagebusd.connection import CloseReason
from messagebusd.http import takeover
from messagebusd.http.app import application, runner
from messagebusd.http.call import through_aiohttp
from messagebusd.http.cors import CorsPolicy
from messagebusd.http.front import Front, Route, routes
from messagebusd.http.limits import PollGate
from messagebusd.http.middleware import Errors
from messagebusd.http.poll import PollDoor
from messagebusd.http.probing import Probes
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.sites import SiteMap
from messagebusd.hub import Hub
from messagebusd.identity import AnonymousLookup
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import Publication, PublishRules
from messagebusd.protocol.requests import Mode
from messagebusd.settings import PollSettings
from tests.support.rawhttp import RawConnection, encode_request

INTERVAL = 1.0


class World:
    """A server with nothing but the polls' door, and the hub behind it."""

    has_front = True

    def __init__(self, **options: Any) -> None:
        settings = PollSettings(long_polling_interval=INTERVAL, **options)
        self.metrics = Metrics()
        self.hub = Hub(
            asyncio.get_running_loop(),
            self.metrics,
            interval=settings.long_polling_interval,
            max_active_clients=settings.max_active_clients,
            max_client_buffer=settings.max_client_buffer,
        )
        self.backend = MemoryBackend(Retention(), max_bytes=2**26)
        self.bus = MessageBus(self.backend, self.hub, self.metrics, max_backlog_bytes=2**22)
        door = PollDoor(
            "/message-bus/",
            self.bus,
            AnonymousLookup(),
            self.metrics,
            CorsPolicy((), (), (), 0),
            Probes(TrustedProxies(())),
            settings,
            PublishRules(),
            SiteMap({}),
            PollGate(settings, TrustedProxies(())),
        )
        errors = Errors(self.metrics)
        app = application(errors, lambda: False)
        app.router.add_route("*", "/message-bus/{path:.*}", through_aiohttp(door.handle))
        self._polls = Route(door.handle, door.is_immediate)
        self._errors = errors
        self._runner = runner(app, self.metrics, 5.0)
        self.url = ""

    async def __aenter__(self) -> World:
        await self.backend.open()
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        find = routes({}, "/message-bus/", self._polls)
        self._front = Front(server, find, self._errors, lambda: False)
        self._listener = await asyncio.get_running_loop().create_server(
            self._front if self.has_front else server, "127.0.0.1", 0
        )
        port = self._listener.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hub.close_matching(lambda _: True)
        self._listener.close()
        await self._front.close(5.0)
        await self._runner.cleanup()
        self.hub.abort()
        await self.backend.close()

    async def publish(self, channel: str = "/a", data: bytes = b"1") -> None:
        await self.bus.publish(Publication(channel, data))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)

    async def parked(self, count: int = 1) -> None:
        await self.until(lambda: self.hub.parked == count)

    def outcome(self, reason: CloseReason, mode: Mode = Mode.STREAM) -> float:
        return self.metrics._poll_ends[mode, reason]._value.get()

    def assert_nothing_left(self) -> None:
        assert self.hub.parked == 0
        assert self.hub._index == {}
        assert self.hub._buckets == {}


def poll(client: str = "c", body: bytes = b"/a=0", **options: Any) -> bytes:
    path = f"/message-bus/{client}/poll{options.pop('query', '')}"
    kind = ("Content-Type", "application/x-www-form-urlencoded")
    headers = [kind, *options.pop("headers", [])]
    return encode_request("POST", path, headers=headers, body=body, **options)


DONT_CHUNK = [("Dont-Chunk", "true")]


def told(response: Any) -> list[int]:
    """Message ids in everything that a response brought."""
    arrays = response.body.split(b"\r\n|\r\n")
    return [each["message_id"] for array in arrays if array for each in json.loads(array)]


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[request.param]


@pytest.fixture(params=["front", "taken over", "held here"])
def way(request, monkeypatch):
    monkeypatch.setattr(World, "has_front", request.param == "front")
    if request.param == "held here":
        monkeypatch.setattr(takeover, "_can_change_protocol", lambda transport: False)
    return request.param


@pytest.fixture
def play(loop_factory, way):
    def play(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            async with World(**options) as world:
                await scenario(world)

        with asyncio.Runner(
            loop_factory=loop_factory, debug=loop_factory is asyncio.new_event_loop
        ) as each:
            each.run(main())

    return play


def test_a_stream_is_held_fed_and_ended(play):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll())
            await response.chunk_count(1)
            await world.parked()
            await world.publish()
            await response.chunk_count(2)
            await world.publish()
            await response.finished()
            assert await client.closed_by_peer()
        assert told(response) == [1, 2]
        assert [len(each.data) > 0 for each in response.chunks] == [True] * 4
        assert response.values("content-type") == ["text/plain; charset=utf-8"]
        assert response.values("connection") == ["close"]
        assert world.outcome(CloseReason.DEADLINE) == 1
        world.assert_nothing_left()

    play(scenario)


def test_a_long_poll_is_answered_by_a_message_or_by_its_deadline(play):
    async def scenario(world):
        for publish, ids in ((True, [1]), (False, [])):
            async with await RawConnection.open(world.url) as client:
                response = client.send(
                    poll(
                        body=b"/a=-1&/a=%d" % len(ids or [0]) if not publish else b"/a=0",
                        headers=DONT_CHUNK,
                    )
                )
                await world.parked()
                if publish:
                    await world.publish()
                await response.finished()
                assert await client.closed_by_peer()
            assert told(response) == ids
            assert response.values("content-type") == ["application/json; charset=utf-8"]
        world.assert_nothing_left()

    play(scenario)


def test_http_1_0_is_never_chunked(play):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll(version="1.0"))
            await world.parked()
            await world.publish()
            await response.finished()
        assert told(response) == [1]
        assert response.header("transfer-encoding") is None
        assert response.header("content-length") is not None

    play(scenario)


def test_a_connection_that_was_used_before_can_be_held(play):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            for _ in range(3):
                response = await client.request(poll(query="?dlp=t"))
                assert (response.status, response.body) == (200, b"[]")
            response = client.send(poll())
            await world.parked()
            await world.publish()
            await response.chunk_count(2)
        assert told(response) == [1]

    play(scenario)


def test_immediate_answers_keep_the_connection(play):
    async def scenario(world):
        await world.publish()
        async with await RawConnection.open(world.url) as client:
            for _ in range(3):
                response = await client.request(poll(headers=DONT_CHUNK))
                assert told(response) == [1]
            assert not await client.closed_by_peer(within=0.1)

    play(scenario)


@pytest.mark.parametrize("headers", [[], DONT_CHUNK])
def test_requests_pipelined_behind_a_held_one_end_with_the_connection(play, headers):
    """The held answer says ``Connection: close``: what follows must be sent again."""

    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll(headers=headers) + poll("other") + poll("third"))
            await world.parked()
            client.send_more(poll("late") * 50)
            await world.publish()
            await response.finished()
            assert await client.closed_by_peer()
            assert client.unread == b""
        assert told(response) == [1]
        assert response.values("connection") == ["close"]
        world.assert_nothing_left()

    play(scenario)


def test_pipelined_immediate_polls_are_answered_in_order(play):
    async def scenario(world):
        await world.publish()
        async with await RawConnection.open(world.url) as client:
            first = await client.request(poll(query="?dlp=t") + poll(query="?dlp=t", body=b"/a=1"))
            second = await client.request(b"")
        assert (told(first), told(second)) == ([1], [])

    play(scenario)


def test_a_half_closed_client_is_gone(play, way):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll())
            await response.chunk_count(1)
            await world.parked()
            client.half_close()
            await world.until(lambda: world.hub.parked == 0)
        world.assert_nothing_left()
        # Only a connection that was taken over is told at once; the other one by its deadline.
        if way != "held here":
            assert world.outcome(CloseReason.DISCONNECTED) == 1

    play(scenario)


@pytest.mark.parametrize("headers", [[], DONT_CHUNK])
def test_a_client_that_vanishes_is_forgotten(play, headers):
    async def scenario(world):
        for _ in range(5):
            client = await RawConnection.open(world.url)
            client.send(poll(headers=headers))
            await world.parked()
            await client.abort()
            await world.publish()
            await world.until(lambda: world.hub.parked == 0)
            await world.backend.delete_backlog("/a")
        world.assert_nothing_left()

    # the same client id each time, positions far behind: each is replaced or found dead
    play(scenario)


@pytest.mark.parametrize("part", [10, 60, -3])
def test_half_a_request_holds_nothing(play, part):
    async def scenario(world):
        request = poll()
        client = await RawConnection.open(world.url)
        client.send(request[:part])
        await asyncio.sleep(0.05)
        await client.abort()
        await asyncio.sleep(0.05)
        world.assert_nothing_left()

    play(scenario)


def test_a_client_that_vanishes_during_its_request(play):
    async def scenario(world):
        for _ in range(20):
            client = await RawConnection.open(world.url)
            client.send(poll())
            await client.abort()
        await world.until(lambda: world.hub.parked == 0)
        world.assert_nothing_left()

    play(scenario)


def test_expect_continue(play):
    async def scenario(world):
        request = poll(headers=[("Expect", "100-continue")])
        head, _, body = request.partition(b"\r\n\r\n")
        async with await RawConnection.open(world.url) as client:
            response = client.send(head + b"\r\n\r\n")
            await asyncio.sleep(0.05)
            client.send_more(body)
            await response.chunk_count(1)
            await world.parked()
            await world.publish()
            await response.chunk_count(2)
        assert told(response) == [1]
        assert len(response.interim) == 1

    play(scenario)


def test_a_body_in_pieces(play):
    async def scenario(world):
        request = poll()
        async with await RawConnection.open(world.url) as client:
            response = client.send(request[:20])
            for index in range(20, len(request), 9):
                await asyncio.sleep(0)
                client.send_more(request[index : index + 9])
            await response.chunk_count(1)
            await world.parked()

    play(scenario)


def test_a_slow_sender_gets_a_408(play):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll()[:-2])
            await response.finished()
            assert response.status == 408
            assert json.loads(response.body)["code"] == "request_timeout"
            assert await client.closed_by_peer()

    play(scenario, body_timeout=0.1)


def test_a_client_that_does_not_read_is_ended_and_loses_nothing(play, way):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll())
            await response.chunk_count(1)
            await world.parked()
            client.pause()
            count = 0
            while world.hub.parked and count < 200:
                await world.publish(data=b'"%b"' % (b"x" * 100_000))
                count += 1
                await asyncio.sleep(0)
            assert world.outcome(CloseReason.SLOW) == 1
            client.resume()
            await response.finished()
        seen = told(response)
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) < count
        async with await RawConnection.open(world.url) as again:
            rest = await again.request(poll(body=b"/a=%d" % seen[-1], query="?dlp=t"))
        assert told(rest)[0] == seen[-1] + 1
        world.assert_nothing_left()

    play(scenario, max_client_buffer=100_000)


def test_a_large_backlog_reaches_a_slow_reader_whole(play):
    async def scenario(world):
        for _ in range(30):
            await world.publish(data=b'"%b"' % (b"x" * 100_000))
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll())
            client.pause()
            await world.parked()
            await world.publish(data=b'"live"')
            client.resume()
            await response.chunk_count(2)
            assert told(response) == list(range(1, 32))

    play(scenario, max_client_buffer=1000)


def test_a_large_answer_that_nobody_reads_is_dropped(play, way, monkeypatch):
    monkeypatch.setattr("messagebusd.hub.LINGER_SECONDS", 0.3)

    async def scenario(world):
        for _ in range(100):
            await world.publish(data=b'"%b"' % (b"x" * 100_000))
        async with await RawConnection.open(world.url) as client:
            client.pause()
            client.send(poll(query="?dlp=t"))
            if way != "held here":  # elsewhere the socket stays aiohttp's
                await world.until(lambda: len(world.hub._lingering) == 1)
            await world.until(lambda: not world.hub._lingering)
        async with await RawConnection.open(world.url) as client:
            whole = await client.request(poll(query="?dlp=t"))
        assert told(whole)[0] == 1
        assert whole.complete
        assert whole.header("content-length") == str(len(whole.body))

    play(scenario)


def test_a_newer_poll_ends_the_older_one_with_its_last_frame(play):
    async def scenario(world):
        async with (
            await RawConnection.open(world.url) as older,
            await RawConnection.open(world.url) as newer,
        ):
            first = older.send(poll(body=b"/a=0&__seq=1"))
            await first.chunk_count(1)
            await world.parked()
            second = newer.send(poll(body=b"/a=0&__seq=2"))
            await first.finished()
            await second.chunk_count(1)
            await world.publish()
            await second.chunk_count(2)
        assert (told(first), told(second)) == ([], [1])
        assert world.outcome(CloseReason.SUPERSEDED) == 1

    play(scenario)


def test_the_door_closes_with_polls_parked(play):
    async def scenario(world):
        async with await RawConnection.open(world.url) as client:
            response = client.send(poll())
            await response.chunk_count(1)
            await world.parked()
            await world.__aexit__()
            await response.finished()
        world.assert_nothing_left()

    play(scenario)
