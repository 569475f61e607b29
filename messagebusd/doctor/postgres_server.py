"""What a PostgreSQL server says of itself, judged: values in, findings out, no I/O."""

from __future__ import annotations

from typing import NamedTuple

from messagebusd.doctor.report import Finding, ok, problem, size, warning

OLDEST_VERSION = 13
# Of the queue that announcements wait in until every listening session has read them.
LONG_QUEUE, FULL_QUEUE = 0.05, 0.5
# Rows that were deleted and still take up room: so many, and so many times those that live.
MANY_DEAD, DEAD_PER_LIVE = 10_000, 5


class Server(NamedTuple):
    """One row about the server and our session."""

    version_number: int
    version: str
    is_replica: bool
    is_read_only: bool
    encoding: str
    fsync: str
    synchronous_commit: str
    time_zone: str
    time_zone_source: str
    statement_timeout: float
    idle_session_timeout: float
    queue_usage: float
    autovacuum: str


class Connections(NamedTuple):
    """How many there may be, and are. -1 is no limit."""

    usable: int
    used: int
    role_limit: int
    database_limit: int


class Table(NamedTuple):
    """How large the table is."""

    total_bytes: int
    live_rows: int
    dead_rows: int
    has_autovacuum: bool


def judge(server: Server, timeout: float) -> list[Finding]:
    """All that one row tells."""
    return [
        version(server),
        role(server),
        encoding(server),
        durability(server),
        time_zone(server),
        timeouts(server, timeout),
        queue(server),
    ]


def version(server: Server) -> Finding:
    """Whether the server is new enough."""
    if server.version_number < OLDEST_VERSION * 10_000:
        needed = f"needs at least PostgreSQL {OLDEST_VERSION}"
        return problem("postgres.version", f"PostgreSQL {server.version}", needed)
    return ok("postgres.version", f"PostgreSQL {server.version}")


def role(server: Server) -> Finding:
    """Whether this is a server that can be written to."""
    if server.is_replica:
        return problem(
            "postgres.role",
            "a standby; publishes fail, and nothing can be listened to",
            "point backend.postgres.url and listen_url at the primary",
        )
    if server.is_read_only:
        return problem(
            "postgres.role",
            "transactions are read-only; publishes fail",
            "ALTER ROLE or ALTER DATABASE … SET default_transaction_read_only = off",
        )
    return ok("postgres.role", "a primary")


def encoding(server: Server) -> Finding:
    """Whether every text can be stored."""
    if server.encoding == "UTF8":
        return ok("postgres.encoding", "UTF8")
    return problem(
        "postgres.encoding",
        f"the database's encoding is {server.encoding}: not every text can be stored",
        "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and use that",
    )


def durability(server: Server) -> Finding:
    """What a crash of the server loses."""
    if server.fsync == "off":
        return warning(
            "postgres.durability",
            "fsync is off: a crash of the machine can destroy the database",
            "fsync = on in postgresql.conf",
        )
    if server.synchronous_commit == "off":
        return warning(
            "postgres.durability",
            "synchronous_commit is off: a crash loses the latest publishes, and their ids are "
            "given again",
            "ALTER ROLE … SET synchronous_commit = on",
        )
    return ok("postgres.durability", f"synchronous_commit is {server.synchronous_commit}")


def time_zone(server: Server) -> Finding:
    """Whether our sessions write local time as everybody else's do (REFERENCE 4.4)."""
    if server.time_zone_source in ("user", "database user", "client", "session"):
        return warning(
            "postgres.time_zone",
            f"TimeZone is {server.time_zone} for this role alone: added_at is local time, so rows "
            "of other roles expire too early or too late",
            "ALTER ROLE … RESET TimeZone; set it for the database or the server, if at all",
        )
    return ok("postgres.time_zone", f"TimeZone is {server.time_zone}, not set for this role alone")


def timeouts(server: Server, timeout: float) -> Finding:
    """Whether the server ends statements or sessions before we do."""
    if server.idle_session_timeout:
        return warning(
            "postgres.timeouts",
            f"idle_session_timeout is {server.idle_session_timeout:g} s: the server ends the "
            "connection that listens whenever nothing happens for so long",
            "ALTER ROLE … SET idle_session_timeout = 0",
        )
    if 0 < server.statement_timeout < timeout:
        return warning(
            "postgres.timeouts",
            f"statement_timeout is {server.statement_timeout:g} s, less than "
            f"backend.postgres.timeout ({timeout:g} s)",
            "ALTER ROLE … SET statement_timeout = 0",
        )
    return ok("postgres.timeouts", "the server ends neither our statements nor our sessions early")


def queue(server: Server) -> Finding:
    """Whether somebody keeps announcements from being forgotten."""
    found = f"the queue of announcements is {server.queue_usage:.0%} full"
    advice = (
        "end the session that listens and stays in a transaction: SELECT pid, xact_start, query "
        "FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    )
    if server.queue_usage >= FULL_QUEUE:
        return problem("postgres.queue", f"{found}: publishes fail when it is full", advice)
    if server.queue_usage >= LONG_QUEUE:
        return warning("postgres.queue", found, advice)
    return ok("postgres.queue", found)


def connections(seen: Connections, needed: int) -> Finding:
    """Whether there is room for the daemon's connections."""
    check = "postgres.connections"
    limits = {"max_connections": seen.usable}
    if seen.role_limit >= 0:
        limits["the role's connection limit"] = seen.role_limit
    if seen.database_limit >= 0:
        limits["the database's connection limit"] = seen.database_limit
    name, least = min(limits.items(), key=lambda each: each[1])
    what = f"this daemon uses {needed} (server.workers times backend.postgres.pool_size and one)"
    advice = f"raise {name}, lower backend.postgres.pool_size, or use a pooler and listen_url"
    if needed > least:
        return problem(check, f"{what}, but {name} allows {least}", advice)
    if needed > seen.usable - seen.used:
        return warning(
            check,
            f"{what}, and {seen.used} of {seen.usable} are in use, this daemon's included if it "
            "runs",
            advice,
        )
    return ok(check, f"{what}; {seen.used} of {seen.usable} are in use")


def vacuum(server: Server, table: Table) -> Finding:
    """Whether deleted rows make room for new ones."""
    found = f"{table.live_rows} rows, {table.dead_rows} deleted ones, {size(table.total_bytes)}"
    if server.autovacuum == "off" or not table.has_autovacuum:
        return warning(
            "postgres.vacuum",
            f"{found}; autovacuum is off, so the table grows for ever",
            "autovacuum = on in postgresql.conf, ALTER TABLE message_bus RESET "
            "(autovacuum_enabled)",
        )
    if table.dead_rows > MANY_DEAD and table.dead_rows > DEAD_PER_LIVE * table.live_rows:
        return warning(
            "postgres.vacuum",
            f"{found}; vacuum does not keep up",
            "VACUUM message_bus, and look for sessions that stay in a transaction; ALTER TABLE "
            "message_bus SET (autovacuum_vacuum_scale_factor = 0, "
            "autovacuum_vacuum_threshold = 5000)",
        )
    return ok("postgres.vacuum", found)
