"""Announcements in the order of their global ids, without a hole.

What comes is handed to the listener at once if it is next, several in one go. If it is not,
something is missing: it waits then, and everything after it, until the hole is filled
(`healing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from messagebusd.backends.base import Listener, Observer
from messagebusd.backends.redis.recent import Recent
from messagebusd.protocol.message import Message

# What may wait; above it all of it is dropped, and looked up again.
MAX_WAITING_MESSAGES = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024


class Announcements:
    """See the module's docstring. ``on_hole`` is called when something turns out to be missing.

    ``seen`` is the global id up to which all was announced; ``epoch`` counts how often it fell.
    ``is_live`` says that announcements are handed on; otherwise they wait.
    """

    def __init__(self, observer: Observer, on_hole: Callable[[], None]) -> None:
        self.listener: Listener | None = None
        self.seen = 0
        self.epoch = 0
        self.is_live = False
        self.has_overflowed = False
        self.recent = Recent()
        self._observer = observer
        self._on_hole = on_hole
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Message] = []
        self._waiting_bytes = 0
        self._unannounced: list[Message] = []
        self._flush_handle: asyncio.Handle | None = None
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def change(self) -> None:
        """Wait until ``seen`` or ``is_live`` may have changed."""
        await self._changed.wait()

    # -- as they come ------------------------------------------------------------------------

    def hear(self, message: Message) -> None:
        """Take what was announced."""
        if not self.is_live:
            self._wait(message)
        elif message.global_id == self.seen + 1:
            self._announce_soon(message)
        else:
            self._wait(message)
            self.pause()
            self._on_hole()

    def skip(self, global_id: bytes) -> None:
        """Take note that a message was announced which cannot be read."""
        if self.is_live and global_id == b"%d" % (self.seen + 1):
            self.seen += 1

    def flush(self) -> None:
        """Hand over what is announced."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        batch, self._unannounced = self._unannounced, []
        if batch and self.listener is not None:
            self.listener.dispatch(batch)

    def _announce_soon(self, message: Message) -> None:
        self.seen += 1
        self.recent.add(message)
        self._unannounced.append(message)
        if self._flush_handle is None:
            # What is read from the socket in this turn of the loop goes together.
            self._flush_handle = self._loop.call_soon(self.flush)

    def _wait(self, message: Message) -> None:
        self._waiting.append(message)
        self._waiting_bytes += len(message.encoded)
        if len(self._waiting) > MAX_WAITING_MESSAGES or self._waiting_bytes > MAX_WAITING_BYTES:
            self.forget_waiting()
            self.has_overflowed = True

    # -- while a hole is filled --------------------------------------------------------------

    def pause(self) -> None:
        """Hand nothing on from here."""
        self.is_live = False
        self.flush()

    def forget_waiting(self) -> None:
        """Drop what waits."""
        self._waiting, self._waiting_bytes = [], 0

    def drop_foreign(self, earlier: int, global_id: int) -> None:
        """Drop those of the earlier ones whose ids no message can have had when they came."""
        kept = [each for each in self._waiting[:earlier] if each.global_id <= global_id]
        for _ in range(min(earlier, len(self._waiting)) - len(kept)):
            self._observer.store_ignored("foreign")
        self._waiting[:earlier] = kept

    def heard(self, after: int, up_to: int) -> dict[int, Message]:
        """What waits of these global ids; what has an earlier one is known, or comes too late."""
        heard = {}
        for each in self._waiting:
            if after < each.global_id <= up_to:
                heard[each.global_id] = each
            elif each.global_id <= after:
                self._observer.store_ignored("late")
        return heard

    def displaced(self, up_to: int) -> list[Message]:
        """What waits although its id was announced already, with something else."""
        known = self.recent.knows
        return [each for each in self._waiting if each.global_id <= up_to and not known(each)]

    def announce_displaced(self, messages: Sequence[Message]) -> None:
        """Hand over those of these messages whose ids something foreign had taken."""
        fresh = [each for each in messages if not self.recent.knows(each)]
        for each in fresh:
            self.recent.add(each)
        if fresh and self.listener is not None:
            self.listener.dispatch(fresh)

    def announce(self, messages: Sequence[Message], up_to: int) -> None:
        """Hand over messages that fill a hole, up to this global id."""
        for each in messages:
            self.recent.add(each)
        if messages and self.listener is not None:
            self.listener.dispatch(messages)
        self.seen = max(self.seen, up_to)
        self.notify()

    def fall(self, global_id: int) -> None:
        """The store has stepped back to this global id."""
        self.epoch += 1
        self.seen = global_id

    def resume(self) -> None:
        """Go live with what waits; unless something is missing again."""
        waiting = self._waiting
        self.forget_waiting()
        self.is_live = True
        for each in waiting:
            if self.is_live and each.global_id == self.seen + 1:
                self._announce_soon(each)
            elif each.global_id > self.seen:
                self.is_live = False
                self._wait(each)
        if self.is_live:
            self.notify()

    def notify(self) -> None:
        """Let those look who wait for a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
