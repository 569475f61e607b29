"""A network that misbehaves: a TCP proxy between the daemon and its store."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Self


class FaultProxy:
    """Forwards a port of its own to ``port`` of this machine, with whatever faults are asked for.

    Faults concern open connections and new ones alike, until `restore`. Without one, bytes and
    orderly ends pass as they are.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.connections = 0
        self.delay = 0.0
        """Seconds by which everything is held back, either way."""
        self.marked = 0
        """How many pieces of requests had the mark in them."""
        self._target = port
        self._mark: bytes | None = None
        self._is_dark = False
        self._cut_after: bytes | None = None
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        self.reset()
        for link in tuple(self._links):
            await link.over.wait()

    # -- faults

    def reset(self) -> None:
        """Reset every open connection, on both sides."""
        for link in tuple(self._links):
            link.reset()

    def blackhole(self) -> None:
        """Keep connections open, and let nothing through, no end either: as if a cable were cut."""
        self._is_dark = True

    def restore(self) -> None:
        """Let everything through again, what was held back first."""
        self._is_dark, self.delay = False, 0.0
        for link in tuple(self._links):
            link.pump()

    def refuse(self) -> None:
        """Refuse new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Link(self).client, "127.0.0.1", self.port
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def retarget(self, port: int) -> None:
        """Send new connections to another server, and reset those that are open."""
        self._target = port
        self.reset()

    def count(self, mark: bytes) -> None:
        """Count requests that have these bytes in them, from now on."""
        self._mark, self.marked = mark, 0

    def cut_after(self, request: bytes) -> None:
        """Pass the next bytes that contain this on, and reset when the server answers: once. They
        were carried out then, unless what it answers is an earlier request on that connection."""
        self._cut_after = request


class _End(asyncio.Protocol):
    """What the proxy has of a connection on one side."""

    def __init__(self, link: _Link, *, is_client: bool) -> None:
        self._link = link
        self._is_client = is_client
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self._is_client:
            self._link.connect()

    def data_received(self, data: bytes) -> None:
        self._link.forward(self._is_client, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if exc is None:
            self._link.forward(self._is_client, None)
        else:
            self._link.fail()
        self._link.check_over()

    def abort(self) -> None:
        if self.transport is not None:
            # No lingering: the peer sees a reset, not an orderly end.
            opened = self.transport.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


class _Link:
    """One connection through the proxy, with its two ends."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.client = _End(self, is_client=True)
        self.over = asyncio.Event()
        self._server = _End(self, is_client=False)
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        # When it is due, whether the client sent it, and the bytes; None is an orderly end. One
        # queue for both ways: bytes keep their order whatever happens to the delay.
        self._held: deque[tuple[float, bool, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._is_connected = False
        self._is_broken = False
        self._is_cut = False

    def connect(self) -> None:
        self._proxy.connections += 1
        self._proxy._links.add(self)
        self._connecting = self._loop.create_task(self._connect())
        self._connecting.add_done_callback(lambda _: self.check_over())

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(
                lambda: self._server, "127.0.0.1", self._proxy._target
            )
        except OSError:
            self.fail()
        else:
            self._is_connected = True
            self.pump()

    def forward(self, is_request: bool, data: bytes | None) -> None:
        """Pass bytes on, or their sender's end, as soon as the faults allow it."""
        self._held.append((self._loop.time() + self._proxy.delay, is_request, data))
        self.pump()

    def fail(self) -> None:
        """Reset the other end as well, as soon as the faults allow it."""
        self._is_broken = True
        self.pump()

    def pump(self) -> None:
        """Pass on what is due."""
        if self._proxy._is_dark:
            return
        if self._is_broken:
            self.reset()
        while self._held and self._is_connected:
            due, is_request, data = self._held[0]
            if self._proxy.delay and due > self._loop.time():
                self._wait_until(due)
                return
            self._held.popleft()
            self._pass(is_request, data)

    def _wait_until(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self.pump)

    def _pass(self, is_request: bool, data: bytes | None) -> None:
        transport = (self._server if is_request else self.client).transport
        if self._is_cut and not is_request:
            self.reset()
        elif transport is None:
            pass  # nobody is there any more
        elif data is None:
            transport.close()
        else:
            transport.write(data)
            mark = self._proxy._mark
            self._proxy.marked += is_request and mark is not None and mark in data
            cut = self._proxy._cut_after
            if is_request and cut is not None and cut in data:
                self._proxy._cut_after = None
                self._is_cut = True

    def reset(self) -> None:
        """Reset both ends now."""
        self._held.clear()
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.abort()
        self._server.abort()

    def check_over(self) -> None:
        """Forget the connection when both ends are gone."""
        is_connecting = self._connecting is not None and not self._connecting.done()
        if not is_connecting and self.client.transport is None and self._server.transport is None:
            if self._timer is not None:
                self._timer.cancel()
            self._proxy._links.discard(self)
            self.over.set()
