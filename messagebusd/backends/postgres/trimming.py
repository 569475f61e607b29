"""Dropping what need not be kept, off the way of publishes.

Publishes leave notes; about a second later what they ask for is done, for all of them together. A
backlog may therefore be a little longer than it has to be, and reads return what is there.

How long a channel keeps its messages, if its latest publish said so, is in a table: it holds for
every process, and over restarts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from messagebusd.backends.base import ONCE_SECONDS, Retention
from messagebusd.errors import StoreUnavailable

# From the first note until it is seen to.
GATHER_SECONDS = 0.05
# Between two looks for what became too old.
PASS_SECONDS = 60.0
# Rows that one statement drops, or looks for.
BATCH_ROWS = 2000
BATCH_NOTES = 200
# Notes that are kept; above it the oldest go: the channel's next publish leaves another.
MAX_NOTES = 20_000
# A statement may drop many rows.
TIMEOUT_SECONDS = 30.0

# One process trims at a time: two that drop the same rows in another order would block each other.
_TRIM_LOCK = 0x6D625F7472696D
_ALONE = f"(SELECT pg_advisory_xact_lock({_TRIM_LOCK})) IS NOT NULL"

# $1 channels, $2 up to which id, $3 how many of those to keep.
_BY_SIZE = f"""
DELETE FROM message_bus USING (
  SELECT name, cut.id
  FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS note(name, last_id, size)
  CROSS JOIN LATERAL (
    SELECT id FROM message_bus WHERE channel = name AND id <= last_id
    ORDER BY id DESC OFFSET size LIMIT 1) AS cut
) AS excess
WHERE {_ALONE} AND message_bus.channel = excess.name AND message_bus.id <= excess.id
RETURNING 1
"""
_GLOBALLY = f"""
DELETE FROM message_bus WHERE {_ALONE} AND id IN (
  SELECT id FROM message_bus WHERE id <= $1 ORDER BY id LIMIT {BATCH_ROWS})
RETURNING 1
"""
_BY_AGE = f"""
DELETE FROM message_bus WHERE {_ALONE} AND id IN (
  SELECT id FROM message_bus AS old
  WHERE added_at < CURRENT_TIMESTAMP - make_interval(secs => $1)
    AND NOT EXISTS (SELECT FROM messagebusd_age WHERE messagebusd_age.channel = old.channel)
  LIMIT {BATCH_ROWS})
RETURNING 1
"""
_BY_OWN_AGE = f"""
DELETE FROM message_bus WHERE {_ALONE} AND id IN (
  SELECT old.id FROM messagebusd_age JOIN message_bus AS old USING (channel)
  WHERE old.added_at < CURRENT_TIMESTAMP - make_interval(secs => messagebusd_age.seconds)
  LIMIT {BATCH_ROWS})
RETURNING 1
"""
_SET_AGES = f"""
INSERT INTO messagebusd_age (channel, seconds, due)
SELECT name, seconds, now() + make_interval(secs => seconds)
FROM unnest($1::text[], $2::bigint[]) AS note(name, seconds) WHERE {_ALONE}
ON CONFLICT (channel) DO UPDATE SET seconds = excluded.seconds, due = excluded.due
"""
_UNSET_AGES = f"DELETE FROM messagebusd_age WHERE {_ALONE} AND channel = ANY($1::text[])"
_FORGET_AGES = f"""
DELETE FROM messagebusd_age WHERE {_ALONE} AND due < now() AND NOT EXISTS (
  SELECT FROM message_bus WHERE message_bus.channel = messagebusd_age.channel)
"""
_FORGET_ONCES = f"""
DELETE FROM messagebusd_once WHERE slot IN (
  SELECT slot FROM messagebusd_once WHERE at < now() - make_interval(secs => {ONCE_SECONDS})
  LIMIT {BATCH_ROWS} FOR UPDATE SKIP LOCKED)
RETURNING 1
"""

_log = logging.getLogger(__name__)

Fetch = Callable[..., Awaitable[Sequence[Any]]]
T = TypeVar("T")


class Trimmer:
    """See the module's docstring. ``fetch`` runs a statement."""

    def __init__(self, fetch: Fetch, retention: Retention) -> None:
        self._fetch = fetch
        self._retention = retention
        # By channel and size: the latest id that asked for it.
        self._sizes: dict[tuple[str, int], int] = {}
        # By channel: the age of its latest publish, None for the default.
        self._ages: dict[str, int | None] = {}
        self._global_id = 0
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._is_failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Trim from now on: there are tables."""
        self._task = asyncio.create_task(self._run())

    def note(self, channel: str, last_id: int, size: int | None, age: int | None) -> None:
        """Remember what a publish asks for."""
        retention = self._retention
        if age == 0:
            size = 0  # nothing to keep, whatever the next publish says
        if last_id % retention.clear_every == 0 or size == 0:
            key = (channel, retention.max_backlog_size if size is None else size)
            self._sizes[key] = max(last_id, self._sizes.pop(key, 0))
            self._global_id = max(self._global_id, last_id)
            _bound(self._sizes)
        self._ages.pop(channel, None)
        self._ages[channel] = age
        _bound(self._ages)
        self._wake.set()

    async def trim(self) -> None:
        """Do now what would be done soon. Raises StoreUnavailable."""
        async with self._lock:
            await self._apply_notes()
            await self._drop_old()

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(GATHER_SECONDS)
            try:
                async with self._lock:
                    await self._apply_notes()
                    if loop.time() >= due:
                        due = loop.time() + PASS_SECONDS
                        await self._drop_old()
            except StoreUnavailable as error:
                self._note_failure(str(error))
            except Exception:
                _log.exception("backlogs could not be trimmed")
            else:
                self._is_failing = False

    def _note_failure(self, reason: str) -> None:
        self._wake.set()
        if not self._is_failing:
            self._is_failing = True
            _log.warning("backlogs cannot be trimmed", extra={"reason": reason})

    async def _apply_notes(self) -> None:
        self._wake.clear()
        sizes, self._sizes = self._sizes, {}
        ages, self._ages = self._ages, {}
        global_id, self._global_id = self._global_id, 0
        try:
            await self._apply_ages(ages)
            for notes in _batches(list(sizes.items())):
                names = [channel for (channel, _), _ in notes]
                ids = [last_id for _, last_id in notes]
                await self._run_statement(_BY_SIZE, names, ids, [size for (_, size), _ in notes])
            if (oldest := global_id - self._retention.max_global_backlog_size) > 0:
                await self._repeat(_GLOBALLY, oldest)
        except BaseException:
            # What is done twice does no harm.
            self._sizes = {**sizes, **self._sizes}
            self._ages = {**ages, **self._ages}
            self._global_id = max(global_id, self._global_id)
            raise

    async def _apply_ages(self, ages: dict[str, int | None]) -> None:
        for notes in _batches([(name, age) for name, age in ages.items() if age is not None]):
            names = [name for name, _ in notes]
            await self._run_statement(_SET_AGES, names, [age for _, age in notes])
        for unset in _batches([name for name, age in ages.items() if age is None]):
            await self._run_statement(_UNSET_AGES, unset)
        if any(age is not None for age in ages.values()):
            await self._repeat(_BY_OWN_AGE)

    async def _drop_old(self) -> None:
        await self._repeat(_BY_OWN_AGE)
        await self._repeat(_BY_AGE, float(self._retention.max_backlog_age))
        await self._run_statement(_FORGET_AGES)
        await self._repeat(_FORGET_ONCES)

    async def _repeat(self, query: str, *values: object) -> None:
        while len(await self._run_statement(query, *values)) >= BATCH_ROWS:
            pass

    async def _run_statement(self, query: str, *values: object) -> Sequence[Any]:
        return await self._fetch(query, *values, seconds=TIMEOUT_SECONDS)


def _bound(notes: dict[Any, Any]) -> None:
    if len(notes) > MAX_NOTES:
        del notes[next(iter(notes))]


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[at : at + BATCH_NOTES] for at in range(0, len(items), BATCH_NOTES)]
