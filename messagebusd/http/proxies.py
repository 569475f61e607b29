"""Which peers are trusted proxies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

UNIX = "unix"
_FORWARDED = "x-forwarded-for"


class TrustedProxies:
    """Peers whose forwarding and identity headers are believed.

    Entries are networks, or ``"unix"`` for whoever connects to a Unix socket: the file's
    permissions say who that can be.
    """

    def __init__(self, entries: Sequence[IPv4Network | IPv6Network | str]) -> None:
        self._networks = tuple(each for each in entries if not isinstance(each, str))
        self._unix = UNIX in entries

    def trusts(self, transport: asyncio.BaseTransport | None) -> bool:
        """Whether the other end of this transport is one of them."""
        if transport is None or not (self._networks or self._unix):
            return False
        if _is_unix(transport):
            return self._unix
        return self._contains(_peer_address(transport))

    def client_address(
        self, transport: asyncio.BaseTransport | None, headers: Mapping[str, str]
    ) -> str:
        """The address of whoever is in front of all trusted proxies; "" where it is unknown.

        ``X-Forwarded-For`` is read from its end, where the nearest proxy wrote: what comes before
        the first address that is no trusted proxy was written by that client itself.
        """
        address = "" if transport is None or _is_unix(transport) else _peer_address(transport)
        if self.trusts(transport):
            # A proxy may add a line of its own instead of extending the client's.
            lines = [value for name, value in headers.items() if name.lower() == _FORWARDED]
            for hop in reversed(",".join(lines).split(",")):
                if hop.strip():
                    address = hop.strip()
                    if not self._contains(address):
                        break
        return address

    def _contains(self, text: str) -> bool:
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            return any(address.ipv4_mapped in network for network in self._networks)
        return any(address in network for network in self._networks)


def _is_unix(transport: asyncio.BaseTransport) -> bool:
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX


def _peer_address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""
