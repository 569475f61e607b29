"""What every store promises (``backends/base.py``): the same tests for all of them."""

from __future__ import annotations

import asyncio

import pytest

from messagebusd.backends.base import Once
from messagebusd.errors import IdempotencyConflict
from messagebusd.protocol.message import Audience

# -- ids


async def test_ids_ascend_by_one_per_channel_and_globally_over_all(store):
    published = [
        await store.backend.publish(each)
        for each in [publication(store, name) for name in ("/a", "/b", "/a", "/a", "/b")]
    ]
    assert [each.message_id for each in published] == [1, 1, 2, 3, 2]
    global_ids = [each.global_id for each in published]
    assert global_ids == sorted(set(global_ids))
    assert await store.backend.last_global_id() == global_ids[-1]


async def test_sites_count_for_themselves(store):
    assert await store.publish("/a") == 1
    assert await store.publish("/a", site_id="s") == 1
    assert await store.publish("/a", site_id="s") == 2
    assert await store.last_ids("/a", "/a$|$s") == {"/a": 1, "/a$|$s": 2}


async def test_global_channels_are_one_for_all_sites(store):
    await store.publish("/global/a", site_id="s")
    assert await store.publish("/global/a", site_id="t") == 2
    assert await store.ids("/global/a") == [1, 2]


async def test_nothing_is_known_of_an_unused_channel(store):
    assert await store.last_ids("/a", "/b") == {"/a": 0, "/b": 0}
    assert await store.ids("/a") == []
    assert await store.backend.lookback("/a", 5) == 0
    assert await store.backend.message("/a", 1) is None
    await store.backend.delete_backlog("/a")
    assert await store.last_ids() == {}


async def test_concurrent_publishes_leave_no_gap_and_no_double(store):
    ids = await asyncio.gather(*(store.publish("/a") for _ in range(100)))
    assert sorted(ids) == list(range(1, 101))
    assert await store.ids("/a") == list(range(1, 101))


async def test_overlapping_publishes_are_stored_in_the_order_of_their_calls(store):
    await asyncio.gather(*(store.publish("/a", b"%d" % number) for number in range(200)))
    assert [each.data for each in (await store.read("/a")).messages] == [
        b"%d" % number for number in range(200)
    ]


# -- once


def once(slot=b"s", fingerprint=b"f"):
    return Once(slot * 16, fingerprint * 16)


async def test_a_publish_under_the_same_once_is_not_repeated(store):
    first = await store.backend.publish(publication(store, "/a"), once())
    again = await store.backend.publish(publication(store, "/a"), once())
    assert (first.repeated, again.repeated) == (False, True)
    assert again[:2] == first[:2]
    other = await store.backend.publish(publication(store, "/a"), once(b"t"))
    assert not other.repeated
    assert await store.ids("/a") == [first.message_id, other.message_id]
    assert len(await store.announcements(2)) == 2


async def test_concurrent_publishes_under_the_same_once_are_one(store):
    published = await asyncio.gather(
        *(store.backend.publish(publication(store, "/a"), once()) for _ in range(20))
    )
    assert len({each[:2] for each in published}) == 1
    assert sum(not each.repeated for each in published) == 1
    assert len(await store.ids("/a")) == 1


async def test_a_once_with_another_fingerprint_is_a_conflict(store):
    await store.backend.publish(publication(store, "/a"), once())
    with pytest.raises(IdempotencyConflict):
        await store.backend.publish(publication(store, "/b"), once(fingerprint=b"g"))
    with pytest.raises(IdempotencyConflict):
        await store.backend.claim(once(fingerprint=b"g"))
    assert await store.ids("/b") == []


async def test_a_conflict_concerns_its_own_publish_only(store):
    await store.backend.publish(publication(store, "/a"), once())
    outcomes = await asyncio.gather(
        store.backend.publish(publication(store, "/a")),
        store.backend.publish(publication(store, "/a"), once(fingerprint=b"g")),
        store.backend.publish(publication(store, "/a")),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], IdempotencyConflict)
    assert len(await store.ids("/a")) == 3


async def test_a_slot_can_be_claimed_again_by_the_same(store):
    await store.backend.claim(once())
    await store.backend.claim(once())
    with pytest.raises(IdempotencyConflict):
        await store.backend.claim(once(fingerprint=b"g"))


# -- reading


async def test_backlog_after_an_id(store):
    for _ in range(5):
        await store.publish("/a")
    assert await store.ids("/a", 0) == [1, 2, 3, 4, 5]
    assert await store.ids("/a", 3) == [4, 5]
    assert await store.ids("/a", 5) == []
    assert await store.ids("/a", 99) == []


async def test_backlog_is_read_in_pages(store):
    for _ in range(5):
        await store.publish("/a")
    page = await store.read("/a", 1, max_messages=2)
    assert ([each.message_id for each in page.messages], page.more) == ([2, 3], True)
    page = await store.read("/a", 3, max_messages=2)
    assert ([each.message_id for each in page.messages], page.more) == ([4, 5], False)


async def test_pages_are_bounded_by_bytes_but_never_empty(store):
    for _ in range(3):
        await store.publish("/a", b'"%b"' % (b"x" * 1000))
    size = len((await store.read("/a")).messages[0].encoded)
    for allowed, expected in [(1, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (9 * size, 3)]:
        page = await store.read("/a", max_bytes=allowed)
        assert len(page.messages) == expected
        assert page.more == (expected < 3)


async def test_messages_come_back_as_published(store):
    data = b'{"n":1.50,"big":123456789012345678901234567890,"text":"\\u00e4 \xc3\xb6"}'
    audience = Audience([1, "2"], ["g"], ["c"])
    await store.publish("/a|b", data, audience=audience, site_id="s")
    (message,) = (await store.read("/a|b$|$s")).messages
    assert message.data == data
    assert message.audience == audience
    assert (message.channel, message.site_id, message.stored_channel) == ("/a|b", "s", "/a|b$|$s")
    assert (await store.backend.message("/a|b$|$s", 1)).encoded == message.encoded


async def test_long_audiences_come_back_as_published(store):
    audiences = [
        Audience(range(1, 20_000, 3)),
        Audience([5, 5, -1, 2**40], ["g", "7", 7], [f"{each:032x}" for each in range(500)]),
        None,
    ]
    for audience in audiences:
        await store.publish("/a", b'{"a":1.50}', audience=audience)
    announced = await store.announcements(3)
    stored = (await store.read("/a")).messages
    everything = (await store.backend.global_backlog(0, max_messages=9, max_bytes=2**30)).messages
    for found in (announced, stored, everything):
        assert [each.audience for each in found] == audiences
        assert {each.data for each in found} == {b'{"a":1.50}'}


@pytest.mark.parametrize(("count", "expected"), [(1, [5]), (3, [3, 4, 5]), (5, [1, 2, 3, 4, 5])])
async def test_lookback(store, count, expected):
    for _ in range(5):
        await store.publish("/a")
        await store.publish("/b")
    assert await store.ids("/a", await store.backend.lookback("/a", count)) == expected
    assert await store.ids("/a", await store.backend.lookback("/a", 10**12)) == [1, 2, 3, 4, 5]


async def test_a_last_id_tells_what_is_newer(store):
    await store.publish("/a")
    await store.publish("/b")
    before = await store.backend.last_ids(["/a", "/b", "/none"])
    await store.publish("/a")
    (newer,) = (await store.read("/a", before["/a"].message_id)).messages
    assert newer.global_id > before["/a"].global_id
    (older,) = (await store.read("/b")).messages
    assert older.global_id <= before["/b"].global_id
    assert before["/none"].message_id == 0


async def test_global_backlog(store):
    for channel in ("/a", "/b", "/a"):
        await store.publish(channel)
    page = await store.backend.global_backlog(0, max_messages=10, max_bytes=2**30)
    assert [(each.channel, each.message_id) for each in page.messages] == [
        ("/a", 1),
        ("/b", 1),
        ("/a", 2),
    ]
    first = page.messages[0].global_id
    page = await store.backend.global_backlog(first, max_messages=1, max_bytes=2**30)
    assert ([each.channel for each in page.messages], page.more) == (["/b"], True)


async def test_channels_are_listed_by_name(store):
    for channel in ("/b", "/a", "/c", "/a"):
        await store.publish(channel)
    listed = await store.backend.channels("", 2)
    assert [(each.channel, each.last_id, each.backlog_size) for each in listed] == [
        ("/a", 2, 2),
        ("/b", 1, 1),
    ]
    assert [each.channel for each in await store.backend.channels("/b", 10)] == ["/c"]


# -- retention


async def test_a_channel_keeps_its_newest(store):
    await store.reopen(max_backlog_size=3)
    for _ in range(5):
        await store.publish("/a")
    assert await store.ids("/a") == [3, 4, 5]
    assert await store.backend.message("/a", 2) is None
    assert (await store.backend.message("/a", 3)).message_id == 3
    assert await store.backend.lookback("/a", 10) == 2


async def test_size_of_one_publish_trims_then(store):
    for _ in range(5):
        await store.publish("/a")
    await store.publish("/a", max_backlog_size=2)
    assert await store.ids("/a") == [5, 6]
    await store.publish("/a")
    assert await store.ids("/a") == [5, 6, 7]
    await store.publish("/a", max_backlog_size=0)
    assert await store.ids("/a") == []
    assert await store.last_ids("/a") == {"/a": 8}


async def test_trimming_may_wait_for_every_nth_message(store):
    await store.reopen(max_backlog_size=2, clear_every=3)
    seen = []
    for _ in range(7):
        await store.publish("/a")
        seen.append(len(await store.ids("/a")))
    assert seen == [1, 2, 2, 3, 4, 2, 3]


async def test_an_idle_channel_is_forgotten(store):
    await store.reopen(max_backlog_age=100)
    await store.publish("/a")
    await store.pass_time(60)
    await store.publish("/a")
    await store.pass_time(60)
    assert await store.ids("/a") == [1, 2]
    await store.pass_time(41)
    assert await store.ids("/a") == []
    assert await store.last_ids("/a") == {"/a": 0}
    assert (await store.backend.global_backlog(0, max_messages=10, max_bytes=2**30)).messages == []
    assert await store.backend.channels("", 10) == []
    assert await store.publish("/a") == 1


async def test_age_and_size_of_one_publish_count_both_and_for_that_channel_only(store):
    await store.publish("/b")
    for _ in range(3):
        await store.publish("/a")
    await store.publish("/a", max_backlog_age=2, max_backlog_size=2)
    assert await store.ids("/a") == [3, 4]
    await store.pass_time(3)
    assert await store.ids("/a") == []
    assert await store.ids("/b") == [1]


async def test_a_longer_age_replaces_a_shorter_one_and_the_other_way_round(store):
    await store.publish("/a", max_backlog_age=2)
    await store.publish("/a", max_backlog_age=50)
    await store.pass_time(10)
    assert await store.ids("/a") == [1, 2]
    await store.publish("/a", max_backlog_age=2)
    await store.pass_time(3)
    assert await store.ids("/a") == []


async def test_the_global_backlog_has_its_own_size_and_no_trimmed_messages(store):
    await store.reopen(max_backlog_size=2, max_global_backlog_size=4)
    for channel in ("/b", "/a", "/a", "/a", "/b"):
        await store.publish(channel)
    page = await store.backend.global_backlog(0, max_messages=10, max_bytes=2**30)
    assert [(each.channel, each.message_id) for each in page.messages] == [
        ("/a", 2),
        ("/a", 3),
        ("/b", 2),
    ]


async def test_the_global_backlog_does_not_confuse_lives_of_a_channel(store):
    await store.reopen(max_backlog_age=100)
    await store.publish("/a", b'"old"')
    await store.pass_time(101)
    await store.publish("/a", b'"new"')
    await store.publish("/b")
    page = await store.backend.global_backlog(0, max_messages=10, max_bytes=2**30)
    assert [each.data for each in page.messages] == [b'"new"', b"1"]


async def test_ids_continue_after_a_deletion(store):
    for _ in range(3):
        await store.publish("/a")
    await store.backend.delete_backlog("/a")
    assert await store.ids("/a") == []
    assert await store.last_ids("/a") == {"/a": 3}
    assert await store.publish("/a") == 4
    assert await store.ids("/a") == [4]
    page = await store.backend.global_backlog(0, max_messages=10, max_bytes=2**30)
    assert [each.message_id for each in page.messages] == [4]


# -- announcing


async def test_every_publish_is_announced_once_and_in_order(store):
    for number in range(20):
        await store.publish(f"/{number % 3}")
    announced = await store.announcements(20)
    assert [each.global_id for each in announced] == sorted(each.global_id for each in announced)
    assert len(announced) == 20
    per_channel = [each.message_id for each in announced if each.channel == "/0"]
    assert per_channel == list(range(1, 8))


async def test_unstored_messages_are_announced_too(store):
    await store.publish("/a", b'"x"', max_backlog_size=0)
    (message,) = await store.announcements(1)
    assert message.data == b'"x"'


READS = {
    "last_ids": lambda backend: backend.last_ids(["/a"]),
    "backlog": lambda backend: backend.backlog("/a", 0, max_messages=1, max_bytes=1000),
    "lookback": lambda backend: backend.lookback("/a", 1),
    "global_backlog": lambda backend: backend.global_backlog(0, max_messages=1, max_bytes=2**30),
    "last_global_id": lambda backend: backend.last_global_id(),
    "message": lambda backend: backend.message("/a", 1),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_nobody_reads_what_has_not_been_announced(store, read):
    """The read barrier, without which a poll could see a message twice."""
    await store.publish("/a")
    await read(store.backend)
    assert [each.message_id for each in store.announced] == [1]


async def test_an_open_store_is_hearing_and_announces_while_it_is(store):
    heard = []
    store.listener.dispatch = lambda messages: heard.append(store.backend.is_hearing)
    assert store.backend.is_hearing
    await store.publish("/a")
    await store.last_ids("/a")
    assert heard == [True]


async def test_a_working_store_says_so(store):
    await store.backend.check()


def publication(store, channel):
    from messagebusd.protocol.publication import Publication

    return Publication(channel, b"1")
