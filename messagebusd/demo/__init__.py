"""``messagebusd demo``: the daemon and a small chat in one process, on one port."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import sys

from yarl import URL

from messagebusd import alone
from messagebusd.demo import questions
from messagebusd.demo.chat import LOOKUP, Chat
from messagebusd.http.scripts import FOLDER
from messagebusd.settings import Settings


def run(host: str = "127.0.0.1", port: int = 8090) -> int:
    """Serve the demo until a signal ends it; returns the exit code.

    Everything is kept in memory and gone afterwards, logins as well.
    """
    if not (FOLDER / "client.js").is_file():
        print(
            "The demo needs the browser client, which is not in the repository: `make clients`.",
            file=sys.stderr,
        )
        return 1

    try:
        port = port or _free_port(host)
        own = URL.build(scheme="http", host=_reachable(host), port=port)
    except OSError as error:
        print(f"error: {host}: {error}", file=sys.stderr)
        return 1
    key, secret = secrets.token_urlsafe(32), questions.make_secret()
    settings = Settings.model_validate(
        {
            "server": {
                "listen": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                # Ctrl-C should not wait for open pages. They come back by themselves.
                "shutdown_timeout": 1.0,
            },
            "api": {"key": key},
            # The daemon asks the chat, which knows its visitors by their cookies.
            "lookup": {
                "mode": "webhook",
                "webhook": {"url": str(own.with_path(LOOKUP)), "secret": secret},
            },
        }
    )
    print(
        "Open the address below, and once more as localhost or in a private window to be two "
        "people. Ctrl-C stops the demo.",
        flush=True,
    )
    return alone.run(alone.without_sources(settings), extend=Chat(own, key, secret).add_to)


def _free_port(host: str) -> int:
    """A port for 0: the daemon has to know where to ask before anything listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        port: int = probe.getsockname()[1]
        return port


def _reachable(host: str) -> str:
    """Where this machine reaches itself, for an address that means all of its addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
