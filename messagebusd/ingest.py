"""The Redis door: publish what is added to a stream (SPEC 4).

The stream holds what is not published yet: an entry is taken from its beginning, published, and
deleted; or, if it breaks the rules, moved to the dead letters with the reason.

**Order.** Entries are published one after the other. The next one's turn comes when the store has
confirmed the one before, so that no outage of the store can make one overtake another.

**Once.** An entry is published under a `Once` made from its id and content, or from its own
``idempotency_key``. After a crash before its deletion, its publish is repeated and does nothing.

**One reader.** Of all workers and nodes one reads, the one that has the lease; when it dies,
another takes over within seconds. That is only to spare work: should there ever be two, each takes
the same steps in the same order, and every step happens once.

**Bounded.** Entries come in pages of so many bytes. Those that are too large to be published stay
in Redis when they are moved. Only the entry that ends a wait is transferred whatever its size.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from messagebusd.backends.base import Once
from messagebusd.backends.redis import open_pipeline
from messagebusd.bus import MessageBus
from messagebusd.errors import LimitExceeded, RequestError, StoreRefused, StoreUnavailable
from messagebusd.metrics import Metrics
from messagebusd.protocol import inbox
from messagebusd.protocol.publication import Publication, PublishRules
from messagebusd.settings import RedisConnection, Settings

DOOR = "redis"
PAGE_ENTRIES = 100
PAGE_BYTES = 1024 * 1024
# What an entry may have besides the data: 10,000 ids of users, groups and clients each, as UUIDs.
MAX_ENVELOPE_BYTES = 1280 * 1024
# A reader that is not heard of for so long has lost its lease. It renews it thrice as often.
LEASE_SECONDS = 5.0
# How long Redis may take to answer, and how long it is asked to wait for an entry.
TIMEOUT_SECONDS = 5.0
BLOCK_SECONDS = 2.0
# Between two attempts to get the lease, or to reach Redis or the store.
PAUSE_SECONDS = 1.0
# Entries under way get this long when the daemon stops.
CLOSE_SECONDS = 5.0
# Fields of a refused entry that are kept; a valid one has ten at most.
MAX_DEAD_FIELDS = 100

# KEYS  1 stream, 2 lease
# ARGV  1 token, 2 duration of the lease in ms, 3 most entries, 4 most bytes of all, 5 and of one
#
# Takes or renews the lease. Returns nothing if another has it, or {length of the stream, entries}:
# each {id, {name, value, ...}}, or {id, bytes} where it is too large.
_READ = """
local holder = redis.call('GET', KEYS[2])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
elseif holder then
  return false
else
  local taken = redis.pcall('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  -- Where there is no memory for it, read without: as entries go there is room again.
  if taken.err and not string.find(taken.err, 'OOM', 1, true) then
    return taken
  end
end
local entries, size, from = {}, 0, '-'
while #entries < tonumber(ARGV[3]) do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then
    break
  end
  local bytes = 0
  for _, word in ipairs(entry[2]) do
    bytes = bytes + #word
  end
  if bytes > tonumber(ARGV[5]) then
    entry[2] = bytes
  else
    size = size + bytes
    if size > tonumber(ARGV[4]) and #entries > 0 then
      break
    end
  end
  entries[#entries + 1] = entry
  from = '(' .. entry[1]
end
return {redis.call('XLEN', KEYS[1]), entries}
"""

# KEYS  1 stream, 2 dead letters
# ARGV  1 id, 2 code, 3 reason, 4 fields to keep of it, 5 dead letters to keep
#
# Moves an entry. Returns whether it was there.
_BURY = """
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then
  return 0
end
local words = {}
for place = 1, math.min(#entry[2], 2 * ARGV[4]) do
  words[place] = entry[2][place]
end
for _, word in ipairs({'dead_id', ARGV[1], 'dead_code', ARGV[2], 'dead_reason', ARGV[3]}) do
  words[#words + 1] = word
end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], '*', unpack(words))
return redis.call('XDEL', KEYS[1], ARGV[1])
"""

# KEYS  1 lease        ARGV  1 token
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
"""

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """An entry as Redis hands it out; of one that is too large, its bytes instead of its words."""

    id: bytes
    words: Sequence[bytes] | int


class RedisInbox:
    """See the module's docstring. To be built in the loop that runs it.

    ``status`` is ``ok``, or why entries are not published. ``rules`` may be changed while it runs;
    they apply to the next entries.
    """

    def __init__(
        self,
        connection: RedisConnection,
        bus: MessageBus,
        metrics: Metrics,
        rules: PublishRules,
        *,
        stream: str,
        secret: str | None,
        max_dead: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.status = "ok"
        self._commands = open_pipeline(connection, TIMEOUT_SECONDS)
        # Of its own, because commands behind one that waits would wait as well.
        self._waits = open_pipeline(connection, TIMEOUT_SECONDS + BLOCK_SECONDS)
        self._bus = bus
        self._metrics = metrics
        self.rules = rules
        self._stream = stream
        self._dead = f"{stream}:dead"
        self._lease = f"{stream}:reader"
        self._secret = None if secret is None else secret.encode()
        self._max_dead = max_dead
        self._clock = clock
        self._token = secrets.token_hex(16)
        self._renewed = 0.0
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(
        cls, settings: Settings, bus: MessageBus, metrics: Metrics, rules: PublishRules
    ) -> RedisInbox:
        """The inbox as it is configured."""
        redis = settings.ingest.redis
        return cls(
            redis.connection(settings.backend),
            bus,
            metrics,
            rules,
            stream=redis.stream,
            secret=redis.secret.get_secret_value() if redis.secret else None,
            max_dead=redis.max_dead,
        )

    def start(self) -> None:
        """Read from now on."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Finish the entry under way, and let another go on at once."""
        self._is_closing = True
        await self._waits.close()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=CLOSE_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._release()
        await self._commands.close()
        self._metrics.inbox_entries.set(0)

    async def _run(self) -> None:
        while not self._is_closing:
            try:
                reads = await self._read()
            except StoreUnavailable as error:
                self._failed(str(error))
            except Exception:
                # Whatever this is, publishers must not find the door closed for good.
                _log.exception("reading the inbox failed")
                self._failed("internal error")
            else:
                self._succeeded()
                if reads:
                    continue
            if not self._is_closing:
                self._metrics.inbox_entries.set(0)
                await self._give_up()
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))

    async def _give_up(self) -> None:
        """Let another try: the store may be away only from here."""
        self._waits.disconnect("not needed at present")
        await self._release()

    async def _release(self) -> None:
        if self._renewed:
            self._renewed = 0.0
            with suppress(StoreUnavailable):
                await self._ask("EVAL", _RELEASE, 1, self._lease, self._token)

    def _failed(self, problem: str) -> None:
        if self._is_closing:
            return
        if self.status == "ok":
            _log.warning("the inbox is not read", extra={"reason": problem})
        self.status = problem

    def _succeeded(self) -> None:
        if self.status != "ok":
            _log.info("the inbox is read again")
        self.status = "ok"

    # -- reading -----------------------------------------------------------------------------

    async def _read(self) -> bool:
        """Publish a page, or wait until there is one; False if another is the reader.

        Raises StoreUnavailable.
        """
        page = await self._page(PAGE_ENTRIES)
        if page is None:
            return False
        if page:
            await self._publish_all(page)
        else:
            # What this returns does not count, only that it returns: see `_page` for the size.
            await self._wait_for_entry()
        return True

    async def _page(self, entries: int) -> Sequence[_Entry] | None:
        """The first entries of the stream; None without the lease, which is renewed by this."""
        now = self._clock()
        largest = self.rules.max_data + MAX_ENVELOPE_BYTES
        answer = await self._ask(
            *("EVAL", _READ, 2, self._stream, self._lease, self._token),
            *(int(LEASE_SECONDS * 1000), entries, PAGE_BYTES, largest),
        )
        if answer is None:
            self._renewed = 0.0
            return None
        self._renewed = now
        length, found = answer
        self._metrics.inbox_entries.set(length)
        return [_Entry(*each) for each in found]

    async def _has_lease(self) -> bool:
        if self._clock() - self._renewed < LEASE_SECONDS / 3:
            return True
        return await self._page(0) is not None

    async def _wait_for_entry(self) -> None:
        milliseconds = int(BLOCK_SECONDS * 1000)
        try:
            await self._waits.run(
                *("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", self._stream, "0-0")
            )
        except StoreUnavailable as error:
            raise _inbox_unavailable(error) from None

    async def _ask(self, *words: str | bytes | int) -> Any:
        try:
            return await self._commands.run(*words)
        except StoreUnavailable as error:
            raise _inbox_unavailable(error) from None

    # -- publishing --------------------------------------------------------------------------

    async def _publish_all(self, page: Sequence[_Entry]) -> None:
        """Publish entries in order, and take them out of the stream.

        Raises StoreUnavailable, having taken out those before the one that failed.
        """
        done: list[bytes] = []
        refused: list[tuple[_Entry, RequestError]] = []
        try:
            for entry in page:
                if self._is_closing or not await self._has_lease():
                    break
                try:
                    await self._publish(*self._parse(entry))
                except RequestError as error:
                    refused.append((entry, error))
                else:
                    done.append(entry.id)
        finally:
            # First these: moving the others may need the memory that they take.
            if done:
                await self._ask("XDEL", self._stream, *done)
            await self._bury(refused)

    async def _publish(self, publication: Publication, once: Once) -> None:
        try:
            published = await self._bus.publish(publication, once)
        except StoreRefused as error:
            raise RequestError(f"the store: {error}", code="store_refused", status=500) from None
        except StoreUnavailable as error:
            raise StoreUnavailable(f"the store: {error}") from None
        if published is not None and not published.repeated:
            self._metrics.published(DOOR)

    def _parse(self, entry: _Entry) -> tuple[Publication, Once]:
        """What an entry says, checked. Raises RequestError."""
        if isinstance(entry.words, int):
            raise LimitExceeded(
                f"the entry has {entry.words} bytes", code="payload_too_large", status=413
            )
        try:
            fields = inbox.read_fields(entry.words)
            if self._secret is not None:
                inbox.verify(fields, self._secret)
            return inbox.parse_entry(fields, self.rules), self._once(entry.id, fields)
        except RequestError:
            raise
        except Exception:
            # A fault here, which would happen again every time: the next ones shall have a chance.
            _log.exception("an inbox entry cannot be read", extra={"entry": entry.id.decode()})
            raise RequestError("a fault of the daemon", code="internal_error", status=500) from None

    def _once(self, entry_id: bytes, fields: inbox.Fields) -> Once:
        content = _digest(inbox.signed_text(fields))
        stream = self._stream.encode()
        key = fields.get(inbox.IDEMPOTENCY_KEY)
        if key is not None:
            return Once(_digest(b"inbox key", stream, key), content)
        # With the content: where the stream is deleted, ids can be given anew.
        return Once(_digest(b"inbox entry", stream, entry_id, content), content)

    async def _bury(self, refused: Sequence[tuple[_Entry, RequestError]]) -> None:
        """Move entries to the dead letters, each with the reason."""
        for number, (entry, error) in enumerate(refused):
            moved = await self._ask(
                *("EVAL", _BURY, 2, self._stream, self._dead, entry.id, error.code, error.detail),
                *(MAX_DEAD_FIELDS, self._max_dead),
            )
            if not moved:
                continue
            self._metrics.refused(DOOR, error.code)
            if number == 0:  # whoever can add entries must not be able to fill the log
                _log.warning(
                    "inbox entries cannot be published",
                    extra={
                        "entries": len(refused),
                        "first": entry.id.decode(),
                        "code": error.code,
                        "reason": error.detail,
                    },
                )


def _inbox_unavailable(error: StoreUnavailable) -> StoreUnavailable:
    return StoreUnavailable(f"the inbox: {error}")


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
