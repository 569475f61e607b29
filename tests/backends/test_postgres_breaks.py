"""PostgreSQL goes away, comes back, or announces in disorder: nothing is missed, nothing is twice.

Here a channel that is watched stands for one that has parked polls.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from messagebusd.backends.base import Once
from messagebusd.backends.postgres import backend, listener, schema, trimming
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.publication import Publication
from tests.backends.postgres_store import PlainPostgresStore, RubyPublisher, envelope
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PostgresServer

TIMEOUT = 1.0


@pytest.fixture
async def proxy(postgres_server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(postgres_server.port) as proxy:
        yield proxy


@pytest.fixture
async def store(postgres_server, proxy) -> AsyncIterator[PlainPostgresStore]:
    """A store behind a proxy, which watches "/a" and "/b"."""
    under_test = PlainPostgresStore(postgres_server, port=proxy.port, timeout=TIMEOUT)
    under_test.listener.watched = {"/a", "/b"}
    try:
        await under_test.reopen()
        yield under_test
    finally:
        await under_test.close()


@pytest.fixture
async def other(postgres_server, store) -> AsyncIterator[PlainPostgresStore]:
    """Another daemon on the same database, which stays connected."""
    beside = PlainPostgresStore(postgres_server)
    beside.database = store.database
    beside.backend = beside.backend_beside()
    await beside.backend.open()
    yield beside
    await beside.backend.close()


@pytest.fixture
async def ruby(store) -> AsyncIterator[RubyPublisher]:
    connection = await store.connect()
    yield RubyPublisher(connection)
    await connection.close()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that may be killed, and keeps what it was given."""
    with (
        tempfile.TemporaryDirectory(prefix="messagebusd-") as folder,
        PostgresServer(Path(folder), {"synchronous_commit": "on"}) as server,
    ):
        yield server


@pytest.fixture
async def apart(server) -> AsyncIterator[PlainPostgresStore]:
    """A store on a server of its own, which watches "/a"."""
    under_test = PlainPostgresStore(server, timeout=TIMEOUT)
    under_test.listener.watched = {"/a"}
    try:
        await under_test.reopen()
        yield under_test
    finally:
        await under_test.close()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def publish_again(store: PlainPostgresStore, channel: str, data: bytes = b"1") -> int:
    """Publish as soon as the store is back."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.publish(channel, data)
            except StoreUnavailable:
                await asyncio.sleep(0.02)


def data(store: PlainPostgresStore) -> list[int]:
    return [int(each.data) for each in store.announced]


def is_heard(store: PlainPostgresStore) -> bool:
    return store.backend._subscriber._is_live


# -- announcements in disorder


async def test_what_ruby_publishes_is_announced(store, ruby):
    ids = [await ruby.publish("/a", str(number)) for number in range(5)]
    await store.announcements(5)
    assert [each.message_id for each in store.announced] == ids
    assert store.reports.gaps == 0


async def test_notifications_in_disorder_are_put_in_order(store, ruby):
    first, second = await ruby.store("/a", "0"), await ruby.store("/a", "1")
    await ruby.announce(second, "/a", "1")
    await ruby.announce(first, "/a", "0")
    await store.announcements(2)
    assert data(store) == [0, 1]
    assert (store.reports.gaps, store.reports.ignored) == (0, [])


async def test_a_hole_is_waited_for_and_then_passed(store, ruby):
    await store.publish("/a", b"0")
    store.sql("BEGIN; INSERT INTO message_bus (channel, value) VALUES ('/a', '{}'); ROLLBACK")
    last_id = await ruby.publish("/b", "1")
    await store.announcements(2)
    assert last_id == 3
    assert data(store) == [0, 1]
    assert store.reports.gaps == 1
    await store.publish("/a", b"2")
    await store.announcements(3)
    assert data(store) == [0, 1, 2]
    assert store.listener.breaks == []


async def test_a_late_commit_of_a_lower_id_is_announced_in_order(store, ruby):
    late = await store.connect()
    async with late.transaction():
        await RubyPublisher(late).store("/a", "0")
        await ruby.publish("/a", "1")
        # A read sees the higher id; it must not return before the lower one is settled.
        reading = asyncio.create_task(store.read("/a"))
        await asyncio.sleep(listener.HOLD_BACK_SECONDS / 4)
        assert store.announced == []
    await RubyPublisher(late).announce(1, "/a", "0")
    assert [each.message_id for each in (await reading).messages] == [1, 2]
    assert data(store) == [0, 1]
    assert (store.reports.gaps, store.reports.ignored) == (0, [])
    await late.close()


@pytest.mark.parametrize("channel", ["/a", "/b"])
async def test_beyond_the_hold_back_it_is_announced_unless_its_channel_went_on(
    store, ruby, channel
):
    late = await store.connect()
    async with late.transaction():
        await RubyPublisher(late).store("/a", "0")
        await ruby.publish(channel, "1")
        await store.announcements(1)
    await RubyPublisher(late).announce(1, "/a", "0")
    await late.close()
    if channel == "/b":
        await store.announcements(2)
        assert data(store) == [1, 0]
    else:
        await until(lambda: store.reports.ignored == ["late"])
        assert data(store) == [1]


async def test_what_was_never_notified_is_found(store, ruby, monkeypatch):
    """Ruby cannot notify of large messages."""
    stored = await ruby.store("/a", f'"{"x" * 9000}"')
    await ruby.publish("/b", "1")
    await store.announcements(2)
    assert [each.message_id for each in store.announced] == [stored, stored + 1]
    assert store.reports.replayed == 1

    stored = await ruby.store("/a", "2")
    assert stored in await store.ids("/a")
    assert store.announced[-1].message_id == stored  # the read barrier

    monkeypatch.setattr(listener, "QUIET_SECONDS", 0.1)
    store.backend._subscriber._wake.set()
    stored = await ruby.store("/b", "3")
    await store.announcements(4)
    assert store.announced[-1].message_id == stored
    assert store.listener.breaks == []


async def test_what_a_read_has_announced_is_not_announced_again(store, ruby):
    stored = await ruby.store("/a", "0")
    assert await store.ids("/a") == [stored]
    assert data(store) == [0]
    await ruby.announce(stored, "/a", "0")
    await store.publish("/a", b"1")
    await store.announcements(2)
    assert data(store) == [0, 1]
    assert (store.reports.gaps, store.reports.ignored) == (0, [])


@pytest.mark.parametrize(
    "payload",
    ["", "x", "1|2", "1|2|/a|{}", "1|1|/a|no json", "9|9|/a|{}", "-1|-1|/a|{}", "1|1|/a|[]"],
)
async def test_malformed_announcements_are_passed_over(store, ruby, payload):
    await ruby._connection.execute("SELECT pg_notify('_message_bus_0', $1)", payload)
    await ruby._connection.execute("SELECT pg_notify('_message_bus_0_large', $1)", f"x{payload}")
    await store.publish("/a", b"1")
    await store.publish("/a", b"2")
    await until(lambda: data(store)[-1:] == [2])
    assert store.reports.ignored
    assert store.listener.breaks == []


async def test_unsubscribe_is_ignored(store, ruby):
    await ruby._connection.execute("SELECT pg_notify('_message_bus_0', '$$UNSUBSCRIBE')")
    await store.publish("/a")
    await store.announcements(1)
    assert store.reports.ignored == ["unsubscribe"]


async def test_an_id_that_was_never_given_out_is_ignored(store, ruby):
    await ruby.announce(1_000_000, "/a", "0")
    await until(lambda: store.reports.ignored == ["foreign"])
    for number in range(1, 4):
        await store.publish("/a", b"%d" % number)
    await store.announcements(3)
    assert data(store) == [1, 2, 3]


# -- breaks


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
        await other.publish("/ab"[0] + "ab"[number % 2], b"%d" % number)
    await proxy.accept()
    await other.publish("/a", b"30")
    await store.announcements(31)
    await publish_again(store, "/a", b"31")
    await store.announcements(32)
    assert data(store) == list(range(32))
    assert store.reports.reconnects == 1
    assert store.listener.breaks == []


async def test_many_pages_of_missed_messages_are_all_announced(store, other, proxy, monkeypatch):
    monkeypatch.setattr(listener, "PAGE_MESSAGES", 10)
    await store.publish("/a", b"0")
    await store.announcements(1)
    proxy.refuse()
    proxy.reset()
    for number in range(1, 36):
        await other.publish("/a", b"%d" % number)
    await proxy.accept()
    await store.announcements(36)
    assert data(store) == list(range(36))


async def test_what_may_be_missing_after_a_break_is_said_first(store, other, proxy):
    await store.publish("/a", b"0")
    await store.announcements(1)
    proxy.refuse()
    proxy.reset()
    await other.publish("/else", b"1")
    await other.publish("/a", b"2")
    said_before = []
    dispatch = store.listener.dispatch
    store.listener.dispatch = lambda messages: (
        said_before.append(list(store.listener.breaks)),
        dispatch(messages),
    )
    await proxy.accept()
    await until(lambda: data(store) == [0, 2])
    assert said_before == [["interrupted"]]


async def test_messages_that_were_trimmed_during_a_break_count_as_missing(store, other, proxy):
    proxy.refuse()
    proxy.reset()
    await other.publish("/a", b"0", max_backlog_size=0)
    await other.backend.trim()
    await proxy.accept()
    await until(lambda: is_heard(store))
    assert store.listener.breaks == ["interrupted"]
    await other.publish("/a", b"1")
    await store.announcements(1)
    assert data(store) == [1]


async def test_terminated_backends_are_replaced(store, other, postgres_server):
    await store.publish("/a", b"0")
    postgres_server.terminate(store.database)
    await publish_again(other, "/a", b"1")
    await publish_again(store, "/a", b"2")
    await store.announcements(3)
    assert data(store) == [0, 1, 2]
    assert await publish_again(store, "/a", b"3") == 4
    assert await store.ids("/a") == [1, 2, 3, 4]


async def test_a_half_open_connection_is_found_out(store, other, proxy, monkeypatch):
    monkeypatch.setattr(listener, "QUIET_SECONDS", 0.2)
    await store.publish("/a", b"0")
    await store.announcements(1)
    proxy.blackhole()
    await other.publish("/a", b"1")
    with pytest.raises(StoreUnavailable, match=r"time|busy"):
        await store.publish("/a", b"99")
    with pytest.raises(StoreUnavailable):
        await store.read("/a")
    await until(lambda: not is_heard(store))
    proxy.restore()
    await until(lambda: is_heard(store))
    await publish_again(store, "/a", b"2")
    await until(lambda: data(store)[-1] == 2)
    assert [each for each in data(store) if each in (0, 1, 2)] == [0, 1, 2]


async def test_reads_fail_in_bounded_time_while_announcements_are_not_heard(
    store, other, proxy, postgres_server
):
    """A read that has seen more than was announced waits for the announcement."""
    under_test = PlainPostgresStore(postgres_server, listen_port=proxy.port, timeout=TIMEOUT)
    under_test.database = store.database
    backend = under_test.backend_beside()
    backend.subscribe(under_test.listener)
    await backend.open()
    proxy.refuse()
    proxy.reset()
    await until(lambda: not backend._subscriber._is_live)
    await other.publish("/a", b"1")
    with pytest.raises(StoreUnavailable):
        await backend.last_ids(["/a"])
    reading = asyncio.create_task(backend.last_ids(["/a"]))
    await proxy.accept()
    assert (await reading)["/a"].message_id == 1
    await backend.close()


async def test_a_publish_whose_answer_got_lost_is_found_by_its_once(store, proxy):
    once = Once(b"s" * 16, b"f" * 16)
    await store.publish("/a", b"0")
    proxy.cut_after(b"/lost")
    with pytest.raises(StoreUnavailable):
        await store.backend.publish(Publication("/lost", b"1"), once)
    async with asyncio.timeout(10):
        while True:
            try:
                again = await store.backend.publish(Publication("/lost", b"1"), once)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.02)
    assert again.repeated
    assert await store.ids("/lost") == [again.message_id]


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_server_that_comes_back_with_its_data(apart, server, end):
    await apart.publish("/a", b"0")
    await apart.announcements(1)
    await asyncio.to_thread(getattr(server, end))
    with pytest.raises(StoreUnavailable):
        await apart.publish("/a", b"99")
    await asyncio.to_thread(server.start)
    await publish_again(apart, "/a", b"1")
    await until(lambda: data(apart)[-1] == 1)
    assert data(apart) == [0, 1]
    assert [each for each in apart.listener.breaks if each != "interrupted"] == []


# -- begun anew


@pytest.mark.parametrize("by_whom", ["ruby", "nobody"])
async def test_a_table_that_was_dropped_begins_anew(store, by_whom):
    """The Ruby library's reset! drops the table and makes it again."""
    for number in range(5):
        await store.publish("/a", b"%d" % number)
    await store.announcements(5)
    statement = "DROP TABLE message_bus; "
    if by_whom == "ruby":
        from messagebusd.backends.postgres.schema import TABLES

        statement += "; ".join(TABLES["message_bus"])
    store.sql(statement)
    assert await publish_again(store, "/a", b"10") == 1
    await until(lambda: data(store)[-1] == 10)
    assert store.listener.breaks[-1] == ["/a", "/b"]
    assert await store.last_ids("/a") == {"/a": 1}
    await store.publish("/a", b"11")
    await until(lambda: data(store)[-1] == 11)
    assert data(store) == [0, 1, 2, 3, 4, 10, 11]


async def test_a_database_that_was_made_anew(apart, server):
    for number in range(3):
        await apart.publish("/a", b"%d" % number)
    await apart.announcements(3)
    server.drop_database(apart.database)
    with pytest.raises(StoreUnavailable):
        await apart.publish("/a", b"99")
    server.sql(f"CREATE DATABASE {apart.database}")
    assert await publish_again(apart, "/a", b"10") == 1
    await until(lambda: data(apart)[-1] == 10)
    assert apart.listener.breaks == ["interrupted", ["/a"]]


async def test_what_was_published_anew_during_a_break_is_announced(store, other, proxy):
    for number in range(3):
        await store.publish("/a", b"%d" % number)
    await store.announcements(3)
    proxy.refuse()
    proxy.reset()
    store.sql("TRUNCATE message_bus RESTART IDENTITY")
    assert await publish_again(other, "/a", b"10") == 1
    await proxy.accept()
    await store.announcements(4)
    assert data(store) == [0, 1, 2, 10]
    assert store.listener.breaks == ["interrupted", ["/a", "/b"]]


async def test_trimming_everything_is_not_beginning_anew(store, monkeypatch):
    monkeypatch.setattr(listener, "QUIET_SECONDS", 0.05)
    store.backend._subscriber._wake.set()
    for number in range(3):
        await store.publish("/a", b"%d" % number)
    await store.backend.delete_backlog("/a")
    looked_at = store.backend._subscriber._looked_at
    await until(lambda: store.backend._subscriber._looked_at > looked_at + 0.1)
    assert await store.publish("/a", b"3") == 4
    await store.announcements(4)
    assert store.listener.breaks == []


def test_envelopes_are_rubys():
    assert envelope("1") == '{"data":1,"user_ids":null,"group_ids":null,"client_ids":null}'


async def test_progress_while_an_answer_is_on_its_way_is_no_restart(store, other, monkeypatch):
    """Notifications come in between: what is announced is then beyond what the answer says."""
    link = store.backend._subscriber._link
    position = link.position
    looks = 0

    async def overtaken():
        nonlocal looks
        answer = await position()
        before = len(store.announced)
        await other.publish("/a", b"7")
        if before:
            await store.announcements(before + 1)
        looks += 1
        return answer

    await store.publish("/a", b"7")
    await store.announcements(1)
    monkeypatch.setattr(link, "position", overtaken)
    monkeypatch.setattr(listener, "QUIET_SECONDS", 0.0)
    store.backend._subscriber._wake.set()
    await until(lambda: looks >= 3)
    monkeypatch.setattr(listener, "QUIET_SECONDS", 5.0)
    assert (store.listener.breaks, store.reports.ignored) == ([], [])


@pytest.mark.parametrize("turns", range(12))
async def test_a_connection_that_is_given_up_while_it_is_used(store, turns):
    """Whatever it is doing at that moment, the caller is told that the store is away."""
    link = store.backend._subscriber._link
    asking = asyncio.create_task(link.position())
    for _ in range(turns):
        await asyncio.sleep(0)
    link.break_off("given up")
    with suppress(StoreUnavailable):
        await asking
    await store.publish("/a", b"1")


async def test_what_asyncpg_says_of_a_connection_that_was_ended_under_its_hands(store):
    """Between two of its steps it finds no protocol any more, which is no error of its own kind."""
    link = store.backend._subscriber._link
    connection = link._connection
    with pytest.raises(AttributeError), link._failing(connection):
        raise AttributeError("a mistake")
    link.break_off("given up")
    with pytest.raises(StoreUnavailable, match="given up"), link._failing(connection):
        raise AttributeError("'NoneType' object has no attribute 'bind_execute'")


async def test_nothing_is_trimmed_before_there_are_tables(postgres_server, monkeypatch):
    """To look for rows in a table that is still being made breaks off the one who makes it."""
    failures = []

    async def make_slowly(*arguments, **options):
        await asyncio.sleep(0.1)
        await schema.require_tables(*arguments, **options)

    monkeypatch.setattr(trimming, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(backend, "require_tables", make_slowly)
    monkeypatch.setattr(
        backend.PostgresBackend, "_on_failure", lambda _, error: failures.append(error)
    )
    under_test = PlainPostgresStore(postgres_server)
    try:
        await under_test.reopen()
        await under_test.publish("/a", b"1")
    finally:
        await under_test.close()
    assert failures == []
