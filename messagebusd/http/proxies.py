"""Which peers are trusted proxies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from messagebusd.identity.base import RequestHeaders

UNIX = "unix"
# More proxies than stand in any row; what is older in a header was written to keep us busy.
MAX_HOPS = 32
_FORWARDED = "x-forwarded-for"
# How many addresses are remembered as read: reading one takes as long as all else here.
_REMEMBERED = 4096
# The longest address with zone and port has less; what is longer is none.
_LONGEST = 100
# What one customer of a provider is given; within it addresses change at will.
_CUSTOMER_BITS = 64


class TrustedProxies:
    """Peers whose forwarding and identity headers are believed.

    Entries are networks, or ``"unix"`` for whoever connects to a Unix socket: the file's
    permissions say who that can be.
    """

    def __init__(self, entries: Sequence[IPv4Network | IPv6Network | str]) -> None:
        self._networks = tuple(each for each in entries if not isinstance(each, str))
        self._unix = UNIX in entries
        self._contains = lru_cache(_REMEMBERED)(self._is_listed)
        self._known_peer = lru_cache(_REMEMBERED)(self._read_peer)
        self._counted = lru_cache(_REMEMBERED)(self._count)
        self._remembered = lru_cache(_REMEMBERED)(self._find_client)

    def trusts(self, transport: asyncio.BaseTransport | None) -> bool:
        """Whether the other end of this transport is one of them."""
        if transport is None or not (self._networks or self._unix):
            return False
        return self._peer(transport)[1]

    def client_address(
        self, transport: asyncio.BaseTransport | None, headers: RequestHeaders
    ) -> str:
        """The address of whoever is in front of all trusted proxies; "" where it is unknown.

        ``X-Forwarded-For`` is read from its end, where the nearest proxy wrote: what comes before
        the first address that is no trusted proxy was written by that client itself. What is no
        address ends the reading, too.
        """
        if transport is None:
            return ""
        peer, is_trusted = self._peer(transport)
        if not is_trusted:
            return peer
        # A proxy may add a line of its own instead of extending the client's.
        lines = headers.getall(_FORWARDED, ())
        if len(lines) == 1 and len(lines[0]) <= _LONGEST:
            return self._remembered(peer, lines[0])
        return self._find_client(peer, ",".join(lines))

    def _find_client(self, peer: str, forwarded: str) -> str:
        address = peer
        hops = forwarded.rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        for hop in reversed([each.strip() for each in hops if each.strip()]):
            found = _address(hop[:_LONGEST])
            if not found:
                break
            address = found
            if not self._contains(address):
                break
        return address

    def counted_address(
        self, transport: asyncio.BaseTransport | None, headers: RequestHeaders
    ) -> str:
        """What limits by address count: the client's address, of IPv6 the first 64 bits.

        "" where it is unknown, as of a proxy that does not say for whom it asks: it must not be
        taken for one client.
        """
        return self._counted(self.client_address(transport, headers))

    def _peer(self, transport: asyncio.BaseTransport) -> tuple[str, bool]:
        """The other end's address, and whether it is trusted; "" of a Unix socket, whose name is
        no tuple."""
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            return self._known_peer(peer[0])
        return "", self._unix and _is_unix(transport)

    def _read_peer(self, text: object) -> tuple[str, bool]:
        address = _address(str(text))
        return address, self._contains(address)

    def _count(self, text: str) -> str:
        address = _read(text)
        if address is None or self._contains(text):
            return ""
        if isinstance(address, IPv4Address):
            return str(address)
        return str(IPv6Network((address, _CUSTOMER_BITS), strict=False))

    def _is_listed(self, text: str) -> bool:
        address = _read(text)
        return address is not None and any(address in network for network in self._networks)


@lru_cache(_REMEMBERED)
def _address(text: str) -> str:
    """An address as it is always written; "" for what is none."""
    return str(_read(text) or "")


@lru_cache(_REMEMBERED)
def _read(text: str) -> IPv4Address | IPv6Address | None:
    """An address, IPv4 as such, without zone and without the port that some proxies add."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_unix(transport: asyncio.BaseTransport) -> bool:
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX
