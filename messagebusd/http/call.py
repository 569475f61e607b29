"""A request and its answer, whoever speaks HTTP for them.

Polls and publishes reach their doors by two ways: plain ones through `front`, all others through
aiohttp. The doors know neither: they are handed a `Call` and return an `Answer`, so that every rule
is written once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDictProxy, MultiMapping

from messagebusd.connection import Connection
from messagebusd.http.bodies import read_body
from messagebusd.http.takeover import TakenOver, hold
from messagebusd.protocol.wire import Headers

_REQUEST_ID_LENGTH = 64
_REQUEST_ID = web.RequestKey("request_id", str)

# What a parked poll does with its socket; see `takeover.hold`.
Begin = Callable[[asyncio.Transport], None]


class Answer(NamedTuple):
    """A whole answer. ``headers`` are without those of the framing; ``closes`` says that the
    connection ends with it."""

    status: int
    body: bytes
    headers: Headers
    closes: bool = False


class Headed(Protocol):
    """Whatever has a request's headers."""

    @property
    def headers(self) -> CIMultiDictProxy[str]: ...


class Asked(Protocol):
    """Whatever has a query, decoded."""

    @property
    def query(self) -> MultiMapping[str]: ...


class Call(Headed, Asked, Protocol):
    """A request. ``path`` and ``raw_query`` are as sent, escapes and all."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def raw_query(self) -> str: ...
    @property
    def version(self) -> tuple[int, int]: ...
    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """None once the client has gone."""

    @property
    def request_id(self) -> str:
        """What problems and the log call this request."""

    async def read_body(self, max_bytes: int, timeout_seconds: float) -> bytes:
        """The whole body. Raises what `bodies.read_body` does."""

    async def hold(self, connection: Connection, begin: Begin) -> None:
        """Let a poll wait on the call's own socket, see `takeover.hold`: nothing else answers."""


# Answers a call; None if a poll holds its socket. Raises what `middleware.Errors` knows.
Answering = Callable[[Call], Awaitable[Answer | None]]


class HttpCall:
    """A `Call` that aiohttp has read."""

    __slots__ = ("_request", "headers", "method", "path", "raw_query", "version")

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.method = request.method
        self.headers = request.headers
        self.version = (request.version.major, request.version.minor)
        self.path, _, self.raw_query = request.raw_path.partition("?")
        if not self.path.startswith("/"):  # a proxy's absolute form
            self.path = request.rel_url.raw_path

    @property
    def query(self) -> MultiMapping[str]:
        return self._request.query

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        return self._request.transport

    @property
    def request_id(self) -> str:
        return request_id(self._request)

    async def read_body(self, max_bytes: int, timeout_seconds: float) -> bytes:
        return await read_body(self._request, max_bytes, timeout_seconds)

    async def hold(self, connection: Connection, begin: Begin) -> None:
        await hold(self._request, connection, begin)


def through_aiohttp(answering: Answering) -> Handler:
    """A door as a handler for aiohttp's router."""

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = await answering(HttpCall(request))
        return TakenOver() if answer is None else to_response(answer)

    return handle


def to_response(answer: Answer) -> web.Response:
    """An answer for aiohttp to write."""
    response = web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    if answer.closes:
        response.force_close()
    return response


def request_id(request: web.BaseRequest) -> str:
    """What a request is called; the same whenever it is asked for."""
    known = request.get(_REQUEST_ID)
    if known is None:
        known = request[_REQUEST_ID] = choose_request_id(request.headers.get("X-Request-Id"))
    return known


def choose_request_id(sent: str | None) -> str:
    """The caller's ``X-Request-Id`` if it is fit for logs, else one of our own."""
    if sent and sent.isascii() and sent.isprintable() and len(sent) <= _REQUEST_ID_LENGTH:
        return sent
    return secrets.token_hex(8)
