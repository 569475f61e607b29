"""Thousands of parked polls on one worker, with real sockets.

The daemon is a process of its own; its clients live here, on uvloop, each a protocol that keeps
what it received and nothing else. Everything waits for conditions, with limits that only a broken
daemon reaches: how fast all of this is, is measured in ``bench``.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import uvloop

from tests.support.daemon import Daemon
from tests.support.rawhttp import RawConnection, Response, encode_request

STREAMS = 10_000
LONG_POLLS = 2_000
# Besides one for each client, here or in the daemon, which keeps 512 itself.
SPARE_DESCRIPTORS = 1024
# Connections that are opened at the same time, well below any listen backlog.
OPENING = 100
# Far beyond what is needed: a loaded machine is slow, not wrong.
WAIT_SECONDS = 90.0
LOOK_SECONDS = 0.01

SEPARATOR = b"\r\n|\r\n"
LAST_CHUNK = b"0\r\n\r\n"

CONFIG: dict[str, dict[str, Any]] = {
    # Nothing ends but by a message or a signal: deadline and drain limit are out of reach.
    "server": {"trusted_proxies": ["127.0.0.1"], "shutdown_timeout": 3600.0},
    "poll": {"max_active_clients": STREAMS, "long_polling_interval": 3600.0},
    "lookup": {"mode": "headers"},
}

pytestmark = pytest.mark.timeout(300)

Scenario = Callable[[Daemon], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    """Play a scenario on uvloop, against a daemon that has room for its clients."""

    async def main(scenario: Scenario) -> None:
        async with Daemon(tmp_path, CONFIG) as daemon:
            await scenario(daemon)

    def play(scenario: Scenario) -> None:
        with (
            _descriptors(STREAMS + SPARE_DESCRIPTORS),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(main(scenario))

    return play


@contextmanager
def _descriptors(wanted: int) -> Iterator[None]:
    """Have so many, here and in the daemon, which inherits the limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.fail(
            f"{STREAMS} clients need {wanted} file descriptors in one process, and the hard limit "
            f"here is {hard}: raise it (ulimit -Hn, LimitNOFILE=, docker --ulimit nofile=)"
        )
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def until(condition: Callable[[], bool], missing: Callable[[], object]) -> None:
    """Wait for a condition; AssertionError, with what is missing, when it never holds."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_SECONDS:g} s: {missing()}") from None


def poll_request(number: int, body: bytes, **headers: str) -> bytes:
    """The poll of client and user ``number``, as nginx passes it on."""
    return encode_request(
        "POST",
        f"/message-bus/client-{number}/poll",
        headers={
            "Content-Type": "application/x-www-form-urlencoded",
            "X-MessageBus-User": str(number),
            **headers,
        },
        body=body,
    )


async def get(daemon: Daemon, path: str) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        return await connection.request(encode_request("GET", path), WAIT_SECONDS)


async def parked(daemon: Daemon, mode: str) -> int:
    """How many polls the daemon says it holds."""
    text = (await get(daemon, "/metrics")).body.decode()
    found = re.search(rf'^messagebusd_parked_polls{{mode="{mode}"}} (\d+)', text, re.MULTILINE)
    assert found, text
    return int(found[1])


async def end_at_once(daemon: Daemon) -> int:
    """SIGTERM, and again when it is heard: the drain is cut short. The exit code."""
    daemon.signal(signal.SIGTERM)
    await until(
        lambda: any(record["message"] == "draining" for record in daemon.log), daemon.output
    )
    return await daemon.stop(WAIT_SECONDS)


class Stream(asyncio.Protocol):
    """A parked stream: counts frames as they come, and keeps the bytes for later."""

    __slots__ = ("crowd", "ended", "received", "request", "transport")

    def __init__(self, crowd: Crowd, request: bytes) -> None:
        self.crowd = crowd
        self.request = request
        self.received = bytearray()
        self.ended = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        # No message here has a pipe in it, so each is a frame, however the bytes are cut.
        self.received += data
        self.crowd.frames += data.count(b"|")

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self.crowd.ended += 1


class Crowd:
    """All streams, and what they received together."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.frames = 0
        self.ended = 0

    async def open(self, address: str, count: int, body: bytes) -> None:
        parts = urlsplit(address)
        loop = asyncio.get_running_loop()
        numbers = iter(range(count))

        async def open_some() -> None:
            for number in numbers:
                stream = Stream(self, poll_request(number, body))
                self.streams.append(stream)
                await loop.create_connection(lambda: stream, parts.hostname, parts.port)  # noqa: B023

        async with asyncio.TaskGroup() as group:
            for _ in range(OPENING):
                group.create_task(open_some())
        await self.received_frames(count)

    async def received_frames(self, total: int) -> None:
        await until(
            lambda: self.frames >= total,
            lambda: f"{self.frames} of {total} frames came, {self.ended} streams ended",
        )
        assert self.frames == total

    def abort(self) -> None:
        for stream in self.streams:
            if stream.transport is not None:
                stream.transport.abort()


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    streams = Crowd()
    try:
        yield streams
    finally:
        streams.abort()
        await until(lambda: streams.ended == len(streams.streams), lambda: "closing ourselves")


def frames_of(received: bytes) -> list[list[dict[str, Any]]]:
    """The frames of a whole stream: one in each chunk, and nothing after the last chunk."""
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    assert b"\r\ntransfer-encoding: chunked" in head
    frames = []
    while rest != LAST_CHUNK:
        size, _, rest = rest.partition(b"\r\n")
        assert size, f"the terminal chunk is missing: {received!r}"
        end = int(size, 16)
        assert rest[end - len(SEPARATOR) : end + 2] == SEPARATOR + b"\r\n"
        frames.append(json.loads(rest[: end - len(SEPARATOR)]))
        rest = rest[end + 2 :]
    return frames


class Traffic:
    """What else goes on at a busy daemon, each kind over and over."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._published = 0
        self.answered: Counter[str] = Counter()

    async def publish(self) -> None:
        answer = await self._daemon.publish("/elsewhere", "x", max_backlog_size=10)
        self._published += 1
        assert answer["message_id"] == self._published

    async def poll(self) -> None:
        known = self._published
        async with await RawConnection.open(self._daemon.url) as connection:
            request = poll_request(STREAMS, b"/elsewhere=-2", **{"Dont-Chunk": "true"})
            request = request.replace(b"/poll HTTP", b"/poll?dlp=t HTTP", 1)
            answer = await connection.request(request, WAIT_SECONDS)
        assert answer.status == 200
        ids = [message["message_id"] for message in json.loads(answer.body)]
        assert len(ids) == min(1, known) or ids[-1] >= known

    async def ready(self) -> None:
        answer = await get(self._daemon, "/readyz")
        assert (answer.status, json.loads(answer.body)["status"]) == (200, "ok")

    async def metrics(self) -> None:
        assert await parked(self._daemon, "stream") == STREAMS

    async def _repeat(self, kind: Callable[[], Awaitable[None]]) -> None:
        while True:
            await kind()
            self.answered[kind.__name__] += 1

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        kinds = (self.publish, self.poll, self.ready, self.metrics)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._repeat(kind)) for kind in kinds]
            yield
            for task in tasks:
                task.cancel()

    async def each_was_answered(self) -> None:
        """Wait until every kind was asked, and answered, after this call."""
        before = self.answered.copy()
        kinds = ("publish", "poll", "ready", "metrics")
        await until(
            # One may have been under way already; the second one cannot.
            lambda: all(self.answered[kind] >= before[kind] + 2 for kind in kinds),
            lambda: f"{self.answered}, was {before}",
        )


def test_ten_thousand_streams(play):
    target = STREAMS // 3
    told = [("/news", 1), *(("/all", number) for number in range(1, 4))]
    told_to_target = [told[0], ("/news", 2), *told[1:]]

    async def scenario(daemon: Daemon) -> None:
        async with crowd() as streams:
            await streams.open(daemon.url, STREAMS, b"/news=0&/all=0")
            assert await parked(daemon, "stream") == STREAMS
            frames = STREAMS

            await daemon.publish("/news", {"for": "everybody"})
            frames += STREAMS
            await streams.received_frames(frames)

            await daemon.publish("/news", {"for": "one"}, user_ids=[target])
            frames += 1
            await streams.received_frames(frames)

            traffic = Traffic(daemon)
            async with traffic.flowing():
                for _ in range(3):
                    await daemon.publish("/all", {"for": "everybody"})
                    await traffic.each_was_answered()
                    frames += STREAMS
                    await streams.received_frames(frames)
            assert streams.ended == 0

            assert await end_at_once(daemon) == 0, daemon.output()
            await until(
                lambda: streams.ended == STREAMS, lambda: f"{streams.ended} streams have ended"
            )
            for number, stream in enumerate(streams.streams):
                check(stream, told_to_target if number == target else told)

    def check(stream: Stream, expected: list[tuple[str, int]]) -> None:
        first, *middle, last = frames_of(bytes(stream.received))
        assert first == []
        ids = [(each["channel"], each["message_id"]) for frame in middle for each in frame]
        assert ids == expected
        # Those who were not meant learn at the end how far the channel is.
        statuses = [each["data"] for each in last]
        assert statuses == ([] if expected is told_to_target else [{"/news": 2}])

    play(scenario)


class Exchange(asyncio.Protocol):
    """One request on a connection that its answer ends."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer.cancelled():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(bytes(self._received))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class LongPoller:
    """A client that polls, remembers its position, and polls again."""

    def __init__(self, address: str, number: int) -> None:
        self._address = urlsplit(address)
        self._number = number
        self.answers = 0
        self.seen: list[int] = []

    async def run(self) -> None:
        """Poll until an empty answer says that the daemon ends."""
        while ids := await self._poll(self.seen[-1] if self.seen else 0):
            self.seen += ids

    async def _poll(self, position: int) -> list[int]:
        headers = {"Dont-Chunk": "true", "Connection": "close"}
        request = poll_request(self._number, b"/news=%d" % position, **headers)
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_connection(
            lambda: Exchange(request), self._address.hostname, self._address.port
        )
        try:
            received = await exchange.answer
        finally:
            exchange.abort()
        self.answers += 1
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n"), received
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        assert length, head
        assert int(length[1]) == len(body)
        return [message["message_id"] for message in json.loads(body)]


async def all_parked(daemon: Daemon) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await parked(daemon, "long_poll") < LONG_POLLS:
            await asyncio.sleep(LOOK_SECONDS)


def test_long_polls_come_back_and_miss_nothing(play):
    async def scenario(daemon: Daemon) -> None:
        pollers = [LongPoller(daemon.url, number) for number in range(LONG_POLLS)]

        async def have_seen(count: int, message_id: int) -> None:
            def those() -> int:
                return sum(message_id in poller.seen for poller in pollers)

            await until(
                lambda: those() >= count, lambda: f"message {message_id}: {those()} of {count}"
            )

        async with asyncio.TaskGroup() as group:
            for poller in pollers:
                group.create_task(poller.run())
            await all_parked(daemon)
            await daemon.publish("/news", 1)
            await have_seen(LONG_POLLS, 1)
            assert all((poller.answers, poller.seen) == (1, [1]) for poller in pollers)

            # From now on the herd is on its way back: who has not arrived when the next message
            # is published finds it in the backlog, the others are waiting for it.
            for message_id in range(2, 6):
                await daemon.publish("/news", message_id)
                await have_seen(LONG_POLLS // 10, message_id)
            await have_seen(LONG_POLLS, 5)
            assert all(poller.seen == [1, 2, 3, 4, 5] for poller in pollers)

            await all_parked(daemon)
            assert await end_at_once(daemon) == 0, daemon.output()
        assert all(poller.seen == [1, 2, 3, 4, 5] for poller in pollers)

    play(scenario)
