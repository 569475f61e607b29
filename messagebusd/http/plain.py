"""One plain request, read and answered; `front` has the connection.

Requests are read by aiohttp's parser, made as its server makes it: what it refuses is refused here,
and what it reads is read in the same way. What it has read is known (`KnownHead`). Answers are the
bytes that aiohttp would write.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, Self, cast
from urllib.parse import parse_qsl

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage
from multidict import CIMultiDictProxy, MultiDict, MultiMapping

from messagebusd.connection import Connection
from messagebusd.http.bodies import check_body
from messagebusd.http.call import Answer, Begin, choose_request_id
from messagebusd.http.dates import http_date
from messagebusd.protocol import wire

_END_OF_LINE = b" HTTP/1.1\r\n"
_LENGTH = b"\r\ncontent-length:"
_MAX_DIGITS = 10
_NO_QUERY: MultiMapping[str] = MultiDict()


class Holder(Protocol):
    """Whoever has a call's connection."""

    @property
    def transport(self) -> asyncio.Transport | None: ...
    def hold(self, connection: Connection, begin: Begin) -> None: ...


class PlainCall:
    """A `Call` that was read without aiohttp's server. ``holder`` has its connection."""

    __slots__ = (
        "_body",
        "_holder",
        "_request_id",
        "headers",
        "path",
        "raw_query",
        "should_close",
    )

    method = "POST"
    version = (1, 1)

    def __init__(
        self, holder: Holder, message: RawRequestMessage, path: str, query: str, body: bytes
    ) -> None:
        self._holder = holder
        self._body = body
        self._request_id: str | None = None
        self.headers: CIMultiDictProxy[str] = message.headers
        self.should_close = message.should_close
        self.path = path
        self.raw_query = query

    @property
    def query(self) -> MultiMapping[str]:
        if not self.raw_query:
            return _NO_QUERY
        return MultiDict(parse_qsl(self.raw_query, keep_blank_values=True))

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        return self._holder.transport

    @property
    def request_id(self) -> str:
        if self._request_id is None:
            self._request_id = choose_request_id(self.headers.get("X-Request-Id"))
        return self._request_id

    async def read_body(self, max_bytes: int, timeout_seconds: float) -> bytes:
        check_body(self.headers, len(self._body), max_bytes)
        return self._body

    async def hold(self, connection: Connection, begin: Begin) -> None:
        self._holder.hold(connection, begin)


class KnownHead:
    """A plain head that has been read: the same one again, but for the length, says the same.

    What differs is the digits of the Content-Length alone; all other bytes are compared. Its
    ``message`` is the one that was read, with the length of that time.
    """

    __slots__ = ("_after", "_before", "message", "path", "query")

    def __init__(
        self, message: RawRequestMessage, path: str, query: str, before: bytes, after: bytes
    ) -> None:
        self.message = message
        self.path = path
        self.query = query
        self._before = before
        self._after = after

    @classmethod
    def of(cls, message: RawRequestMessage, path: str, query: str, head: bytes) -> Self | None:
        """Remember a head; None where it is not plain to see which digits are the length."""
        folded = head.lower()
        name = folded.find(_LENGTH)
        length = message.headers["Content-Length"].encode()
        begin = head.find(length, name + len(_LENGTH))
        if folded.rfind(_LENGTH) != name or head[name + len(_LENGTH) : begin].strip(b" "):
            return None
        return cls(message, path, query, head[:begin], head[begin + len(length) :])

    def body(self, received: bytes) -> bytes | None:
        """The body, if this is the head again with the whole body and nothing behind it."""
        before, after = self._before, self._after
        if not received.startswith(before):
            return None
        end = received.find(b"\r", len(before), len(before) + _MAX_DIGITS + 1)
        length = received[len(before) : end]
        if end < 0 or not length.isdigit() or not received.startswith(after, end):
            return None
        start = end + len(after)
        return received[start:] if len(received) - start == int(length) else None


class _Flow:
    """What a parser may ask for; so much that it would matter never comes."""

    _reading_paused = False

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Do nothing."""


_FLOW = cast(BaseProtocol, _Flow())


def plain_parser(loop: asyncio.AbstractEventLoop) -> HttpRequestParser:
    """A parser for one connection."""
    return HttpRequestParser(
        _FLOW,
        loop,
        2**16,
        max_line_size=8190,
        max_field_size=8190,
        max_headers=128,
        auto_decompress=False,
    )


def is_plain(message: RawRequestMessage, received: bytes) -> bool:
    """Whether a request, of which that was received, has nothing that only aiohttp knows how to
    deal with."""
    headers = message.headers
    return (
        message.version == HttpVersion11
        # The parser is patient with spaces.
        and received.startswith(_END_OF_LINE, len(b"POST ") + len(message.path))
        and not message.chunked
        and not message.upgrade
        and "Content-Length" in headers
        and "Expect" not in headers
        and "#" not in message.path
    )


def encode(answer: Answer, *, closes: bool) -> bytes:
    """The bytes that aiohttp would write for it."""
    status, body, headers, _ = answer
    lines = wire.ok_lines(headers) if status == 200 else wire.head_lines(status, headers)
    return b"%bContent-Length: %d\r\nDate: %b\r\n%b\r\n%b" % (
        lines,
        len(body),
        http_date(),
        b"Connection: close\r\n" if closes else b"",
        body,
    )
