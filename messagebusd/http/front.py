"""Plain polls and publishes, answered without aiohttp's layers around them.

What aiohttp does for a request takes longer than all that the daemon does for an immediate poll. So
connections begin with a protocol of ours. A *plain* request is a POST for one of our doors in
HTTP/1.1, with a Content-Length, moderate in size, whole, and with nothing behind it. It is read by
aiohttp's own parser, so that nothing is understood here that is not understood there, and answered
by the same doors as all others. Anything else, errors included, belongs to aiohttp: it is handed
the connection, for good, and every byte of the request that came. What is unusual is served as if
this module were not there.

A request in several pieces is waited for, briefly. One that comes while another one is being
answered waits for its turn. A poll that parks is given the transport, see `Connection`.

Publishers send the same head again and again, but for the length of the body. It is read once on
each connection; see `KnownHead`.

This relies on aiohttp 3.14: on its parser (`plain`), and that a protocol of its server may be given
a transport that has been read from. ``tests/integration/test_front.py`` holds it to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

from aiohttp.http import RawRequestMessage

from messagebusd.connection import Connection
from messagebusd.http.app import KEEPALIVE_SECONDS
from messagebusd.http.begun import go_on
from messagebusd.http.call import Answer, Answering, Begin
from messagebusd.http.middleware import Errors
from messagebusd.http.plain import KnownHead, PlainCall, encode, is_plain, plain_parser

# Longer requests are aiohttp's, which bounds what it holds of them.
MAX_REQUEST_BYTES = 64 * 1024
# For the rest of a request; then it is aiohttp that waits, and knows what to say.
PATIENCE_SECONDS = 0.25
# For the first request of who has only just come when all connections end.
WELCOME_SECONDS = 1.0
_LOOK_SECONDS = 0.02

_BEGIN = b"POST /"


class Route(NamedTuple):
    """A door. ``is_immediate`` says that it hardly ever waits for anything, and never for a network
    or with a timeout: it is begun without a task, which `asyncio.timeout` would need. ``is_api``
    says that its callers are programs, and that it does not look at the length in the head."""

    answering: Answering
    is_immediate: bool
    is_api: bool = False


class Front:
    """Makes the protocol of each connection to a listener, and ends them all.

    ``odd`` makes protocols for what is not plain. ``find`` knows the door of a path, as it was
    sent; None if there is no such door.
    """

    def __init__(
        self,
        odd: Callable[[], asyncio.BaseProtocol],
        find: Callable[[str], Route | None],
        errors: Errors,
        is_draining: Callable[[], bool],
        keepalive: float = KEEPALIVE_SECONDS,
    ) -> None:
        self.odd = odd
        self.find = find
        self.errors = errors
        self.is_draining = is_draining
        self.loop = asyncio.get_running_loop()
        self._keepalive = keepalive
        # Until when each may be idle, the first one first.
        self._visitors: dict[_Visitor, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> asyncio.Protocol:
        return _Visitor(self)

    def lead(self, find: Callable[[str], Route | None]) -> None:
        """Lead to other doors from the next request of each connection on."""
        self.find = find
        for visitor in self._visitors:
            visitor.forget()

    async def close(self, seconds: float) -> None:
        """End all connections; give answers that are under way so many seconds.

        Whoever has not asked for anything yet is about to: to be hung up on would be an error.
        """
        for visitor in tuple(self._visitors):
            if not (visitor.is_busy or visitor.is_expected):
                visitor.close()
        until = self.loop.time() + WELCOME_SECONDS
        # This happens once; an event would cost every request something.
        while any(each.is_expected for each in self._visitors) and self.loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for visitor in tuple(self._visitors):
            visitor.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- for its visitors --------------------------------------------------------------------

    def note(self, visitor: _Visitor) -> None:
        """Something came from or went to this one: it may be idle from now on."""
        self._visitors.pop(visitor, None)
        self._visitors[visitor] = self.loop.time() + self._keepalive
        if self._timer is None:
            self._timer = self.loop.call_later(self._keepalive, self._sweep)

    def forget(self, visitor: _Visitor) -> None:
        """This one has gone, or is no longer ours."""
        self._visitors.pop(visitor, None)

    def run(self, task: asyncio.Task[None]) -> None:
        """Own an answer that is under way."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _sweep(self) -> None:
        """End those that were idle for too long; then look at when to come again."""
        self._timer = None
        now = self.loop.time()
        while self._visitors:
            visitor, until = next(iter(self._visitors.items()))
            if until > now:
                until = max(until, now + self._keepalive / 50)  # some together
                self._timer = self.loop.call_at(until, self._sweep)
                return
            visitor.expire()


class _Visitor(asyncio.Protocol):
    """A connection, until it is handed on or ends."""

    __slots__ = (
        "_front",
        "_has_asked",
        "_is_choked",
        "_known",
        "_message",
        "_parser",
        "_patience",
        "_received",
        "_transport",
        "is_busy",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self._parser = plain_parser(front.loop)
        self._transport: asyncio.Transport | None = None
        # What came of a request that is not whole yet, and of one behind that is being answered.
        self._received = b""
        self._message: RawRequestMessage | None = None
        # The latest head of a publisher, and what was found for it.
        self._known: tuple[KnownHead, Route] | None = None
        self._patience: asyncio.TimerHandle | None = None
        # A request is being answered.
        self.is_busy = False
        self._has_asked = False
        # Its answers are not being read.
        self._is_choked = False

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._transport

    @property
    def is_expected(self) -> bool:
        """Whether a request has begun, or the first one has not."""
        return not self.is_busy and (not self._has_asked or bool(self._received))

    def forget(self) -> None:
        """Find the way to a door anew."""
        self._known = None

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._front.note(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that is under way goes on: it is only not sent, nor does its poll park."""
        self._leave()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        if self.is_busy:
            self._received = received
            if len(received) > MAX_REQUEST_BYTES:
                self._pause()
            return
        if self._known is not None and not self._received and self._answer_again(data):
            return
        begun = received.startswith(_BEGIN) or _BEGIN.startswith(received)
        if not begun or len(received) > MAX_REQUEST_BYTES:
            self._hand_on(received)
            return
        try:
            messages, _, _ = self._parser.feed_data(data)
        except Exception:  # whatever it is, it will be aiohttp's, too
            self._hand_on(received)
            return
        if messages:
            self._message = messages[0][0]
        message = self._message
        if message is None:
            self._wait(received)
            return
        path, _, query = message.path.partition("?")
        route = self._front.find(path) if is_plain(message, received) else None
        if route is None:
            self._hand_on(received)
            return
        start = received.index(b"\r\n\r\n") + 4
        missing = start + int(message.headers["Content-Length"]) - len(received)
        if missing > 0:
            self._wait(received)
            return
        if missing < 0:
            self._hand_on(received)
            return
        self._received, self._message = b"", None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._parser.message_consumed()
        if route.is_api:
            known = KnownHead.of(message, path, query, received[:start])
            self._known = None if known is None else (known, route)
        self._begin(PlainCall(self, message, path, query, received[start:]), route)

    def pause_writing(self) -> None:
        """Who does not read his answers need not ask for more."""
        self._is_choked = True
        self._pause()

    def resume_writing(self) -> None:
        self._is_choked = False
        self._resume()

    # -- requests ----------------------------------------------------------------------------

    def _answer_again(self, data: bytes) -> bool:
        """Answer this if it has the head that is known; whether it has."""
        assert self._known is not None
        head, route = self._known
        body = head.body(data)
        if body is None or len(data) > MAX_REQUEST_BYTES:
            return False
        self._begin(PlainCall(self, head.message, head.path, head.query, body), route)
        return True

    def _begin(self, call: PlainCall, route: Route) -> None:
        """Answer a whole request."""
        self.is_busy = self._has_asked = True
        serving = self._serve(call, route.answering)
        if route.is_immediate:
            try:
                awaited = serving.send(None)
            except StopIteration:
                return
            serving = go_on(serving, awaited)
        self._front.run(self._front.loop.create_task(serving))

    async def _serve(self, call: PlainCall, answering: Answering) -> None:
        try:
            try:
                answer = await answering(call)
            except Exception as error:
                answer = self._front.errors.answer(error, call.path, call.request_id)
            if answer is not None:
                self._write(answer, closes=answer.closes or call.should_close)
        except BaseException:
            if self._transport is not None:
                self._transport.abort()  # nobody answers any more
            raise

    def _write(self, answer: Answer, *, closes: bool) -> None:
        self.is_busy = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        closes = closes or self._front.is_draining()
        transport.write(encode(answer, closes=closes))
        self._front.note(self)
        if closes:
            transport.close()
            return
        received, self._received = self._received, b""
        if received:
            self._resume()
            self.data_received(received)

    def hold(self, connection: Connection, begin: Begin) -> None:
        """Give a poll the transport, as `takeover.hold` does: what came behind is dropped."""
        transport = self._transport
        if transport is None or transport.is_closing():
            connection.connection_lost(None)
            return
        self._is_choked = False
        self._resume()
        transport.set_protocol(connection)
        self._leave()
        begin(transport)

    def _wait(self, received: bytes) -> None:
        """Let the rest come."""
        self._received = received
        if self._patience is None:
            self._patience = self._front.loop.call_later(PATIENCE_SECONDS, self._hand_on_late)

    def _hand_on_late(self) -> None:
        self._hand_on(self._received)

    def _hand_on(self, received: bytes) -> None:
        """Let aiohttp have the connection, and all of the request."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._leave()
        protocol = cast(asyncio.Protocol, self._front.odd())
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(received)

    # -- coming to an end --------------------------------------------------------------------

    def close(self) -> None:
        """End the connection, once what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def expire(self) -> None:
        """End the connection: it was idle for too long, or what was sent is not read."""
        transport = self._transport
        if self.is_busy and transport is not None:
            self._front.note(self)
            return
        self._front.forget(self)
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()
        elif transport is not None:
            transport.close()

    def _leave(self) -> None:
        self._front.forget(self)
        self._transport = None
        self._received = b""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _pause(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing() and transport.is_reading():
            transport.pause_reading()

    def _resume(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._is_choked:
            return
        if not transport.is_reading():
            transport.resume_reading()


def routes(
    exact: Mapping[str, Route], prefix: str = "/", below: Route | None = None
) -> Callable[[str], Route | None]:
    """Find doors by paths, and what is ``below`` a prefix."""

    def find(path: str) -> Route | None:
        if below is not None and path.startswith(prefix):
            return below
        return exact.get(path)

    return find
