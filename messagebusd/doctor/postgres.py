"""Examine a PostgreSQL store."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack, suppress

import asyncpg

from messagebusd.backends.postgres.errors import FAILURES, describe
from messagebusd.backends.postgres.pool import connect
from messagebusd.doctor import postgres_server, postgres_tables, timing
from messagebusd.doctor.announcements import round_trip
from messagebusd.doctor.postgres_server import Connections, Server
from messagebusd.doctor.report import Finding, Level, Report, ok, problem, warning
from messagebusd.errors import StoreUnavailable
from messagebusd.settings import Settings

# A transaction that is open for so long and does nothing keeps deleted rows and announcements.
IDLE_SECONDS = 60.0
REACHABLE = "postgres.reachable"

_SERVER = """
SELECT current_setting('server_version_num')::int, current_setting('server_version'),
       pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool,
       pg_encoding_to_char(encoding)::text,
       current_setting('fsync'), current_setting('synchronous_commit'),
       zone.setting, zone.source,
       coalesce((SELECT setting::float / 1000 FROM pg_settings
                 WHERE name = 'statement_timeout'), 0),
       coalesce((SELECT setting::float / 1000 FROM pg_settings
                 WHERE name = 'idle_session_timeout'), 0),
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_notification_queue_usage() END,
       current_setting('autovacuum')
FROM pg_database, pg_settings AS zone
WHERE datname = current_database() AND zone.name = 'TimeZone'
"""
_CONNECTIONS = """
SELECT current_setting('max_connections')::int
         - current_setting('superuser_reserved_connections')::int
         - coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int,
       rolconnlimit, datconnlimit
FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()
"""
_IDLE_TRANSACTIONS = """
SELECT count(*), min(pid) FROM pg_stat_activity
WHERE state LIKE 'idle in transaction%' AND state_change < now() - make_interval(secs => $1)
"""


async def examine_store(settings: Settings, report: Report) -> None:
    """Examine the store; stops where the server goes away."""
    await _Examination(settings, report).run()


class _Examination:
    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._postgres = settings.backend.postgres
        self._report = report

    async def run(self) -> None:
        report = self._report
        async with AsyncExitStack() as stack:
            try:
                self._connection = await connect(self._postgres, self._postgres.url)
            except StoreUnavailable as error:
                report.add(problem(REACHABLE, str(error), "see backend.postgres; is it up?"))
                return
            stack.push_async_callback(_close, self._connection)
            report.add(ok(REACHABLE, "the server answers"))
            try:
                has_tables = await self._examine()
            except FAILURES as error:
                report.add(problem(REACHABLE, f"not any more: {describe(error)}", "is it stable?"))
                return
        if has_tables:
            # The doctor makes no tables.
            postgres = self._postgres.model_copy(update={"create_schema": False})
            backend = self._settings.backend.model_copy(update={"postgres": postgres})
            advice = "see the other findings"
            report.add(await round_trip(backend, "postgres.announcements", advice))

    async def _examine(self) -> bool:
        """Every check but the last; whether the tables are there, in a server we can write to."""
        report, connection = self._report, self._connection
        server = Server(*await connection.fetchrow(_SERVER))
        report.extend(postgres_server.judge(server, self._postgres.timeout))
        report.add(await self._latency(), await self._clock(), await self._connections())
        report.add(await self._idle_transactions(), await self._pooler())
        if server.is_replica:
            return False
        report.add(await self._notify())
        tables = await postgres_tables.tables(connection, may_create=self._postgres.create_schema)
        report.add(tables)
        if tables.level is not Level.OK:
            return False
        columns = await postgres_tables.columns(connection)
        report.add(columns)
        report.add(await postgres_tables.indexes(connection))
        privileges = await postgres_tables.privileges(connection)
        report.add(privileges)
        if Level.PROBLEM in (columns.level, privileges.level):
            return False
        for check in (postgres_tables.ids, postgres_tables.added_at):
            report.add(await check(connection))
        report.add(await postgres_tables.dead_rows(connection, server))
        return True

    async def _latency(self) -> Finding:
        taken = []
        for _ in range(timing.ROUND_TRIPS):
            since = time.monotonic()
            await self._connection.fetchval("SELECT 1")
            taken.append(time.monotonic() - since)
        setting = "backend.postgres.timeout"
        return timing.latency("postgres.latency", taken, self._postgres.timeout, setting)

    async def _clock(self) -> Finding:
        since = time.time()
        theirs = await self._connection.fetchval(
            "SELECT extract(epoch FROM clock_timestamp())::float"
        )
        until = time.time()
        return timing.clock("postgres.clock", theirs - (since + until) / 2, until - since)

    async def _connections(self) -> Finding:
        seen = Connections(*await self._connection.fetchrow(_CONNECTIONS))
        needed = self._settings.server.workers * (self._postgres.pool_size + 1)
        return postgres_server.connections(seen, needed)

    async def _idle_transactions(self) -> Finding:
        check = "postgres.transactions"
        count, pid = await self._connection.fetchrow(_IDLE_TRANSACTIONS, IDLE_SECONDS)
        if count:
            return warning(
                check,
                f"{count} sessions do nothing in an open transaction for more than "
                f"{IDLE_SECONDS:g} s: deleted rows and announcements cannot be forgotten meanwhile",
                f"SELECT pg_terminate_backend({pid}), or idle_in_transaction_session_timeout",
            )
        return ok(check, "no session stays in a transaction")

    # -- poolers and announcements -----------------------------------------------------------

    async def _pooler(self) -> Finding:
        """Whether a pooler is in between: it does not pass on the server's own process id."""
        check = "postgres.pooler"
        ours = self._connection.get_server_pid()
        if ours == await self._connection.fetchval("SELECT pg_backend_pid()"):
            return ok(check, "none before backend.postgres.url")
        if self._postgres.listen_url is None:
            return problem(
                check,
                "backend.postgres.url leads through a pooler, and listen_url is not set: "
                "announcements and prepared statements need a session of their own",
                "set backend.postgres.listen_url to the server itself",
            )
        return ok(check, "one before backend.postgres.url, and announcements go around it")

    async def _notify(self) -> Finding:
        """Listen as the store does, and announce something that nobody else listens to."""
        check = "postgres.notify"
        url = self._postgres.listen_url or self._postgres.url
        try:
            listening = await connect(self._postgres, url)
        except StoreUnavailable as error:
            where = "backend.postgres.listen_url"
            return problem(check, f"{where} cannot be used: {error}", f"see {where}")
        try:
            return await self._call(listening, check)
        finally:
            await _close(listening)

    async def _call(self, listening: asyncpg.Connection, check: str) -> Finding:
        channel = f"messagebusd_doctor_{secrets.token_hex(8)}"
        heard = asyncio.Event()

        def hear(*_: object) -> None:
            heard.set()

        await listening.add_listener(channel, hear)
        since = time.monotonic()
        try:
            await self._connection.execute(f"NOTIFY {channel}")
            async with asyncio.timeout(self._postgres.timeout):
                await heard.wait()
        except TimeoutError:
            return problem(
                check,
                "what is announced through backend.postgres.url is not heard at listen_url (or "
                "url, if that is not set): there is a pooler in between, or it is another database",
                "set backend.postgres.listen_url to the server itself and the same database",
            )
        finally:
            with suppress(*FAILURES):
                await listening.remove_listener(channel, hear)
        return ok(check, f"announced and heard in {(time.monotonic() - since) * 1000:.0f} ms")


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=1)
    except FAILURES:
        connection.terminate()
