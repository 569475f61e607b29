"""``messagebusd db``: the tables of the PostgreSQL store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from messagebusd.cli.daemon import config_option, load_or_exit
from messagebusd.errors import StoreUnavailable
from messagebusd.settings.backend import PostgresSettings


@click.group()
def db() -> None:
    """Prepare the database of the PostgreSQL store."""


@db.command()
@config_option
def init(path: Path | None) -> None:
    """Make the tables that are missing, as the role of backend.postgres.

    The daemon does this by itself, unless backend.postgres.create_schema is off because its role
    may not. Run it then as a role that may, with that role in the URL, and grant the daemon's role
    what this prints.

    \b
    Example:
      MESSAGEBUSD_BACKEND__POSTGRES__URL=postgresql://admin@db/forum messagebusd db init
    """
    settings = load_or_exit(path).settings.backend.postgres
    try:
        lines = asyncio.run(_init(settings))
    except StoreUnavailable as error:
        click.echo(f"the database cannot be prepared: {error}", err=True)
        raise click.exceptions.Exit(1) from None
    for line in lines:
        click.echo(line)


async def _init(settings: PostgresSettings) -> list[str]:
    # Imported here, because other commands need none of it.
    from messagebusd.backends.postgres import schema
    from messagebusd.backends.postgres.pool import connect

    connection = await connect(settings, settings.listen_url or settings.url)
    try:
        made = await schema.create_tables(connection)
    finally:
        await connection.close()
    lines = [f"created {name}" for name in made] or ["all tables are there already"]
    return [*lines, "", "A role that did not create them needs:", *schema.grants("<role>")]
