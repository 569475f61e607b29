"""``POST /api/v1/publish`` and ``/publish/batch``: the publishers' door."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from messagebusd.backends.base import Published
from messagebusd.bus import MessageBus
from messagebusd.errors import (
    LimitExceeded,
    MalformedRequest,
    RequestError,
    StoreRefused,
    StoreUnavailable,
)
from messagebusd.http.auth import Key, KeyRing
from messagebusd.http.call import Answer, Call
from messagebusd.http.exchange import NDJSON, decoder, json_answer, refuse_query
from messagebusd.http.idempotency import REPLAYED_HEADER, OnceOnly, idempotency_key
from messagebusd.http.middleware import store_unavailable
from messagebusd.http.problems import problem
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import (
    Publication,
    PublishRules,
    parse_object,
    parse_publication,
)

DOOR = "http"
# What a body may have besides the data: 10,000 ids of users, groups and clients each, as UUIDs.
MAX_ENVELOPE_BYTES = 1280 * 1024
MAX_BATCH_MESSAGES = 1000
MAX_BATCH_BYTES = 16 * 1024 * 1024

# Messages of a batch that are published together; then others get their turn.
_TURN_MESSAGES = 100
_batch_fields = {"messages": decoder(list[msgspec.Raw])}


class PublishDoor:
    """Publishes what is allowed to the request's key. ``body_timeout`` is in seconds."""

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        rules: PublishRules,
        body_timeout: float,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._metrics = metrics
        self._rules = rules
        self._body_timeout = body_timeout
        self._max_body = rules.max_data + MAX_ENVELOPE_BYTES
        self._max_batch = max(MAX_BATCH_BYTES, self._max_body)

    @property
    def is_immediate(self) -> bool:
        """Whether publishing waits for nobody."""
        return self._bus.backend.is_immediate

    async def publish(self, call: Call) -> Answer:
        """Publish one message."""
        key = self._keys.authorize(call, "publish")
        refuse_query(call)
        once = idempotency_key(call)
        key.count(1)
        body = await call.read_body(self._max_body, self._body_timeout)
        slot = None if once is None else OnceOnly(key.name, "publish", once, body).whole
        publication = self._parse(key, body)
        try:
            published = await self._bus.publish(publication, slot)
        except StoreRefused as error:
            raise _refused_by_store(error) from None
        repeated = published is not None and published.repeated
        if not repeated:
            self._metrics.published(DOOR)
        status = 202 if published is None else 200
        return _answer(_result(publication, published), status, repeated=repeated)

    async def batch(self, call: Call) -> Answer:
        """Publish some messages in order; one that is refused does not stop the others.

        The key's rate lets through all of them or none: a part could not be sent again in order.
        Sent again with its idempotency key, a batch goes on where it was interrupted.
        """
        key = self._keys.authorize(call, "publish")
        refuse_query(call)
        once = idempotency_key(call)
        body = await call.read_body(self._max_batch, self._body_timeout)
        kind = call.headers.get("Content-Type", "")
        messages = _split(body, lines=NDJSON in kind.lower())
        key.count(len(messages))
        slots = None if once is None else OnceOnly(key.name, "batch", once, body)
        return await self._publish_all(key, messages, slots, call.request_id)

    def _parse(self, key: Key, message: bytes | msgspec.Raw) -> Publication:
        """Read one message that this key may publish. Raises RequestError."""
        publication = parse_publication(message, self._rules)
        key.require_channel(publication.channel, publication.site_id, changes=True)
        return publication

    async def _publish_all(
        self,
        key: Key,
        messages: Sequence[bytes | msgspec.Raw],
        slots: OnceOnly | None,
        request_id: str,
    ) -> Answer:
        """Publish a batch. Raises StoreUnavailable if nothing of it was published.

        Where the store goes away, what follows soon after is not tried: it would overtake what
        failed.
        """
        results: list[bytes] = []
        taken = repeated = 0
        is_claimed = is_away = False
        for start in range(0, len(messages), _TURN_MESSAGES):
            if start:
                await asyncio.sleep(0)  # not all of the loop's time for one batch
            part = messages[start : start + _TURN_MESSAGES]
            parsed = [self._try_to_parse(key, each) for each in part]
            ready = [
                (each, None if slots is None else slots.message(index))
                for index, each in enumerate(parsed, start)
                if isinstance(each, Publication)
            ]
            if ready and slots is not None and not is_claimed:
                # Not before there is something to publish: a refused batch may be corrected.
                await self._bus.claim(slots.whole)
                is_claimed = True
            outcomes = await self._bus.publish_all(ready)
            repeated_now = sum(isinstance(each, Published) and each.repeated for each in outcomes)
            taken_now = sum(not isinstance(each, Exception) for each in outcomes)
            self._metrics.published(DOOR, taken_now - repeated_now)
            taken += taken_now
            repeated += repeated_now
            following = iter(outcomes)
            for each in parsed:
                if isinstance(each, RequestError):
                    results.append(self._refused(each, request_id))
                    continue
                match next(following):
                    case Published() | None as published:
                        results.append(_result(each, published))
                    case StoreRefused() as error:
                        results.append(self._refused(_refused_by_store(error), request_id))
                    case StoreUnavailable() if taken:
                        results.append(self._refused(store_unavailable(), request_id))
                        is_away = True
                    case Exception() as error:
                        raise error
            if is_away:
                rest = len(messages) - len(results)
                results += [self._refused(store_unavailable(), request_id)] * rest
                break
        return _answer(b'{"results":[%b]}' % b",".join(results), repeated=0 < taken == repeated)

    def _try_to_parse(self, key: Key, message: bytes | msgspec.Raw) -> Publication | RequestError:
        try:
            return self._parse(key, message)
        except RequestError as error:
            return error

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


def _result(publication: Publication, published: Published | None) -> bytes:
    """What a publisher is told of a message that was taken; None is one that waits."""
    channel = msgspec.json.encode(publication.channel)
    if published is None:
        return b'{"channel":%b,"queued":true}' % channel
    message_id, global_id, _ = published
    return b'{"channel":%b,"message_id":%d,"global_id":%d}' % (channel, message_id, global_id)


def _refused_by_store(error: StoreRefused) -> RequestError:
    """To be told apart from a store that is away: trying again would not help."""
    detail = f"the store does not take this message: {error}"
    return RequestError(detail, code="store_refused", status=422)


def _answer(body: bytes, status: int = 200, *, repeated: bool) -> Answer:
    return json_answer(body, status, ((REPLAYED_HEADER, "true"),) if repeated else ())
