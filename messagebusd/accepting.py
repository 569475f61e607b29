"""One listener of one process: it accepts connections, and stops without losing any.

Whoever is in the queue of a socket when it is closed is reset, and may have sent a request already.
So the end comes in steps: the kernel is told to ignore whoever begins to connect (they try again a
second later, and find another listener, or none), those who have come are accepted and served, and
only then the socket is closed. A socket that others keep, systemd for one, is left as it is: its
queue is for them. A worker that ends by itself is an exception, whose supervisor hands the socket
to the next one: that one undoes what the kernel was told.
"""

from __future__ import annotations

import array
import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from messagebusd.listeners import LISTEN_BACKLOG

# So long handshakes that had begun may take.
HANDSHAKE_SECONDS = 0.1

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
# A packet filter (classic BPF) over TCP headers, see socket(7): what has the flag SYN and not ACK
# is dropped, all else passes.
_FLAGS_OFFSET, _SYN, _SYN_ACK = 13, 0x02, 0x12
_NO_NEWCOMERS = (
    (0x30, 0, 0, _FLAGS_OFFSET),  # load the byte of flags
    (0x54, 0, 0, _SYN_ACK),  # and with
    (0x15, 0, 1, _SYN),  # if it is just that
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFF_FFFF),  # pass the whole
)


class Listener:
    """``make`` makes the protocol of each connection. ``is_shared`` says that others, who go on,
    have the same sockets."""

    def __init__(self, make: Callable[[], asyncio.BaseProtocol], *, is_shared: bool) -> None:
        self._make = make
        self._is_shared = is_shared
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept what comes to these bound sockets, which are ours now. Raises OSError."""
        loop = asyncio.get_running_loop()
        for opened in sockets:
            if not self._is_shared:
                _welcome_newcomers(opened)
            # Connections inherit it: a peer that is silently gone is noticed some day.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._sockets.append(opened)
            self._servers.append(
                await loop.create_server(self._make, sock=opened, backlog=LISTEN_BACKLOG)
            )

    async def close(self) -> None:
        """Accept nobody any more, but for those who have come. Twice is harmless."""
        servers, self._servers = self._servers, []
        left = [] if self._is_shared else [each.dup() for each in self._sockets if servers]
        self._sockets = []
        for each in left:
            _ignore_newcomers(each)
        for server in servers:
            server.close()
        try:
            for each in left:
                await self._accept_all(each)
            if left:
                await asyncio.sleep(HANDSHAKE_SECONDS)
            for each in left:
                await self._accept_all(each)
        finally:
            for each in left:
                each.close()

    async def _accept_all(self, listening: socket.socket) -> None:
        """Accept who waits."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        # No more can be waiting now. On Unix sockets others keep coming meanwhile, without an end.
        for _ in range(LISTEN_BACKLOG):
            try:
                accepted, _ = listening.accept()
            except ConnectionAbortedError:
                continue  # whoever it was has gone
            except OSError:
                return  # nobody is left
            accepted.setblocking(False)
            await loop.connect_accepted_socket(self._make, accepted)


def _ignore_newcomers(listening: socket.socket) -> None:
    """Have the kernel ignore who begins to connect by TCP."""
    if not _may_ignore(listening):
        return
    program = array.array("B", b"".join(struct.pack("HBBI", *each) for each in _NO_NEWCOMERS))
    address, _ = program.buffer_info()
    described = struct.pack("HP", len(_NO_NEWCOMERS), address)
    with suppress(OSError):  # a kernel without filters
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _welcome_newcomers(listening: socket.socket) -> None:
    """Undo that, where another process has done it."""
    if _may_ignore(listening):
        with suppress(OSError):  # nobody has
            listening.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _may_ignore(listening: socket.socket) -> bool:
    return listening.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux"
