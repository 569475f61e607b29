"""What only the Redis store does: its scripts, its keys, and commands that share round trips."""

from __future__ import annotations

import asyncio

import pytest

from messagebusd.backends.base import Once
from messagebusd.backends.keepalive import Keepalive
from messagebusd.backends.redis import open_pipeline
from messagebusd.backends.redis import pipeline as pipelines
from messagebusd.backends.redis.scripts import CLAIM
from messagebusd.errors import IdempotencyConflict, StoreUnavailable
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.stored import decode_payload, encode_payload
from messagebusd.settings.backend import RedisConnection
from tests.backends import vectors
from tests.backends.redis_store import RedisStore
from tests.support.clock import FakeClock

BIG = 10**14  # which Lua writes as 1e+14


@pytest.fixture
async def store(redis_server):
    under_test = RedisStore(redis_server)
    try:
        await under_test.reopen()
        yield under_test
    finally:
        await under_test.close()
        redis_server.control.config_set("maxmemory", 0)


@pytest.fixture
def control(store):
    return store.server.control


def member(global_id, message_id, channel="/a", data='"x"'):
    return f'{global_id}|{message_id}|{channel}|{{"data":{data}}}'


# -- scripts


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(store, control):
    await store.publish("/a")
    control.script_flush()
    assert await store.publish("/a") == 2
    control.script_flush()
    assert await store.ids("/a") == [1, 2]
    assert await store.backend.lookback("/a", 1) == 1
    control.script_flush()
    await store.backend.claim(Once(b"s" * 16, b"f" * 16))


async def test_forgotten_scripts_do_not_change_the_order(store, control, monkeypatch):
    monkeypatch.setattr(pipelines, "BATCH_COMMANDS", 20)
    publishing = [asyncio.create_task(store.publish("/a", b"%d" % each)) for each in range(300)]
    for done in (0, 100, 200):
        while not publishing[done].done():
            await asyncio.sleep(0)
        control.script_flush()
    await asyncio.gather(*publishing)
    messages = (await store.read("/a")).messages
    assert [int(each.data) for each in messages] == list(range(300))


async def test_a_publish_that_a_later_one_has_overtaken_fails():
    """Somebody else loads the script between two calls of ours: the earlier one stays undone."""
    digests: list[bytes] = []

    async def serve(reader, writer):
        """A server that has forgotten the script for the first call only."""
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int((await reader.readline())[1:])
                words.append((await reader.readexactly(length + 2))[:-2])
            if words[0] == b"EVALSHA":
                digests.append(words[1])
                answer = b"-NOSCRIPT No matching script\r\n" if len(digests) == 1 else b":1\r\n"
            else:
                answer = b"+OK\r\n"
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pipeline = open_pipeline(RedisConnection(url=f"redis://127.0.0.1:{port}"), 1.0)
    try:
        outcomes = await asyncio.gather(
            *(pipeline.call(CLAIM, ("k",), ()) for _ in range(2)), return_exceptions=True
        )
        assert isinstance(outcomes[0], StoreUnavailable)
        assert outcomes[1] == 1
        assert len(digests) == 2
    finally:
        await pipeline.close()
        server.close()


async def test_ids_are_written_as_integers_however_large(store, control):
    control.set("__mb_global_id_n", BIG - 1)
    control.set("__mb_backlog_id_n_/a", 2 * BIG - 1)
    published = await store.backend.publish(Publication("/a", b"1"))
    assert published[:2] == (2 * BIG, BIG)
    await store.publish("/a")
    stored = control.zrange("__mb_backlog_n_/a", 0, -1)
    assert [each.split("|")[:2] for each in stored] == [
        [str(BIG), str(2 * BIG)],
        [str(BIG + 1), str(2 * BIG + 1)],
    ]
    assert control.zrange("__mb_global_backlog_n", 0, -1)[0] == f"{2 * BIG}|/a"
    assert await store.ids("/a", 2 * BIG) == [2 * BIG + 1]
    assert await store.backend.lookback("/a", 1) == 2 * BIG
    page = await store.backend.global_backlog(BIG, max_messages=10, max_bytes=2**20)
    assert [each.global_id for each in page.messages] == [BIG + 1]


async def test_ids_are_trimmed_as_integers_however_large(store, control):
    control.set("__mb_global_id_n", BIG)
    control.set("__mb_backlog_id_n_/a", BIG)
    await store.publish("/a")
    await store.publish("/a", max_backlog_size=1)
    assert await store.ids("/a") == [BIG + 2]


async def test_a_full_server_refuses_and_uses_up_no_id(store, control):
    await store.publish("/a")
    control.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="the server is out of memory"):
        await store.publish("/a")
    assert await store.ids("/a") == [1]
    control.config_set("maxmemory", 0)
    assert await store.publish("/a") == 2
    assert await store.backend.last_global_id() == 2


@pytest.mark.parametrize(
    "key", ["__mb_backlog_n_/a", "__mb_backlog_id_n_/a", "__mb_global_backlog_n"]
)
async def test_a_key_of_another_kind_concerns_its_own_publish_only(store, control, key):
    """And leaves no trace: a gap in the ids would make every subscriber look for a message."""
    control.delete("__mb_global_backlog_n")
    control.lpush(key, "x")
    outcomes = await asyncio.gather(
        *(store.publish(each) for each in ("/b", "/a", "/b")), return_exceptions=True
    )
    assert isinstance(outcomes[1], StoreUnavailable)
    if key == "__mb_global_backlog_n":
        assert all(isinstance(each, StoreUnavailable) for each in outcomes)
    else:
        assert (outcomes[0], outcomes[2]) == (1, 2)
        control.delete(key)
        assert await store.publish("/a") == 1
        assert await store.backend.last_global_id() == 3
        assert [each.global_id for each in await store.announcements(3)] == [1, 2, 3]
    control.delete(key)
    assert not [each for each in control.scan_iter("*/a") if control.ttl(each) < 0]
    assert store.reports.gaps == 0


async def test_a_message_without_lifetime_is_announced_and_not_kept(store, control):
    await store.publish("/b")
    await store.publish("/a", max_backlog_age=0)
    assert [each.channel for each in await store.announcements(2)] == ["/b", "/a"]
    assert await store.last_ids("/a", "/b") == {"/a": 0, "/b": 1}
    assert not control.exists("__mb_backlog_n_/a", "__mb_backlog_id_n_/a")
    page = await store.backend.global_backlog(0, max_messages=10, max_bytes=2**20)
    assert [each.channel for each in page.messages] == ["/b"]


async def test_what_happened_once_is_remembered_for_a_day(store, control):
    once = Once(b"s" * 16, b"f" * 16)
    await store.backend.publish(Publication("/a", b"1"), once)
    key = f"__messagebusd_once_{once.slot.hex()}"
    assert 86400 - 30 < control.ttl(key) <= 86400
    control.set(key, "nonsense")
    with pytest.raises(IdempotencyConflict):
        await store.backend.publish(Publication("/a", b"1"), once)


async def test_a_claimed_slot_can_be_published_under(store):
    once = Once(b"s" * 16, b"f" * 16)
    await store.backend.claim(once)
    first = await store.backend.publish(Publication("/a", b"1"), once)
    again = await store.backend.publish(Publication("/a", b"1"), once)
    assert (first.repeated, again.repeated) == (False, True)


async def test_own_messages_know_when_they_were_published(store):
    other = store.backend_beside()
    await other.open()
    try:
        await other.publish(Publication("/a", b'"other"'))
        await store.publish("/a", b'"own"')
    finally:
        await other.close()
    first, second = await store.announcements(2)
    assert first.published_at == 0.0
    assert second.published_at > 0.0


# -- what others leave in the keys


async def test_members_that_are_no_messages_are_passed_over_and_counted(store, control):
    for _ in range(2):
        await store.publish("/a")
    control.set("__mb_backlog_id_n_/a", 9)
    control.set("__mb_global_id_n", 9)
    bad = {
        "3|3|/a|no json": 3,
        "4|4|/b|{}": 4,  # another channel's
        "no message": 5,
        b"6|6|/a|\xff": 6,
        "7|1|/a|{}": 7,  # another id
    }
    control.zadd("__mb_backlog_n_/a", {**bad, member(8, 8): 8})
    store.reports.ignored.clear()
    assert await store.ids("/a") == [1, 2, 8]
    assert store.reports.ignored == ["malformed"] * len(bad)
    page = await store.read("/a", 2, max_messages=1)
    assert [each.message_id for each in page.messages] == [8]
    for message_id in (3, 4, 5, 6, 7):
        assert await store.backend.message("/a", message_id) is None


async def test_of_several_members_with_one_id_the_newest_counts(store, control):
    """As after a counter has begun anew, while the backlog stayed (REFERENCE 2.1, I#346)."""
    for number, old in enumerate((5, 60, 7), 1):
        control.zadd("__mb_backlog_n_/a", {member(old, number, data='"old"'): number})
        control.zadd("__mb_backlog_n_/a", {member(100 + number, number, data='"new"'): number})
    control.mset({"__mb_backlog_id_n_/a": 3, "__mb_global_id_n": 103})
    assert [each.data for each in (await store.read("/a")).messages] == [b'"new"'] * 3
    assert (await store.backend.message("/a", 2)).global_id == 102
    for expected in (1, 2, 3):
        page = await store.read("/a", expected - 1, max_messages=1)
        assert [each.message_id for each in page.messages] == [expected]
        assert page.more == (expected < 3)
    assert await store.backend.lookback("/a", 2) == 1
    assert await store.backend.lookback("/a", 9) == 0


async def test_what_is_above_a_lost_counter_is_left_over(store, control):
    for _ in range(3):
        await store.publish("/a", b'"old"')
    control.delete("__mb_backlog_id_n_/a")  # evicted
    assert await store.ids("/a") == []
    assert await store.last_ids("/a") == {"/a": 0}
    assert await store.publish("/a", b'"new"') == 1
    (found,) = (await store.read("/a")).messages
    assert found.data == b'"new"'
    assert await store.backend.lookback("/a", 3) == 0


async def test_the_last_few_are_those_that_are_stored(store, control):
    """Ids may be missing in between."""
    control.mset({"__mb_backlog_id_n_/a": 9, "__mb_global_id_n": 9})
    for number in (2, 5, 8, 9):
        control.zadd("__mb_backlog_n_/a", {member(number, number): number})
    after = await store.backend.lookback("/a", 3)
    assert await store.ids("/a", after) == [5, 8, 9]


async def test_counters_that_are_no_numbers_count_as_nothing(store, control):
    control.set("__mb_backlog_id_n_/a", "x")
    assert await store.last_ids("/a") == {"/a": 0}


async def test_entries_of_the_global_backlog_that_lead_nowhere_are_passed_over(store, control):
    await store.publish("/a")
    control.zadd("__mb_global_backlog_n", {"nonsense": 2, "9|/a": 3, b"1|\xff": 4, "1|/a": 99})
    control.zadd("__mb_global_backlog_n", {"1|/a": 1})
    page = await store.backend.global_backlog(0, max_messages=10, max_bytes=2**20)
    assert [each.global_id for each in page.messages] == [1]
    assert not page.more


# -- reading


async def test_what_a_page_has_no_room_for_stays_in_redis(store, control):
    data = b'"%b"' % (b"x" * 500_000)
    for _ in range(60):
        await store.publish("/a", data)
    await store.announcements(60)
    before = control.info("stats")["total_net_output_bytes"]
    page = await store.read("/a", max_messages=500, max_bytes=1_200_000)
    assert [each.message_id for each in page.messages] == [1, 2]
    assert page.more
    sent = control.info("stats")["total_net_output_bytes"] - before
    assert sent < 2_000_000


async def test_the_global_backlog_reads_little_more_than_asked_for(store, control):
    data = b'"%b"' % (b"x" * 100_000)
    for _ in range(100):
        await store.publish("/a", data)
    await store.announcements(100)
    before = control.info("stats")["total_net_output_bytes"]
    page = await store.backend.global_backlog(0, max_messages=500, max_bytes=3_000_000)
    assert [each.message_id for each in page.messages] == list(range(1, 30))
    assert page.more
    assert control.info("stats")["total_net_output_bytes"] - before < 4_000_000


async def test_a_channel_with_a_long_name_fills_its_pages(store):
    """The stored form differs from the one that is sent, by the name above all."""
    channel = "/" + "|" * 200
    for _ in range(3):
        await store.publish(channel, site_id="site")
    stored = f"{channel}$|$site"
    size = len((await store.read(stored)).messages[0].encoded)
    assert len((await store.read(stored, max_bytes=2 * size)).messages) == 2


async def test_prefixes_keep_buses_apart(redis_server):
    plain, other = RedisStore(redis_server), RedisStore(redis_server, key_prefix="[*?\\{b}")
    try:
        await plain.reopen()
        await other.reopen()  # flushes as well
        await plain.publish("/plain")
        await other.publish("/other", b'"o"')
        assert [each.channel for each in await plain.backend.channels("", 10)] == ["/plain"]
        assert [each.channel for each in await other.backend.channels("", 10)] == ["/other"]
        assert await other.last_ids("/plain", "/other") == {"/plain": 0, "/other": 1}
        assert [each.data for each in await other.announcements(1)] == [b'"o"']
        assert [each.channel for each in await plain.announcements(1)] == ["/plain"]
        keys = redis_server.control.keys("*")
        assert sum(each.startswith("[*?\\{b}__mb_") for each in keys) == 5
    finally:
        await plain.close()
        await other.close()


# -- many callers


async def test_callers_that_give_up_do_not_mix_up_the_others(store):
    async def publish(number: int) -> tuple[int, int]:
        await store.publish(f"/{number}", b"%d" % number)
        (found,) = (await store.read(f"/{number}")).messages
        return number, int(found.data)

    for turns in range(4):
        tasks = [asyncio.create_task(publish(number)) for number in range(100)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for each in tasks[::2]:
            each.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for asked, found in outcomes[1::2]:
            assert asked == found
        store.server.flush()
        await store.reopen()


async def test_more_callers_than_may_wait_are_turned_away(store, monkeypatch):
    monkeypatch.setattr(pipelines, "MAX_COMMANDS", 10)
    outcomes = await asyncio.gather(
        *(store.publish("/a") for _ in range(30)), return_exceptions=True
    )
    assert sorted(each for each in outcomes if isinstance(each, int)) == list(range(1, 11))
    assert sum(isinstance(each, StoreUnavailable) for each in outcomes) == 20


async def test_callers_share_round_trips(store, control):
    await asyncio.gather(*(store.publish("/a") for _ in range(10)))
    before = control.info("stats")["total_reads_processed"]
    await asyncio.gather(*(store.publish("/a") for _ in range(200)))
    assert control.info("stats")["total_reads_processed"] - before < 50


async def test_two_backends_see_each_others_messages_in_one_order(redis_server):
    one, two = RedisStore(redis_server), RedisStore(redis_server)
    try:
        await one.reopen()
        await two.reopen()
        one.listener.messages.clear()
        await asyncio.gather(
            *(
                store.publish(f"/{number % 7}", b'"%d"' % number)
                for number in range(500)
                for store in (one, two)
            )
        )
        for store in (one, two):
            announced = await store.announcements(1000)
            assert [each.global_id for each in announced] == list(range(1, 1001))
            for channel in range(7):
                ids = [each.message_id for each in announced if each.channel == f"/{channel}"]
                assert ids == list(range(1, len(ids) + 1))
            assert store.reports.gaps == 0
        assert [each.encoded for each in one.announced] == [each.encoded for each in two.announced]
    finally:
        await one.close()
        await two.close()


# -- keepalive


async def test_a_check_sends_a_message_to_itself(store, control):
    await store.backend.check()
    await store.backend.check()
    (stored,) = control.zrange("__mb_backlog_n_/__mb_keepalive__/", 0, -1)
    ours = decode_payload(stored.encode())
    assert ours.data.startswith(b'"messagebusd-')
    recorded = vectors.load("keepalive.json")["message"]
    for key in ("channel", "message_id", "global_id", "site_id"):
        assert getattr(ours, key) == recorded[key]
    assert list(ours.audience.user_ids) == recorded["user_ids"]


async def test_concurrent_checks_send_one_message(store, control):
    await asyncio.gather(*(store.backend.check() for _ in range(20)))
    assert control.zcard("__mb_backlog_n_/__mb_keepalive__/") == 1


async def test_a_keepalive_of_another_proves_nothing(store):
    keepalive = Keepalive(store.backend.publish, interval=0, timeout=0.2, clock=FakeClock())
    silences = []
    keepalive.start(lambda: silences.append(True))
    with pytest.raises(StoreUnavailable, match="announcements do not come back"):
        await keepalive.prove()
    (echo,) = await store.announcements(1)
    await store.backend.publish(
        Publication("/__mb_keepalive__/", b"12345", audience=Audience([-1]))
    )
    keepalive.saw((await store.announcements(2))[1])
    with pytest.raises(StoreUnavailable):
        await keepalive.prove()
    assert len(silences) == 2
    keepalive.saw(echo)
    await keepalive.prove()
    await keepalive.stop()


async def test_keepalives_go_out_at_an_interval(redis_server):
    store = RedisStore(redis_server)
    store.keepalive_interval = 0.02
    try:
        await store.reopen()
        await store.announcements(3)
        assert {each.channel for each in store.announced} == {"/__mb_keepalive__/"}
    finally:
        await store.close()


# -- the forms of Ruby's own traffic


def test_cache_operations_are_stored_as_ruby_stores_them():
    for case in vectors.load("distributed_cache.json")["sent"]:
        for payload in case["published"]:
            assert encode_payload(decode_payload(payload.encode())) == payload.encode()
