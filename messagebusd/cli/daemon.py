"""Commands that run a daemon, or prepare to: serve, check-config, config, key, demo and so on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from messagebusd import __version__
from messagebusd.errors import ConfigurationError
from messagebusd.log import configure_logging
from messagebusd.settings import LoadedSettings, load_settings
from messagebusd.settings.reference import effective_lines
from messagebusd.settings.values import key_name

logger = logging.getLogger(__name__)

config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    envvar="MESSAGEBUSD_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="TOML file with the settings. Without one: defaults and environment.",
)


def load_or_exit(path: Path | None, **overrides: object) -> LoadedSettings:
    """Load the settings, or name every problem and exit with 1."""
    with exit_on_problems():
        return load_settings(path, os.environ, overrides)


@contextmanager
def exit_on_problems() -> Iterator[None]:
    """Name every problem of the settings and exit with 1."""
    try:
        yield
    except ConfigurationError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise click.exceptions.Exit(1) from None


@click.command()
@config_option
@click.option("--listen", metavar="ADDRESS", help="Public address, in place of server.listen.")
@click.option("--backend", metavar="KIND", help="The store, in place of backend.kind.")
def serve(path: Path | None, listen: str | None, backend: str | None) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    \b
    Examples:
      messagebusd serve
      messagebusd serve --config /etc/messagebusd/bus.toml
      messagebusd serve --listen 127.0.0.1:0
      messagebusd serve --listen unix:/run/messagebusd/public.sock

    Parked polls are let end by themselves, for at most server.shutdown_timeout seconds; a second
    signal ends them at once. SIGHUP has file and environment read again: keys, rules, limits,
    lookups and log level change at once, or, if anything is wrong, nothing does.
    """
    # One that comes before anybody can act on it waits until then, see `reloading.listen`.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    overrides = {"server.listen": listen, "backend.kind": backend}
    loaded = load_or_exit(path, **overrides)
    configure_logging(loaded.settings.log.level, loaded.settings.log.format)
    for warning in loaded.warnings:
        logger.warning(warning)
    raise click.exceptions.Exit(_run(loaded, lambda: load_settings(path, os.environ, overrides)))


def _run(loaded: LoadedSettings, load: Callable[[], LoadedSettings]) -> int:
    # Imported here, because other commands need none of it.
    if loaded.settings.server.workers > 1:
        from messagebusd.supervisor import supervisor

        return supervisor.run(loaded, load)
    from messagebusd import alone

    return alone.run(loaded, load)


@click.command("check-config")
@config_option
def check_config(path: Path | None) -> None:
    """Check the settings and exit.

    Prints "ok", or every problem on its own line with the place it comes from, and exits with 1.
    Environment variables are checked as well.

    \b
    Example:
      messagebusd check-config --config bus.toml
    """
    loaded = load_or_exit(path)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    # Imported here, because other commands need none of it.
    from messagebusd.backends.codec import load_codec
    from messagebusd.identity import open_lookup
    from messagebusd.metrics import Metrics

    with exit_on_problems():
        load_codec(loaded.settings.backend.codec)
        open_lookup(loaded.settings.lookup, Metrics())  # reads keys, and asks nobody
    click.echo(f"ok {path}" if path is not None else "ok (no file)")


@click.command()
@config_option
def config(path: Path | None) -> None:
    """Show all settings in effect and where each comes from. Secrets are hidden.

    \b
    Example:
      MESSAGEBUSD_LOG__LEVEL=debug messagebusd config --config bus.toml | grep -v 'default$'
    """
    for line in effective_lines(load_or_exit(path)):
        click.echo(line)


def _key_name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    try:
        return key_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("name", default="my-key", callback=_key_name)
def key(name: str) -> None:
    """Make a random API key called NAME.

    Prints the key, which is for the client, and what to put into the configuration, which holds
    only its hash. The key is not kept anywhere else.

    \b
    Example:
      messagebusd key forum
    """
    token = f"mb_{secrets.token_urlsafe(32)}"
    click.echo(token)
    click.echo()
    click.echo("[[api.keys]]")
    click.echo(f'name = "{name}"')
    click.echo(f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"')
    click.echo('scopes = ["publish", "read"]')


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8090,
    show_default=True,
    help="Port to listen on.",
)
def demo(host: str, port: int) -> None:
    """Run the daemon and a small chat in one process.

    Open the address it prints, and once more as localhost or in a private window to be two people.
    Nothing is kept. Everybody who can reach it can log in, without a password and without TLS:
    leave it on loopback.
    """
    from messagebusd import demo as application

    raise click.exceptions.Exit(application.run(host, port))


@click.command()
def openapi() -> None:
    """Print the OpenAPI description of the HTTP API, as JSON."""
    from messagebusd.http import openapi as description

    click.echo(json.dumps(description.document(), indent=2))


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"messagebusd {__version__}")


COMMANDS: tuple[click.Command, ...] = (
    serve,
    check_config,
    config,
    key,
    demo,
    openapi,
    version,
)
