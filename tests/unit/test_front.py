"""The front alone: what it answers, what it hands on, and how connections end."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator

import pytest

from messagebusd.errors import NotFound
from messagebusd.http.call import Answer, Call
from messagebusd.http.front import PATIENCE_SECONDS, Front, Route, routes
from messagebusd.http.middleware import Errors
from messagebusd.metrics import Metrics
from tests.support.transport import RecordingTransport

BODY = b"/a=0&%2Fb=1"
REQUEST = (
    b"POST /bus/me/poll?dlp=t HTTP/1.1\r\nHost: forum.example\r\nX-Forwarded-For: 192.0.2.1\r\n"
    b"Accept: */*\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
# What a plain request may look like at most, written down a second time.
STRICT = re.compile(
    rb"POST (/[\x21-\x22\x24-\x7e\x80-\xff]*) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)+)\r\n(.*)",
    re.DOTALL,
)


class Transport(RecordingTransport):
    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Odd(asyncio.Protocol):
    """Stands where aiohttp's protocol would."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data


class World:
    """A front with one door below ``/bus/``, which notes its calls."""

    def __init__(self, *, immediate: bool = True, api: bool = False, **options: float) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.draining = False
        self.waits: asyncio.Future[None] | None = None
        door = Route(self.answer, immediate, api)
        self.front = Front(
            Odd,
            routes({"/exact": door}, "/bus/", door),
            Errors(Metrics()),
            lambda: self.draining,
            **options,
        )

    async def answer(self, call: Call) -> Answer | None:
        body = await call.read_body(1000, 1.0)
        self.calls.append((f"{call.path}?{call.raw_query}", body))
        if call.path == "/bus/missing":
            raise NotFound("no such thing")
        if self.waits is not None:
            await self.waits
        return Answer(200, b"[]", (("content-type", "text/plain"),))

    def connect(self) -> tuple[asyncio.Protocol, Transport]:
        protocol, transport = self.front(), Transport()
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol, transport


def answers(transport: Transport) -> int:
    return sum(each.startswith(b"HTTP/1.1 200 OK\r\n") for each in transport.writes)


def handed_on(transport: Transport) -> bytes | None:
    protocol = transport.protocol
    return protocol.received if isinstance(protocol, Odd) else None


async def test_a_plain_request_is_answered_at_once() -> None:
    world = World()
    protocol, transport = world.connect()
    for count in (1, 2, 3):
        protocol.data_received(REQUEST)
        assert answers(transport) == count
    assert world.calls == [("/bus/me/poll?dlp=t", BODY)] * 3
    head, _, body = transport.writes[0].partition(b"\r\n\r\n")
    assert (body, b"Content-Length: 2" in head, b"Connection" in head) == (b"[]", True, False)


async def test_a_request_may_be_cut_anywhere() -> None:
    world = World()
    for place in range(1, len(REQUEST)):
        for other in {place, min(place + 7, len(REQUEST) - 1)}:
            world.calls.clear()
            protocol, transport = world.connect()
            for piece in (REQUEST[:place], REQUEST[place:other], REQUEST[other:]):
                if piece:
                    protocol.data_received(piece)
            assert answers(transport) == 1
            assert world.calls == [("/bus/me/poll?dlp=t", BODY)]


async def test_byte_by_byte() -> None:
    world = World()
    protocol, transport = world.connect()
    for _ in range(2):
        for place in range(len(REQUEST)):
            protocol.data_received(REQUEST[place : place + 1])
    assert answers(transport) == 2


async def test_what_does_not_come_is_waited_for_by_aiohttp() -> None:
    world = World()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST[:-1])
    async with asyncio.timeout(20 * PATIENCE_SECONDS):
        while handed_on(transport) is None:
            await asyncio.sleep(0.01)
    assert handed_on(transport) == REQUEST[:-1]
    assert (world.calls, transport.writes) == ([], [])


@pytest.mark.parametrize("size", [64 * 1024, 200_000])
async def test_large_requests_are_handed_on(size: int) -> None:
    world = World()
    _, transport = world.connect()
    whole = REQUEST.replace(b"Length: %d" % len(BODY), b"Length: %d" % size)
    whole += b"x" * (size - len(BODY))
    for place in range(0, len(whole), 16_384):
        transport.protocol.data_received(whole[place : place + 16_384])  # type: ignore[union-attr]
    assert handed_on(transport) == whole
    assert world.calls == []


def mutated(seed: int, count: int) -> Iterator[bytes]:
    choose = random.Random(seed)
    pieces = [
        *(bytes([each]) for each in (0, 1, 9, 10, 11, 13, 32, 35, 43, 58, 95, 127, 128, 255)),
        *(b"\r\n", b"\r\n\r\n", b"\n\n", b" ", b"Content-Length: 3\r\n", b"Content-Length: 11\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"transfer-encoding: identity\r\n", b"Expect: x\r\n"),
        *(
            b"Host: x\r\n",
            b"Upgrade: h2c\r\n",
            b"Connection: upgrade\r\n",
            b"Connection: close\r\n",
        ),
        *(b"0\r\n\r\n", b"GET / HTTP/1.1\r\n", b"POST /bus/x HTTP/1.1\r\n", b"1", b"0", b"-", b"_"),
    ]
    for _ in range(count):
        request = bytearray(REQUEST)
        for _ in range(choose.choice((1, 1, 1, 2, 3))):
            place = choose.randrange(len(request) + 1)
            if choose.random() < 0.3:  # whole lines are where smuggling lives
                place = choose.choice(
                    [each.end() for each in re.finditer(rb"\r\n", request)] or [0]
                )
            end = place + choose.choice((0, 0, 1, 2, 5))
            request[place:end] = choose.choice(pieces)
        yield bytes(request)


def strictly(request: bytes) -> tuple[str, bytes] | None:
    """Target and body of what is a plain request without any doubt; None for all else."""
    found = STRICT.fullmatch(request)
    if found is None:
        return None
    target, lines, body = found.groups()
    fields = [line.split(b":", 1) for line in lines.split(b"\r\n")[:-1]]
    names = [name.lower() for name, _ in fields]
    lengths = [value.strip(b" \t") for name, value in fields if name.lower() == b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or int(lengths[0]) != len(body):
        return None
    if names.count(b"host") != 1 or not {b"transfer-encoding", b"expect"}.isdisjoint(names):
        return None
    path, _, query = target.decode("utf-8", "surrogateescape").partition("?")
    return f"{path}?{query}", body


async def test_what_is_answered_can_be_read_in_one_way_only() -> None:
    """Mutated requests: each is answered as what it strictly is, or handed on as it came."""
    seed = random.SystemRandom().randrange(2**32)
    answered = 0
    world = World()
    for request in mutated(seed, 5_000):
        world.calls.clear()
        protocol, transport = world.connect()
        cut = random.randrange(len(request) + 1)
        transport.protocol.data_received(request[:cut])  # type: ignore[union-attr]
        transport.protocol.data_received(request[cut:])  # type: ignore[union-attr]
        protocol.connection_lost(None)
        if not world.calls:
            given = handed_on(transport)
            assert given in (None, request), (seed, request)
            assert transport.writes == [], (seed, request)
            continue
        answered += 1
        first = request[:cut]
        # Two pieces may be two requests, and the second one is nobody's.
        told = strictly(first) or strictly(request)
        assert told == world.calls[0], (seed, cut, request)
        assert handed_on(transport) in (None, request[cut:]), (seed, cut, request)
    assert answered > 200


def sized(body: bytes) -> bytes:
    head, _, _ = REQUEST.partition(b"\r\n\r\n")
    return head.replace(b"Length: %d" % len(BODY), b"Length: %d" % len(body)) + b"\r\n\r\n" + body


async def test_a_publishers_head_is_read_once() -> None:
    world = World(api=True)
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    protocol._parser = None  # type: ignore[attr-defined]
    for size in (0, 9, 10, 99, 999):
        protocol.data_received(sized(b"x" * size))
        assert world.calls[-1] == ("/bus/me/poll?dlp=t", b"x" * size)
    assert answers(transport) == 6


async def test_pollers_heads_are_not_remembered() -> None:
    """Theirs may be shown to the application, the length of the body among them."""
    world = World()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    protocol._parser = None  # type: ignore[attr-defined]
    protocol.data_received(REQUEST)
    assert handed_on(transport) == REQUEST


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST + b"P",
        REQUEST + REQUEST,
        sized(b"x") + b"\r\n",
        REQUEST.replace(b"Length: 11", b"Length: -1"),
        REQUEST.replace(b"Length: 11", b"Length: +11"),
        REQUEST.replace(b"Length: 11", b"Length: 1_1"),
        REQUEST.replace(b"Length: 11", b"Length: " + b"9" * 5_000),
        REQUEST.replace(b"Length: 11", b"Length: 11\r\nContent-Length: 11"),
        REQUEST.replace(b"Length: 11", b"Length: 11\r\nTransfer-Encoding: chunked"),
    ],
)
async def test_a_known_head_hides_nothing(request_: bytes) -> None:
    world = World(api=True)
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    protocol.data_received(request_)
    assert handed_on(transport) == request_
    assert (len(world.calls), answers(transport)) == (1, 1)


async def test_a_known_head_changes_no_reading() -> None:
    """Mutated requests behind one that is known."""
    seed = random.SystemRandom().randrange(2**32)
    answered = 0
    world = World(api=True)
    for request in mutated(seed, 5_000):
        world.calls.clear()
        protocol, transport = world.connect()
        protocol.data_received(REQUEST)
        protocol.data_received(request)
        protocol.connection_lost(None)
        if len(world.calls) == 1:
            assert handed_on(transport) in (None, request), (seed, request)
            continue
        answered += 1
        assert world.calls[1:] == [strictly(request)], (seed, request)
    assert answered > 200


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST + b"P",
        REQUEST + REQUEST,
        b"\r\n" + REQUEST,
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"x",
        REQUEST.replace(b"/bus/", b"/others/"),
        REQUEST.replace(b"/bus/", b"http://x/bus/"),
        REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"),
        REQUEST.replace(b"Accept:", b"Expect:"),
    ],
)
async def test_what_is_not_plain_is_handed_on_whole(request_: bytes) -> None:
    world = World()
    protocol, transport = world.connect()
    protocol.data_received(request_)
    assert handed_on(transport) == request_
    assert transport.protocol.transport is transport  # type: ignore[union-attr]
    assert (world.calls, transport.writes) == ([], [])


async def test_after_plain_ones_an_odd_one_is_handed_on_alone() -> None:
    world = World()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    protocol.data_received(b"GET / HTTP/1.1\r\n")
    assert answers(transport) == 1
    assert handed_on(transport) == b"GET / HTTP/1.1\r\n"


async def test_errors_are_answered() -> None:
    world = World()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST.replace(b"/me/poll", b"/missing"))
    assert transport.writes[0].startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b'"code":"not_found"' in transport.writes[0]


@pytest.mark.parametrize("immediate", [True, False])
async def test_an_answer_may_take_its_time(immediate: bool) -> None:
    world = World(immediate=immediate)
    world.waits = asyncio.get_running_loop().create_future()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    await asyncio.sleep(0)
    protocol.data_received(REQUEST[:20])  # the next one waits for its turn
    protocol.data_received(REQUEST[20:])
    assert (answers(transport), len(world.calls)) == (0, 1)
    world.waits.set_result(None)
    while len(world.calls) < 2:
        await asyncio.sleep(0)
    await world.front.close(1)
    assert answers(transport) == 2


async def test_more_behind_is_not_taken_in_without_end() -> None:
    world = World()
    world.waits = asyncio.get_running_loop().create_future()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    for _ in range(1000):
        if transport.reading:
            protocol.data_received(REQUEST)
    assert not transport.reading
    world.waits.set_result(None)
    while handed_on(transport) is None:
        await asyncio.sleep(0)
    assert answers(transport) == 1
    assert transport.reading
    assert len(handed_on(transport) or b"") > 64 * 1024


async def test_who_does_not_read_is_not_asked_for_more() -> None:
    world = World()
    protocol, transport = world.connect()
    protocol.pause_writing()
    assert not transport.reading
    protocol.resume_writing()
    assert transport.reading


async def test_a_client_that_has_gone_is_not_answered() -> None:
    world = World()
    world.waits = asyncio.get_running_loop().create_future()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    transport.closed = True
    protocol.connection_lost(None)
    world.waits.set_result(None)
    await world.front.close(1)
    assert transport.writes == []


async def test_an_answer_that_is_cancelled_ends_its_connection() -> None:
    world = World()
    world.waits = asyncio.get_running_loop().create_future()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    world.waits.cancel()
    while not transport.closed:
        await asyncio.sleep(0)
    assert (transport.aborted, transport.writes) == (True, [])


async def test_draining_and_closing() -> None:
    world = World()
    busy, waiting = world.connect()
    known, idle = world.connect()
    known.data_received(REQUEST)
    late, told = world.connect()
    world.draining = True
    late.data_received(REQUEST)
    assert b"\r\nConnection: close\r\n" in told.writes[0]
    assert told.closed
    world.waits = asyncio.get_running_loop().create_future()
    busy.data_received(REQUEST)
    closing = asyncio.create_task(world.front.close(5))
    await asyncio.sleep(0)
    assert (idle.closed, waiting.closed) == (True, False)
    world.waits.set_result(None)
    await closing
    assert answers(waiting) == 1
    assert waiting.closed


async def test_who_has_only_just_come_may_ask_before_all_connections_end() -> None:
    world = World()
    newcomer, served = world.connect()
    _, silent = world.connect()
    world.draining = True
    closing = asyncio.create_task(world.front.close(5))
    await asyncio.sleep(0)
    assert not served.closed
    newcomer.data_received(REQUEST)
    assert (answers(served), served.closed) == (1, True)
    assert not silent.closed
    await closing
    assert silent.closed


async def test_answers_that_never_end_do_not_keep_it_open() -> None:
    world = World()
    world.waits = asyncio.get_running_loop().create_future()
    protocol, transport = world.connect()
    protocol.data_received(REQUEST)
    await world.front.close(0.01)
    assert (transport.closed, transport.writes) == (True, [])


async def test_idle_connections_end() -> None:
    world = World(keepalive=0.05)
    protocol, transport = world.connect()
    _, never_used = world.connect()
    protocol.data_received(REQUEST)
    transport.unsent = 1  # nor is the answer read
    async with asyncio.timeout(5):
        while not (transport.closed and never_used.closed):
            await asyncio.sleep(0.01)
    assert (transport.aborted, never_used.aborted) == (True, False)
