"""What is in the database: tables, columns, indexes, privileges; whether the rows make sense."""

from __future__ import annotations

import asyncpg

from messagebusd.backends.postgres.schema import TABLES
from messagebusd.doctor.postgres_server import Server, Table, vacuum
from messagebusd.doctor.report import Finding, ok, problem, some, warning

TABLE, KEY_COLUMN = "message_bus", "id"
# The Ruby library's columns (REFERENCE 4.4).
COLUMNS = {
    "id": "bigint",
    "channel": "text",
    "value": "text",
    "added_at": "timestamp without time zone",
}
# What the statements of publishing and reading look things up by.
INDEXES = (("id",), ("channel", "id"), ("added_at",))
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
# Clocks may differ a little; a time zone is at least half an hour.
FUTURE_SECONDS = 600

_MAY_CREATE = """
SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may,
       current_schema() AS schema
"""
_MISSING = (
    "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(quote_ident(name)) IS NULL"
)
_COLUMNS = """
SELECT attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS not_null,
       pg_get_expr(adbin, adrelid) AS default
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""
_INDEXES = """
SELECT ARRAY(SELECT attname::text FROM unnest(indkey) WITH ORDINALITY AS key(number, place)
             JOIN pg_attribute ON attrelid = indrelid AND attnum = key.number
             ORDER BY place) AS columns
FROM pg_index WHERE indrelid = to_regclass($1) AND indisvalid AND indpred IS NULL
"""
_LACKING = """
SELECT format('%s ON %I', privilege, name) AS lacking
FROM unnest($1::text[]) AS name, unnest($2::text[]) AS privilege
WHERE NOT has_table_privilege(to_regclass(quote_ident(name)), privilege)
UNION ALL
SELECT 'USAGE ON SEQUENCE ' || sequence FROM pg_get_serial_sequence($3, $4) AS sequence
WHERE NOT has_sequence_privilege(sequence, 'USAGE')
UNION ALL
SELECT 'EXECUTE ON FUNCTION ' || name::regprocedure
FROM unnest(ARRAY['pg_notify(text,text)', 'pg_advisory_xact_lock(bigint)']) AS name
WHERE NOT has_function_privilege(name::regprocedure, 'EXECUTE')
"""
# Not by the sequence's own columns, which take a privilege that nobody needs.
_IDS = """
SELECT coalesce((SELECT max(id) FROM message_bus), 0) AS highest,
       pg_sequence_last_value(pg_get_serial_sequence('message_bus', 'id')::regclass) AS last
"""
_FUTURE = """
SELECT extract(epoch FROM max(added_at) - localtimestamp)::float AS ahead FROM message_bus
"""
_SIZE = """
SELECT pg_total_relation_size(c.oid) AS total, coalesce(n_live_tup, 0) AS live,
       coalesce(n_dead_tup, 0) AS dead,
       NOT coalesce(c.reloptions @> ARRAY['autovacuum_enabled=false'], false) AS autovacuum
FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid WHERE c.oid = to_regclass($1)
"""


async def tables(connection: asyncpg.Connection, *, may_create: bool) -> Finding:
    """Whether all tables are there; ok only if they are."""
    check, names = "postgres.tables", list(TABLES)
    missing = [row["name"] for row in await connection.fetch(_MISSING, names)]
    if not missing:
        return ok(check, some(names))
    found = f"missing: {some(missing)}"
    by_hand = "run `messagebusd db init` once, as a role that may create tables"
    if not may_create:
        return problem(check, f"{found}; backend.postgres.create_schema is off", by_hand)
    row = await connection.fetchrow(_MAY_CREATE)
    if row is None or not row["may"]:
        return problem(check, f"{found}, and the role may not create tables", by_hand)
    return warning(check, f"{found}; the daemon makes them when it starts", "start it")


async def columns(connection: asyncpg.Connection) -> Finding:
    """Whether the table is the one that Ruby processes use as well."""
    check = "postgres.columns"
    rows = {row["name"]: row for row in await connection.fetch(_COLUMNS, TABLE)}
    wrong = [
        f"{name} is {rows[name]['type'] if name in rows else 'missing'}, not {kind}"
        for name, kind in COLUMNS.items()
        if name not in rows or rows[name]["type"] != kind
    ]
    wrong += [
        f"{name} may be null" for name in COLUMNS if name in rows and not rows[name]["not_null"]
    ]
    wrong += [
        f"{name} has no default"
        for name in (KEY_COLUMN, "added_at")
        if name in rows and not rows[name]["default"]
    ]
    wrong += [
        f"{name} is unknown to us and must be given"
        for name, row in rows.items()
        if name not in COLUMNS and row["not_null"] and not row["default"]
    ]
    if wrong:
        return problem(
            check,
            f"{TABLE}: {'; '.join(wrong)}",
            f"ALTER TABLE {TABLE}, or move it away and run `messagebusd db init`",
        )
    return ok(check, f"{TABLE} has the columns that Ruby's library makes")


async def indexes(connection: asyncpg.Connection) -> Finding:
    """Whether reading and trimming find what they look for."""
    there = [tuple(row["columns"]) for row in await connection.fetch(_INDEXES, TABLE)]
    missing = [
        f"({', '.join(wanted)})"
        for wanted in INDEXES
        if not any(each[: len(wanted)] == wanted for each in there)
    ]
    if missing:
        return problem(
            "postgres.indexes",
            f"{TABLE} has no index on {' and '.join(missing)}: reading becomes slow as it grows",
            "; ".join(f"CREATE INDEX CONCURRENTLY ON {TABLE} {each}" for each in missing),
        )
    return ok("postgres.indexes", "on id, on channel and id, and on added_at")


async def privileges(connection: asyncpg.Connection) -> Finding:
    """Whether the role may do what the statements do."""
    rows = await connection.fetch(_LACKING, list(TABLES), list(PRIVILEGES), TABLE, KEY_COLUMN)
    if not rows:
        return ok("postgres.privileges", "the role may read and write, and announce")
    lacking = [row["lacking"] for row in rows]
    return problem(
        "postgres.privileges",
        f"the role lacks {some(lacking, 20)}",
        "as the owner: " + "; ".join(f"GRANT {each} TO …" for each in lacking),
    )


async def ids(connection: asyncpg.Connection) -> Finding:
    """Whether the next id is a new one: a table that was restored may come without its sequence."""
    row = await connection.fetchrow(_IDS)
    highest, last = row["highest"], row["last"] or 0
    if last < highest:
        return problem(
            "postgres.ids",
            f"the sequence is at {last}, the newest row is {highest}: publishes fail until it has "
            "caught up",
            f"SELECT setval(pg_get_serial_sequence('{TABLE}', '{KEY_COLUMN}'), {highest})",
        )
    return ok("postgres.ids", f"the newest row is {highest}")


async def added_at(connection: asyncpg.Connection) -> Finding:
    """Whether everybody writes the same local time."""
    ahead = await connection.fetchval(_FUTURE)
    if ahead is not None and ahead > FUTURE_SECONDS:
        return warning(
            "postgres.added_at",
            f"the newest row is from {ahead / 3600:.1f} hours in the future: its writer has "
            "another TimeZone, and what such writers publish expires at the wrong time",
            "leave TimeZone at the server's default in every session that publishes",
        )
    return ok("postgres.added_at", "no row is from the future")


async def dead_rows(connection: asyncpg.Connection, server: Server) -> Finding:
    """Whether deleted rows make room for new ones."""
    row = await connection.fetchrow(_SIZE, TABLE)
    return vacuum(server, Table(row["total"], row["live"], row["dead"], row["autovacuum"]))
