"""The load generator's ground: a counter to wait for, and a calling client.

Every message carries `dialects.MARK` once and nothing else does: to count messages is to count a
byte, however the bytes are cut.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from contextlib import suppress
from typing import cast

from bench.errors import BenchError
from bench.servers import Server

# How long anything that is expected may take, before the benchmark gives up.
WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.002

# Closing resets: ten thousand sockets in TIME_WAIT would be in the next scenario's way.
_RESET = struct.pack("ii", 1, 0)


async def connect(server: Server, protocol: asyncio.Protocol) -> None:
    """Give the protocol a connection. On loopback the kernel has it ready at once."""
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.connect(("127.0.0.1", server.port))
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
    except BaseException:
        sock.close()
        raise


def answer_end(data: bytes) -> int:
    """Where a complete answer ends, 0 if it is not all there. Raises BenchError unless it is a
    success.

    Only answers with a Content-Length are asked for.
    """
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return 0
    if not data.startswith(b"HTTP/1.1 20"):
        raise BenchError(f"the answer was {data[:500]!r}")
    at = data.find(b"ength: ", 0, head_end)
    end = head_end + 4 + int(data[at + 7 : data.find(b"\r", at)])
    return end if len(data) >= end else 0


class Tally:
    """Counts, until somebody's number is reached."""

    __slots__ = ("_failure", "_target", "_waiter", "_what", "count")

    def __init__(self, what: str) -> None:
        self.count = 0
        self._what = what
        self._target: float = math.inf
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BenchError | None = None

    def add(self, more: int) -> None:
        self.count += more
        if self.count >= self._target:
            self._wake()

    def fail(self, error: BenchError) -> None:
        """Let whoever waits, or will wait, know that it is in vain."""
        self._failure = self._failure or error
        self._wake()

    async def reach(self, target: int) -> None:
        """Wait for exactly this number. Raises BenchError if it never comes, or there are more."""
        if self.count < target and self._failure is None:
            self._target = target
            self._waiter = asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._waiter
            self._target, self._waiter = math.inf, None
        if self._failure is not None:
            raise self._failure
        if self.count != target:
            raise BenchError(f"{self._what}: {self.count} instead of {target}")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Caller(asyncio.Protocol):
    """A keep-alive connection that sends a request when the previous one is answered."""

    __slots__ = (
        "_answers",
        "_received",
        "_request",
        "_sent",
        "_transport",
        "_until",
        "_waiter",
        "latencies",
    )

    def __init__(self) -> None:
        # How long answers took, in seconds, while somebody wants to know.
        self.latencies: list[float] | None = None
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._request = b""
        self._until = 0.0
        self._answers = 0
        self._waiter: asyncio.Future[bytes] | None = None

    @classmethod
    async def open(cls, server: Server) -> Caller:
        caller = cls()
        await connect(server, caller)
        return caller

    async def call(self, request: bytes) -> bytes:
        """Send a request; the whole answer. Raises BenchError unless it succeeds."""
        return await self._send(request, 0.0)

    async def repeat(self, request: bytes, until: float) -> int:
        """Send a request again and again until then; how many were answered."""
        self._answers = 0
        await self._send(request, until)
        return self._answers

    async def parked(self, server: Server, mode: str, count: int) -> None:
        """Wait until the server says that it holds so many polls of a mode."""
        request = server.dialect.clients(server.key)
        give_up = time.monotonic() + WAIT_SECONDS
        while True:
            held = server.dialect.count(await self.call(request), mode)
            if held == count:
                return
            if time.monotonic() > give_up:
                raise BenchError(f"{held} polls are parked instead of {count}")
            await asyncio.sleep(LOOK_SECONDS)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _send(self, request: bytes, until: float) -> bytes:
        assert self._transport is not None, "not connected"
        self._request, self._until = request, until
        self._waiter = asyncio.get_running_loop().create_future()
        self._sent = time.perf_counter()
        self._transport.write(request)
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._waiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not an instance of asyncio.Transport on uvloop
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        waiter = self._waiter
        assert waiter is not None, "an answer without a question"
        try:
            complete = answer_end(data)
        except BenchError as error:
            waiter.set_exception(error)
            return
        if not complete:
            self._received = data
            return
        self._received = b""
        self._answers += 1
        now = time.perf_counter()
        if self.latencies is not None:
            self.latencies.append(now - self._sent)
        if now < self._until:
            assert self._transport is not None
            self._sent = now
            self._transport.write(self._request)
        elif not waiter.done():
            waiter.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(BenchError(f"a connection ended without an answer: {exc!r}"))
