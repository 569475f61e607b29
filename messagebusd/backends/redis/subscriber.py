"""The promise that every announcement is heard, once and in order, whatever happens.

What is published carries a global id that ascends by one. So a missed announcement shows: at the
next one (a *gap*), at a read that has seen more than was announced (the *barrier*), or when the
connection is back after a break. In all three cases what is missing is looked for (`healing`).

A connection that is silent is asked for a sign of life; one that fails is made anew, for ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from messagebusd.backends.base import Listener, Observer
from messagebusd.backends.redis.announcements import Announcements
from messagebusd.backends.redis.healing import Healing
from messagebusd.backends.redis.history import History
from messagebusd.backends.redis.route import Route
from messagebusd.backends.redis.subscription import Subscription
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import Decode, decode_payload

# What the Ruby library sends when it shuts down; every Ruby subscriber stops at it.
UNSUBSCRIBE = b"$$UNSUBSCRIBE"

# After so much silence the server is asked whether it is there.
QUIET_SECONDS = 5.0
# Between two attempts to connect: doubled each time.
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
# Between two warnings of the same kind.
WARNING_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Subscriber:
    """See the module's docstring. ``on_message`` is shown every announcement that can be read."""

    def __init__(
        self,
        route: Route,
        history: History,
        pubsub_channel: str,
        observer: Observer,
        decode: Decode,
        *,
        timeout: float,
        on_message: Callable[[Message], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._route = route
        self._pubsub_channel = pubsub_channel
        self._observer = observer
        self._decode = decode
        self._timeout = timeout
        self._on_message = on_message
        self._clock = clock
        self._announcements = Announcements(observer, self._raise_alarm)
        self._healing = Healing(self._announcements, history, observer, self._confirm)
        self._subscription: Subscription | None = None
        # Set when the connection is lost, or something is missing.
        self._alarm = asyncio.Event()
        self._reason = "not connected yet"
        self._down_since: float | None = None
        self._warned_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    @property
    def seen(self) -> int:
        """The global id up to which everything was announced to the listener."""
        return self._announcements.seen

    @property
    def is_hearing(self) -> bool:
        """See `Backend`."""
        return self._announcements.is_live

    def listen(self, listener: Listener) -> None:
        """Announce to this listener."""
        self._announcements.listener = listener

    async def start(self) -> None:
        """Subscribe. Raises StoreUnavailable if that does not work at once."""
        try:
            await self._subscribe()
            await self._go_live(is_gap=False)
        except BaseException:
            await self._disconnect()
            raise
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Announce nothing more."""
        self._announcements.listener = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._disconnect()

    def reconnect(self, reason: str) -> None:
        """Give this connection up, and find the server anew."""
        if self._subscription is not None:
            self._subscription.fail(reason)

    def check(self) -> None:
        """Raise StoreUnavailable if announcements are not heard at the moment."""
        if self._down_since is not None:
            raise StoreUnavailable(self._reason)

    def compare(self, life: bytes | None) -> None:
        """Take note of the mark of the store's life that a read has seen."""
        if self._announcements.is_live and (life or b"") != self._healing.life:
            self._heal()

    async def barrier(self, global_id: int, *, has_fallen: bool = False) -> None:
        """Return when everything up to this id, which a read has seen, was announced.

        ``has_fallen`` says that the store was behind ``seen`` already when it was read. Raises
        StoreUnavailable.
        """
        announcements = self._announcements
        if global_id <= announcements.seen and not has_fallen:
            announcements.flush()
            return
        try:
            async with asyncio.timeout(self._timeout):
                if has_fallen:
                    self._heal()
                    while not announcements.is_live:
                        await announcements.change()
                await self._catch_up(global_id)
        except TimeoutError:
            reason = self._reason if self._down_since else "announcements lag behind"
            raise StoreUnavailable(reason) from None
        announcements.flush()

    async def _catch_up(self, global_id: int) -> None:
        announcements = self._announcements
        epoch = announcements.epoch
        while announcements.seen < global_id:
            if not announcements.is_live:
                await announcements.change()
            else:
                await self._confirm()
                if announcements.is_live and announcements.seen < global_id:
                    self._heal()
            if announcements.epoch != epoch:
                raise StoreUnavailable("the store has lost messages")

    # -- the connection ----------------------------------------------------------------------

    async def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._stay()
                if self._subscription is None:
                    await self._subscribe()
                await self._go_live(is_gap=self._down_since is None)
                self._note_return()
                pause = FIRST_PAUSE_SECONDS
                continue
            except StoreUnavailable as error:
                self._note_break(str(error))
            except Exception:
                # Whatever it is: if this task ended, nothing would be announced ever again.
                _log.exception("hearing announcements failed")
                self._note_break("an internal error")
            await self._disconnect()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _go_live(self, *, is_gap: bool) -> None:
        """Heal over a connection that stands, and still does afterwards."""
        self._check_connection()
        await self._healing.run(is_gap=is_gap)
        # It may have been lost while old messages were read, over another one.
        self._check_connection()

    def _check_connection(self) -> None:
        subscription = self._subscription
        if subscription is None or not subscription.is_open:
            self._announcements.pause()
            raise StoreUnavailable(self._reason if subscription is None else subscription.reason)

    async def _stay(self) -> None:
        """Return when something is missing, or the connection is lost."""
        while self._announcements.is_live and self._subscription is not None:
            self._alarm.clear()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await self._alarm.wait()
            except TimeoutError:
                if self._clock() - self._subscription.heard_at >= QUIET_SECONDS:
                    await self._subscription.pong()

    async def _subscribe(self) -> None:
        connection = await self._route.connect()
        self._announcements.forget_waiting()
        self._subscription = Subscription(
            connection,
            self._pubsub_channel,
            timeout=self._timeout,
            on_payloads=self._hear,
            on_lost=self._lose,
            clock=self._clock,
        )
        await self._subscription.pong()

    async def _disconnect(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._announcements.pause()
        if subscription is not None:
            await subscription.close()

    async def _confirm(self) -> None:
        if self._subscription is None:
            raise StoreUnavailable(self._reason)
        await self._subscription.pong()

    def _heal(self) -> None:
        """Look for what may be missing."""
        self._announcements.pause()
        self._raise_alarm()

    def _raise_alarm(self) -> None:
        self._alarm.set()

    def _lose(self, reason: str) -> None:
        self._announcements.pause()
        self._raise_alarm()

    def _note_break(self, reason: str) -> None:
        self._reason = reason
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

    def _hear(self, payloads: Sequence[bytes]) -> None:
        hear, notice, decode = self._announcements.hear, self._on_message, self._decode
        for payload in payloads:
            try:
                message = decode_payload(payload, decode)
            except ValueError:
                self._pass_over(payload)
            else:
                notice(message)
                hear(message)

    def _pass_over(self, payload: bytes) -> None:
        if payload == UNSUBSCRIBE:
            self._observer.store_ignored("unsubscribe")
            if self._clock() - self._warned_at >= WARNING_SECONDS:
                self._warned_at = self._clock()
                _log.warning("somebody told all subscribers to stop, as Ruby's library does")
            return
        self._observer.store_ignored("malformed")
        # It may still be a message, in a form that we cannot read: then its id is used up.
        self._announcements.skip(payload.partition(b"|")[0])
