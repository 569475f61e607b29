"""`messagebusd doctor` on a real PostgreSQL: each finding is provoked once."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from messagebusd.backends import open_backend
from messagebusd.doctor import postgres
from messagebusd.doctor.announcements import Deaf
from messagebusd.protocol.publication import Publication
from messagebusd.settings import BackendSettings
from tests.integration.test_doctor import OK, PROBLEM, WARNING, Diagnosis, diagnose, run
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PgBouncer, PostgresServer

# What the tests' server is never right in: it is fast instead of safe.
USUAL = {"postgres.durability"}


class Database:
    """A database of the test's own, and statements in it."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.name = server.create_database()

    def config(self, **options: Any) -> dict[str, Any]:
        url = options.pop("url", self.server.url(self.name))
        return {"backend": {"kind": "postgres", "postgres": {"url": url, **options}}}

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, self.name)

    def role(self, name: str) -> str:
        """A role that may do nothing yet; its URL."""
        self.sql(f"DROP ROLE IF EXISTS {name}")
        self.sql(f"CREATE ROLE {name} LOGIN")
        return self.server.url(self.name, user=name)


@pytest.fixture
def empty(postgres_server: PostgresServer) -> Database:
    """A database without tables."""
    return Database(postgres_server)


@pytest.fixture
async def database(empty: Database) -> AsyncIterator[Database]:
    """A database that a store has made its tables in, and published to."""
    settings = BackendSettings.model_validate(empty.config()["backend"])
    deaf = Deaf()
    store = open_backend(settings, deaf)
    store.subscribe(deaf)
    await store.open()
    for number in b"123":
        await store.publish(Publication("/a", b"%d" % number))
    await store.close()
    yield empty
    empty.server.drop_database(empty.name)


async def diagnose_healthy(config: dict[str, Any]) -> Diagnosis:
    diagnosis = await diagnose(config)
    assert diagnosis.bad - USUAL == set(), diagnosis.findings
    return diagnosis


# -- there or not


async def test_a_healthy_server(database: Database) -> None:
    diagnosis = await diagnose_healthy(database.config())
    diagnosis.assert_found("postgres.announcements", OK, "heard in")
    diagnosis.assert_found("postgres.ids", OK, "newest row is ")


async def test_the_command(database: Database, tmp_path: Path) -> None:
    done = run(tmp_path, database.config())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       postgres.reachable: the server answers" in done.stdout.splitlines()


async def test_a_server_that_is_down(empty: Database) -> None:
    async with FaultProxy(empty.server.port) as proxy:
        url = empty.server.url(empty.name, port=proxy.port)
        proxy.refuse()
        diagnosis = await diagnose(empty.config(url=url))
    diagnosis.assert_found("postgres.reachable", PROBLEM, "no connection to the server")
    assert diagnosis.checks[-1] == "postgres.reachable"


async def test_a_server_that_is_silent(empty: Database) -> None:
    async with FaultProxy(empty.server.port) as proxy:
        proxy.blackhole()
        url = empty.server.url(empty.name, port=proxy.port)
        diagnosis = await diagnose(empty.config(url=url, timeout=0.3))
    diagnosis.assert_found("postgres.reachable", PROBLEM, "does not answer in time")


async def test_a_server_that_is_slow(database: Database) -> None:
    async with FaultProxy(database.server.port) as proxy:
        proxy.delay = 0.02
        url = database.server.url(database.name, port=proxy.port)
        diagnosis = await diagnose(database.config(url=url, timeout=0.3))
    diagnosis.assert_found("postgres.latency", WARNING, "0.3 s")


async def test_a_server_that_goes_away_meanwhile(empty: Database) -> None:
    async with FaultProxy(empty.server.port) as proxy:
        proxy.cut_after(b"pg_is_in_recovery")
        url = empty.server.url(empty.name, port=proxy.port)
        found = (await diagnose(empty.config(url=url))).findings
    assert [each.level for each in found if each.check == "postgres.reachable"] == [OK, PROBLEM]
    assert found[-1].found.startswith("not any more: ")


async def test_no_secret_is_printed(empty: Database, tmp_path: Path) -> None:
    url = f"postgresql://somebody:hush-hush@127.0.0.1:{empty.server.port}/{empty.name}"
    done = run(tmp_path, empty.config(url=url))
    assert done.returncode == 1
    assert "refuses the user or the password" in done.stdout
    assert "hush" not in done.stdout + done.stderr
    assert "127.0.0.1" not in done.stdout + done.stderr


# -- the server and the role


async def test_a_read_only_role(database: Database) -> None:
    url = database.role("reader")
    database.sql("ALTER ROLE reader SET default_transaction_read_only = on")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.role", PROBLEM, "read-only")


async def test_an_encoding_that_holds_not_all_text(empty: Database) -> None:
    empty.server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    diagnosis = await diagnose(empty.config(url=empty.server.url("latin")))
    diagnosis.assert_found("postgres.encoding", PROBLEM, "LATIN1")


async def test_what_a_crash_loses() -> None:
    options = {"fsync": "on"}
    with (
        tempfile.TemporaryDirectory() as folder,
        PostgresServer(Path(folder), options) as server,
    ):
        config = {"backend": {"kind": "postgres", "postgres": {"url": server.url()}}}
        (await diagnose(config)).assert_found("postgres.durability", WARNING, "ids are given")
        server.sql("ALTER ROLE postgres SET synchronous_commit = on")
        (await diagnose(config)).assert_found("postgres.durability", OK)
        server.sql("ALTER SYSTEM SET fsync = off")
        server.sql("ALTER SYSTEM SET max_connections = 5")
        server.sql("ALTER SYSTEM SET autovacuum = off")
        server.stop()
        server.start()
        diagnosis = await diagnose(config)
        diagnosis.assert_found("postgres.durability", WARNING, "fsync")
        diagnosis.assert_found(
            "postgres.connections", PROBLEM, "uses 5", "max_connections allows 2"
        )


async def test_a_standby() -> None:
    with tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder)) as server:
        server.stop()
        (Path(folder) / "data" / "standby.signal").touch()
        server.start()
        config = {"backend": {"kind": "postgres", "postgres": {"url": server.url()}}}
        diagnosis = await diagnose(config)
    diagnosis.assert_found("postgres.role", PROBLEM, "a standby")
    assert "postgres.tables" not in diagnosis.checks


async def test_a_time_zone_of_the_role(database: Database) -> None:
    url = database.role("traveller")
    database.sql("ALTER ROLE traveller SET TimeZone = 'Asia/Tokyo'")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.time_zone", WARNING, "Asia/Tokyo", "this role alone")
    database.sql("ALTER ROLE traveller RESET TimeZone")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.time_zone", OK)


async def test_timeouts_of_the_role(database: Database) -> None:
    url = database.role("hurried")
    database.sql("ALTER ROLE hurried SET statement_timeout = '500ms'")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.timeouts", WARNING, "statement_timeout is 0.5 s")
    database.sql("ALTER ROLE hurried SET statement_timeout = 0")
    database.sql("ALTER ROLE hurried SET idle_session_timeout = '5min'")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.timeouts", WARNING, "idle_session_timeout is 300 s")


async def test_a_role_with_few_connections(database: Database) -> None:
    url = database.role("lonely")
    database.sql("ALTER ROLE lonely CONNECTION LIMIT 4")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.connections", PROBLEM, "the role's connection limit allows 4")
    database.sql(f"ALTER DATABASE {database.name} CONNECTION LIMIT 3")
    diagnosis = await diagnose(database.config(url=url))
    diagnosis.assert_found("postgres.connections", PROBLEM, "the database's connection limit")
    database.sql(f"ALTER DATABASE {database.name} CONNECTION LIMIT -1")
    config = database.config(url=url, pool_size=3)
    (await diagnose(config)).assert_found("postgres.connections", OK, "uses 4")
    config = database.config(pool_size=298)
    (await diagnose(config)).assert_found("postgres.connections", PROBLEM)
    config = database.config(pool_size=296)
    (await diagnose(config)).assert_found("postgres.connections", WARNING, "of 297 are in use")


async def test_a_session_that_stays_in_a_transaction(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "IDLE_SECONDS", 0)
    connection = await database.server.connect(database.name)
    try:
        await connection.execute("BEGIN")
        diagnosis = await diagnose(database.config())
        diagnosis.assert_found("postgres.transactions", WARNING, "1 sessions do nothing")
        assert str(connection.get_server_pid()) in diagnosis.one("postgres.transactions").advice
        await connection.execute("ROLLBACK")
        diagnosis = await diagnose(database.config())
        diagnosis.assert_found("postgres.transactions", OK)
    finally:
        await connection.close()


# -- poolers


async def test_listening_through_a_pooler(database: Database) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        PgBouncer(Path(folder), database.server) as pooler,
    ):
        url = pooler.url(database.name)
        diagnosis = await diagnose(database.config(url=url))
        diagnosis.assert_found("postgres.pooler", PROBLEM, "listen_url is not set")
        diagnosis = await diagnose(database.config(url=url, listen_url=url))
        diagnosis.assert_found("postgres.notify", PROBLEM, "not heard")
        direct = database.server.url(database.name)
        diagnosis = await diagnose_healthy(database.config(url=url, listen_url=direct))
        diagnosis.assert_found("postgres.pooler", OK, "go around it")


async def test_listening_to_another_database(database: Database) -> None:
    diagnosis = await diagnose(database.config(listen_url=database.server.url("postgres")))
    diagnosis.assert_found("postgres.notify", PROBLEM, "another database")
    away = database.server.url("postgres", port=1)
    diagnosis = await diagnose(database.config(listen_url=away))
    diagnosis.assert_found("postgres.notify", PROBLEM, "listen_url cannot be used")


# -- tables


async def test_tables_that_are_missing(empty: Database) -> None:
    diagnosis = await diagnose(empty.config())
    diagnosis.assert_found("postgres.tables", WARNING, "message_bus", "the daemon makes them")
    diagnosis = await diagnose(empty.config(create_schema=False))
    diagnosis.assert_found("postgres.tables", PROBLEM, "create_schema is off")
    diagnosis = await diagnose(empty.config(url=empty.role("modest")))
    diagnosis.assert_found("postgres.tables", PROBLEM, "may not create tables")
    assert empty.sql("SELECT to_regclass('message_bus')") == ""


async def test_a_table_of_another_shape(database: Database) -> None:
    database.sql("ALTER TABLE message_bus ALTER added_at TYPE timestamptz")
    database.sql("ALTER TABLE message_bus ALTER channel DROP NOT NULL")
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found(
        "postgres.columns", PROBLEM, "added_at is timestamp with time zone", "channel may be null"
    )
    database.sql("ALTER TABLE message_bus DROP COLUMN value, ALTER id DROP DEFAULT")
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found("postgres.columns", PROBLEM, "value is missing", "id has no default")


async def test_a_column_more(database: Database) -> None:
    database.sql("ALTER TABLE message_bus ADD note text")
    await diagnose_healthy(database.config())
    database.sql("ALTER TABLE message_bus ADD must int NOT NULL DEFAULT 1")
    await diagnose_healthy(database.config())
    database.sql("ALTER TABLE message_bus ALTER must DROP DEFAULT")
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found("postgres.columns", PROBLEM, "must is unknown to us")


async def test_indexes_that_are_missing(database: Database) -> None:
    database.sql("DROP INDEX table_channel_id_index, table_added_at_index")
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found("postgres.indexes", PROBLEM, "(channel, id) and (added_at)")
    for statement in diagnosis.one("postgres.indexes").advice.split("; "):
        database.sql(statement)
    await diagnose_healthy(database.config())


async def test_privileges(database: Database) -> None:
    config = database.config(url=database.role("guest"))
    diagnosis = await diagnose(config)
    diagnosis.assert_found(
        "postgres.privileges", PROBLEM, "INSERT ON message_bus", "USAGE ON SEQUENCE"
    )
    # what it says is enough
    advice = diagnosis.one("postgres.privileges").advice.removeprefix("as the owner: ")
    for statement in advice.split("; "):
        database.sql(statement.replace("…", "guest"))
    await diagnose_healthy(config)
    database.sql("REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC")
    diagnosis = await diagnose(config)
    diagnosis.assert_found("postgres.privileges", PROBLEM, "pg_notify(text,text)")


async def test_a_sequence_that_was_not_restored(database: Database) -> None:
    database.sql("ALTER SEQUENCE message_bus_id_seq RESTART")
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found("postgres.ids", PROBLEM, "the sequence is at 0")
    database.sql(diagnosis.one("postgres.ids").advice)
    await diagnose_healthy(database.config())


async def test_rows_from_the_future(database: Database) -> None:
    database.sql(
        "SET TimeZone = 'Pacific/Kiritimati'; INSERT INTO message_bus (channel, value) "
        """VALUES ('/a', '{"data":1}')"""
    )
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found("postgres.added_at", WARNING, "14.0 hours")


async def test_a_table_that_is_not_vacuumed(database: Database) -> None:
    database.sql("ALTER TABLE message_bus SET (autovacuum_enabled = false)")
    diagnosis = await diagnose(database.config())
    diagnosis.assert_found("postgres.vacuum", WARNING, "autovacuum is off")
