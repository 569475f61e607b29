"""The Redis door: publish what is added to a stream (SPEC 4).

**Order.** Entries are published in the order of the stream. Of all workers and nodes one reads it,
the one that holds the lease; when it dies, another takes over within seconds.

**Once.** An entry is published under a `Once` made from its id (or its own ``idempotency_key``),
then acknowledged and deleted. After a crash in between, its publish is repeated and does nothing.
So two readers, should a pause of one ever let another take over, do no harm either.

**Nothing is lost.** An entry that breaks the rules goes to the dead letters, with the reason. While
the store is away entries stay where they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from messagebusd.backends.base import Once
from messagebusd.bus import MessageBus
from messagebusd.errors import RequestError, StoreUnavailable
from messagebusd.metrics import Metrics
from messagebusd.protocol import inbox
from messagebusd.protocol.publication import Publication, PublishLimits

DOOR = "redis"
GROUP = "messagebusd"
# One name for all readers: whoever takes over finds what the one before left unacknowledged.
CONSUMER = "messagebusd"
PAGE_ENTRIES = 100
# How long a reader keeps its lease without renewing it, and waits for entries before it does.
LEASE_SECONDS = 10.0
BLOCK_SECONDS = 2.0
# Between two attempts to get the lease, or to reach Redis or the store.
PAUSE_SECONDS = 1.0

_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

Fields = Mapping[bytes, bytes]

_log = logging.getLogger(__name__)


class RedisInbox:
    """See the module's docstring. ``redis`` does not decode answers and is closed by `close`."""

    def __init__(
        self,
        redis: Redis,
        bus: MessageBus,
        metrics: Metrics,
        limits: PublishLimits,
        *,
        stream: str,
        secret: str | None,
        max_dead: int,
    ) -> None:
        self._redis = redis
        self._bus = bus
        self._metrics = metrics
        self._limits = limits
        self._stream = stream
        self._dead = f"{stream}:dead"
        self._lease = f"{stream}:reader"
        self._secret = None if secret is None else secret.encode()
        self._max_dead = max_dead
        self._token = secrets.token_hex(16)
        self._task: asyncio.Task[None] | None = None
        self._problem: str | None = None

    @property
    def status(self) -> str:
        """``ok``, or why entries are not read."""
        return self._problem or "ok"

    def start(self) -> None:
        """Read from now on."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop reading, and let another go on at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with suppress(RedisError, OSError):
                await self._redis.eval(_RELEASE, 1, self._lease, self._token)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            try:
                if await self._take_lease():
                    await self._read()
                self._recovered()
            except (RedisError, OSError) as error:
                self._failed(f"Redis: {error}")
            except StoreUnavailable as error:
                self._failed(f"store: {error}")
            except Exception:
                # Whatever this is, publishers must not find the door closed for good.
                _log.exception("reading the inbox failed")
                self._failed("internal error")
            await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))

    def _failed(self, problem: str) -> None:
        if self._problem is None:
            _log.warning("the inbox cannot be read", extra={"reason": problem})
        self._problem = problem

    def _recovered(self) -> None:
        if self._problem is not None:
            _log.info("the inbox is read again")
        self._problem = None

    # -- who reads ---------------------------------------------------------------------------

    async def _take_lease(self) -> bool:
        milliseconds = int(LEASE_SECONDS * 1000)
        taken = await self._redis.set(self._lease, self._token, nx=True, px=milliseconds)
        return bool(taken) or await self._renew_lease()

    async def _renew_lease(self) -> bool:
        milliseconds = int(LEASE_SECONDS * 1000)
        renewed = await self._redis.eval(_RENEW, 1, self._lease, self._token, milliseconds)
        return bool(renewed)

    # -- reading -----------------------------------------------------------------------------

    async def _read(self) -> None:
        """Publish entries while the lease lasts."""
        try:
            await self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # it is there already
                raise
        after = "0"  # first what was read before and never acknowledged
        while await self._renew_lease():
            page = await self._page(after)
            if page:
                await self._publish(page)
                after = after if after == ">" else page[-1][0].decode()
            else:
                after = ">"
            self._recovered()
            self._metrics.inbox_entries.set(await self._redis.xlen(self._stream))

    async def _page(self, after: str) -> Sequence[tuple[bytes, Fields]]:
        answer: Any = await self._redis.xreadgroup(
            GROUP,
            CONSUMER,
            {self._stream: after},
            count=PAGE_ENTRIES,
            block=int(BLOCK_SECONDS * 1000) if after == ">" else None,
        )
        entries: Sequence[tuple[bytes, Fields]] = answer[0][1] if answer else ()
        return entries

    async def _publish(self, page: Sequence[tuple[bytes, Fields]]) -> None:
        """Publish some entries in order, and acknowledge them.

        Raises StoreUnavailable, having acknowledged those before the first that failed.
        """
        publications: list[tuple[bytes, Publication, Once]] = []
        done: list[bytes] = []
        for entry_id, fields in page:
            if not fields:  # deleted by somebody after it was read
                done.append(entry_id)
                continue
            try:
                if self._secret is not None:
                    inbox.verify(fields, self._secret)
                publication = inbox.parse_entry(fields, self._limits)
            except RequestError as error:
                await self._bury(entry_id, fields, error)
            else:
                publications.append((entry_id, publication, self._once(entry_id, fields)))
        # Together, so that they share the way to the store: it keeps their order.
        outcomes = await asyncio.gather(
            *(self._bus.publish(publication, once) for _, publication, once in publications),
            return_exceptions=True,
        )
        failure: BaseException | None = None
        for (entry_id, publication, _), outcome in zip(publications, outcomes, strict=True):
            if isinstance(outcome, RequestError):  # its idempotency key was another's
                await self._bury(entry_id, dict(page)[entry_id], outcome)
            elif isinstance(outcome, BaseException):
                failure = failure or outcome
            elif failure is None:
                assert outcome is not None, publication
                self._metrics.published(DOOR, not outcome.repeated)
                done.append(entry_id)
        await self._acknowledge(done)
        if failure is not None:
            raise failure

    def _once(self, entry_id: bytes, fields: Fields) -> Once:
        key = fields.get(inbox.IDEMPOTENCY_KEY)
        own = b"id:" + entry_id if key is None else b"key:" + key
        slot = hashlib.blake2b(b"inbox:%b:%b" % (self._stream.encode(), own), digest_size=16)
        content = hashlib.blake2b(inbox.signature(fields, b""), digest_size=16)
        return Once(slot.digest(), content.digest())

    async def _acknowledge(self, entry_ids: Sequence[bytes]) -> None:
        if entry_ids:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.xack(self._stream, GROUP, *entry_ids)
                pipeline.xdel(self._stream, *entry_ids)
                await pipeline.execute()

    async def _bury(self, entry_id: bytes, fields: Fields, error: RequestError) -> None:
        """Keep an entry that cannot be published, with the reason."""
        self._metrics.refused(DOOR, error.code)
        _log.warning(
            "an inbox entry cannot be published",
            extra={"entry": entry_id.decode(), "code": error.code, "reason": error.detail},
        )
        buried: dict[Any, Any] = {
            **fields,
            b"dead_id": entry_id,
            b"dead_code": error.code,
            b"dead_reason": error.detail,
        }
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xadd(self._dead, buried, maxlen=self._max_dead, approximate=True)
            pipeline.xack(self._stream, GROUP, entry_id)
            pipeline.xdel(self._stream, entry_id)
            await pipeline.execute()
