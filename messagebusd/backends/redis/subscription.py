"""A connection that is subscribed to the announcements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from messagebusd.backends.redis.connection import Connection, pack
from messagebusd.backends.redis.errors import explain
from messagebusd.errors import StoreUnavailable

_PING = pack(("PING",))


class Subscription:
    """Takes a connection over. ``on_payloads`` is handed what was announced, by socket reads.

    ``on_lost`` is called once with the reason, unless it was `close` that ended it.
    """

    def __init__(
        self,
        connection: Connection,
        pubsub_channel: str,
        *,
        timeout: float,
        on_payloads: Callable[[Sequence[bytes]], None],
        on_lost: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # When the server was last heard of; and why it is no longer.
        self.heard_at = clock()
        self.reason = "the server has closed the connection"
        self._connection = connection
        self._timeout = timeout
        self._on_payloads = on_payloads
        self._on_lost = on_lost
        self._clock = clock
        self._ping: asyncio.Event | None = None
        self._next_ping: asyncio.Event | None = None
        connection.on_answers = self._on_answers
        connection.on_lost = self._lose
        connection.send(pack(("SUBSCRIBE", pubsub_channel)))

    @property
    def is_open(self) -> bool:
        """Whether the connection stands, as far as we know."""
        return self._connection.is_open

    def fail(self, reason: str) -> None:
        """Give it up for this reason."""
        self._connection.fail(reason)

    async def close(self) -> None:
        """End it quietly."""
        await self._connection.close()
        self._release_pings()

    async def pong(self) -> None:
        """Ask the server for a sign, and wait for it: all that it sent before is here then.

        After the first one the subscription is confirmed. Who asks while a ping is under way waits
        for the next one, together with others. Raises StoreUnavailable.
        """
        if self._next_ping is None:
            self._next_ping = asyncio.Event()
        ping = self._next_ping
        if self._ping is None:
            self._send_ping()
        try:
            async with asyncio.timeout(2 * self._timeout):
                await ping.wait()
        except TimeoutError:
            self.fail("the server does not answer in time")
        if not self._connection.is_open:
            raise StoreUnavailable(self.reason)

    def _send_ping(self) -> None:
        self._ping, self._next_ping = self._next_ping, None
        if not self._connection.is_open:
            self._release_pings()
        elif self._ping is not None:
            self._connection.send(_PING)

    def _release_pings(self) -> None:
        for each in (self._ping, self._next_ping):
            if each is not None:
                each.set()
        self._ping = self._next_ping = None

    def _on_answers(self, answers: list[Any]) -> None:
        self.heard_at = self._clock()
        payloads = []
        has_pong = False
        for answer in answers:
            match answer:
                case [b"message", _, bytes(payload)]:
                    payloads.append(payload)
                case [b"pong", _]:
                    has_pong = True
                case [b"subscribe", _, _]:
                    pass
                case hiredis.ReplyError():
                    self.fail(explain(str(answer)))
                case _:
                    self.fail("the server's answer is not understood")
        if payloads:
            self._on_payloads(payloads)
        if has_pong:
            if self._ping is not None:
                self._ping.set()
            self._send_ping()

    def _lose(self, reason: str) -> None:
        self.reason = reason
        self._release_pings()
        self._on_lost(reason)
