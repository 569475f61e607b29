"""The judge itself: values, and whole replays against a scripted bus that gets things wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conformance.comparing import differences, unequal
from tests.conformance.replay import replay
from tests.conformance.scenarios import Scenario, expand
from tests.conformance.target import Refused

INTERVAL = 1.0
DIGEST = {"length": 2, "sha256": hashlib.sha256("é🎉".encode()).hexdigest()}


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (1, 1),
        ({"a": [1.0, None]}, {"a": [1.0, None]}),
        (2**70, 2**70),
        ({"$long_text": DIGEST}, "é🎉"),
    ],
)
def test_equal(expected: Any, actual: Any) -> None:
    assert list(unequal(expected, actual, "here")) == []


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        (1.0, 1),
        ("1", 1),
        (None, 0),
        (2**70, float(2**70)),
        ([1, 2], [2, 1]),
        ([1], [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": [0]}, {"a": [False]}),
        ({"$long_text": DIGEST}, "é?"),
        ({"$long_text": DIGEST}, 7),
    ],
)
def test_unequal(expected: Any, actual: Any) -> None:
    assert list(unequal(expected, actual, "here")) != []


def test_templates() -> None:
    step = {
        "raw": ["a", {"$repeat": {"text": "xy", "times": 2}}],
        "json": {"$numbered": {"key": "/n/%d", "count": 2, "value": 0}},
        "data": {"n": {"$index": True}, "deep": {"$nested": {"depth": 3}}},
    }
    assert expand(step, 5) == {
        "raw": ["a", "xyxy"],
        "json": {"/n/0": 0, "/n/1": 0},
        "data": {"n": 5, "deep": [[[]]]},
    }


# -- a scripted bus ------------------------------------------------------------------------------

JSON_HEAD = (
    b"HTTP/1.1 200 OK\r\ncache-control: must-revalidate, private, max-age=0\r\n"
    b"content-type: application/json; charset=utf-8\r\nexpires: 0\r\npragma: no-cache\r\n"
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)
FRAME = b"7\r\n[]\r\n|\r\n\r\n"
MESSAGE = b'[{"global_id":1,"message_id":1,"channel":"/foo","data":1}]'


def json_answer(body: bytes, *more: bytes) -> bytes:
    headers = b"".join(line + b"\r\n" for line in more)
    return JSON_HEAD + headers + b"content-length: %d\r\n\r\n" % len(body) + body


class ScriptedBus:
    """Answers every request with these parts; a number is a pause, None waits for a publication."""

    def __init__(self, parts: tuple[bytes | float | None, ...]) -> None:
        self._parts = parts
        self._published = asyncio.Event()
        self.url = ""

    async def publish(self, channel: str, data: Any, options: Mapping[str, Any]) -> int:
        if options.get("user_ids") == []:
            raise Refused("nobody")
        self._published.set()
        return 1

    async def query(self, op: str, arguments: Mapping[str, Any]) -> Any:
        return [op, dict(arguments)]

    async def stop(self) -> list[str]:
        return []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in self._parts:
                if part is None:
                    await self._published.wait()
                elif isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                else:
                    await asyncio.sleep(part)
            if b"connection: close" not in b"".join(p for p in self._parts if type(p) is bytes):
                await reader.read()
        except ConnectionError:
            pass  # the replay drops connections
        finally:
            writer.close()


@asynccontextmanager
async def scripted_bus(parts: tuple[bytes | float | None, ...]) -> AsyncIterator[ScriptedBus]:
    bus = ScriptedBus(parts)
    server = await asyncio.start_server(bus.serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        bus.url = f"http://{host}:{port}"
        yield bus


def scenario(*steps: dict[str, Any]) -> Scenario:
    return Scenario(
        name="scripted",
        description="",
        quirk=False,
        requires=frozenset(),
        server={},
        interval=INTERVAL,
        steps=list(steps),
    )


async def judged(parts: tuple[bytes | float | None, ...], *steps: dict[str, Any]) -> list[str]:
    played = scenario(*steps)
    async with scripted_bus(parts) as bus:
        return differences(played.steps, await replay(played, bus))


def request(**expect: Any) -> dict[str, Any]:
    return {
        "do": "request",
        "method": "POST",
        "path": "/message-bus/c/poll",
        "json": {"/foo": 0},
        "expect": {
            "status": 200,
            "held": "no",
            "framing": "length",
            "connection": "open",
            "headers": {
                "cache-control": "must-revalidate, private, max-age=0",
                "content-type": "application/json; charset=utf-8",
                "expires": "0",
                "pragma": "no-cache",
            },
            "headers_absent": ["x-content-type-options"],
            "messages": [],
            **expect,
        },
    }


ONE = [{"global_id": 1, "message_id": 1, "channel": "/foo", "data": 1}]
FAILING = {"status": 500, "body": "broken", "headers": {"content-type": "text/html"}}


@pytest.mark.parametrize(
    ("parts", "step"),
    [
        ((json_answer(b"[]"),), request()),
        ((json_answer(b"[]", b"x-accel-buffering: no", b"date: today"),), request()),
        ((json_answer(MESSAGE),), request(messages=ONE)),
        ((json_answer(b"[]"),), request(connection="closed")),
        ((0.95, json_answer(b"[]")), request(held="until_timeout")),
        (
            (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno",),
            request(**FAILING),
        ),
        (
            (b"HTTP/1.1 400 Oh\r\ncontent-length: 2\r\n\r\nno",),
            {**request(**FAILING), "accept": "error"},
        ),
    ],
)
async def test_agreement(parts: tuple[bytes | float | None, ...], step: dict[str, Any]) -> None:
    assert await judged(parts, step) == []


@pytest.mark.parametrize(
    ("parts", "step", "said"),
    [
        ((json_answer(b"[1]"),), request(), "messages: [1], expected []"),
        ((json_answer(b"[]]"),), request(), "not a list of messages"),
        ((json_answer(b'[{"a":1,"a":2}]'),), request(), "twice"),
        ((json_answer(b"[]", b"Expires: 0"),), request(), "expires stands there 2 times"),
        ((json_answer(b"[]", b"x-odd: 1"),), request(), "unexpected header x-odd"),
        ((json_answer(b"[]", b"x-content-type-options: nosniff"),), request(), "expected none"),
        ((json_answer(b"[]", b"connection: close"),), request(), "connection closed"),
        ((json_answer(b"[]") + b"more",), request(), "bytes after the response"),
        ((0.5, json_answer(b"[]")), request(held="until_timeout"), "held until "),
        ((0.8, json_answer(b"[]")), request(), "held until "),
        ((b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno",), request(), "status 404 'no'"),
        (
            (json_answer(b"[]").replace(b"max-age=0", b"max-age=1"),),
            request(),
            "header cache-control",
        ),
        (
            (json_answer(b"[]"),),
            {**request(connection="closed"), "check_connection": True},
            "connection open",
        ),
        ((json_answer(b"[]"),), {**request(**FAILING), "accept": "error"}, "expected an error"),
        ((b"connection: close",), request(), "no answer"),
    ],
)
async def test_disagreement(
    parts: tuple[bytes | float | None, ...], step: dict[str, Any], said: str
) -> None:
    found = await judged(parts, step)
    assert any(said in sentence for sentence in found), found


# -- held polls ----------------------------------------------------------------------------------

PUBLISH = {"do": "publish", "channel": "/foo", "data": 1, "expect": {"message_id": 1}}
START = {k: v for k, v in request().items() if k != "expect"} | {"do": "start", "id": "poll"}
PARKED = {"do": "wait_parked", "id": "poll", "expect": {"parked": True}}


def stream(step: str = "await", **expect: Any) -> dict[str, Any]:
    return {
        "do": step,
        "id": "poll",
        "expect": {
            "status": 200,
            "held": "until_timeout",
            "framing": "chunked",
            "connection": "closed",
            "headers": {"content-type": "text/plain; charset=utf-8"},
            "chunks": [
                {"when": "immediate", "messages": []},
                {"when": "step:2", "messages": ONE},
                {"when": "timeout", "messages": []},
            ],
            "terminated": True,
            **expect,
        },
    }


MESSAGE_FRAME = b"%x\r\n%b\r\n|\r\n\r\n" % (len(MESSAGE) + 5, MESSAGE)
END = b"0\r\n\r\n"
GOOD_STREAM = (STREAM_HEAD, FRAME, None, MESSAGE_FRAME, 0.6, FRAME + END)


# Each takes a whole interval, so they are replayed at once.
STREAMS: list[tuple[tuple[bytes | float | None, ...], str | None]] = [
    (GOOD_STREAM, None),
    ((STREAM_HEAD, FRAME, None, 0.05, MESSAGE_FRAME, 0.6, FRAME + END), None),
    ((STREAM_HEAD, FRAME, MESSAGE_FRAME, 0.95, FRAME + END), "chunk 1 came at 0%"),
    ((STREAM_HEAD, FRAME, None, MESSAGE_FRAME, FRAME + END), "chunk 2 came at"),
    ((STREAM_HEAD, FRAME, None, MESSAGE_FRAME, 0.6, FRAME), "terminated False"),
    ((STREAM_HEAD, FRAME, None, MESSAGE_FRAME, 0.6, END), "2 chunks, expected 3"),
    (
        (STREAM_HEAD, FRAME, None, b"2\r\n[]\r\n", 0.6, FRAME + END),
        "chunk 1 is not exactly one frame",
    ),
]


async def test_streams() -> None:
    judgements = await asyncio.gather(
        *(judged(parts, START, PARKED, PUBLISH, stream()) for parts, _ in STREAMS)
    )
    for found, (parts, said) in zip(judgements, STREAMS, strict=True):
        if said is None:
            assert found == [], parts
        else:
            assert any(said in sentence for sentence in found), (said, found)


async def test_a_dropped_stream() -> None:
    chunks = stream()["expect"]["chunks"][:2]
    dropped = stream(
        "disconnect",
        held="still_open",
        connection="dropped_by_client",
        terminated=False,
        chunks=chunks,
    )
    assert await judged(GOOD_STREAM, START, PARKED, PUBLISH, dropped) == []


async def test_a_poll_that_does_not_park() -> None:
    found = await judged((json_answer(b"[]"),), START, PARKED)
    assert found == ["step 1 (wait_parked): parked: false, expected true"]


async def test_publications_and_queries() -> None:
    refused = {**PUBLISH, "user_ids": [], "expect": {"error": "InvalidMessageTarget"}}
    many = {
        **PUBLISH,
        "times": 2,
        "expect": {"first": {"message_id": 1}, "last": {"message_id": 2}},
    }
    query = {
        "do": "query",
        "op": "last_id",
        "channel": "/foo",
        "expect": {"result": ["last_id", {"channel": "/foo"}]},
    }
    accepted = {**PUBLISH, "expect": {"error": "InvalidMessage"}}
    denied = {**refused, "expect": {"message_id": 1}}
    assert await judged((), PUBLISH, refused, many, query, accepted, denied) == [
        "step 2 (publish): first and last message_id[1]: 1, expected 2",
        "step 4 (publish): accepted as [1], expected a refusal",
        "step 5 (publish): refused: nobody",
    ]
