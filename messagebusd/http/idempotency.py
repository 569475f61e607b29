"""Answers that are given again instead of publishing again (SPEC 4, ``Idempotency-Key``).

A publisher whose connection broke cannot know whether its message was taken. It sends the request
again with the same key, and gets the first answer.

* A key belongs to one API key and one call. Used again with another body it is refused.
* Only what was carried out is remembered. A refused request published nothing, so a corrected
  one may use its key; the same goes for a store that was away.
* While a request is being carried out, others with its key wait for it.
* An answer is kept for 24 hours. Memory is bounded: when the ledger is full, the oldest answers
  make room, but none that is younger than an hour. When all of them are, a new key is refused
  and nothing is published: a key that is taken is a promise to publish once. Forgetting silently
  at any age would break it for somebody who is just about to try again; never forgetting before
  24 hours would turn a busy publisher away for most of the day.

The ledger lives in this process and does not outlive it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from messagebusd.errors import IdempotencyConflict, MalformedRequest, RateLimited

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
MAX_KEY_LENGTH = 255

KEEP_SECONDS = 24 * 3600.0
KEEP_AT_LEAST_SECONDS = 3600.0
# Together with 360 bytes for each entry (measured on CPython 3.11), 140 MB at the very most.
MAX_ENTRIES = 200_000
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a request led to; ``done`` says that it must not be carried out again."""

    status: int
    body: bytes
    done: bool = True


class _Entry(NamedTuple):
    fingerprint: bytes
    outcome: Outcome
    at: float


class _Running(NamedTuple):
    fingerprint: bytes
    ended: asyncio.Event


def idempotency_key(request: web.BaseRequest) -> str | None:
    """The request's key, if it has one. Raises MalformedRequest."""
    sent = request.headers.getall(HEADER, ())
    if not sent:
        return None
    key = sent[0]
    usable = key.isascii() and key.isprintable() and 0 < len(key) <= MAX_KEY_LENGTH
    if len(sent) > 1 or not usable:
        raise MalformedRequest(
            f"{HEADER} must be one value of 1 to {MAX_KEY_LENGTH} printable ASCII characters",
            code="invalid_idempotency_key",
        )
    return key


class IdempotencyLedger:
    """See the module's docstring. ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        *,
        max_entries: int = MAX_ENTRIES,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_entries = max_entries
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._entries: dict[bytes, _Entry] = {}
        # The same slots, oldest first: a dictionary is slow to give its first key again and again.
        self._order: deque[bytes] = deque()
        self._answer_bytes = 0
        self._running: dict[bytes, _Running] = {}
        self._was_crowded = False

    def __len__(self) -> int:
        return len(self._entries)

    async def once(
        self,
        caller: str,
        call: str,
        key: str,
        body: bytes,
        act: Callable[[], Awaitable[Outcome]],
    ) -> tuple[Outcome, bool]:
        """Carry a request out, or give its first outcome again; whether it is given again.

        ``caller`` and ``call`` are the API key's name and the route. Raises IdempotencyConflict,
        RateLimited if there is no room, and whatever ``act`` raises.
        """
        slot = _digest(caller.encode(), call.encode(), key.encode())
        fingerprint = _digest(body)
        while True:
            if (entry := self._find(slot)) is not None:
                _compare(entry.fingerprint, fingerprint)
                return entry.outcome, True
            if (running := self._running.get(slot)) is None:
                break
            _compare(running.fingerprint, fingerprint)
            await running.ended.wait()
        self._make_room()
        running = self._running[slot] = _Running(fingerprint, asyncio.Event())
        try:
            outcome = await act()
            if outcome.done:
                self._remember(slot, fingerprint, outcome)
            return outcome, False
        finally:
            del self._running[slot]
            running.ended.set()

    def _find(self, slot: bytes) -> _Entry | None:
        entry = self._entries.get(slot)
        if entry is not None and self._clock() - entry.at >= KEEP_SECONDS:
            return None
        return entry

    def _remember(self, slot: bytes, fingerprint: bytes, outcome: Outcome) -> None:
        self._entries[slot] = _Entry(fingerprint, outcome, self._clock())
        self._order.append(slot)
        self._answer_bytes += len(outcome.body)

    def _make_room(self) -> None:
        """Forget what is due, and more if there is no room otherwise. Raises RateLimited."""
        now = self._clock()
        while self._order and now - self._oldest.at >= KEEP_SECONDS:
            self._forget_oldest()
        crowded = False
        while self._is_full():
            left = (
                KEEP_AT_LEAST_SECONDS
                if not self._order
                else (self._oldest.at + KEEP_AT_LEAST_SECONDS - now)
            )
            if left > 0:
                raise RateLimited(
                    f"too many requests with an {HEADER}: there is no room to remember another "
                    "one, so it was not carried out",
                    retry_after=math.ceil(left),
                )
            self._forget_oldest()
            crowded = True
        if crowded and not self._was_crowded:
            _log.warning(
                "idempotency ledger is full: answers are kept for less than 24 hours",
                extra={"entries": len(self._entries), "answer_bytes": self._answer_bytes},
            )
        self._was_crowded = crowded

    def _is_full(self) -> bool:
        return (
            len(self._entries) + len(self._running) >= self._max_entries
            or self._answer_bytes >= self._max_answer_bytes
        )

    @property
    def _oldest(self) -> _Entry:
        return self._entries[self._order[0]]

    def _forget_oldest(self) -> None:
        entry = self._entries.pop(self._order.popleft())
        self._answer_bytes -= len(entry.outcome.body)


def _compare(first: bytes, fingerprint: bytes) -> None:
    if first != fingerprint:
        raise IdempotencyConflict(f"this {HEADER} was used before, with another body")


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
