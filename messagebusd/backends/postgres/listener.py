"""The connection that LISTENs, and the promise that no announcement is missed.

Notifications are put in order (`order.Order`). Where an id is missing, what is beyond it waits for
`HOLD_BACK_SECONDS`: a Ruby process stores and notifies in two steps, and its transactions commit
in any order. Then the table is read; what is not there is a hole that a rolled back transaction
left. A message that is committed later still is announced if its channel has seen nothing newer.

The table is also asked

* by a read that has seen more than was announced (the *barrier*): what has no hole before it is
  announced at once
* when a message was too large to be notified: our own nodes are told its id, on a second channel.
  Ruby processes notify nobody then
* every few seconds, whether it goes beyond what was announced: this also proves that the
  connection is alive

After a break, the position of the table is read once LISTEN is in force, and then the channels that
the listener names: a poll that registers later reads everything up to that position itself. If the
table goes less far than what was announced, or is another one, then everything begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NoReturn

import asyncpg

from messagebusd.backends.base import Listener, Observer
from messagebusd.backends.postgres import statements
from messagebusd.backends.postgres.link import Link, Position
from messagebusd.backends.postgres.notices import Notice, Notices
from messagebusd.backends.postgres.order import Order, Released
from messagebusd.backends.postgres.rows import Rows
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.message import Message

# How long a missing id may take to turn up.
HOLD_BACK_SECONDS = 0.3
# Between two looks at the table when nothing is missing.
QUIET_SECONDS = 5.0
# Between two attempts to connect: doubled each time.
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
# Read from the table at a time.
PAGE_MESSAGES = 500
PAGE_BYTES = 8 * 1024 * 1024
# Notifications that came too late and have not been looked at yet.
MAX_LATE = 1000

_log = logging.getLogger(__name__)


class Subscriber:
    """See the module's docstring. ``connect`` opens a connection on a table that is there.

    ``on_message`` is shown every message that is announced.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        notify_channel: str,
        observer: Observer,
        rows: Rows,
        *,
        timeout: float,
        on_message: Callable[[Message], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listener: Listener | None = None
        self.order = Order()
        # Counts the times that everything began anew.
        self.epoch = 0
        self._notices = Notices(notify_channel, observer, rows.decode, self._hear)
        self._link = Link(connect, self._notices, self._on_lost, timeout=timeout)
        self._observer, self._rows = observer, rows
        self._timeout = timeout
        self._on_message = on_message
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._life, self._is_live = 0, False
        self._late: list[Notice] = []
        # Who waits until an id has been announced.
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._wants_look = False
        # Since when something is missing, and how far the ids went then.
        self._gap: tuple[float, int] | None = None
        self._looked_at = 0.0
        self._down_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_hearing(self) -> bool:
        return self._is_live

    async def start(self) -> None:
        """Listen. Raises StoreUnavailable if that does not work at once."""
        try:
            await self._link.open()
            position = await self._link.position()
            self.order, self._life = Order(position.stored), position.life
            self._go_live()
        except BaseException:
            await self._link.close()
            raise
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Announce nothing more."""
        self.listener = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._is_live = False
        await self._link.close()
        self._fail_waiters("the store is closed")

    def reconnect(self, reason: str) -> None:
        """Give this connection up, and find the server anew."""
        self._link.break_off(reason)

    async def reached(self, last_id: int) -> int:
        """Wait until everything up to an id has been announced, or is known to be a hole.

        Returns up to which id that is so now. Raises StoreUnavailable.
        """
        if self._is_live and last_id <= self.order.seen:
            return self.order.seen
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((last_id, waiter))
        self.order.expect(last_id)
        self._wants_look = True
        self._wake.set()
        try:
            async with asyncio.timeout(self._timeout + 2 * HOLD_BACK_SECONDS):
                await waiter
        except TimeoutError:
            reason = "announcements do not keep up" if self._is_live else self._link.reason
            raise StoreUnavailable(reason) from None
        finally:
            self._waiters = [each for each in self._waiters if each[1] is not waiter]
        return self.order.seen

    # -- the connection ----------------------------------------------------------------------

    async def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                if not self._link.is_open:
                    await self._link.open()
                    await self._catch_up()
                    self._note_return()
                pause = FIRST_PAUSE_SECONDS
                await self._stay()
            except StoreUnavailable as error:
                self._note_break(str(error))
            except Exception:
                _log.exception("announcements could not be put in order")
                self._note_break("an internal error")
            self._is_live = False
            await self._link.close()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _on_lost(self) -> None:
        self._is_live = False
        self._wake.set()

    def _note_break(self, reason: str) -> None:
        self._link.reason = reason
        if self._down_since is None:
            self._down_since = self._clock()
            _log.warning("announcements are not heard", extra={"reason": reason})

    def _note_return(self) -> None:
        if self._down_since is not None:
            seconds = round(self._clock() - self._down_since, 3)
            self._down_since = None
            self._observer.store_reconnected()
            _log.info("announcements are heard again", extra={"seconds": seconds})

    # -- announcements -----------------------------------------------------------------------

    def _hear(self, notices: Sequence[Notice]) -> None:
        """Take the notifications that came in one turn of the loop."""
        order = self.order
        for notice in notices:
            if notice.is_large and notice.id > order.seen:
                order.expect(notice.id)
                self._wants_look = True
            elif not order.notified(notice.id, notice.message) and self._is_live:
                self._hear_late(notice)
        if self._is_live:
            self._advance()

    def _hear_late(self, notice: Notice) -> None:
        if len(self._late) < MAX_LATE:
            self._late.append(notice)
            self._wake.set()
        else:
            self._observer.store_ignored("late")

    def _advance(self) -> None:
        """Announce what comes next; if that leaves something missing, see to it."""
        self._announce(self.order.release())
        if not self.order.is_behind:
            self._gap = None
        elif self._gap is None or self._gap[1] <= self.order.seen:
            self._gap = (self._loop.time(), self.order.target)
            self._wake.set()
        if self._wants_look:
            self._wake.set()

    def _announce(self, messages: Sequence[Message]) -> None:
        if messages:
            now = self._clock()
            for message in messages:
                self.order.remember(message.stored_channel, message.global_id, now)
                self._on_message(message)
            if self.listener is not None:
                self.listener.dispatch(messages)
        if self._waiters and self._is_live:
            seen = self.order.seen
            for last_id, waiter in self._waiters:
                if last_id <= seen and not waiter.done():
                    waiter.set_result(None)

    def _replay(self, released: Released) -> None:
        if released.replayed:
            self._observer.store_replayed(released.replayed)
        self._announce(released.messages)

    # -- while connected ---------------------------------------------------------------------

    def _go_live(self) -> None:
        if not self._link.is_open:
            raise StoreUnavailable(self._link.reason)
        self._is_live = True
        self._looked_at = self._loop.time()
        self._gap = None
        self._advance()

    async def _stay(self) -> NoReturn:
        """See to what is missing. Raises StoreUnavailable when the connection is lost."""
        while True:
            await self._next_event()
            if not self._is_live:
                raise StoreUnavailable(self._link.reason)
            if self._late:
                await self._settle_late()
            now = self._loop.time()
            if self._gap is not None and now >= self._gap[0] + HOLD_BACK_SECONDS:
                await self._close_gap(self._gap[1])
            elif self._wants_look and self.order.is_behind:
                await self._look()
            elif now >= self._looked_at + QUIET_SECONDS:
                self._looked_at = now
                if (position := await self._position()) is not None:
                    self.order.expect(position.stored)
                    self._advance()

    async def _next_event(self) -> None:
        due = self._looked_at + QUIET_SECONDS
        if self._gap is not None:
            due = min(due, self._gap[0] + HOLD_BACK_SECONDS)
        if not (self._wants_look and self.order.is_behind):
            self._wants_look = False
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
        self._wake.clear()

    async def _look(self) -> None:
        """Take from the table what is there without a hole before it."""
        self._wants_look = False
        await self._read(self.order.target, lambda last_id: self._advance())
        self._advance()

    async def _close_gap(self, last_id: int) -> None:
        """Take from the table what is there; what is not there up to an id is a hole."""
        held = self.order.held()
        if (position := await self._position()) is None:
            return
        foreign = [each for each in held if each > position.given]
        self.order.drop(foreign, position.given)
        for _ in foreign:
            self._observer.store_ignored("foreign")
        last_id = min(last_id, position.given)

        def settle(read_to: int) -> None:
            released = self.order.release_to(read_to)
            if released.missing:
                self._observer.store_gap(released.missing)
            self._replay(released)

        await self._read(last_id, settle)
        settle(last_id)
        self._gap = None
        self._advance()

    async def _read(
        self, last_id: int, settle: Callable[[int], None], channels: Sequence[str] | None = None
    ) -> None:
        """Read the table after what was announced, page by page, each of which is settled."""
        query = statements.GLOBAL_PAGE if channels is None else statements.CHANNELS_PAGE
        more = () if channels is None else (channels,)
        after, goes_on = self.order.seen, True
        while goes_on and after < last_id:
            rows = await self._link.fetch(query, after, last_id, PAGE_MESSAGES, PAGE_BYTES, *more)
            self.order.found(self._rows.messages(rows))
            # A page that is longer than asked for does not know what comes after it.
            goes_on = len(rows) > PAGE_MESSAGES or bool(rows and rows[0]["all"] > len(rows))
            if goes_on:
                after = rows[-1]["id"]
                settle(after)

    async def _settle_late(self) -> None:
        """Announce what came too late, if nothing newer of its channel was announced."""
        late, self._late = self._late, []
        if await self._position() is None:
            return
        large = [each.id for each in late if each.is_large]
        found: dict[int, Message] = {}
        if large:
            rows = await self._link.fetch(statements.BY_IDS, large)
            found = {each.global_id: each for each in self._rows.messages(rows)}
        for notice in sorted(late, key=lambda each: each.id):
            message = notice.message or found.get(notice.id)
            if message is not None and self.order.is_news(message):
                self._announce([message])
            elif message is not None:
                self._observer.store_ignored("late")

    # -- after a break -----------------------------------------------------------------------

    async def _position(self) -> Position | None:
        """How far the table goes; None if it had begun anew, which has been seen to."""
        # More may be announced while the answer is on its way.
        seen = self.order.seen
        position = await self._link.position()
        if position.life == self._life and position.given >= seen:
            return position
        await self._restart(position)
        return None

    async def _catch_up(self) -> None:
        """Announce what was missed, then go live."""
        if (position := await self._position()) is None:
            return
        listener = self.listener
        channels = [] if listener is None else list(listener.channels())
        if not await self._is_complete(position.given, channels):
            # Some of it may not be committed yet.
            await asyncio.sleep(HOLD_BACK_SECONDS)
            if listener is not None and not await self._is_complete(position.given, channels):
                listener.interrupted()
        await self._announce_missed(position.stored, channels)
        self._go_live()

    async def _is_complete(self, last_id: int, channels: Sequence[str]) -> bool:
        """Whether everything since the break is on these channels, and still there."""
        (row,) = await self._link.fetch(statements.COUNT, self.order.seen, last_id, channels)
        return bool(row["count"] == last_id - self.order.seen)

    async def _announce_missed(self, last_id: int, channels: Sequence[str]) -> None:
        def settle(read_to: int) -> None:
            self._replay(self.order.release_to(read_to))

        await self._read(last_id, settle, channels)
        settle(last_id)

    async def _restart(self, position: Position) -> None:
        """The ids begin anew: say so, then announce what there is already."""
        _log.warning("the store has begun anew", extra={"last_id": position.stored})
        self._is_live = False
        self.order, self._life = Order(), position.life
        self.epoch += 1
        self._late.clear()
        self._fail_waiters("the store has begun anew")
        if self.listener is not None:
            channels = list(self.listener.channels())
            self.listener.interrupted()
            self.listener.restarted(channels)
            await self._announce_missed(position.stored, channels)
        else:
            self.order = Order(position.stored)
        self._go_live()

    def _fail_waiters(self, reason: str) -> None:
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(StoreUnavailable(reason))
