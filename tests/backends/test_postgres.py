"""What only the PostgreSQL store does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from messagebusd.backends.base import Once
from messagebusd.backends.postgres import publisher, schema, trimming
from messagebusd.backends.postgres.notices import large_channel
from messagebusd.cli import main
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.publication import Publication
from tests.backends.postgres_store import PlainPostgresStore, envelope
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PgBouncer


@pytest.fixture
async def store(postgres_server) -> AsyncIterator[PlainPostgresStore]:
    under_test = PlainPostgresStore(postgres_server)
    try:
        await under_test.reopen()
        yield under_test
    finally:
        await under_test.close()


async def beside(store: PlainPostgresStore, **settings: object) -> PlainPostgresStore:
    """Another daemon on the same database; closed with the first one."""
    other = PlainPostgresStore(store.server)
    other.database = store.database
    other.backend = other.backend_beside(**settings)
    other.backend.subscribe(other.listener)
    store._opened.append(other.backend)
    await other.backend.open()
    return other


@pytest.fixture
async def other(store) -> PlainPostgresStore:
    return await beside(store)


def once(slot: bytes = b"s", fingerprint: bytes = b"f") -> Once:
    return Once(slot * 16, fingerprint * 16)


# -- publishing


async def test_daemons_commit_ids_in_order_and_announce_each_once_in_order(store, other):
    looker = await store.connect()
    holes = []

    async def look() -> None:
        while True:
            row = await looker.fetchrow("SELECT count(*) AS rows, max(id) AS id FROM message_bus")
            if row["rows"] != (row["id"] or 0):
                holes.append(tuple(row))

    looking = asyncio.create_task(look())
    stores = (store, other)
    await asyncio.gather(
        *(stores[number % 2].publish(f"/{number % 3}", b"%d" % number) for number in range(1000)),
        *(
            each.backend.publish(Publication("/once", b"1"), once(b"%c" % (65 + number)))
            for number in range(20)
            for each in stores
        ),
    )
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await looker.close()
    assert holes == []
    for each in stores:
        await each.announcements(1020)
        assert [message.global_id for message in each.announced] == list(range(1, 1021))
        mine = [int(message.data) for message in each.announced if message.channel == "/0"]
        for remainder in (0, 1):
            ours = [number for number in mine if number % 2 == remainder]
            assert ours == sorted(ours)
        assert (each.reports.gaps, each.reports.ignored, each.listener.breaks) == (0, [], [])


async def test_nobody_commits_before_who_has_a_lower_id(store, other):
    store.sql(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
    )
    store.sql(
        "CREATE TRIGGER linger AFTER INSERT ON message_bus FOR EACH ROW"
        " WHEN (NEW.channel = '/slow') EXECUTE FUNCTION linger()"
    )
    try:
        slow = asyncio.create_task(store.publish("/slow"))
        async with asyncio.timeout(5):
            while store.sql("SELECT last_value FROM message_bus_id_seq WHERE is_called") != "1":
                await asyncio.sleep(0)
        assert await other.publish("/fast") == 2
        assert store.sql("SELECT count(*) FROM message_bus") == "2"
        assert await slow == 1
    finally:
        store.sql("DROP FUNCTION linger CASCADE")


@pytest.mark.parametrize("size", [7999, 8000, 8001, 100_000])
async def test_what_is_too_large_to_be_notified_is_announced_by_its_id(store, other, size):
    text = "x" * (size - len(f"1|1|/a|{envelope('')}") - 2)
    connection = await store.connect()
    heard = []
    for channel in ("_message_bus_0", "_message_bus_0_large"):
        await connection.add_listener(channel, lambda *notified: heard.append(notified[2:]))
    await store.publish("/a", b'"%b"' % text.encode())
    await store.publish("/a", b"2")
    for each in (store, other):
        await each.announcements(2)
        assert [len(message.data) for message in each.announced] == [len(text) + 2, 1]
        assert each.reports.gaps == 0
    async with asyncio.timeout(5):
        while len(heard) < 2:
            await connection.fetch("SELECT 1")
    payload = f"1|1|/a|{envelope(chr(34) + text + chr(34))}"
    assert heard[0] == (
        ("_message_bus_0", payload) if size < 8000 else ("_message_bus_0_large", "1")
    )
    await connection.close()


def test_the_second_channel_has_a_name_that_postgresql_does_not_cut():
    assert large_channel("_message_bus_0") == "_message_bus_0_large"
    assert len(large_channel("x" * 63)) == 63


async def test_one_message_that_is_refused_does_not_fail_the_others(store):
    store.sql("ALTER TABLE message_bus ADD CHECK (channel <> '/bad')")
    outcomes = await asyncio.gather(
        store.publish("/a", b"1"),
        store.publish("/bad"),
        store.publish("/a", b"2"),
        store.backend.publish(Publication("/a", b"3"), once()),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], StoreUnavailable)
    assert "refuses this message" in str(outcomes[1])
    page = await store.read("/a")
    assert [each.data for each in page.messages] == [b"1", b"2", b"3"]
    assert not (await store.backend.publish(Publication("/a", b"4"), once(b"t"))).repeated


async def test_cancelled_callers_disturb_nobody(store):
    await store.publish("/a", b"0")
    calls = [asyncio.create_task(store.publish("/a", b"%d" % number)) for number in range(200)]
    reads = [asyncio.create_task(store.read("/a")) for _ in range(50)]
    await asyncio.sleep(0)
    for each in (*calls[::3], *reads[::2]):
        each.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.gather(*reads, return_exceptions=True)
    stored = {each.message_id: int(each.data) for each in (await store.read("/a")).messages}
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, int):
            assert stored[outcome] == number
    assert sum(isinstance(each, int) for each in outcomes) >= 133


async def test_what_may_wait_is_bounded(store, monkeypatch):
    monkeypatch.setattr(publisher, "MAX_WAITING_MESSAGES", 5)
    outcomes = await asyncio.gather(
        *(store.publish("/a") for _ in range(20)), return_exceptions=True
    )
    assert [isinstance(each, int) for each in outcomes] == [True] * 5 + [False] * 15
    monkeypatch.setattr(publisher, "MAX_WAITING_BYTES", 1000)
    with pytest.raises(StoreUnavailable, match="too many"):
        await store.publish("/a", b'"%b"' % (b"x" * 1000))


async def test_large_groups_are_split(store, monkeypatch):
    monkeypatch.setattr(publisher, "MAX_GROUP_BYTES", 2500)
    monkeypatch.setattr(publisher, "MAX_GROUP_MESSAGES", 7)
    numbers = range(50)
    await asyncio.gather(
        *(store.publish("/a", b'"%d%b"' % (each, b" " * 40 * each)) for each in numbers)
    )
    page = await store.read("/a")
    assert [int(each.data.strip(b'" ')) for each in page.messages] == list(numbers)


async def test_a_locked_table_fails_publishes_in_time_and_takes_no_more_connections(store):
    other = await beside(store, timeout=0.3)
    connection = await store.connect()
    async with connection.transaction():
        await connection.execute("LOCK TABLE message_bus")
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await other.publish("/a")
            with pytest.raises(StoreUnavailable):
                await other.backend.last_ids(["/a"])
        sessions = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'messagebusd'"
        )
        assert sessions <= 2 * (other.settings().pool_size + 1)
    async with asyncio.timeout(5):
        while True:
            try:
                await other.publish("/a", b"7")
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    await connection.close()


async def test_a_read_only_server_says_so(store):
    store.sql(f"ALTER DATABASE {store.database} SET default_transaction_read_only = on")
    try:
        other = await beside(store)
        with pytest.raises(StoreUnavailable, match="read-only replica"):
            await other.publish("/a")
        assert await other.last_ids("/a") == {"/a": 0}
    finally:
        connection = await store.server.connect(
            store.database, server_settings={"default_transaction_read_only": "off"}
        )
        await connection.execute(
            f"ALTER DATABASE {store.database} RESET default_transaction_read_only"
        )
        await connection.close()


# -- once


async def test_of_concurrent_daemons_one_publishes(store, other):
    published = await asyncio.gather(
        *(
            each.backend.publish(Publication("/a", b"1"), once(b"%c" % slot))
            for slot in range(65, 85)
            for each in (store, other)
        )
    )
    for first, second in zip(published[::2], published[1::2], strict=True):
        assert first[:2] == second[:2]
        assert {first.repeated, second.repeated} == {True, False}
    assert len(await store.ids("/a")) == 20


async def test_a_repeated_publish_uses_up_no_id(store, other):
    first = await store.backend.publish(Publication("/a", b"1"), once())
    for _ in range(3):
        assert (await other.backend.publish(Publication("/a", b"1"), once())).repeated
    assert await store.publish("/a") == first.message_id + 1


async def test_a_once_is_forgotten_after_a_day(store):
    first = await store.backend.publish(Publication("/a", b"1"), once())
    await store.backend.claim(once(b"t"))
    store.sql("UPDATE messagebusd_once SET at = at - interval '1 day'")
    second = await store.backend.publish(Publication("/a", b"1"), once(fingerprint=b"g"))
    assert not second.repeated
    assert second.message_id > first.message_id
    await store.backend.claim(once(b"t", b"g"))
    store.sql("UPDATE messagebusd_once SET at = at - interval '1 day'")
    await store.backend.trim()
    assert store.sql("SELECT count(*) FROM messagebusd_once") == "0"


async def test_a_claimed_slot_can_be_published_under_by_the_same(store):
    await store.backend.claim(once())
    published = await store.backend.publish(Publication("/a", b"1"), once())
    assert not published.repeated
    again = await store.backend.publish(Publication("/a", b"1"), once())
    assert again == replace_repeated(published)


def replace_repeated(published):
    return published._replace(repeated=True)


# -- reading


async def test_rows_that_cannot_be_read_are_passed_over(store):
    await store.publish("/a", b"1")
    store.sql(
        "INSERT INTO message_bus (channel, value)"
        " SELECT '/a', 'no json' FROM generate_series(1, 20)"
    )
    await store.publish("/a", b"2")
    page = await store.read("/a", max_messages=5)
    assert ([each.data for each in page.messages], page.more) == ([b"1"], True)
    page = await store.read("/a", 1, max_messages=5)
    assert ([each.data for each in page.messages], page.more) == ([b"2"], False)
    assert await store.backend.message("/a", 5) is None
    assert "malformed" in store.reports.ignored


async def test_large_backlogs_are_not_read_as_a_whole(store):
    for _ in range(20):
        await store.publish("/a", b'"%b"' % (b"x" * 100_000))
    (row,) = await store.backend._pool.fetch(
        "SELECT count(*) FROM (" + publisher.statements.CHANNEL_PAGE + ") AS page",
        *(0, 2**63 - 1, 500, 250_000, "/a"),
    )
    assert row["count"] == 3
    page = await store.read("/a", max_bytes=250_000)
    assert (len(page.messages), page.more) == (2, True)


async def test_ids_beyond_any_are_no_problem(store):
    await store.publish("/a")
    assert await store.ids("/a", 10**30) == []
    assert await store.backend.message("/a", 10**30) is None
    assert await store.backend.lookback("/a", 10**30) == 0


async def test_a_last_id_does_not_fall_with_trimming(store):
    for _ in range(3):
        await store.publish("/a", max_backlog_size=0)
    await store.backend.trim()
    assert await store.ids("/a") == []
    other = await beside(store)
    assert await store.last_ids("/a") == {"/a": 3}
    assert await other.last_ids("/a") == {"/a": 0}  # it never knew
    assert await other.publish("/a") == 4
    assert await store.last_ids("/a") == await other.last_ids("/a") == {"/a": 4}
    await other.backend.delete_backlog("/a")
    assert await other.last_ids("/a") == {"/a": 4}


# -- trimming


async def test_trimming_happens_by_itself(store, monkeypatch):
    monkeypatch.setattr(trimming, "GATHER_SECONDS", 0.01)
    await store.reopen(max_backlog_size=2)
    for _ in range(5):
        await store.publish("/a")
    async with asyncio.timeout(10):
        while await store.ids("/a") != [4, 5]:
            await asyncio.sleep(0.01)


async def test_an_age_of_its_own_holds_for_all_daemons_and_over_restarts(store):
    for channel, age in (("/long", 5000), ("/short", 10), ("/default", None)):
        await store.publish(channel, max_backlog_age=age)
    await store.backend.trim()
    await store.backend.close()
    other = await beside(store)
    other.backend._trimmer._retention = replace(other.backend._retention, max_backlog_age=100)
    for seconds, expected in ((20, [1, 0, 1]), (100, [1, 0, 0]), (5000, [0, 0, 0])):
        await other.pass_time(seconds)
        sizes = [len(await other.ids(each)) for each in ("/long", "/short", "/default")]
        assert sizes == expected
    assert store.sql("SELECT count(*) FROM messagebusd_age") == "0"


async def test_two_daemons_trim_side_by_side(store, other):
    for number in range(300):
        await store.publish(f"/{number % 7}", max_backlog_size=number % 3)
    await asyncio.gather(*(each.backend.trim() for each in (store, other) for _ in range(5)))
    assert int(store.sql("SELECT count(*) FROM message_bus")) <= 14


# -- the schema


async def test_backends_make_the_tables_side_by_side(store):
    await store.close()
    store.sql(f"DROP TABLE {', '.join(schema.TABLES)}")
    others = [store.backend_beside() for _ in range(8)]
    await asyncio.gather(*(each.open() for each in others))
    published = await asyncio.gather(*(each.publish(Publication("/a", b"1")) for each in others))
    assert sorted(each.message_id for each in published) == list(range(1, 9))
    for each in others:
        await each.close()


def run_cli(url: str, command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "messagebusd", *command.split()],
        env={**os.environ, "MESSAGEBUSD_BACKEND__POSTGRES__URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


async def test_processes_make_the_tables_side_by_side(store):
    await store.close()
    store.sql(f"DROP TABLE {', '.join(schema.TABLES)}")
    url = store.server.url(store.database)
    processes = [run_cli(url, "db init") for _ in range(3)]
    outputs = [(await asyncio.to_thread(each.communicate))[0] for each in processes]
    assert [each.returncode for each in processes] == [0, 0, 0]
    assert sum(b"created message_bus\n" in each for each in outputs) == 1
    assert sum(b"all tables are there already" in each for each in outputs) == 2


async def test_a_role_that_may_not_create_tables(store):
    await store.close()
    store.sql("DROP ROLE IF EXISTS poor")
    store.sql("CREATE ROLE poor LOGIN")
    store.sql(f"DROP TABLE {', '.join(schema.TABLES)}")
    url = store.server.url(store.database, "poor")
    try:
        for create_schema in (False, True):
            backend = store.backend_beside(url=url, create_schema=create_schema)
            with pytest.raises(StoreUnavailable, match="messagebusd db init"):
                await backend.open()
        environment = {"MESSAGEBUSD_BACKEND__POSTGRES__URL": store.server.url(store.database)}
        done = await asyncio.to_thread(CliRunner(env=environment).invoke, main, ["db", "init"])
        assert done.exit_code == 0, done.output
        backend = store.backend_beside(url=url, create_schema=False)
        with pytest.raises(StoreUnavailable, match="db init"):
            await backend.open()
        for line in done.output.splitlines():
            if line.startswith("GRANT"):
                store.sql(line.replace("<role>", "poor"))
        await backend.open()
        await backend.publish(Publication("/a", b"1", max_backlog_age=5), once())
        await backend.claim(once(b"t"))
        await backend.trim()
        await backend.check()
        await backend.delete_backlog("/a")
        await backend.close()
    finally:
        store.sql("DROP OWNED BY poor")
        store.sql("DROP ROLE poor")


def test_db_init_says_why_it_cannot():
    environment = {"MESSAGEBUSD_BACKEND__POSTGRES__URL": "postgresql://u:secret@127.0.0.1:1/x"}
    done = CliRunner(env=environment).invoke(main, ["db", "init"])
    assert done.exit_code == 1
    assert "Connection refused" in done.output
    assert "secret" not in done.output


# -- a pooler


@pytest.fixture
def pgbouncer(postgres_server):
    with (
        tempfile.TemporaryDirectory(prefix="messagebusd-") as folder,
        PgBouncer(Path(folder), postgres_server) as pooler,
    ):
        yield pooler


async def test_everything_but_listening_goes_through_a_pooler(store, pgbouncer):
    """In transaction mode, where each statement may run in another session."""
    url = pgbouncer.url(store.database)
    direct = store.server.url(store.database)
    others = [
        await beside(store, url=url, listen_url=direct, pool_size=8, timeout=10.0) for _ in range(3)
    ]

    async def work(number: int) -> None:
        each = others[number % 3]
        channel = f"/{number}"
        first = await each.backend.publish(Publication(channel, b"1"), once(b"%c" % (number % 256)))
        second = await each.publish(channel, b'"%b"' % (b"x" * (number * 100)))
        assert await each.ids(channel) == [first.message_id, second]
        assert await each.last_ids(channel) == {channel: second}
        assert await each.backend.lookback(channel, 1) == first.message_id
        assert (await each.backend.message(channel, second)).message_id == second

    await asyncio.gather(*(work(number) for number in range(120)))
    for each in others:
        await each.announcements(240)
        await each.backend.check()
        await each.backend.trim()
        ids = [message.global_id for message in each.announced]
        assert ids == sorted(set(ids))
    await others[0].backend.delete_backlog("/1")
    assert len(await others[0].backend.channels("", 500)) == 120


# -- what is told


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"url": "postgresql://u:secret@127.0.0.1:1/x"}, "Connection refused"),
        ({"url": "postgresql://u:secret@nowhere.invalid/x"}, "name cannot be resolved"),
        ({"url": "{base}/none"}, "does not exist"),
    ],
)
async def test_open_says_what_is_wrong_and_no_secret(postgres_server, change, reason):
    base = postgres_server.url("postgres").rpartition("/")[0]
    under_test = PlainPostgresStore(
        postgres_server,
        timeout=0.2,
        **{key: value.format(base=base) for key, value in change.items()},
    )
    under_test.database = "postgres"
    backend = under_test.backend_beside()
    with pytest.raises(StoreUnavailable, match=reason) as caught:
        await backend.open()
    assert "secret" not in str(caught.value)


async def test_opening_waits_for_a_server_that_is_just_starting(postgres_server):
    async with FaultProxy(postgres_server.port) as proxy:
        proxy.refuse()
        under_test = PlainPostgresStore(
            postgres_server, url=postgres_server.url("postgres", port=proxy.port)
        )
        under_test.database = "postgres"
        backend = under_test.backend_beside()
        opening = asyncio.create_task(backend.open())
        done, _ = await asyncio.wait({opening}, timeout=0.3)
        assert not done
        await proxy.accept()
        await opening
        await backend.check()
        await backend.close()


async def test_sessions_have_a_name(store):
    await store.publish("/a")
    await store.ids("/a")
    names = store.sql(
        "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    assert names == "messagebusd"
