"""Many clients at once: a crowd of parked streams, and a herd of long polls that comes back."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from bench.errors import BenchError
from bench.load import MARK, Caller, Tally, answer_end, connect, poll_request
from bench.servers import Server

# Streams whose first frame has not come: well below the listen backlog.
OPENING = 256
FRAME_END = b"|"
CLOSING = b"onnection: close\r\n"


class Stream(asyncio.Protocol):
    """One parked stream."""

    __slots__ = ("_crowd", "_parked", "_request", "_transport")

    def __init__(self, crowd: Crowd, request: bytes) -> None:
        self._crowd = crowd
        self._request = request
        self._parked = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        crowd = self._crowd
        if not self._parked:
            self._park(data)
        crowd.messages.add(data.count(MARK))
        if crowd.arrivals is not None:
            crowd.arrivals.append(time.perf_counter())

    def _park(self, data: bytes) -> None:
        if data.startswith(b"HTTP/") and not data.startswith(b"HTTP/1.1 200 "):
            self._crowd.fail(f"a stream was answered with {data[:500]!r}")
        elif FRAME_END in data:
            self._parked = True
            self._crowd.parked.add(1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._crowd.fail(f"a stream ended: {exc!r}")

    def close(self) -> None:
        """Reset the connection; its end is no failure then."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


class Crowd:
    """Streams of users 1, 2, 3… on one channel, as many as asked for."""

    channel = "/crowd"

    def __init__(self, server: Server, control: Caller) -> None:
        self._server = server
        self._control = control
        self._streams: list[Stream] = []
        self._opened = 0
        self.parked = Tally("first frames")
        self.messages = Tally("messages received")
        # When data came, while somebody wants to know.
        self.arrivals: list[float] | None = None

    @property
    def size(self) -> int:
        return len(self._streams)

    async def resize(self, size: int) -> None:
        """Open or close streams; on return the server has done its part as well."""
        while self.size < size:
            more = min(OPENING, size - self.size)
            for _ in range(more):
                stream = Stream(self, poll_request(self.size + 1, f"{self.channel}=-1"))
                self._streams.append(stream)
                await connect(self._server, stream)
            self._opened += more
            await self.parked.reach(self._opened)
        while self.size > size:
            self._streams.pop().close()
        await self._control.parked(self._server, "stream", size)

    def close(self) -> None:
        """Leave, without a look at the server."""
        while self._streams:
            self._streams.pop().close()

    def fail(self, what: str) -> None:
        error = BenchError(what)
        self.parked.fail(error)
        self.messages.fail(error)


class LongPoll(asyncio.Protocol):
    """A connection that one client of a herd polls on, for as long as the server keeps it."""

    __slots__ = ("_herd", "_received", "_transport", "open")

    def __init__(self, herd: Herd) -> None:
        self._herd = herd
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.open = True

    def send(self, request: bytes) -> None:
        assert self._transport is not None, "not connected"
        self._transport.write(request)

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        try:
            complete = answer_end(data)
        except BenchError as error:
            self._herd.messages.fail(error)
            return
        if not complete:
            self._received = data
            return
        self._received = b""
        if CLOSING in data:
            self.close()
        self._herd.messages.add(data.count(MARK))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.open:
            self._herd.messages.fail(BenchError(f"a long poll was not answered: {exc!r}"))


class Herd:
    """Clients of one channel that cannot take chunks and poll again when all are answered."""

    channel = "/herd"

    def __init__(self, server: Server, size: int) -> None:
        self._server = server
        self._polls: list[LongPoll | None] = [None] * size
        self.messages = Tally("messages of long polls")

    async def poll(self, position: int) -> None:
        """Let everybody poll, who has seen everything up to this message id."""
        for number, poll in enumerate(self._polls):
            if poll is None or not poll.open:
                poll = self._polls[number] = LongPoll(self)
                await connect(self._server, poll)
            poll.send(poll_request(number + 1, f"{self.channel}={position}", chunks=False))

    def close(self) -> None:
        for poll in self._polls:
            if poll is not None:
                poll.close()
