"""Carry flows and streams out with httpx2.

This file and `async_poller` are the only ones that do I/O. Whatever the library raises becomes
ConnectionFailed here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from messagebus_client._chunks import MAX_BYTES, Splitter
from messagebus_client._exchange import Flow, Pause, Request, Response, check
from messagebus_client.errors import ConnectionFailed, UnexpectedAnswer

T = TypeVar("T")

USER_AGENT = "messagebus-client"


def base_url(url: str) -> str:
    """The URL without a slash at its end. Raises ValueError for what is no http(s) URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("the URL must be http:// or https://, with a host and without a query")
    return url.rstrip("/")


def default_headers(key: str | None) -> dict[str, str]:
    """Of every request to the API. The key goes nowhere else."""
    headers = {"user-agent": USER_AGENT, "accept-encoding": "identity"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return headers


def timeouts(timeout: float, read: float | None = None) -> httpx2.Timeout:
    """``timeout`` for each of connecting, writing and reading, but for reading if said so."""
    return httpx2.Timeout(timeout, read=timeout if read is None else read)


class Transport:
    """Blocking requests; may be used by several threads."""

    def __init__(
        self, url: str, key: str | None, timeout: float, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._url = base_url(url)
        self._timeout = timeout
        self._client = httpx2.Client(
            headers=default_headers(key),
            timeout=timeouts(timeout),
            verify=True if ssl_context is None else ssl_context,
            limits=_LIMITS,
        )

    def close(self) -> None:
        self._client.close()

    def run(self, flow: Flow[T]) -> T:
        """Carry a flow out and return its result. Raises MessageBusError."""
        try:
            step = next(flow)
            while True:
                answer = None
                try:
                    if isinstance(step, Pause):
                        time.sleep(step.seconds)
                    else:
                        answer = self._ask(step)
                except ConnectionFailed as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _ask(self, request: Request) -> Response:
        deadline = time.monotonic() + self._timeout
        with translated(), self._client.stream(**_arguments(self._url, request)) as answer:
            body = bytearray()
            for part in answer.iter_bytes():
                _add(body, part, time.monotonic() > deadline)
            return _response(answer, body)

    @contextmanager
    def open(self, request: Request, silence: float) -> Iterator[Stream]:
        """Open a stream of lines. Raises MessageBusError, also while it is read."""
        arguments = _arguments(self._url, request)
        limits = timeouts(self._timeout, read=silence)
        with translated(), self._client.stream(**arguments, timeout=limits) as answer:
            if answer.status_code != 200:
                check(_response(answer, bytearray(answer.read())))
                raise UnexpectedAnswer(f"a stream with status {answer.status_code}")
            yield Stream(answer)


class Stream:
    """The lines of an open answer."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer

    def lines(self) -> Iterator[bytes]:
        splitter = Splitter(b"\n")
        for part in self._answer.iter_bytes():
            yield from splitter.feed(part)
        raise ConnectionFailed("the stream broke off")

    def abort(self) -> None:
        """Have the thread that reads it find it broken; from any thread."""
        stream = self._answer.extensions["network_stream"]
        opened: socket.socket | None = stream.get_extra_info("socket")
        if opened is not None:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)


class AsyncTransport:
    """The same for asyncio, in one event loop."""

    def __init__(
        self, url: str, key: str | None, timeout: float, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._url = base_url(url)
        self._timeout = timeout
        self._client = httpx2.AsyncClient(
            headers=default_headers(key),
            timeout=timeouts(timeout),
            verify=True if ssl_context is None else ssl_context,
            limits=_LIMITS,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def run(self, flow: Flow[T]) -> T:
        """Carry a flow out and return its result. Raises MessageBusError."""
        try:
            step = next(flow)
            while True:
                answer = None
                try:
                    if isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                    else:
                        answer = await self._ask(step)
                except ConnectionFailed as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _ask(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        with translated():
            async with self._client.stream(**_arguments(self._url, request)) as answer:
                body = bytearray()
                async for part in answer.aiter_bytes():
                    _add(body, part, loop.time() > deadline)
                return _response(answer, body)

    @asynccontextmanager
    async def open(self, request: Request, silence: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream of lines. Raises MessageBusError, also while it is read."""
        arguments = _arguments(self._url, request)
        limits = timeouts(self._timeout, read=silence)
        with translated():
            async with self._client.stream(**arguments, timeout=limits) as answer:
                if answer.status_code != 200:
                    check(_response(answer, bytearray(await answer.aread())))
                    raise UnexpectedAnswer(f"a stream with status {answer.status_code}")
                yield _lines(answer)


async def _lines(answer: httpx2.Response) -> AsyncIterator[bytes]:
    splitter = Splitter(b"\n")
    async for part in answer.aiter_bytes():
        for line in splitter.feed(part):
            yield line
    raise ConnectionFailed("the stream broke off")


# Streams hold their connections: only memory limits how many there are, and nobody waits for one.
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=20)


def _arguments(url: str, request: Request) -> dict[str, Any]:
    headers = dict(request.headers)
    if request.body is not None:
        headers["content-type"] = "application/json"
    return {
        "method": request.method,
        "url": url + request.path,
        "params": {name: value for name, value in request.query.items() if value is not None},
        "content": request.body,
        "headers": headers,
    }


def _add(body: bytearray, part: bytes, is_late: bool) -> None:
    body += part
    if is_late:
        raise ConnectionFailed("the answer did not come in time")
    if len(body) > MAX_BYTES:
        raise UnexpectedAnswer(f"an answer of more than {MAX_BYTES} bytes")


def _response(answer: httpx2.Response, body: bytearray) -> Response:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Response(answer.status_code, headers, bytes(body))


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the library raises as errors of this package."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise ConnectionFailed(f"no answer in time ({type(error).__name__})") from error
    except httpx2.TransportError as error:
        raise ConnectionFailed(str(error) or type(error).__name__) from error
    except httpx2.InvalidURL as error:
        raise ValueError(str(error)) from error
