"""``messagebusd doctor``: is the store as the daemon needs it?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from messagebusd.cli.daemon import config_option, load_or_exit


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def doctor(path: Path | None, as_json: bool) -> None:
    """Examine the store and say what is wrong with it.

    Prints one line for each check: ok, warning or problem, what was found, and after an arrow what
    to do. Exits with 1 if there is a problem. Changes nothing; run it as the daemon's user.

    \b
    Examples:
      messagebusd doctor --config /etc/messagebusd/bus.toml
      messagebusd doctor --json | jq '.checks[] | select(.level != "ok")'
    """
    from messagebusd.doctor import examine  # imports every driver

    loaded = load_or_exit(path)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    report = asyncio.run(examine(loaded.settings))
    for line in [report.as_json()] if as_json else report.lines():
        click.echo(line)
    raise click.exceptions.Exit(1 if report.has_problem else 0)
