"""One plain request, read and answered; `front` has the connection.

Requests are read by aiohttp's parser, made as its server makes it: what it refuses is refused here,
and what it reads is read in the same way. Answers are the bytes that aiohttp would write.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast
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
