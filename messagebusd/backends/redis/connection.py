"""One connection to a Redis server: commands out, answers in.

Nothing is retried here and nothing connects again by itself: a publish that went out twice would
be published twice. That, and taking all answers of one socket read at a time, is why this speaks
RESP by itself (parsed by hiredis) and does not build upon a client library.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

import hiredis

from messagebusd.backends.redis.errors import describe, explain
from messagebusd.errors import StoreUnavailable

Word = str | bytes | int

# Seconds of silence after which the kernel looks for the peer, and between its attempts.
KEEPALIVE_IDLE_SECONDS = 15
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_COUNT = 3

_INCOMPLETE = object()


def pack(words: Iterable[Word]) -> bytes:
    """A command as it is sent."""
    packed: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]
    return packed


class Connection(asyncio.Protocol):
    """A connection, to be made by ``loop.create_connection``.

    ``on_answers`` is handed what came in, in batches; errors are ``hiredis.ReplyError`` objects in
    it. ``on_lost`` is called once with the reason, unless it was `close` that ended it.
    """

    def __init__(self) -> None:
        self.on_answers: Callable[[list[Any]], None] = lambda answers: None
        self.on_lost: Callable[[str], None] = lambda reason: None
        self.is_open = False
        self._parser = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._reason: str | None = None
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        _watch(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        parser, answers = self._parser, []
        try:
            parser.feed(data)
            while (answer := parser.gets()) is not _INCOMPLETE:
                answers.append(answer)
        except (hiredis.ProtocolError, UnicodeDecodeError):
            self.fail("the server's answer is not understood")
            return
        if answers and self.is_open:
            self.on_answers(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(describe(exc))
        if not self._gone.done():
            self._gone.set_result(None)

    def send(self, packed: bytes) -> None:
        """Send what `pack` made."""
        if self._transport is not None and self.is_open:
            self._transport.write(packed)

    def fail(self, reason: str) -> None:
        """Give the connection up for this reason."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(reason)

    async def close(self) -> None:
        """End the connection quietly."""
        self.on_lost = lambda reason: None
        self.fail("closed")
        if self._transport is not None:
            await self._gone

    async def ask(self, *commands: Iterable[Word]) -> list[Any]:
        """Send commands and wait for their answers; for the time before ``on_answers`` is set.

        Raises StoreUnavailable, also if one of the answers is an error. No timeout: the caller has
        one.
        """
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        collected: list[Any] = []

        def collect(answers: list[Any]) -> None:
            collected.extend(answers)
            if len(collected) >= len(commands) and not done.done():
                done.set_result(collected)

        def lose(reason: str) -> None:
            if not done.done():
                done.set_exception(StoreUnavailable(reason))

        if not self.is_open:
            raise StoreUnavailable(self._reason or "closed")
        self.on_answers, self.on_lost = collect, lose
        self.send(b"".join(map(pack, commands)))
        answers = await done
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise StoreUnavailable(explain(str(answer)))
        return answers

    def _lose(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            self.is_open = False
            self.on_lost(reason)


def _watch(raw: socket.socket | None) -> None:
    """Let the kernel notice a peer that has gone without a word."""
    if raw is None or raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
    ):
        if hasattr(socket, name):  # not everywhere by these names
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
