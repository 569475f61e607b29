"""Hand a socket from aiohttp to a parked poll. The only file that knows how.

An aiohttp connection with a handler waiting in it costs ten times what a parked poll needs: a
parser, two tasks, a request, a writer. So once a request has been read and its poll is to park,
the transport is given to the `Connection` as its protocol, and aiohttp is told that the peer has
gone. What the handler then returns is never written.

This relies on aiohttp 3.14 (PERFORMANCE.md, "Taking over"); ``tests/integration/test_takeover.py``
holds it to that. Where a transport cannot change its protocol, the handler stays and waits, with
the same bytes on the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web

from messagebusd.connection import Connection


class TakenOver(web.StreamResponse):
    """What a handler returns whose socket is no longer aiohttp's: nothing is written."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Write no head."""

    async def write_eof(self, data: Any = b"") -> None:
        """Write no end."""


async def hold(
    request: web.BaseRequest,
    connection: Connection,
    begin: Callable[[asyncio.Transport], None],
) -> web.StreamResponse:
    """Let a poll wait on its own socket.

    ``begin`` is called with the transport, at once and without an await before it; it writes the
    first bytes, if any, and parks the connection. A client that has gone already is forgotten.
    """
    protocol, transport = request.protocol, request.transport
    if transport is None or transport.is_closing():
        connection.connection_lost(None)
        return TakenOver()
    if not _can_change_protocol(transport):
        return await _hold_here(transport, connection, begin)
    transport.set_protocol(connection)
    # Without its transport the protocol cannot close the socket while it shuts itself down; this
    # also drops requests pipelined behind this one: the answer says that the connection closes.
    protocol.transport = None
    protocol.connection_lost(None)
    if not transport.is_reading():  # paused for pipelined requests; EOF must still be noticed
        transport.resume_reading()
    begin(transport)
    return TakenOver()


def _can_change_protocol(transport: asyncio.BaseTransport) -> bool:
    return hasattr(transport, "set_protocol")


class _BorrowedTransport:
    """A transport that stays aiohttp's; closing it only lets the waiting handler return."""

    def __init__(self, transport: asyncio.Transport, closed: asyncio.Future[None]) -> None:
        self._transport = transport
        self._closed = closed
        self.write = transport.write
        self.get_write_buffer_size = transport.get_write_buffer_size

    def is_closing(self) -> bool:
        return self._closed.done() or self._transport.is_closing()

    def close(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def abort(self) -> None:
        self._transport.abort()


async def _hold_here(
    transport: asyncio.Transport,
    connection: Connection,
    begin: Callable[[asyncio.Transport], None],
) -> web.StreamResponse:
    """The plain way: the handler waits. A disconnect is noticed on the next write."""
    closed = asyncio.get_running_loop().create_future()
    begin(cast(asyncio.Transport, _BorrowedTransport(transport, closed)))
    try:
        await closed
    finally:
        transport.close()
        connection.connection_lost(None)
    return TakenOver()
