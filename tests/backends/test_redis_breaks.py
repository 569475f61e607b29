"""Redis goes away, comes back, loses data or announcements: nothing is missed, nothing comes twice.

Here a channel that is watched stands for one that has parked polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from messagebusd.backends.base import Once
from messagebusd.backends.redis import announcements as announcements_module
from messagebusd.backends.redis import history, subscriber
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication
from tests.backends.redis_store import RedisStore
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer

TIMEOUT = 0.5


@pytest.fixture
async def proxy(redis_server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def store(redis_server, proxy) -> AsyncIterator[RedisStore]:
    """A store behind a proxy. ``watched`` are "/a" and "/b"."""
    url = f"redis://127.0.0.1:{proxy.port}/0"
    under_test = RedisStore(redis_server, url=url, timeout=TIMEOUT)
    under_test.listener.watched = {"/a", "/b"}
    try:
        await under_test.reopen()
        yield under_test
    finally:
        await under_test.close()


@pytest.fixture
async def other(redis_server, store) -> AsyncIterator[RedisStore]:
    """Another daemon on the same server, which stays connected."""
    beside = RedisStore(redis_server)
    beside.backend = beside.backend_beside()
    await beside.backend.open()
    yield beside
    await beside.backend.close()


@pytest.fixture
def server(tmp_path) -> Iterator[RedisServer]:
    """A server that may be killed, and keeps what it was given."""
    config = {"appendonly": "yes", "appendfsync": "always"}
    with RedisServer(tmp_path, config) as server:
        yield server


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def publish_again(store: RedisStore, channel: str, data: bytes = b"1") -> int:
    """Publish as soon as the store is back."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.publish(channel, data)
            except StoreUnavailable:
                await asyncio.sleep(0.02)


def data(messages: list[Message]) -> list[int]:
    return [int(each.data) for each in messages]


def is_heard(store: RedisStore) -> bool:
    return store.backend._subscriber._announcements.is_live


# -- announcements are lost


async def test_it_is_not_hearing_until_a_break_is_healed(store, other, proxy):
    told = []

    def dispatch(messages):
        told.extend((store.backend.is_hearing, int(each.data)) for each in messages)

    store.listener.dispatch = dispatch
    await store.publish("/a", b"0")
    await until(lambda: told)
    proxy.refuse()
    proxy.reset()
    await until(lambda: not store.backend.is_hearing)
    for number in (1, 2):
        await other.publish("/a", b"%d" % number)
    await proxy.accept()
    await until(lambda: store.backend.is_hearing)
    assert told == [(True, 0), (False, 1), (False, 2)]
    await publish_again(store, "/a", b"3")
    await until(lambda: len(told) == 4)
    assert told[3] == (True, 3)


async def test_what_is_published_during_a_break_is_announced_after_it(store, other, proxy):
    await store.publish("/a", b"0")
    proxy.refuse()
    proxy.reset()
    for number in range(1, 30):
        await other.publish("/" + "ab"[number % 2], b"%d" % number)
    await proxy.accept()
    await other.publish("/a", b"30")
    announced = await store.announcements(31)
    await publish_again(store, "/a", b"31")
    await store.announcements(32)
    assert data(announced) == list(range(32))
    assert store.reports.reconnects == 1
    assert store.reports.replayed >= 29
    assert store.reports.gaps == 0
    assert store.listener.breaks == []


async def test_those_who_follow_everything_are_told_of_what_nobody_names(store, other, proxy):
    heard: list[object] = store.listener.breaks
    proxy.refuse()
    proxy.reset()
    await other.publish("/unwatched")
    await other.publish("/a", b"1")
    await proxy.accept()
    store.listener.messages = Notes(heard)
    await until(lambda: len(heard) == 2)
    assert heard == ["interrupted", "message"]  # in this order


class Notes(list):
    """Messages that leave a note among the breaks."""

    def __init__(self, notes: list[object]) -> None:
        super().__init__()
        self._notes = notes

    def extend(self, messages):
        self._notes += ["message" for _ in messages]


async def test_a_killed_subscription_is_made_anew(store, other, redis_server):
    publishing = asyncio.create_task(publish_many(other, 300))
    for _ in range(5):
        redis_server.control.client_kill_filter(_type="pubsub", skipme=True)
        await asyncio.sleep(0.02)
    await publishing
    assert data(await store.announcements(300)) == list(range(300))
    assert [each.global_id for each in store.announced] == list(range(1, 301))


async def publish_many(store: RedisStore, count: int) -> None:
    for number in range(count):
        await store.publish("/a", b"%d" % number)


async def test_a_missing_announcement_is_noticed_at_the_next_one(store, redis_server):
    """A publisher announces elsewhere: as if the announcement had been lost."""
    silent = RedisStore(redis_server, pubsub_channel="elsewhere")
    silent.backend = silent.backend_beside()
    await silent.backend.open()
    await silent.publish("/a", b"1")
    await silent.publish("/unwatched")
    await silent.publish("/b", b"2")
    await silent.backend.close()
    assert store.announced == []
    await store.publish("/a", b"3")
    assert data(await store.announcements(3)) == [1, 2, 3]
    assert store.reports.gaps == 3
    assert store.reports.replayed == 2
    assert store.listener.breaks == ["interrupted"]


async def test_a_missing_announcement_is_noticed_by_a_read(store, redis_server):
    silent = RedisStore(redis_server, pubsub_channel="elsewhere")
    silent.backend = silent.backend_beside()
    await silent.backend.open()
    await silent.publish("/a", b"1")
    last_ids = await store.backend.last_ids(["/a"])
    assert last_ids["/a"] == (1, 1)
    assert data(store.announced) == [1]  # before the read returned
    await silent.publish("/a", b"2")
    assert data((await store.read("/a")).messages) == [1, 2]
    assert data(store.announced) == [1, 2]
    await silent.backend.close()


async def test_much_that_was_missed_comes_in_portions_and_in_order(
    store, other, proxy, monkeypatch
):
    monkeypatch.setattr(history, "BYTES_AT_A_TIME", 1000)
    monkeypatch.setattr(history, "CHANNELS_AT_A_TIME", 2)
    channels = [f"/{number}" for number in range(7)]
    store.listener.watched = set(channels)
    proxy.reset()
    await asyncio.gather(
        *(other.publish(channels[number % 7], b"%d" % number) for number in range(400))
    )
    announced = await store.announcements(400)
    assert data(announced) == list(range(400))
    assert [each.global_id for each in announced] == list(range(1, 401))


async def test_what_was_heard_and_what_was_not_come_in_one_order(store, redis_server):
    control = redis_server.control
    for number in (1, 2, 3):
        payload = f'{number}|{number}|/a|{{"data":{number}}}'
        control.zadd("__mb_backlog_n_/a", {payload: number})
        control.mset({"__mb_global_id_n": number, "__mb_backlog_id_n_/a": number})
        if number == 2:
            control.publish("_message_bus_0", payload)
    assert data(await store.announcements(3)) == [1, 2, 3]
    assert (store.reports.gaps, store.reports.replayed) == (2, 2)
    assert store.listener.breaks == []


async def test_what_is_on_its_way_is_not_missed(store, redis_server, monkeypatch):
    """What is announced late, and kept nowhere, is still waited for."""
    control = redis_server.control
    position = history.History.position

    async def position_before_the_announcement(self):
        found = await position(self)
        control.publish("_message_bus_0", '1|1|/unwatched|{"data":1}')
        return found

    monkeypatch.setattr(history.History, "position", position_before_the_announcement)
    control.set("__mb_global_id_n", 2)
    control.publish("_message_bus_0", '2|2|/unwatched|{"data":2}')
    assert data(await store.announcements(2)) == [1, 2]
    assert store.reports.gaps == 0
    assert store.listener.breaks == []


async def test_more_than_may_wait_is_looked_up_again(store, other, proxy, monkeypatch):
    monkeypatch.setattr(announcements_module, "MAX_WAITING_MESSAGES", 20)
    missed = history.History.missed

    async def missed_while_much_comes_in(self, *arguments):
        monkeypatch.setattr(history.History, "missed", missed)
        await publish_many(other, 30)
        await until(lambda: store.backend._subscriber._announcements.has_overflowed)
        return await missed(self, *arguments)

    proxy.refuse()
    proxy.reset()
    await other.publish("/a", b"99")
    monkeypatch.setattr(history.History, "missed", missed_while_much_comes_in)
    await proxy.accept()
    assert data(await store.announcements(31)) == [99, *range(30)]


async def test_a_connection_that_breaks_while_old_messages_are_read_is_made_anew(
    store, other, proxy, monkeypatch
):
    """They are read over another connection, which stands."""
    missed = history.History.missed

    async def missed_during_a_break(self, *arguments):
        monkeypatch.undo()
        subscription = store.backend._subscriber._subscription
        store.server.control.client_kill_filter(_type="pubsub", skipme=True)
        await until(lambda: not subscription.is_open)
        await other.publish("/a", b"2")
        return await missed(self, *arguments)

    proxy.refuse()
    proxy.reset()
    await other.publish("/a", b"1")
    monkeypatch.setattr(history.History, "missed", missed_during_a_break)
    await proxy.accept()
    async with asyncio.timeout(subscriber.QUIET_SECONDS / 2):
        assert data(await store.announcements(2)) == [1, 2]


async def test_what_comes_while_looking_for_what_was_missed_waits(store, other, proxy, monkeypatch):
    monkeypatch.setattr(announcements_module, "MAX_WAITING_MESSAGES", 20)
    publishing = asyncio.create_task(publish_many(other, 500))
    for _ in range(10):
        await asyncio.sleep(0.01)
        proxy.reset()
    await publishing
    announced = await store.announcements(500)
    assert data(announced) == list(range(500))


async def test_messages_that_were_not_kept_are_missed_and_said_to_be(store, other, proxy):
    proxy.refuse()
    proxy.reset()
    await other.publish("/a", b"1", max_backlog_size=0)
    await proxy.accept()
    await until(lambda: is_heard(store))
    assert store.announced == []
    assert store.listener.breaks == ["interrupted"]


async def test_frames_that_are_no_messages_of_ours_are_ignored(store, redis_server, caplog):
    control = redis_server.control
    await store.publish("/a", b"1")
    for frame in ("$$UNSUBSCRIBE", "$$UNSUBSCRIBE", "garbage", "1|2", b"\xff|\xfe|x|y", ""):
        control.publish("_message_bus_0", frame)
    control.publish("_message_bus_0", '77|5|/a|{"data":"of another database"}')
    control.publish("_message_bus_0", '1|1|/a|{"data":"late"}')
    await store.publish("/a", b"2")
    assert data(await store.announcements(2)) == [1, 2]
    await until(lambda: len(store.reports.ignored) == 8)
    counts = {each: store.reports.ignored.count(each) for each in store.reports.ignored}
    assert counts == {"unsubscribe": 2, "malformed": 4, "foreign": 1, "late": 1}
    warned = [each for each in caplog.records if "told all subscribers to stop" in each.message]
    assert len(warned) == 1


# -- the store loses data


async def test_a_store_that_was_emptied_begins_anew(store, other, redis_server):
    for number in range(3):
        await store.publish("/a", b"%d" % number)
    await store.announcements(3)
    redis_server.flush()
    await other.publish("/a", b"0")  # the very same as before
    announced = await store.announcements(4)
    assert announced[3].global_id == 1
    assert announced[3].message_id == 1
    assert store.listener.breaks == [["/a", "/b"], "interrupted"]
    await store.publish("/b", b"9")
    assert (await store.announcements(5))[4].global_id == 2


async def test_a_read_notices_that_a_store_was_emptied(store, redis_server):
    for number in range(3):
        await store.publish("/a", b"%d" % number)
    await store.announcements(3)
    redis_server.flush()
    assert await store.last_ids("/a") == {"/a": 0}
    assert store.listener.breaks == [["/a", "/b"], "interrupted"]
    assert await store.publish("/a") == 1
    await store.announcements(4)


async def test_a_store_that_was_emptied_and_has_overtaken_itself_begins_anew(
    store, other, proxy, redis_server
):
    """More was published since than before: the ids alone would not tell."""
    for number in range(3):
        await store.publish("/a", b"%d" % number)
    await store.announcements(3)
    proxy.refuse()
    proxy.reset()
    redis_server.flush()
    for number in range(10, 20):
        await other.publish("/a", b"%d" % number)
    await proxy.accept()
    announced = await store.announcements(13)
    assert data(announced) == [0, 1, 2, *range(10, 20)]
    assert store.listener.breaks[0] == ["/a", "/b"]


async def test_a_mark_that_is_lost_alone_means_nothing(store, other, proxy, redis_server):
    """It was evicted, or somebody deleted a key that he did not know."""
    for number in range(3):
        await store.publish("/a", b"%d" % number)
    redis_server.control.delete("__mb_messagebusd_life")
    assert await store.last_ids("/a") == {"/a": 3}
    await until(lambda: redis_server.control.exists("__mb_messagebusd_life"))
    proxy.refuse()
    proxy.reset()
    redis_server.control.delete("__mb_messagebusd_life")
    await other.publish("/a", b"3")
    await proxy.accept()
    await until(lambda: is_heard(store))
    await publish_again(store, "/a", b"4")
    assert data(await store.announcements(5)) == [0, 1, 2, 3, 4]
    assert store.listener.breaks == []


async def test_a_store_without_its_latest_messages_goes_on_without_doubles(
    store, other, proxy, redis_server
):
    """A replica that was behind has been promoted, and others were faster to publish again."""
    control = redis_server.control
    for number in range(10):
        await store.publish("/a", b"%d" % number)
    await store.announcements(10)
    proxy.refuse()
    proxy.reset()
    control.zremrangebyscore("__mb_backlog_n_/a", 9, 10)
    control.zremrangebyscore("__mb_global_backlog_n", 9, 10)
    control.mset({"__mb_global_id_n": 8, "__mb_backlog_id_n_/a": 8})
    await other.publish("/a", b"108")
    await proxy.accept()
    announced = await store.announcements(11)
    await other.publish("/a", b"109")
    await other.publish("/a", b"110")
    await store.announcements(13)
    assert data(announced) == [*range(10), 108, 109, 110]
    assert [each.message_id for each in announced[10:]] == [9, 10, 11]
    assert store.listener.breaks == ["interrupted"]
    assert await store.last_ids("/a") == {"/a": 11}


async def test_a_server_that_comes_back_with_its_data(server, caplog):
    caplog.set_level(logging.INFO, "messagebusd")
    store = RedisStore(server, timeout=TIMEOUT)
    store.listener.watched = {"/a"}
    await store.reopen()
    try:
        published = 0
        for breaks in (1, 2):
            for _ in range(5):
                await publish_again(store, "/a", b"%d" % published)
                published += 1
            server.kill()
            with pytest.raises(StoreUnavailable):
                await store.publish("/a")
            server.start()
            await until(lambda breaks=breaks: store.reports.reconnects == breaks)
        await publish_again(store, "/a", b"%d" % published)
        announced = await store.announcements(published + 1)
        assert data(announced) == list(range(published + 1))
        assert store.listener.breaks == []
    finally:
        await store.close()
    lines = [each for each in caplog.records if "announcements are" in each.message]
    assert [each.levelno for each in lines] == [logging.WARNING, logging.INFO] * 2


async def test_a_server_that_comes_back_empty(server):
    store = RedisStore(server, timeout=TIMEOUT)
    store.listener.watched = {"/a"}
    await store.reopen()
    try:
        await store.publish("/a", b"1")
        await store.announcements(1)
        server.kill()
        server.wipe()
        server.start()
        assert await publish_again(store, "/a", b"2") == 1
        assert data(await store.announcements(2)) == [1, 2]
        assert store.listener.breaks[0] == ["/a"]
    finally:
        await store.close()


# -- the server does not answer


async def test_everything_fails_in_bounded_time_while_the_server_is_away(store, proxy):
    proxy.refuse()
    proxy.reset()
    async with asyncio.timeout(6 * TIMEOUT):
        for operation in (
            store.publish("/a"),
            store.read("/a"),
            store.last_ids("/a"),
            store.backend.check(),
        ):
            with pytest.raises(StoreUnavailable):
                await operation
    await proxy.accept()
    await publish_again(store, "/a")


@pytest.fixture
def impatience(monkeypatch):
    """Ask soon whether the server is there."""
    monkeypatch.setattr(subscriber, "QUIET_SECONDS", 0.1)


@pytest.mark.usefixtures("impatience")
async def test_a_server_that_keeps_silent_is_given_up(store, other, proxy):
    """Half-open: the connections stand, and nothing comes."""
    await store.publish("/a", b"0")
    proxy.blackhole()
    async with asyncio.timeout(10 * TIMEOUT):
        with pytest.raises(StoreUnavailable, match="the server does not answer in time"):
            await store.publish("/lost")
        await other.publish("/a", b"1")
        await until(lambda: store.backend._subscriber._down_since is not None)
    proxy.reset()
    proxy.restore()
    assert data(await store.announcements(2)) == [0, 1]
    await publish_again(store, "/a", b"2")
    assert data(await store.announcements(3)) == [0, 1, 2]


async def test_silence_on_the_subscription_alone_is_noticed_by_a_check(store, proxy, tmp_path):
    """An address that has moved to another server: the subscription stays with the old one, which
    answers pings and has nothing more to say. The keepalive notices."""
    with RedisServer(tmp_path) as elsewhere:
        proxy._target = elsewhere.port  # for new connections only
        store.backend._writing.disconnect("by the test")
        store.backend._reading.disconnect("by the test")
        with pytest.raises(StoreUnavailable, match="announcements do not come back"):
            await store.backend.check()
        await until(lambda: store.reports.reconnects == 1)
        await store.backend.check()


async def test_a_slow_server_is_waited_for_as_long_as_the_timeout_says(store, proxy):
    proxy.delay = TIMEOUT / 5
    assert await store.publish("/a") == 1
    assert await store.ids("/a") == [1]
    proxy.delay = 2 * TIMEOUT
    async with asyncio.timeout(4 * TIMEOUT):
        with pytest.raises(StoreUnavailable):
            await store.publish("/a")
    proxy.delay = 0.0
    await publish_again(store, "/a")


async def test_whether_a_publish_happened_is_found_out_by_its_once(store, proxy):
    """The connection breaks after the request went out, and before the answer came."""
    once = Once(b"s" * 16, b"f" * 16)
    proxy.cut_after(b"the request")
    with pytest.raises(StoreUnavailable):
        await store.backend.publish(Publication("/a", b'"the request"'), once)
    async with asyncio.timeout(10):
        while True:
            try:
                again = await store.backend.publish(Publication("/a", b'"the request"'), once)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.02)
    assert again == (1, 1, True)
    assert len(await store.announcements(1)) == 1


async def test_closing_during_a_break_is_quiet(store, proxy, caplog):
    proxy.refuse()
    proxy.reset()
    reading = asyncio.create_task(store.read("/a"))
    await until(lambda: store.backend._subscriber._down_since is not None)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await reading
    assert [each.levelno for each in caplog.records] == [logging.WARNING]


async def test_a_store_that_is_not_there_cannot_be_opened(redis_server, proxy):
    proxy.refuse()
    store = RedisStore(redis_server, url=f"redis://user:secret@127.0.0.1:{proxy.port}/0")
    with pytest.raises(StoreUnavailable, match="Redis cannot be used: no connection") as caught:
        await store.reopen()
    assert "secret" not in str(caught.value)


# -- the server is not the right one any more


async def test_a_demoted_master_is_left_for_the_new_one(tmp_path, store, proxy):
    (tmp_path / "replica").mkdir()
    with RedisServer(tmp_path / "replica") as replica:
        master = store.server
        replica.replica_of(master)
        await store.publish("/a", b"1")
        await store.announcements(1)
        await until(lambda: replica.control.get("__mb_global_id_n") == "1")
        replica.replica_of(None)
        master.replica_of(replica)
        try:
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await store.publish("/a")
            proxy.retarget(replica.port)
            assert await publish_again(store, "/a", b"2") == 2
            assert data(await store.announcements(2)) == [1, 2]
            assert replica.control.get("__mb_global_id_n") == "2"
            assert store.listener.breaks == []
        finally:
            master.replica_of(None)


async def test_on_a_replica_everything_connects_anew_but_not_all_the_time(store, proxy):
    """So that the name, the address or the Sentinels are asked again (REFERENCE A12)."""
    control = store.server.control
    control.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        before = proxy.connections
        async with asyncio.timeout(10):
            while proxy.connections < before + 6:
                with pytest.raises(StoreUnavailable):
                    await store.publish("/a")
                await asyncio.sleep(0.001)
        until_then = proxy.connections
        for _ in range(50):
            with pytest.raises(StoreUnavailable):
                await store.publish("/a")
        assert proxy.connections - until_then < 10
    finally:
        control.execute_command("REPLICAOF", "NO", "ONE")
    await publish_again(store, "/a")
    await until(lambda: is_heard(store))


async def test_a_foreign_message_does_not_take_the_place_of_the_real_one(store, redis_server):
    """Pub/sub knows no databases: another bus may announce the very id that comes next."""
    store.listener.watched = {"/a"}
    await store.publish("/a", b"1")
    await store.announcements(1)
    last = await store.backend.last_global_id()
    foreign = b'%d|7|/other|{"data":9,"user_ids":null,"group_ids":null,"client_ids":null}'
    redis_server.control.publish(store.backend._pubsub_channel, foreign % (last + 1))
    await until(lambda: len(store.announced) == 2)
    await store.publish("/a", b"2")
    await store.publish("/a", b"3")
    await until(lambda: len(store.announced) == 4)
    assert [each.data for each in store.announced if each.channel == "/a"] == [b"1", b"2", b"3"]
