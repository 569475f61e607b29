"""``POST /api/v1/publish`` and ``/publish/batch``: the publishers' door."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from messagebusd.bus import MessageBus
from messagebusd.errors import LimitExceeded, MalformedRequest, RequestError, StoreUnavailable
from messagebusd.http.auth import Key, KeyRing
from messagebusd.http.bodies import read_body
from messagebusd.http.exchange import NDJSON, answer, decoder, refuse_query
from messagebusd.http.idempotency import (
    REPLAYED_HEADER,
    IdempotencyLedger,
    Outcome,
    idempotency_key,
)
from messagebusd.http.middleware import store_unavailable
from messagebusd.http.problems import problem, request_id
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import PublishLimits, parse_object, parse_publication

DOOR = "http"
# What a body may have besides the data: 10,000 ids of users, groups and clients each, as UUIDs.
MAX_ENVELOPE_BYTES = 1280 * 1024
MAX_BATCH_MESSAGES = 1000
MAX_BATCH_BYTES = 16 * 1024 * 1024

# Messages of a batch that are published before others get their turn.
_TURN_MESSAGES = 100
_batch_fields = {"messages": decoder(list[msgspec.Raw])}


class PublishDoor:
    """Publishes what is allowed to the request's key. ``body_timeout`` is in seconds."""

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        limits: PublishLimits,
        ledger: IdempotencyLedger,
        body_timeout: float,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._metrics = metrics
        self._limits = limits
        self._ledger = ledger
        self._body_timeout = body_timeout
        self._max_body = limits.max_data + MAX_ENVELOPE_BYTES
        self._max_batch = max(MAX_BATCH_BYTES, self._max_body)

    async def publish(self, request: web.Request) -> web.Response:
        """Publish one message."""
        key = self._keys.authorize(request, "publish")
        refuse_query(request)
        once = idempotency_key(request)
        body = await read_body(request, self._max_body, self._body_timeout)
        if once is None:
            return answer(await self._publish(key, body))

        async def act() -> Outcome:
            return Outcome(200, await self._publish(key, body))

        return _replayable(*await self._ledger.once(key.name, "publish", once, body, act))

    async def batch(self, request: web.Request) -> web.Response:
        """Publish some messages in order; one that is refused does not stop the others."""
        key = self._keys.authorize(request, "publish")
        refuse_query(request)
        once = idempotency_key(request)
        body = await read_body(request, self._max_batch, self._body_timeout)
        kind = request.headers.get("Content-Type", "")
        messages = _split(body, lines=NDJSON in kind.lower())
        act = partial(self._publish_all, key, messages, request_id(request))
        if once is None:
            return answer((await act()).body)
        return _replayable(*await self._ledger.once(key.name, "batch", once, body, act))

    async def _publish(self, key: Key, body: bytes | msgspec.Raw) -> bytes:
        """Publish one message; the answer as JSON. Raises RequestError or StoreUnavailable."""
        publication = parse_publication(body, self._limits)
        channel = publication.channel
        key.require_channel(channel, publication.site_id, changes=True)
        published = await self._bus.publish(publication)
        self._metrics.published(DOOR)
        return b'{"channel":%b,"message_id":%d,"global_id":%d}' % (
            msgspec.json.encode(channel),
            published.message_id,
            published.global_id,
        )

    async def _publish_all(
        self, key: Key, messages: Sequence[bytes | msgspec.Raw], request_id: str
    ) -> Outcome:
        """Publish a batch. Raises StoreUnavailable if nothing of it was published.

        Where the store goes away in between, the rest is not tried: it would overtake what failed.
        """
        results: list[bytes] = []
        published = 0
        for message in messages:
            if len(results) % _TURN_MESSAGES == _TURN_MESSAGES - 1:
                await asyncio.sleep(0)
            try:
                results.append(await self._publish(key, message))
                published += 1
            except RequestError as error:
                results.append(self._refused(error, request_id))
            except StoreUnavailable:
                if not published:
                    raise
                rest = len(messages) - len(results)
                results += [self._refused(store_unavailable(), request_id)] * rest
                break
        return Outcome(200, b'{"results":[%b]}' % b",".join(results), done=published > 0)

    def _refused(self, error: RequestError, request_id: str) -> bytes:
        self._metrics.refused("api", error.code)
        document = problem(error.status, error.code, error.detail, request_id)
        return b'{"error":%b}' % msgspec.json.encode(document)


def _split(body: bytes, *, lines: bool) -> Sequence[bytes | msgspec.Raw]:
    """The messages of a batch. Raises RequestError."""
    messages: Sequence[bytes | msgspec.Raw]
    if lines:
        messages = [line for line in body.split(b"\n") if line.strip()]
    else:
        messages = parse_object(body, _batch_fields, required=("messages",))["messages"]
    if not messages:
        raise MalformedRequest("a batch needs at least one message")
    if len(messages) > MAX_BATCH_MESSAGES:
        raise LimitExceeded(
            f"a batch may have {MAX_BATCH_MESSAGES} messages at most, this one has {len(messages)}"
        )
    return messages


def _replayable(outcome: Outcome, replayed: bool) -> web.Response:
    headers = {REPLAYED_HEADER: "true"} if replayed else None
    return answer(outcome.body, outcome.status, headers)
