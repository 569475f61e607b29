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
from typing import NamedTuple

from messagebusd.backends.base import Once, Published
from messagebusd.errors import StoreRefused, StoreUnavailable
from messagebusd.protocol.publication import Publication

Publish = Callable[[Publication, Once | None], Awaitable[Published]]

# Between two attempts, in seconds: doubled each time, and never in step with other daemons.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """A publication in the queue; ``published`` is for one that may not wait for the store, but
    must wait for those before it."""

    publication: Publication
    once: Once | None
    published: asyncio.Future[Published] | None = None


class OutageQueue:
    """See the module's docstring. ``publish`` is the store's; it raises StoreUnavailable."""

    def __init__(self, publish: Publish, max_messages: int) -> None:
        self._publish = publish
        self._max_messages = max_messages
        self._waiting: deque[_Waiting] = deque()
        self._flushing: asyncio.Task[None] | None = None
        # Whether the store failed the latest attempt.
        self._is_stuck = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def publish(self, publication: Publication, once: Once | None) -> Published | None:
        """Publish, or keep for later and return None, if the publication allows that.

        Raises StoreUnavailable if it does not, or there is no room.
        """
        if not publication.queue_in_memory:
            if not self._waiting:
                return await self._publish(publication, once)
            if self._is_stuck:
                raise StoreUnavailable("earlier messages are still waiting for the store")
            published: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
            self._keep(_Waiting(publication, once, published))
            return await published
        once = once or _a_once_of_its_own()
        if not self._waiting:
            try:
                return await self._publish(publication, once)
            except StoreRefused:
                raise
            except StoreUnavailable as error:
                if not self._waiting:
                    _log.warning("messages wait for the store", extra={"reason": str(error)})
        self._keep(_Waiting(publication, once))
        return None

    def _keep(self, waiting: _Waiting) -> None:
        if len(self._waiting) >= self._max_messages:
            raise StoreUnavailable("too many messages are waiting for the store already")
        self._waiting.append(waiting)
        if self._flushing is None:
            self._is_stuck = True
            self._flushing = asyncio.create_task(self._flush())

    async def close(self, seconds: float) -> None:
        """Give what waits so many seconds to be published; then say how much is lost."""
        flushing = self._flushing
        if flushing is None:
            return
        await asyncio.wait((flushing,), timeout=seconds)
        self._fail_impatient(StoreUnavailable("the daemon is stopping"))
        if self._waiting:
            _log.error("messages that waited for the store are lost", extra={"messages": len(self)})
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)

    async def _flush(self) -> None:
        """Publish what waits, until nothing does."""
        count = 0
        pause = FIRST_PAUSE_SECONDS
        while self._waiting:
            publication, once, published = self._waiting[0]
            try:
                done = await self._publish(publication, once)
            except StoreRefused as error:
                _refuse(published, error)
            except StoreUnavailable as error:
                self._is_stuck = True
                self._fail_impatient(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            except Exception as error:
                # It was checked before it came here; whatever this is, the others go on.
                _refuse(published, error)
            else:
                count += published is None
                if published is not None and not published.done():
                    published.set_result(done)
            self._waiting.popleft()
            self._is_stuck, pause = False, FIRST_PAUSE_SECONDS
        self._flushing = None
        _log.info("messages that waited for the store are published", extra={"messages": count})

    def _fail_impatient(self, error: StoreUnavailable) -> None:
        """Those that may not wait for the store do not."""
        for each in self._waiting:
            if each.published is not None and not each.published.done():
                each.published.set_exception(StoreUnavailable(str(error)))
        self._waiting = deque(each for each in self._waiting if each.published is None)


def _refuse(published: asyncio.Future[Published] | None, error: Exception) -> None:
    """Let go of a message that cannot be published; if nobody waits for it, say so."""
    if published is None:
        _log.error("a message that waited for the store cannot be published", exc_info=error)
    elif not published.done():
        published.set_exception(error)


def _a_once_of_its_own() -> Once:
    return Once(secrets.token_bytes(16), bytes(16))
