"""Where the daemon listens: its sockets, and what it says of itself once they are served."""

from __future__ import annotations

import errno
import logging
import os
import resource
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from messagebusd import __version__
from messagebusd.settings import (
    Address,
    FdAddress,
    ServerSettings,
    Settings,
    TcpAddress,
    UnixAddress,
)

LISTEN_BACKLOG = 4096

_log = logging.getLogger(__name__)


def listen_addresses(server: ServerSettings) -> dict[str, Address]:
    """What to listen on, by listener: ``public``, and ``internal`` if there is one of its own."""
    addresses: dict[str, Address] = {"public": server.listen}
    if server.internal_listen is not None:
        addresses["internal"] = server.internal_listen
    return addresses


def bind(
    address: Address, processes: int = 1, *, reuse_port: bool = False
) -> list[list[socket.socket]]:
    """Bind sockets for so many processes; each gets a list of its own.

    On TCP the kernel shares connections out among the processes. Other sockets they have in common,
    and whoever comes first accepts. Raises OSError that names the address, also if another daemon
    listens there; but with ``reuse_port`` another one of our user that has it too may, on TCP.
    """
    try:
        match address:
            case TcpAddress(host, port):
                return _bind_tcp(host, port, processes, reuse_port)
            case UnixAddress(path):
                shared = _bind_unix(path)
            case FdAddress(number):
                shared = socket.socket(fileno=os.dup(number))
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    return [[shared] for _ in range(processes)]


def _bind_tcp(host: str, port: int, processes: int, reuse_port: bool) -> list[list[socket.socket]]:
    places = dict.fromkeys(
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    )
    rows: list[list[socket.socket]] = [[] for _ in range(processes)]
    try:
        for family, kind, protocol, _, place in places:
            for row in rows:
                opened = socket.socket(family, kind, protocol)
                row.append(opened)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # The first is bound without sharing, so that a daemon that listens there already
                # is noticed, and may be shared only afterwards.
                if reuse_port or row is not rows[0]:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                opened.bind((place[0], port, *place[2:]))
                if processes > 1:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                port = opened.getsockname()[1]  # where 0 was asked for
    except BaseException:
        for opened in (each for row in rows for each in row):
            opened.close()
        raise
    return rows


def _bind_unix(path: Path) -> socket.socket:
    """Bind a socket file in place of one that nobody listens on any more."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # left behind by a process that is gone
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.bind(str(path))
    except BaseException:
        opened.close()
        raise
    return opened


def shown_address(address: Address, sockets: Sequence[socket.socket]) -> str:
    """The address as others may use it: with the port that 0 stood for."""
    if not isinstance(address, TcpAddress):
        return str(address)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{sockets[0].getsockname()[1]}"


def raise_descriptor_limit(wanted: int) -> int:
    """Every parked poll is a descriptor: take as many as the hard limit gives; how many we have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    available = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (available, hard))
    return available


def make_key(settings: Settings) -> str | None:
    """A random API key, if none is configured: settings allow that where only we can reach it."""
    if not settings.api.enabled or settings.api.has_key:
        return None
    return f"mb_{secrets.token_urlsafe(32)}"


def announce(settings: Settings, addresses: Mapping[str, str], made_key: str | None) -> None:
    """Say that the daemon is ready, and where; to newcomers without a key, how to begin."""
    for listener, address in addresses.items():
        _log.info("listening", extra={"listener": listener, "address": address})
    _log.info("ready", extra={"version": __version__, "backend": settings.backend.kind})
    if made_key is not None:
        public = addresses["public"]
        internal = addresses.get("internal", public)
        # A browser does not open the other kinds of addresses.
        has_page = settings.admin.enabled and internal.startswith("http:")
        _introduce(made_key, public, internal, settings.server.base_route, has_page)


def _introduce(key: str, public: str, internal: str, route: str, has_page: bool) -> None:
    """Say once what a newcomer needs; on stdout, so that the key is in no log."""
    page = f"It also opens {internal}/admin/ in a browser.\n" if has_page else ""
    print(
        f"""
messagebusd {__version__} is listening on {public}

No API key is configured; this one is valid until the daemon stops:
  export MESSAGEBUSD_KEY={key}
{page}
Try, in a shell with that key:
  curl -N -d '/hello=0' {public}{route}message-bus/me/poll
and in another:
  curl -H "Authorization: Bearer $MESSAGEBUSD_KEY" \\
       -d '{{"channel":"/hello","data":{{"text":"Hello!"}}}}' {internal}/api/v1/publish
""",
        flush=True,
    )
