"""``messagebusd demo``: the daemon and a small chat in one process, on one port."""

from __future__ import annotations

import secrets
import sys

from messagebusd import server
from messagebusd.demo.chat import VENDORED, Chat
from messagebusd.settings import Settings


def run(host: str = "127.0.0.1", port: int = 8090) -> int:
    """Serve the demo until a signal ends it; returns the exit code.

    Everything is kept in memory and gone afterwards.
    """
    if not VENDORED.is_file():
        print(
            "The demo needs the browser client message-bus.js, which is not in the repository.\n"
            "Fetch it with `make install`, or with `npm ci && npm run vendor`.",
            file=sys.stderr,
        )
        return 1

    key = secrets.token_urlsafe(32)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    settings = Settings.model_validate(
        {
            "server": {
                "listen": address,
                # Here people choose their own names, and the page passes them on. So whoever can
                # reach the demo is believed, and listening on loopback decides who that is. A real
                # site names its proxy, which knows its users and drops this header from browsers.
                "trusted_proxies": ["0.0.0.0/0", "::/0"],
                # Ctrl-C should not wait for open pages. They come back by themselves.
                "shutdown_timeout": 1.0,
            },
            "api": {"key": key},
            "lookup": {"mode": "headers"},
        }
    )
    print("Open the address below in two browser windows. Ctrl-C stops the demo.", flush=True)
    return server.run(settings, extend=Chat(key).add_to)
