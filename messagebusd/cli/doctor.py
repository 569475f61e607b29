"""``messagebusd doctor``: are store, application, and the way to browsers as they should be?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from messagebusd.cli.api import ApiError, key_file_option, read_key, valid_url
from messagebusd.cli.daemon import config_option, load_or_exit


@click.command()
@config_option
@click.option(
    "--public-url",
    callback=valid_url,
    metavar="URL",
    help="Where browsers find the site: examine the way through the proxy as well.",
)
@key_file_option
@click.option(
    "--headers-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='What somebody sends who is logged in, a line each: "Cookie: ...".',
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def doctor(
    path: Path | None,
    public_url: str | None,
    key_file: Path | None,
    headers_file: Path | None,
    as_json: bool,
) -> None:
    """Examine the store, the application, and the way through the proxy.

    Prints one line for each check: ok, warning or problem, what was found, and after an arrow what
    to do. Exits with 1 if there is a problem. Changes nothing; run it as the daemon's user.

    With --public-url it polls as a browser would and publishes to itself, with a key of the scopes
    publish and admin: api.key, or the one in MESSAGEBUSD_KEY. That takes as long as a poll waits.

    \b
    Examples:
      messagebusd doctor --config /etc/messagebusd/bus.toml
      messagebusd doctor --json | jq '.checks[] | select(.level != "ok")'
      messagebusd doctor --config bus.toml --public-url https://forum.example
    """
    from messagebusd.doctor import examine  # imports every driver

    loaded = load_or_exit(path)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    headers = {} if headers_file is None else _headers(headers_file)
    report = asyncio.run(
        examine(loaded.settings, public_url=public_url, key=read_key(key_file), headers=headers)
    )
    for line in [report.as_json()] if as_json else report.lines():
        click.echo(line)
    raise click.exceptions.Exit(1 if report.has_problem else 0)


def _headers(path: Path) -> dict[str, str]:
    """They are secrets: neither an option nor an error shows them."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise ApiError(f"{path} cannot be read: {reason}") from None
    headers = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if line.strip() and not (colon and name.strip() == name and name):
            raise ApiError(f"{path}, line {number}: must be a header, Name: value")
        if line.strip():
            headers[name] = value.strip()
    return headers
