"""The memory store's record of what must happen only once (`base.Once`).

It lives in this process and is bounded. When it is full, the oldest entries make room, but none
that is younger than an hour. When all of them are, a new one is refused and nothing is published:
a slot that is taken is a promise to publish once. Forgetting silently at any age would break it for
somebody who is just about to try again; never forgetting before 24 hours would turn a busy
publisher away for most of the day.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from messagebusd.backends.base import ONCE_SECONDS, Once, Published
from messagebusd.errors import IdempotencyConflict, StoreUnavailable

KEEP_AT_LEAST_SECONDS = 3600.0
# At 400 bytes for each entry (measured on CPython 3.11), 80 MB at the very most.
MAX_ENTRIES = 200_000

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    fingerprint: bytes
    published: Published | None
    at: float


class OnceLedger:
    """See the module's docstring. ``clock`` is monotonic, in seconds."""

    def __init__(
        self, *, max_entries: int = MAX_ENTRIES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._clock = clock
        # In the order of their age: nothing is ever put in the place of an entry that is there.
        self._entries: dict[bytes, _Entry] = {}
        self._was_crowded = False

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, once: Once) -> Published | None:
        """What was published under it, if anything was.

        Where there is nothing, there is room for it now. Raises IdempotencyConflict if the slot is
        another's, and StoreUnavailable if there is no room.
        """
        self._forget(self._clock() - ONCE_SECONDS)
        entry = self._entries.get(once.slot)
        if entry is None:
            self._make_room()
            return None
        if entry.fingerprint != once.fingerprint:
            raise IdempotencyConflict
        return entry.published

    def remember(self, once: Once, published: Published | None = None) -> None:
        """Take the slot. To be called right after `find`."""
        self._entries.setdefault(once.slot, _Entry(once.fingerprint, published, self._clock()))

    def _forget(self, until: float) -> None:
        while self._entries:
            slot = next(iter(self._entries))
            if self._entries[slot].at > until:
                break
            del self._entries[slot]

    def _make_room(self) -> None:
        crowded = len(self._entries) >= self._max_entries
        if crowded:
            slot = next(iter(self._entries))
            if self._clock() - self._entries[slot].at < KEEP_AT_LEAST_SECONDS:
                raise StoreUnavailable("there is no room to remember another idempotency key")
            del self._entries[slot]
            if not self._was_crowded:
                _log.warning(
                    "idempotency ledger is full: keys are remembered for less than 24 hours",
                    extra={"entries": len(self._entries)},
                )
        self._was_crowded = crowded
