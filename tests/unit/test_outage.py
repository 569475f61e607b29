"""Messages that wait for the store: in order, with their options, and never silently lost."""

from __future__ import annotations

import asyncio

import pytest

from messagebusd import outage
from messagebusd.backends.base import Published
from messagebusd.errors import StoreRefused, StoreUnavailable
from messagebusd.outage import OutageQueue
from messagebusd.protocol.publication import Publication


class Store:
    def __init__(self):
        self.away = False
        self.loses_answers = False
        self.stored = []
        self.seen = set()

    async def publish(self, publication, once):
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")
        if publication.channel == "/spoilt":
            raise StoreRefused("its key holds something else")
        if once is None or once not in self.seen:
            self.stored.append(publication)
            self.seen.add(once)
        if self.loses_answers:
            raise StoreUnavailable("the answer got lost")
        return Published(len(self.stored), len(self.stored))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(outage, "LONGEST_PAUSE_SECONDS", 0.002)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
async def queue(store):
    queue = OutageQueue(store.publish, max_messages=3)
    yield queue
    store.away = store.loses_answers = False
    await queue.close(5)


def message(number, *, may_wait=True, **options):
    return Publication("/a", b"%d" % number, queue_in_memory=may_wait, **options)


async def flushed(queue):
    async with asyncio.timeout(5):
        while len(queue):
            await asyncio.sleep(0.001)


async def test_a_store_that_is_there_is_used_at_once(queue, store):
    assert await queue.publish(message(1), None) == Published(1, 1)
    assert await queue.publish(message(2, may_wait=False), None) == Published(2, 2)


async def test_messages_wait_in_order_with_their_options(queue, store):
    store.away = True
    waiting = [message(1, max_backlog_size=3), message(2, max_backlog_age=7), message(3)]
    for each in waiting:
        assert await queue.publish(each, None) is None
    store.away = False
    await flushed(queue)
    assert store.stored == waiting


async def test_a_message_that_may_not_wait_fails_fast(queue, store):
    store.away = True
    with pytest.raises(StoreUnavailable):
        await queue.publish(message(1, may_wait=False), None)
    await queue.publish(message(2), None)
    with pytest.raises(StoreUnavailable):
        await queue.publish(message(3, may_wait=False), None)
    assert len(queue) == 1


async def test_a_full_queue_refuses_the_newest(queue, store):
    store.away = True
    for number in range(3):
        await queue.publish(message(number), None)
    with pytest.raises(StoreUnavailable):
        await queue.publish(message(3), None)
    store.away = False
    await flushed(queue)
    assert [each.data for each in store.stored] == [b"0", b"1", b"2"]


async def test_nothing_newer_overtakes_what_waits(queue, store):
    store.away = True
    await queue.publish(message(1), None)
    await queue.publish(message(2), None)
    store.away = False
    newer = None
    async with asyncio.timeout(5):
        while newer is None:
            try:
                newer = await queue.publish(message(3, may_wait=False), None)
            except StoreUnavailable:  # nobody has noticed yet that the store is back
                await asyncio.sleep(0.001)
    assert [each.data for each in store.stored] == [b"1", b"2", b"3"]


async def test_an_answer_that_got_lost_publishes_nothing_twice(queue, store):
    store.loses_answers = True
    assert await queue.publish(message(1), None) is None
    await asyncio.sleep(0.01)
    store.loses_answers = False
    await flushed(queue)
    assert [each.data for each in store.stored] == [b"1"]


async def test_what_is_lost_at_the_end_is_said(store, caplog):
    queue = OutageQueue(store.publish, max_messages=3)
    store.away = True
    await queue.publish(message(1), None)
    await queue.close(0.01)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert (record.message, record.messages) == ("messages that waited for the store are lost", 1)


async def test_one_that_the_store_never_takes_holds_nobody_up(queue, store, caplog):
    with pytest.raises(StoreRefused):
        await queue.publish(Publication("/spoilt", b"1", queue_in_memory=True), None)
    store.away = True
    await queue.publish(Publication("/spoilt", b"1", queue_in_memory=True), None)
    await queue.publish(message(2), None)
    store.away = False
    await flushed(queue)
    assert [each.data for each in store.stored] == [b"2"]
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == [
        "a message that waited for the store cannot be published"
    ]


async def test_while_the_queue_moves_everybody_keeps_their_place(queue, store):
    store.away = True
    await queue.publish(message(1), None)
    store.away = False
    async with asyncio.timeout(5):
        while queue._is_stuck and len(queue):
            await asyncio.sleep(0)
    await asyncio.gather(
        *(queue.publish(message(n, may_wait=n % 2 == 0), None) for n in (3, 4, 5)),
        return_exceptions=True,
    )
    await flushed(queue)
    numbers = [int(each.data) for each in store.stored]
    assert numbers == sorted(numbers)


async def test_who_may_not_wait_is_told_when_the_queue_stops_moving(queue, store):
    queue._waiting.append(outage._Waiting(message(1), None))
    impatient = asyncio.create_task(queue.publish(message(2, may_wait=False), None))
    await asyncio.sleep(0)
    store.away = True
    queue._flushing = asyncio.create_task(queue._flush())
    with pytest.raises(StoreUnavailable):
        await impatient
    assert len(queue) == 1
