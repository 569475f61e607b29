"""``messagebusd doctor``: is the store as the daemon needs it?"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from messagebusd.errors import ConfigurationError
from messagebusd.settings import load_settings


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    envvar="MESSAGEBUSD_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="TOML file with the settings. Without one: defaults and environment.",
)
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

    try:
        loaded = load_settings(path, os.environ, {})
    except ConfigurationError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise click.exceptions.Exit(1) from None
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    report = asyncio.run(examine(loaded.settings))
    for line in [report.as_json()] if as_json else report.lines():
        click.echo(line)
    raise click.exceptions.Exit(1 if report.has_problem else 0)
