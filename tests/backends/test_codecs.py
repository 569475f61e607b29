"""Nodes of several codecs on one store, and what nobody of them can read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from messagebusd.backends.base import Backend
from messagebusd.backends.codec import load_codec
from messagebusd.errors import StoreRefused
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.stored import COMPACTING, JSON, EnvelopeCodec
from tests.backends.postgres_store import PlainPostgresStore
from tests.backends.redis_store import RedisStore

MANY = Audience(range(500))
# As the store knows them: what is longer is announced by its id in PostgreSQL.
SIZES = {"short": b"", "long": b"x" * 10_000}


class Own:
    """Refuses to write "refused", and to read "unreadable"."""

    def encode(self, data: bytes, *lists: Any) -> str:
        if b"refused" in data:
            raise ValueError("refused")
        return json.dumps([data.decode(), *lists])

    def decode(self, text: str) -> Any:
        if "unreadable" in text:
            raise KeyError("unreadable")
        data, *lists = json.loads(text)
        return data.encode(), *lists


@pytest.fixture(params=["redis", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[RedisStore | PlainPostgresStore]:
    server = request.getfixturevalue(f"{request.param}_server")
    under_test = RedisStore(server) if request.param == "redis" else PlainPostgresStore(server)
    try:
        yield under_test
    finally:
        await under_test.close()


async def beside(store: RedisStore | PlainPostgresStore, codec: EnvelopeCodec) -> Backend:
    """Another node."""
    mine, store.codec = store.codec, codec
    node = store.backend_beside()
    store.codec = mine
    store._opened.append(node)
    await node.open()
    return node


def of(data: bytes, audience: Audience | None = None) -> Publication:
    return Publication("/a", data, audience=audience)


@pytest.mark.parametrize("codec", ["json", "compact", f"{__name__}:Own"])
async def test_json_and_compact_are_read_by_everybody(store, codec):
    store.codec = load_codec(codec)
    await store.reopen()
    await (await beside(store, JSON)).publish(of(b'"json"', MANY))
    await (await beside(store, COMPACTING)).publish(of(b'"compact"', MANY))
    expected = [(b'"json"', MANY), (b'"compact"', MANY)]
    announced = await store.announcements(2)
    assert [(each.data, each.audience) for each in announced] == expected
    stored = (await store.read("/a")).messages
    assert [(each.data, each.audience) for each in stored] == expected
    assert store.reports.ignored == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mine", "unreadable"), [("json", b"own"), ("own", b"unreadable")])
async def test_what_cannot_be_read_is_passed_over_and_counted(store, size, mine, unreadable):
    """By a node that has no such codec, and where the codec itself fails."""
    own = load_codec(f"{__name__}:Own")
    store.codec = own if mine == "own" else JSON
    await store.reopen()
    first = await store.publish("/a", b"1")
    lost = await (await beside(store, own)).publish(of(b'"%b%b"' % (unreadable, SIZES[size])))
    last = await store.publish("/a", b"3")
    assert [each.message_id for each in await store.announcements(2)] == [first, last]
    assert await store.ids("/a") == [first, last]
    assert await store.backend.message("/a", lost.message_id) is None
    page = await store.backend.global_backlog(0, max_messages=9, max_bytes=2**20)
    assert [each.message_id for each in page.messages] == [first, last]
    assert await store.last_ids("/a") == {"/a": last}
    assert [each.message_id for each in store.announced] == [first, last]
    assert set(store.reports.ignored) == {"malformed"}


async def test_what_cannot_be_encoded_is_refused_and_uses_up_no_id(store):
    store.codec = load_codec(f"{__name__}:Own")
    await store.reopen()
    first = await store.publish("/a")
    with pytest.raises(StoreRefused):
        await store.publish("/a", b'"refused"')
    assert await store.publish("/a") == first + 1


async def test_pages_of_messages_that_are_stored_in_less(store, monkeypatch):
    """The bytes of a page are those of the wire form, however short the stored one is."""
    kept: list[bytes] = []

    def encode(self: Own, data: bytes, *lists: Any) -> str:
        kept.append(data)
        return str(len(kept) - 1)

    store.codec = load_codec(f"{__name__}:Own")
    monkeypatch.setattr(Own, "encode", encode)
    monkeypatch.setattr(Own, "decode", lambda self, text: (kept[int(text)], None, None, None))
    await store.reopen()
    ids = [await store.publish("/a", b'"%b"' % (b"x" * 1000)) for _ in range(5)]
    size = len((await store.read("/a")).messages[0].encoded)
    found: list[int] = []
    more = True
    while more:
        page = await store.read("/a", found[-1] if found else 0, max_bytes=2 * size + 9)
        assert 1 <= len(page.messages) <= 2
        found += [each.message_id for each in page.messages]
        more = page.more
    assert found == ids
