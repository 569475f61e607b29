"""The tables: the Ruby library's, column for column, and two of our own.

``message_bus`` is shared. ``messagebusd_once`` remembers what was published under a `Once`, and
``messagebusd_age`` which channels keep their messages for another time than the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from messagebusd.backends.postgres.errors import FAILURES, translate
from messagebusd.errors import StoreUnavailable

# Taken while tables are made, so that of several daemons only one does it.
SCHEMA_LOCK = 0x6D625F736368656D
# A Ruby process may make the table at the same moment; the second look then finds it.
ATTEMPTS = 3

TABLES: dict[str, tuple[str, ...]] = {
    "message_bus": (
        "CREATE TABLE message_bus (id bigserial PRIMARY KEY, channel text NOT NULL,"
        " value text NOT NULL CHECK (octet_length(value) >= 2),"
        " added_at timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL)",
        "CREATE INDEX table_channel_id_index ON message_bus (channel, id)",
        "CREATE INDEX table_added_at_index ON message_bus (added_at)",
    ),
    "messagebusd_once": (
        "CREATE TABLE messagebusd_once (slot bytea PRIMARY KEY, fingerprint bytea NOT NULL,"
        " id bigint, at timestamptz NOT NULL DEFAULT now())",
        "CREATE INDEX messagebusd_once_at_index ON messagebusd_once (at)",
    ),
    "messagebusd_age": (
        "CREATE TABLE messagebusd_age (channel text PRIMARY KEY, seconds bigint NOT NULL,"
        " due timestamptz NOT NULL)",
        "CREATE INDEX messagebusd_age_due_index ON messagebusd_age (due)",
    ),
}

_MISSING = """
SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS wanted(name, place)
WHERE to_regclass(quote_ident(name)) IS NULL ORDER BY place
"""
_EXISTS_NOW = (
    asyncpg.DuplicateTableError,
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
)


async def missing_tables(connection: asyncpg.Connection) -> Sequence[str]:
    """The tables that are not there. Raises StoreUnavailable."""
    try:
        return [row["name"] for row in await connection.fetch(_MISSING, list(TABLES))]
    except FAILURES as error:
        raise translate(error) from error


async def create_tables(connection: asyncpg.Connection) -> Sequence[str]:
    """Make the tables that are missing, whoever else does the same; which ones it made.

    Raises StoreUnavailable.
    """
    for _ in range(ATTEMPTS):
        if not await missing_tables(connection):
            return []
        try:
            async with connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
                missing = await missing_tables(connection)
                for name in missing:
                    for statement in TABLES[name]:
                        await connection.execute(statement)
        except _EXISTS_NOW:
            continue
        except FAILURES as error:
            raise translate(error) from error
        return missing
    raise StoreUnavailable("somebody else makes and drops the tables all the time")


async def require_tables(connection: asyncpg.Connection, *, create: bool) -> None:
    """See that the tables are there. Raises StoreUnavailable."""
    if create:
        await create_tables(connection)
    elif missing := await missing_tables(connection):
        raise StoreUnavailable(
            f"the database has no table {', '.join(missing)}: run `messagebusd db init`"
        )


def grants(role: str) -> Sequence[str]:
    """What a role needs to use the tables that another one has made."""
    return [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO {role};",
        f"GRANT USAGE, SELECT ON SEQUENCE message_bus_id_seq TO {role};",
    ]
