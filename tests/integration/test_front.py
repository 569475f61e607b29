"""The two ways of a request, with real sockets: through `front`, and through aiohttp alone.

The same bytes are sent on both, to the same daemon, and both must bring the same answer and leave
the connection in the same state. What is unusual has to be in this table, not only what is plain.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.test_bad_input import CASES
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, encode_request

NOW = "/message-bus/c/poll?dlp=t"
PUBLISH = "/api/v1/publish"
BEGIN = b"POST /message-bus/c/poll?dlp=t HTTP/1.1\r\n"
LENGTH = b"Content-Length: 4\r\n\r\n/a=0"


def odd(*lines: bytes, begin: bytes = BEGIN, end: bytes = LENGTH) -> bytes:
    return begin + b"".join(b"%b\r\n" % line for line in (b"Host: x", *lines)) + end


def poll(*headers: tuple[str, str], path: str = NOW, body: bytes = b"/a=0") -> bytes:
    return encode_request("POST", path, headers=headers, body=body)


REQUESTS = {
    "plain": poll(),
    "no channels": poll(body=b""),
    "keep-alive": poll(("Connection", "keep-alive")),
    "close": poll(("Connection", "close")),
    "close and more": poll(("Connection", "close, x")),
    "another origin": poll(("Origin", "https://a.example")),
    "our origin": poll(("Origin", "https://forum.example")),
    "a request id": poll(("X-Request-Id", "abc"), path="/message-bus/" + "x" * 200),
    "a request id that is none": poll(("X-Request-Id", "a b\tc"), path="/message-bus//"),
    "chunks": encode_request("POST", NOW, body=b"/a=0", chunked=True),
    "1.0": encode_request("POST", NOW, body=b"/a=0", version="1.0"),
    "1.0, kept": odd(b"Connection: keep-alive", begin=BEGIN.replace(b"1.1", b"1.0")),
    "1.2": odd(begin=BEGIN.replace(b"1.1", b"1.2")),
    "2.0": odd(begin=BEGIN.replace(b"1.1", b"2.0")),
    "lower case": odd(begin=BEGIN.lower()),
    "two spaces": odd(begin=BEGIN.replace(b" ", b"  ")),
    "a fragment": odd(begin=BEGIN.replace(b"dlp=t", b"dlp=t&#x")),
    "absolute": odd(begin=BEGIN.replace(b"/mess", b"http://x/mess")),
    "a line before": b"\r\n" + odd(),
    "a tab": odd(b"X-A: a\tb"),
    "no space": odd(b"X-A:a"),
    "spaces around": odd(b"X-A:   a   "),
    "space before the colon": odd(b"X-A : a"),
    "folded": odd(b"X-A: a\r\n b"),
    "no colon": odd(b"X-A"),
    "no name": odd(b": a"),
    "a control character": odd(b"X-A: a\x01b"),
    "zero": odd(b"X-A: a\x00b"),
    "a bare line feed": odd(b"X-A: a\nX-B: b"),
    "a bare carriage return": odd(b"X-A: a\rX-B: b"),
    "bytes beyond ASCII": odd(b"X-A: \xc3\xa4\xff"),
    "a name beyond ASCII": odd(b"X-\xc3\xa4: a"),
    "a target beyond ASCII": odd(begin=BEGIN.replace(b"/c/", b"/\xc3\xa4/")),
    "no host": BEGIN + LENGTH,
    "two hosts": odd(b"Host: y"),
    "two types": odd(b"Content-Type: a/b", b"Content-Type: application/json"),
    "two origins": odd(b"Origin: https://a.example", b"Origin: https://b.example"),
    "a length of none": odd(b"Content-Length: ", end=b"\r\n"),
    "a signed length": odd(b"Content-Length: +4", end=b"\r\n/a=0"),
    "a hexadecimal length": odd(b"Content-Length: 0x4", end=b"\r\n/a=0"),
    "a length with a line": odd(b"Content-Length: 1_0", end=b"\r\n/a=0123456"),
    "two lengths in one": odd(b"Content-Length: 4, 4", end=b"\r\n/a=0"),
    "the same length twice": odd(b"Content-Length: 4"),
    "another length": odd(b"Content-Length: 5"),
    "a padded length": odd(b"Content-Length:   4  ", end=b"\r\n/a=0"),
    "a long length": odd(b"Content-Length: 000000000000000000000000000004", end=b"\r\n/a=0"),
    "a huge length": odd(b"Content-Length: 99999999999999999999999", end=b"\r\n/a=0"),
    "length and chunks": odd(b"Transfer-Encoding: chunked"),
    "chunks of something else": odd(b"Transfer-Encoding: xchunked"),
    "identity": odd(b"Transfer-Encoding: identity"),
    "no length": odd(end=b"\r\n"),
    "upgrade": odd(b"Connection: upgrade", b"Upgrade: h2c"),
    "upgrade to a websocket": odd(b"Connection: upgrade", b"Upgrade: websocket"),
    "an upgrade without a connection": odd(b"Upgrade: h2c"),
    "expecting nothing known": odd(b"Expect: x"),
    "more behind": poll() + b"GET / HTTP/1.1\r\n",
    "garbage behind": poll() + b"\x00\x01",
    "lines behind": poll() + b"\r\n\r\n",
    "line by line": b"\n".join(odd().split(b"\r\n")),
    "another path": poll(path="/elsewhere"),
    "an escaped prefix": poll(path="/message%2Dbus/c/poll?dlp=t"),
    "dots": poll(path="/message-bus/../c/poll?dlp=t"),
    "128 headers": odd(*(b"X-%d: 1" % each for each in range(126))),
    "129 headers": odd(*(b"X-%d: 1" % each for each in range(127))),
    "a long header": odd(b"X-A: " + b"x" * 8180),
    "too long a header": odd(b"X-A: " + b"x" * 8190),
    "publish, no key": poll(path=PUBLISH, body=b'{"channel":"/a","data":1}'),
    "publish, a query": poll(path=PUBLISH + "?a=1", body=b'{"channel":"/a","data":1}'),
}
for name, case in CASES.items():
    if case.raw is not None or case.body is None or len(case.body) < 500_000:
        REQUESTS[name] = case.raw or encode_request(
            case.method, case.path, headers=case.headers, body=case.body
        )
KEYED = {
    "publish": b'{"channel":"/p","data":{"a":1.50}}',
    "publish, nothing": b"",
    "publish, unknown field": b'{"channel":"/p","data":1,"userids":[1]}',
    "publish, reserved": b'{"channel":"/__status","data":1}',
}


class Ways:
    """A daemon, and a listener at which only aiohttp answers."""

    def __init__(self, daemon: HostedDaemon, aiohttp_url: str) -> None:
        self.daemon = daemon
        self.urls = (daemon.url, aiohttp_url)

    async def both(self, request: bytes) -> list[tuple[object, ...]]:
        return [await self._ask(url, request) for url in self.urls]

    async def _ask(self, url: str, request: bytes) -> tuple[object, ...]:
        async with await RawConnection.open(url) as connection:
            response = await connection.send(request, method="POST").finished()
            # Whether the connection can be used again is part of the answer.
            again = None
            if not connection.unread:
                try:
                    second = await connection.request(poll(("X-Request-Id", "again")))
                    again = second.status_line and (second.status_line, second.body)
                except RuntimeError:
                    pass
            length = response.header("content-length")
            assert length is None or int(length) == len(response.body)
            headers = [
                (name, value)
                for name, value in response.headers
                if name.lower() not in ("date", "content-length", "x-request-id", "retry-after")
            ]
            body = re.sub(rb'(_id":)\d+|("request_id":")[0-9a-f]{16}"', rb"\1\2", response.body)
            return response.status_line, headers, body, again


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ways(tmp_path_factory) -> AsyncIterator[Ways]:
    config = {
        "poll": {"body_timeout": 0.5, "client_rate": "0"},
        "cors": {"allow_origins": ["https://forum.example"]},
    }
    async with HostedDaemon(tmp_path_factory.mktemp("daemon"), config) as daemon:
        server = daemon._server
        assert server is not None
        aiohttp_server = server._runners["public"].server
        assert aiohttp_server is not None
        listener = await asyncio.get_running_loop().create_server(aiohttp_server, "127.0.0.1", 0)
        yield Ways(daemon, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        listener.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_both_ways_bring_the_same_answer(ways: Ways, request_: bytes) -> None:
    front, aiohttp = await ways.both(request_)
    assert front == aiohttp


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("body", KEYED.values(), ids=KEYED)
@pytest.mark.parametrize("once", [None, "k"])
async def test_both_ways_publish_alike(ways: Ways, body: bytes, once: str | None) -> None:
    key = ("Authorization", f"Bearer {ways.daemon.key}")
    more = [] if once is None else [("Idempotency-Key", once + str(hash(body)))]
    request = poll(key, *more, path=PUBLISH, body=body)
    if once is not None:  # or the first one would differ from all others
        await ways.both(request)
    front, aiohttp = await ways.both(request)
    assert front == aiohttp


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_in_two_pieces(ways: Ways) -> None:
    request = poll(("Content-Type", "application/json"), body=b'{"/none":-1}')
    for place in range(1, len(request), 5):
        async with await RawConnection.open(ways.daemon.url) as connection:
            response = connection.send(request[:place], method="POST")
            await asyncio.sleep(0.001)
            connection.send_more(request[place:])
            await response.finished()
            assert json.loads(response.body)[0]["data"] == {"/none": 0}


@pytest.mark.asyncio(loop_scope="module")
async def test_many_requests_on_one_connection_of_every_kind(ways: Ways) -> None:
    async with await RawConnection.open(ways.daemon.url) as connection:
        for _ in range(3):
            for request in (poll(), poll(path="/elsewhere"), REQUESTS["chunks"], poll()):
                assert (await connection.request(request)).status in (200, 404)


@pytest.mark.asyncio(loop_scope="module")
async def test_many_publishes_on_one_connection(ways: Ways) -> None:
    key = ("Authorization", f"Bearer {ways.daemon.key}")
    for url in ways.urls:
        async with await RawConnection.open(url) as connection:
            for sent, status in ((key, 200), (key, 200), (("Authorization", "Bearer x"), 401)) * 2:
                for size in (1, 9, 10, 2_000):
                    body = b'{"channel":"/many","data":"%b"}' % (b"x" * size)
                    request = poll(sent, path=PUBLISH, body=body)
                    assert (await connection.request(request)).status == status


@pytest.mark.asyncio(loop_scope="module")
async def test_peers_that_are_silently_gone_are_noticed(ways: Ways) -> None:
    async with await RawConnection.open(ways.daemon.url) as connection:
        await connection.send(poll(path="/message-bus/c/poll")).chunk_count(1)
        assert ways.daemon._server is not None
        [parked] = ways.daemon._server.hub.connections()
        assert parked.transport is not None
        peer = parked.transport.get_extra_info("socket")
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_does_not_come(ways: Ways) -> None:
    async with await RawConnection.open(ways.daemon.url) as connection:
        response = await connection.send(poll()[:-2]).finished()
        assert response.status == 408
        assert await connection.closed_by_peer()
