"""A network that misbehaves: a TCP proxy between the daemon and its store."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self


class FaultProxy:
    """Forwards a port of its own to ``port`` of this machine, with whatever faults are asked for.

    Faults concern open connections and new ones alike, until `restore`.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.connections = 0
        self.delay = 0.0
        """Seconds by which everything is held back, either way."""
        self._target = port
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
        await asyncio.sleep(0.05)  # the transports close in the loop's next turns

    # -- faults

    def reset(self) -> None:
        """Reset every open connection, on both sides."""
        for link in tuple(self._links):
            link.reset()

    def blackhole(self) -> None:
        """Keep connections open, and let nothing through: as if a cable were cut."""
        self._is_dark = True

    def restore(self) -> None:
        """Let everything through again, what was held back first."""
        self._is_dark, self.delay = False, 0.0
        for link in tuple(self._links):
            link.flush()

    def refuse(self) -> None:
        """Refuse new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Link(self), "127.0.0.1", self.port
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def retarget(self, port: int) -> None:
        """Send new connections to another server, and reset those that are open."""
        self._target = port
        self.reset()

    def cut_after(self, request: bytes) -> None:
        """Pass the next bytes that contain this on, then reset before any answer: once."""
        self._cut_after = request


class _Link(asyncio.Protocol):
    """One connection through the proxy, seen from the client's side."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._held: list[tuple[bool, bytes]] = []
        self._is_muted = False
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._client = transport
        self._proxy.connections += 1
        self._proxy._links.add(self)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            self._server, _ = await self._loop.create_connection(
                lambda: _Far(self), "127.0.0.1", self._proxy._target
            )
        except OSError:
            self.reset()
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        self.forward(True, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reset()

    def forward(self, is_request: bool, data: bytes) -> None:
        if self._proxy.delay:
            self._loop.call_later(self._proxy.delay, self._pass, is_request, data)
        else:
            self._pass(is_request, data)

    def flush(self) -> None:
        held, self._held = self._held, []
        for is_request, data in held:
            self._pass(is_request, data)

    def _pass(self, is_request: bool, data: bytes) -> None:
        if self._proxy._is_dark or self._server is None:
            self._held.append((is_request, data))
        elif not is_request:
            if not self._is_muted and self._client is not None:
                self._client.write(data)
        else:
            self._server.write(data)
            cut = self._proxy._cut_after
            if cut is not None and cut in data:
                self._proxy._cut_after = None
                self._is_muted = True
                self._loop.call_later(0.1, self.reset)  # it must arrive, and be carried out

    def reset(self) -> None:
        self._proxy._links.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        for transport in (self._client, self._server):
            if transport is not None and not transport.is_closing():
                # No lingering: the peer sees a reset, not an orderly end.
                opened = transport.get_extra_info("socket")
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()


class _Far(asyncio.Protocol):
    """The same connection, seen from the server's side."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.forward(False, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.reset()
