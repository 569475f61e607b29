"""Finding out what was missed, and announcing it before anything newer.

1. The last global id is read, after the server has confirmed the subscription.
2. A ping comes back: whatever was going to be announced up to that id is here now.
3. What still is missing is read from the backlogs of the channels that the listener names, and
   all of it is announced in order. Announcements that come in meanwhile wait.

The channels are asked for after 1: a poll that registers later reads everything up to that id
itself, and its reads do not return before the healing is over.

A store may also step back. If it has lost its data, its `life` is another, and everything begins
anew; unless what was announced last is still there: then only the mark got lost. If it is a replica
that had not received the latest messages, what it has under ids that were announced before is
compared with what was announced.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from messagebusd.backends.base import Observer
from messagebusd.backends.redis.announcements import Announcements
from messagebusd.backends.redis.history import History, Missed, Position
from messagebusd.protocol.message import Message

_log = logging.getLogger(__name__)


class Healing:
    """See the module's docstring. ``confirm`` returns when a ping has come back."""

    def __init__(
        self,
        announcements: Announcements,
        history: History,
        observer: Observer,
        confirm: Callable[[], Awaitable[None]],
    ) -> None:
        # The mark of the store's life as we know it; empty if it has none.
        self.life = b""
        self._announcements = announcements
        self._history = history
        self._observer = observer
        self._confirm = confirm
        self._has_begun = False

    async def run(self, *, is_gap: bool) -> None:
        """Announce what is missing and go live.

        ``is_gap`` says that the connection was there all the time. Raises StoreUnavailable.
        """
        announcements = self._announcements
        announcements.pause()
        while not announcements.is_live:
            earlier = announcements.waiting
            position = await self._history.position()
            await self._confirm()
            if not announcements.has_overflowed:
                announcements.drop_foreign(earlier, position.global_id)
                await self._step_to(position, is_gap=is_gap)
            if announcements.has_overflowed:
                announcements.has_overflowed = False
            else:
                announcements.resume()

    async def _step_to(self, position: Position, *, is_gap: bool) -> None:
        announcements = self._announcements
        seen, last = announcements.seen, position.global_id
        if not self._has_begun:
            announcements.recent.begin_after(last)
        elif position.life != self.life and await self._is_renewed(position):
            await self._begin_anew(position)
        elif last < seen:
            await self._step_back(position)
        else:
            await self._step_forward(last, is_gap=is_gap)
        announcements.seen, self.life, self._has_begun = last, position.life, True

    async def _is_renewed(self, position: Position) -> bool:
        """Whether the store has lost its data, and not just the mark that would go with it."""
        announcements = self._announcements
        if position.global_id < announcements.seen:
            return True
        if not position.life or not self.life:
            return False
        recent = announcements.recent
        return not await self._history.still_has(recent.witnesses(), recent.knows)

    async def _step_forward(self, last: int, *, is_gap: bool) -> None:
        announcements = self._announcements
        after = announcements.seen
        await self._restore_displaced(after)
        heard = announcements.heard(after, last)
        missing = last - after - len(heard)
        missed: list[Missed] = []
        if missing:
            if is_gap:
                self._observer.store_gap(missing)
            missed = await self._missed(after, last, heard)
            if len(missed) < missing:
                announcements.recent.begin_after(last)
                self._interrupt()
        await self._announce(missed, heard)

    async def _restore_displaced(self, seen: int) -> None:
        """Announce what was taken for known.

        Pub/sub knows no databases: a message of another bus may have come with the next id, and
        then the real one. Which of the two is real, the store knows.
        """
        displaced = self._announcements.displaced(seen)
        if not displaced:
            return
        first = min(each.global_id for each in displaced)
        channels = {each.stored_channel for each in displaced}
        wanted = {(each.global_id, each.stored_channel) for each in displaced}
        stored = await self._history.missed(channels, first - 1, seen)
        real = [each for each in stored if (each.global_id, each.channel) in wanted]
        async for _, _, messages in self._history.read(real):
            self._announcements.announce_displaced(messages)

    async def _begin_anew(self, position: Position) -> None:
        """The store has lost its data: all ids begin with 1 again."""
        announcements, last = self._announcements, position.global_id
        heard = announcements.heard(0, last)
        missed = await self._missed(0, last, heard)
        _log.warning("the store has begun anew", extra={"global_id": last})
        self._fall(0, position)
        announcements.recent.clear()
        announcements.recent.begin_after(last)
        if (listener := announcements.listener) is not None:
            listener.restarted(listener.channels())
        self._interrupt()
        await self._announce(missed, heard)

    async def _step_back(self, position: Position) -> None:
        """The store has lost its latest messages, and may have others in their place."""
        announcements, last = self._announcements, position.global_id
        recent = announcements.recent
        after = min(last, recent.first(announcements.seen) - 1)
        heard = {
            global_id: message
            for global_id, message in announcements.heard(after, last).items()
            if not recent.knows(message)
        }
        missed = await self._missed(after, last, heard)
        _log.warning("the store has lost messages", extra={"global_id": last})
        self._fall(after, position)
        self._interrupt()
        await self._announce(missed, heard, is_comparing=True)
        recent.begin_after(last)

    def _fall(self, global_id: int, position: Position) -> None:
        """From here on a failure only means to go on from there."""
        self._announcements.fall(global_id)
        self.life = position.life

    async def _missed(self, after: int, up_to: int, heard: dict[int, Message]) -> list[Missed]:
        listener = self._announcements.listener
        channels = () if listener is None else tuple(listener.channels())
        found = await self._history.missed(channels, after, up_to)
        return [each for each in found if each.global_id not in heard]

    def _interrupt(self) -> None:
        if (listener := self._announcements.listener) is not None:
            listener.interrupted()

    async def _announce(
        self, missed: list[Missed], heard: dict[int, Message], *, is_comparing: bool = False
    ) -> None:
        """Announce both in order, a portion at a time."""
        announcements = self._announcements
        rest = deque(heard[global_id] for global_id in sorted(heard))
        async for up_to, gone, messages in self._history.read(missed):
            if gone:
                announcements.recent.begin_after(up_to)
                self._interrupt()
            if is_comparing:
                known = announcements.recent.knows
                messages = [each for each in messages if not known(each)]
            self._observer.store_replayed(len(messages))
            while rest and rest[0].global_id < up_to:
                messages.append(rest.popleft())
            messages.sort(key=lambda each: each.global_id)
            announcements.announce(messages, up_to)
            await asyncio.sleep(0)  # others have their turn between the portions
        if rest:
            announcements.announce(rest, rest[-1].global_id)
