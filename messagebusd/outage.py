"""Publications that may wait while the store is away (SPEC 3.6), in the order they came.

Each one keeps all its options and is published under a `Once` of its own: whether a publish whose
answer got lost had happened, is found out by publishing again. Nothing newer overtakes what waits.
The queue is bounded; when it is full the newest is refused, never an older one dropped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable

from messagebusd.backends.base import Once, Published
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.publication import Publication

Publish = Callable[[Publication, Once | None], Awaitable[Published]]

# Between two attempts, in seconds: doubled each time, and never in step with other daemons.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class OutageQueue:
    """See the module's docstring. ``publish`` is the store's; it raises StoreUnavailable."""

    def __init__(self, publish: Publish, max_messages: int) -> None:
        self._publish = publish
        self._max_messages = max_messages
        self._waiting: deque[tuple[Publication, Once]] = deque()
        self._flushing: asyncio.Task[None] | None = None
        # Whether the store failed the latest attempt, and the moment when that is known again.
        self._is_stuck = False
        self._settled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    async def publish(self, publication: Publication, once: Once | None) -> Published | None:
        """Publish, or keep for later and return None, if the publication allows that.

        Raises StoreUnavailable if it does not, or there is no room.
        """
        if not publication.queue_in_memory:
            await self._wait_for_turn()
            return await self._publish(publication, once)
        once = once or _a_once_of_its_own()
        if not self._waiting:
            try:
                return await self._publish(publication, once)
            except StoreUnavailable as error:
                if not self._waiting:
                    _log.warning("messages wait for the store", extra={"reason": str(error)})
        self._keep(publication, once)
        return None

    def _keep(self, publication: Publication, once: Once) -> None:
        if len(self._waiting) >= self._max_messages:
            raise StoreUnavailable("too many messages are waiting for the store already")
        self._waiting.append((publication, once))
        if self._flushing is None:
            self._is_stuck = True
            self._flushing = asyncio.create_task(self._flush())

    async def _wait_for_turn(self) -> None:
        """Let what waits go first, while it goes; fail fast while it does not."""
        while self._waiting:
            if self._is_stuck:
                raise StoreUnavailable("earlier messages are still waiting for the store")
            await self._settled.wait()

    async def close(self, seconds: float) -> None:
        """Give what waits so many seconds to be published; then say how much is lost."""
        flushing = self._flushing
        if flushing is None:
            return
        await asyncio.wait((flushing,), timeout=seconds)
        if self._waiting:
            _log.error("messages that waited for the store are lost", extra={"messages": len(self)})
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)

    async def _flush(self) -> None:
        """Publish what waits, until nothing does."""
        count = 0
        pause = FIRST_PAUSE_SECONDS
        while self._waiting:
            try:
                await self._publish(*self._waiting[0])
            except StoreUnavailable:
                self._settle(is_stuck=True)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            except Exception:
                # It was checked before it came here; whatever this is, the others go on.
                _log.exception("a message that waited for the store cannot be published")
            else:
                count += 1
            self._waiting.popleft()
            self._is_stuck, pause = False, FIRST_PAUSE_SECONDS
            self._settled.clear()
        self._flushing = None
        self._settle(is_stuck=False)
        _log.info("messages that waited for the store are published", extra={"messages": count})

    def _settle(self, *, is_stuck: bool) -> None:
        self._is_stuck = is_stuck
        self._settled.set()


def _a_once_of_its_own() -> Once:
    return Once(secrets.token_bytes(16), bytes(16))
