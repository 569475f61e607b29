"""Reads in common: what is asked for is read after it was asked for, and rarely twice."""

from __future__ import annotations

import asyncio

import pytest

from messagebusd.backends.postgres import sharing
from messagebusd.backends.postgres.sharing import SharedLookups, SharedReads
from messagebusd.errors import StoreUnavailable


class Store:
    """Answers with the time at which a read began; each takes until `proceed`."""

    def __init__(self):
        self.now = 0
        self.reads = []
        self.gates = asyncio.Semaphore(0)
        self.broken = False

    async def read(self, key):
        began = self.now
        self.reads.append(key)
        await self.gates.acquire()
        if self.broken:
            raise StoreUnavailable("away")
        return began

    async def look_up(self, names):
        began = await self.read(tuple(sorted(names)))
        return dict.fromkeys(names, began)

    async def proceed(self):
        self.gates.release()
        for _ in range(5):
            await asyncio.sleep(0)


async def turn():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_comes_later_is_read_to_later():
    store = Store()
    reads = SharedReads(store.read)
    first = asyncio.create_task(reads.get("a"))
    await turn()
    store.now = 1
    others = [asyncio.create_task(reads.get("a")) for _ in range(3)]
    await turn()
    assert store.reads == ["a"]  # they may not share the one that has begun
    store.now = 2
    await store.proceed()
    assert await first == 0
    assert store.reads == ["a", "a"]
    await store.proceed()
    assert await asyncio.gather(*others) == [2, 2, 2]


async def test_different_reads_do_not_wait_for_each_other():
    store = Store()
    reads = SharedReads(store.read)
    asked = [asyncio.create_task(reads.get(key)) for key in "ab"]
    await turn()
    assert sorted(store.reads) == ["a", "b"]
    await store.proceed()
    await store.proceed()
    await asyncio.gather(*asked)


async def test_one_who_gives_up_takes_nothing_from_the_others():
    store = Store()
    reads = SharedReads(store.read)
    leaving, staying = (asyncio.create_task(reads.get("a")) for _ in range(2))
    await turn()
    leaving.cancel()
    await store.proceed()
    assert await staying == 0


async def test_a_failure_is_everybodys_and_not_the_next_ones():
    store = Store()
    reads = SharedReads(store.read)
    store.broken = True
    asked = [asyncio.create_task(reads.get("a")) for _ in range(2)]
    await turn()
    await store.proceed()
    assert all(
        isinstance(each, StoreUnavailable)
        for each in await asyncio.gather(*asked, return_exceptions=True)
    )
    store.broken = False
    again = asyncio.create_task(reads.get("a"))
    await turn()
    await store.proceed()
    assert await again == 0


async def test_lookups_of_a_crowd_are_one():
    store = Store()
    lookups = SharedLookups(store.look_up)
    first = asyncio.create_task(lookups.get(["a"]))
    await turn()
    store.now = 1
    others = [asyncio.create_task(lookups.get(names)) for names in (["a"], ["b", "c"], ["c"])]
    await turn()
    await store.proceed()
    assert await first == {"a": 0}
    await store.proceed()
    assert await asyncio.gather(*others) == [{"a": 1}, {"b": 1, "c": 1}, {"c": 1}]
    assert store.reads == [("a",), ("a", "b", "c")]


async def test_a_crowd_with_too_many_names_is_several(monkeypatch):
    monkeypatch.setattr(sharing, "MAX_CHANNELS", 2)
    store = Store()
    lookups = SharedLookups(store.look_up)
    asked = [asyncio.create_task(lookups.get([name])) for name in "abcd"]
    await turn()
    await store.proceed()
    await store.proceed()
    await asyncio.gather(*asked)
    assert sorted(store.reads) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("kind", [SharedReads, SharedLookups])
async def test_nothing_is_left_when_it_is_closed(kind):
    store = Store()
    shared = kind(store.read if kind is SharedReads else store.look_up)
    asked = [asyncio.create_task(shared.get("a")) for _ in range(2)]
    await turn()
    await shared.close()
    await asyncio.gather(*asked, return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1
