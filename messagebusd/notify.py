"""What a service manager is told (systemd's ``Type=notify``, see sd_notify(3)).

The protocol is one datagram a message, to the socket that the environment names. Without one,
nothing is told. Where the manager does not listen it is no reason to fail. Where it has not come to
what others told it, `alive` is told again soon anyway; the rest is told once, and waits a moment.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

PATIENCE_SECONDS = 1.0


class Notifier:
    """Tells a service manager how the daemon is. ``clock`` is CLOCK_MONOTONIC in seconds.

    ``watchdog_seconds`` is how often it must hear `alive` at least; None if it does not watch.
    """

    def __init__(
        self,
        address: str = "",
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watchdog_seconds = watchdog_seconds if address else None
        self._clock = clock
        # An abstract socket's name begins with a zero, written as an at sign.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._is_stopping = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """For the manager that started this process. Takes its variables out of the environment:
        what we start is not what it watches."""
        address = environ.pop("NOTIFY_SOCKET", "")
        seconds = _microseconds(environ.pop("WATCHDOG_USEC", ""))
        watched = environ.pop("WATCHDOG_PID", "")
        if watched and watched != str(os.getpid()):
            seconds = None
        return cls(address if address[:1] in ("/", "@") else "", seconds)

    def ready(self, status: str = "serving") -> None:
        """The daemon serves; also after a reload."""
        if not self._is_stopping:  # a reload that is broken off says so, too
            self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The settings are being read again; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._clock() * 1e6:.0f}")

    def stopping(self) -> None:
        """The daemon has begun to stop; that it is ready is not told any more."""
        self._is_stopping = True
        self._tell("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """The loop turns."""
        self._tell("WATCHDOG=1", patience=0.0)

    async def keep_alive(self) -> None:
        """Tell that the loop turns, as often as is asked for, until cancelled."""
        while self.watchdog_seconds is not None:
            self.alive()
            await asyncio.sleep(self.watchdog_seconds / 2)

    def close(self) -> None:
        """Tell nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str, patience: float = PATIENCE_SECONDS) -> None:
        if self._socket is not None:
            self._socket.settimeout(patience)
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)


def _microseconds(text: str) -> float | None:
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) > 0 else None
