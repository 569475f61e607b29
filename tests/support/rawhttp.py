"""A HTTP/1 client that shows what really happened on the wire.

Ordinary clients repair, merge and hide: header case and duplicates, HTTP chunk boundaries, interim
responses, and who closed the connection. This one sends exactly the bytes it is given and records
everything that comes back, with the time of arrival, so that a test can look at it afterwards or
while it is still coming::

    async with await RawConnection.open(daemon.url) as connection:
        response = connection.send(encode_request("POST", "/message-bus/c/poll", body=b"{}"))
        await response.chunk_count(1)        # still open, one chunk is here
        await response.finished()            # the zero chunk, the last byte, or the end of file
        assert await connection.closed_by_peer()

Times are those of the running event loop's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, cast
from urllib.parse import urlsplit

Framing = Literal["length", "chunked", "until_close", "none"]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]

WAIT_SECONDS = 10.0  # how long a test waits for what it expects, before it fails


class ProtocolViolation(Exception):
    """The peer sent something that is no HTTP/1 response."""


def encode_request(
    method: str,
    path: str,
    *,
    headers: Headers = (),
    body: bytes | None = None,
    chunked: bool = False,
    version: str = "1.1",
    host: str = "bus.test",
) -> bytes:
    """A whole request; ``headers`` come after Host, in their order and spelling."""
    head, framed = encode_parts(
        method, path, headers=headers, body=body, chunked=chunked, version=version, host=host
    )
    return head + framed


def encode_parts(
    method: str,
    path: str,
    *,
    headers: Headers = (),
    body: bytes | None = None,
    chunked: bool = False,
    version: str = "1.1",
    host: str = "bus.test",
) -> tuple[bytes, bytes]:
    """The head and the framed body, for those who wait in between (``Expect: 100-continue``)."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if body is not None:
        pairs.append(
            ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
        )
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in pairs]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    if body is None:
        return head, b""
    return head, encode_chunks(body) if chunked else body


def encode_chunks(body: bytes, size: int = 7) -> bytes:
    """A chunked request body; small chunks, so that keys and values are torn apart."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One HTTP chunk as the server cut it."""

    data: bytes
    at: float


@dataclass(slots=True, eq=False)
class Response:
    """A response, filled in while it arrives.

    ``terminated`` says whether a chunked body's zero chunk came, ``complete`` whether the body
    ended as its framing says; a response that was cut off is over but not complete.
    """

    sent_at: float
    method: str
    interim: list[str] = field(default_factory=list)
    status_line: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    framing: Framing | None = None
    body: bytes = b""
    chunks: list[Chunk] = field(default_factory=list)
    terminated: bool = False
    complete: bool = False
    head_at: float | None = None
    ended_at: float | None = None
    error: Exception | None = None
    _progress: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def status(self) -> int:
        if self.status_line is None:
            raise AssertionError(f"no response head came: {self.error!r}")
        return int(self.status_line.split(" ", 2)[1])

    @property
    def http_version(self) -> str:
        if self.status_line is None:
            raise AssertionError(f"no response head came: {self.error!r}")
        return self.status_line.split(" ", 1)[0]

    @property
    def over(self) -> bool:
        return self.ended_at is not None

    def values(self, name: str) -> list[str]:
        """All values of a header, in order; more than one where it must be one is a finding."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that may stand there once at most."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} stands there {len(values)} times: {values}"
        return values[0] if values else None

    async def until(
        self, condition: Callable[[Response], bool], within: float = WAIT_SECONDS
    ) -> bool:
        """Wait until the condition holds; False when it does not in time or no longer can."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not (condition(self) or self.over):
                    self._progress.clear()
                    await self._progress.wait()
        return condition(self)

    async def head(self, within: float = WAIT_SECONDS) -> Self:
        """Wait for the head; AssertionError when it does not come in time."""
        arrived = await self.until(lambda response: response.status_line is not None, within)
        assert arrived, f"no head within {within} s: {self}"
        return self

    async def chunk_count(self, count: int, within: float = WAIT_SECONDS) -> list[Chunk]:
        """Wait until that many chunks have come; AssertionError when they do not in time."""
        arrived = await self.until(lambda response: len(response.chunks) >= count, within)
        assert arrived, f"{len(self.chunks)} of {count} chunks within {within} s: {self}"
        return self.chunks

    async def finished(self, within: float = WAIT_SECONDS) -> Self:
        """Wait for the end of the response; AssertionError when it does not come in time."""
        ended = await self.until(lambda response: response.over, within)
        assert ended, f"no end within {within} s: {self}"
        return self

    async def quiet(self, seconds: float) -> bool:
        """Wait until nothing has come for so long; whether the response is still unfinished."""
        while not self.over:
            self._progress.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._progress.wait()
            except TimeoutError:
                break
        return not self.over

    def _note(self) -> None:
        self._progress.set()


class RawConnection(asyncio.Protocol):
    """One connection; one response at a time is read from it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._arrival = asyncio.Event()
        self._lost = asyncio.Event()
        self._peer_closed = asyncio.Event()
        self._aborted = False
        self._reading: asyncio.Task[None] | None = None

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not an instance of asyncio.Transport on uvloop
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._arrival.set()

    def eof_received(self) -> None:
        self._peer_closed.set()
        self._arrival.set()

    def connection_lost(self, error: Exception | None) -> None:
        # Without an error it was our own close, unless the peer's end of file came before.
        if error is not None:
            self._peer_closed.set()
        self._lost.set()
        self._arrival.set()

    # -- opening and closing -------------------------------------------------------------------

    @classmethod
    async def open(cls, address: str) -> Self:
        """Connect to ``http://host:port`` or ``unix:/path``."""
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            return (await loop.create_unix_connection(cls, path))[1]
        parts = urlsplit(address)
        assert parts.hostname, f"not an address: {address}"
        assert parts.port, f"not an address: {address}"
        return (await loop.create_connection(cls, parts.hostname, parts.port))[1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close our side and wait until the socket is gone; closing twice is harmless."""
        self._connected.close()
        await self._settle()

    async def abort(self) -> None:
        """Drop the connection as a vanishing client does: nothing more is sent or read."""
        self._aborted = True
        self._connected.abort()
        await self._settle()

    def half_close(self) -> None:
        """Send our end of file and go on reading."""
        self._connected.write_eof()

    def pause(self) -> None:
        """Read nothing until `resume`: a slow reader."""
        self._connected.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._connected.resume_reading()

    async def closed_by_peer(self, within: float = WAIT_SECONDS) -> bool:
        """Whether the server closes the connection in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._peer_closed.wait()
        return self._peer_closed.is_set()

    @property
    def unread(self) -> bytes:
        """Bytes that came and belong to no response that was asked for."""
        return bytes(self._received)

    # -- sending -------------------------------------------------------------------------------

    def send(self, data: bytes, *, method: str | None = None) -> Response:
        """Send a request, or the start of one, and begin to read its response.

        The method decides whether the response has a body; it is read from ``data`` unless given.
        """
        if self._reading is not None and not self._reading.done():
            raise RuntimeError("the previous response is still being read")
        response = Response(self._loop.time(), method or data.split(b" ", 1)[0].decode())
        self._connected.write(data)
        self._reading = self._loop.create_task(self._read(response))
        return response

    def send_more(self, data: bytes) -> None:
        """Send bytes that belong to no new request, or to one whose answer nobody reads yet."""
        self._connected.write(data)

    async def request(self, data: bytes, within: float = WAIT_SECONDS) -> Response:
        """Send a request and wait for the end of its response."""
        return await self.send(data).finished(within)

    # -- reading -------------------------------------------------------------------------------

    @property
    def _connected(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    async def _settle(self) -> None:
        await self._lost.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self, response: Response) -> None:
        try:
            await self._read_head(response)
            await self._read_body(response)
            response.complete = True
        except (EOFError, ProtocolViolation) as error:
            response.error = error
        finally:
            response.ended_at = self._loop.time()
            response._note()

    async def _read_head(self, response: Response) -> None:
        while True:
            status_line = (await self._line()).decode("latin-1")
            if not status_line.startswith("HTTP/1."):
                raise ProtocolViolation(f"not a status line: {status_line!r}")
            headers = []
            while line := (await self._line()).decode("utf-8", "surrogateescape"):
                name, colon, value = line.partition(":")
                if not colon or name != name.strip():
                    raise ProtocolViolation(f"not a header: {line!r}")
                headers.append((name, value.strip()))
            if not status_line.split(" ", 2)[1].startswith("1"):
                break
            response.interim.append(status_line)
            response._note()
        response.headers = headers
        response.framing = _framing(response.method, status_line, response)
        response.status_line = status_line
        response.head_at = self._loop.time()
        response._note()

    async def _read_body(self, response: Response) -> None:
        if response.framing == "length":
            length = int(response.values("content-length")[0])
            while len(response.body) < length:
                response.body += await self._some(length - len(response.body))
                response._note()
        elif response.framing == "chunked":
            await self._read_chunks(response)
        elif response.framing == "until_close":
            with suppress(EOFError):
                while True:
                    response.body += await self._some(1 << 20)
                    response._note()

    async def _read_chunks(self, response: Response) -> None:
        while True:
            line = await self._line()
            try:
                size = int(line.split(b";", 1)[0], 16)
            except ValueError:
                raise ProtocolViolation(f"not a chunk size: {line!r}") from None
            if size == 0:
                break
            data = await self._exactly(size)
            if await self._line():
                raise ProtocolViolation("a chunk is longer than it says")
            response.body += data
            response.chunks.append(Chunk(data, self._loop.time()))
            response._note()
        while await self._line():
            pass  # trailers
        response.terminated = True

    async def _line(self) -> bytes:
        while (end := self._received.find(b"\r\n")) < 0:
            await self._more()
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._more()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def _some(self, limit: int) -> bytes:
        while not self._received:
            await self._more()
        return await self._exactly(min(limit, len(self._received)))

    async def _more(self) -> None:
        """Wait for more bytes. Raises EOFError when none can come."""
        if self._aborted:
            raise EOFError("we dropped the connection")
        if self._peer_closed.is_set():
            raise EOFError("the server closed the connection")
        if self._lost.is_set():
            raise EOFError("we closed the connection")
        self._arrival.clear()
        await self._arrival.wait()


def _framing(method: str, status_line: str, response: Response) -> Framing:
    """How the body ends (RFC 9112 section 6.3)."""
    if method == "HEAD" or status_line.split(" ", 2)[1] in ("204", "304"):
        return "none"
    if any("chunked" in value.lower() for value in response.values("transfer-encoding")):
        return "chunked"
    return "length" if response.values("content-length") else "until_close"
